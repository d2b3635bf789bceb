"""How the masks of a split are read: by id, by colour, or as black and white."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dakd.data.readers.mask_pixels import BLACK, WHITE, pack, shown_colour, unpack
from dakd.data.sample import IGNORE_INDEX, ClassTable

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


@dataclass(frozen=True)
class LabelMeaning:
    """How the masks of a split are read.

    reading: ids, colours, palette (palettes by colour, other masks by id), binary or, in SOS, threshold; "" where no
    mask fits any.
    is_firm: False where another split may decide, as for empty masks.  facts: for index.json and report.json.
    greys: the values that grey masks hold.
    """

    classes: ClassTable
    reading: str
    may_be_unknown: bool = True
    is_firm: bool = True
    facts: dict = field(default_factory=dict)
    greys: frozenset[int] = frozenset()

    def class_of(self, form: str, palette: tuple[int, ...], value: int) -> int | None:
        """The class id of a stored value, IGNORE_INDEX for unknown; None where it has no meaning."""
        by_colour = self.reading == "colours" or (self.reading == "palette" and form == "palette")
        if by_colour:
            return self._by_colour(shown_colour(form, palette, value))
        if self.reading == "binary":
            return self._by_side(form, palette, value)
        return self._by_id(form, value) if self.reading in ("ids", "palette") else None

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


def refuse_contradiction(meanings: dict[str, LabelMeaning]) -> None:
    """ValueError where one grey value means one class in one split and another in the next."""
    seen: dict[int, tuple[str, int]] = {}
    for split, meaning in meanings.items():
        for value in sorted(meaning.greys):
            class_id = meaning.class_of("grey", (), value)
            if class_id is None:
                continue
            other, before = seen.setdefault(value, (split, class_id))
            if before != class_id:
                names = [repr(class_name(meaning.classes, one)) for one in (before, class_id)]
                raise ValueError(
                    f"the value {value} would mean {names[0]} in the masks of {other!r} and {names[1]} in those of "
                    f"{split!r} ({meanings[other].describe(other)}; "
                    f"{meaning.describe(split)}); {CHOICES}"
                )
