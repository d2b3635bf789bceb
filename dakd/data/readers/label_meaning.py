"""How the masks of a split are read: by id, by colour, or as black and white."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from dakd.data.readers.mask_pixels import BLACK, WHITE, pack, shown_colour, unpack
from dakd.data.sample import IGNORE_INDEX, ClassTable

_MAX_OFF_BLEND = 64.0  # distance of a colour in RGB from the line between two class colours; in OSD up to 50
_WORDS = {
    "ids": "ids",
    "colours": "colours of the class table",
    "palette": "palette colours of the class table",
    "binary": "black and white",
    "threshold": "black and white, cut at prepare.mask_threshold",
}
CHOICES = (
    "set prepare.mask_values to ids (the stored numbers; 255 is unknown, the bits of a 1-bit picture are 0 and 1), "
    "colours (what the pixels show), palette (palettes by colour, other masks by id) or binary (two classes, black and "
    "white)"
)
JPEG_IDS = (
    "is a JPEG, whose compression changes ids and colours, or a TIFF compressed like one; expected PNG, or TIFF with "
    "an exact compression such as deflate: make the mask again, or, where it is black and white, cut it (magick IN "
    "-threshold 50% OUT.png)"
)


@dataclass(frozen=True)
class LabelMeaning:
    """How the masks of a split are read.

    reading: ids, colours, palette (palettes by colour, other masks by id), binary or, in SOS, threshold; "" where no
    mask fits any.
    is_firm: False where another split may decide, as for empty masks.  facts: for index.json and report.json.
    greys: the values that grey masks hold.  palettes: the values that palette masks hold, with their packed colours.
    """

    classes: ClassTable
    reading: str
    may_be_unknown: bool = True
    is_firm: bool = True
    facts: dict = field(default_factory=dict)
    greys: frozenset[int] = frozenset()
    palettes: frozenset[tuple[int, int]] = frozenset()

    def class_of(self, form: str, palette: tuple[int, ...], value: int) -> int | None:
        """The class id of a stored value, IGNORE_INDEX for unknown; None where it has no meaning."""
        by_colour = self.reading == "colours" or (self.reading == "palette" and form == "palette")
        if by_colour:
            return self._by_colour(shown_colour(form, palette, value))
        if self.reading == "binary":
            return self._by_side(form, palette, value)
        return self._by_id(form, value) if self.reading in ("ids", "palette") else None

    def numbers(self) -> list[tuple[int, int, bool]]:
        """Stored number, its class, and whether a palette's colour says so; without numbers that have several."""
        greys = {(value, self.class_of("grey", (), value), False) for value in self.greys}
        by_palette = self.reading in ("colours", "palette")
        colours = {(value, colour_ids(self.classes).get(colour), True) for value, colour in self.palettes}
        ids = {(value, self.class_of("palette", (), value), False) for value, _ in self.palettes}
        found = [one for one in greys | (colours if by_palette else ids) if one[1] is not None]
        counts = Counter((value, is_by_palette) for value, _, is_by_palette in found)
        return sorted(one for one in found if counts[one[0], one[2]] == 1)

    def known_numbers(self) -> dict:
        """The stored numbers that have a meaning, for `facts`, from which `meaning_of_facts` takes them."""
        colours = colour_ids(self.classes) if self.reading in ("colours", "palette") else None
        palettes = [
            [value, colour]
            for value, colour in sorted(self.palettes)
            if (self.class_of("palette", (), value) is not None if colours is None else colour in colours)
        ]
        greys = [value for value in sorted(self.greys) if self.class_of("grey", (), value) is not None]
        return {"greys": greys, "palettes": palettes}

    def describe(self, split: str) -> str:
        """The decision in one line for people."""
        counts = ", ".join(
            f"{name} {facts['pixels']} px ({' '.join(facts['values'])})"
            for name, facts in self.facts["classes"].items()
        )
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.facts["pixel_types"].items())
        asked = "" if self.facts["setting"] == "auto" else " as prepare.mask_values says"
        return f"{split} masks ({kinds}): read as {_WORDS.get(self.reading, 'nothing')}{asked}: {counts or 'no pixel'}"

    def _by_colour(self, colour: int | None) -> int | None:
        return None if colour is None else colour_ids(self.classes).get(colour)

    def _by_id(self, form: str, value: int) -> int | None:
        if form == "colours" or value < 0:
            return None
        is_known = value < self.classes.num_classes or (self.may_be_unknown and value == IGNORE_INDEX)
        return value if is_known else None

    def _by_side(self, form: str, palette: tuple[int, ...], value: int) -> int | None:
        colour = WHITE if form == "grey" and value == 1 else shown_colour(form, palette, value)
        white = white_class(self.classes)
        return {BLACK: 1 - white, WHITE: white}.get(colour)


def meaning_of_facts(classes: ClassTable, facts: dict) -> LabelMeaning:
    """The meaning of masks that were packed, as far as `refuse_contradiction` asks for it; facts: of their index."""
    greys, palettes = facts.get("greys", ()), facts.get("palettes", ())
    return LabelMeaning(
        classes, facts["reading"], facts=facts, greys=frozenset(greys), palettes=frozenset(map(tuple, palettes))
    )


def white_class(classes: ClassTable) -> int:
    """Of two classes the one that white means: it has the colour white, or the other is black; else the second."""
    return 0 if pack(classes.colours[0]) == WHITE or pack(classes.colours[1]) == BLACK else 1


def colour_ids(classes: ClassTable) -> dict[int, int]:
    """Class ids by packed colour."""
    return {pack(colour): class_id for class_id, colour in enumerate(classes.colours)}


def class_name(classes: ClassTable, class_id: int) -> str:
    """The name of an id, "unknown" for IGNORE_INDEX."""
    return classes.names[class_id] if class_id < classes.num_classes else "unknown"


def nearest_class(colour: int, classes: ClassTable) -> int:
    """The class whose colour is nearest to a packed one; the first of equally near ones."""
    distances = ((np.array(classes.colours, np.int64) - np.array(unpack(colour))) ** 2).sum(axis=1)
    return int(distances.argmin())


def blended_class(colour: int, classes: ClassTable) -> int | None:
    """The nearer of the two classes whose colours a packed colour blends, as smooth edges do; None for other colours.

    Not the nearest class of all: halfway between black and red, (128, 0, 0) is nearest to OSD's brown.
    """
    table, point = np.array(classes.colours, np.float64), np.array(unpack(colour), np.float64)
    starts, ends = table[:, None], table[None]
    steps = ends - starts
    lengths = (steps**2).sum(-1)
    shares = np.clip(((point - starts) * steps).sum(-1) / np.maximum(lengths, 1), 0, 1)
    distances = np.linalg.norm(starts + shares[..., None] * steps - point, axis=-1)
    first, second = np.unravel_index(distances.argmin(), distances.shape)
    if distances[first, second] > _MAX_OFF_BLEND:
        return None
    return int(first if shares[first, second] < 0.5 else second)


def refuse_contradiction(meanings: dict[str, LabelMeaning]) -> None:
    """ValueError where one stored number means one class in one split and another in the next.

    Palettes that are read by their colours may differ; those that are read by id show one colour for one id. Where
    prepare.mask_values decides, nothing is refused.
    """
    meanings = {split: one for split, one in meanings.items() if one.facts.get("setting", "auto") == "auto"}
    seen: dict[int, list[tuple[str, int, bool]]] = {}
    shown: dict[int, tuple[str, int]] = {}
    for split, meaning in meanings.items():
        for value, class_id, is_by_palette in meaning.numbers():
            for other, before, was_by_palette in seen.setdefault(value, []):
                if other != split and before != class_id and not (is_by_palette and was_by_palette):
                    names = [repr(class_name(meaning.classes, one)) for one in (before, class_id)]
                    raise ValueError(
                        f"the value {value} would mean {names[0]} in the masks of {other!r} and {names[1]} in those of "
                        f"{split!r} ({meanings[other].describe(other)}; {meaning.describe(split)}); {CHOICES}"
                    )
            seen[value].append((split, class_id, is_by_palette))
        for value, colour in sorted(meaning.palettes) if meaning.reading == "ids" else ():
            other, before = shown.setdefault(value, (split, colour))
            if before != colour:
                raise ValueError(
                    f"the palettes of the masks of {other!r} and {split!r} differ: the value {value} shows "
                    f"{unpack(before)} and {unpack(colour)}, not both of them in prepare.classes; complete it, or "
                    f"{CHOICES}"
                )
