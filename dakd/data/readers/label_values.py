"""What the values of masks mean: classes by id, by colour or by black and white, decided once for a whole split.

One mask alone cannot tell: an empty one holds 0 whether 0 is an id or black. So all masks of a split are read once,
their values counted, and the one meaning is chosen that fits them all. Colours come first, since nobody gives a mask
the class table's colours by chance; ids come last. Two meanings that both fit and differ are refused, with the choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dakd.data.readers import label_doubts as doubts
from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.base import SampleFiles
from dakd.data.readers.label_meaning import JPEG_IDS, LabelMeaning, blended_class, colour_ids
from dakd.data.readers.mask_groups import MaskGroup, colour_text, value_text
from dakd.data.readers.mask_pixels import MaskPixels, pack, read_mask, unpack
from dakd.data.sample import IGNORE_INDEX, ClassTable
from dakd.runtime.runlog import progress

_LISTED = 5
_MAX_COUNTED = 4096  # values of one kind of masks; a mask with more holds no classes


class LabelValues:
    """Decodes the masks of a dataset; what their values mean is decided once per split, when it is first asked for.

    entries: the samples of a split.  splits: all of them.  setting: prepare.mask_values.
    has_own_table: the classes come from the configuration, and 255 among ids is an unknown pixel; False for a published
    dataset.  max_stray_share: of a mask's pixels, that may blend the colours of two classes (see `blended_class`).
    Raises ValueError where masks have two meanings or contradict each other.
    """

    def __init__(
        self,
        classes: ClassTable,
        setting: str,
        entries: Callable[[str], list[SampleFiles]],
        splits: Callable[[], tuple[str, ...]],
        *,
        has_own_table: bool = True,
        max_stray_share: float = 0.0,
    ) -> None:
        if setting == "binary" and classes.num_classes != 2:
            raise ValueError(
                f"prepare.mask_values is binary and there are {classes.num_classes} classes; expected two: set "
                "prepare.mask_values to ids or colours"
            )
        self._classes, self._setting, self._entries, self._splits = classes, setting, entries, splits
        self._has_own_table, self._max_stray_share = has_own_table, max_stray_share
        self._own: dict[str, LabelMeaning | None] = {}
        self._final: dict[str, LabelMeaning | None] = {}

    def meaning(self, split: str) -> LabelMeaning | None:
        """The meaning of a split's masks; None where it has none. The first call reads all of them."""
        if split not in self._final:
            self._final[split] = self._settle(split)
        return self._final[split]

    def read(self, entry: SampleFiles) -> tuple[np.ndarray, int]:
        """(H, W) uint8 class ids, and how many pixels blend two colours; BadFile for values without meaning."""
        meaning = self.meaning(entry.split)
        pixels = read_mask(entry.label_path)
        self._refuse_lossy_ids(entry.label_path, pixels, meaning)
        found, counts, where = pixels.distinct()
        ids = [meaning.class_of(pixels.form, pixels.palette, value) for value in found.tolist()]
        is_stray = np.array([one is None for one in ids])
        num_strays = int(counts[is_stray].sum())
        if num_strays:
            if not self._may_be_stray(pixels, found[is_stray], num_strays) or meaning.reading != "colours":
                raise BadFile(entry.label_path, self._no_meaning(pixels, found[is_stray].tolist(), meaning))
            ids = [
                blended_class(value, self._classes) if one is None else one for one, value in zip(ids, found.tolist())
            ]
        return np.array(ids, np.uint8)[where], num_strays

    def _settle(self, split: str) -> LabelMeaning | None:
        own = self._decide_alone(split)
        if own is None or own.is_firm:
            return own
        others = [self._decide_alone(other) for other in self._splits() if other != split]
        firm = {"ids" if other.reading == "ids" else "colours" for other in others if other and other.is_firm}
        groups = self._survey(split)
        if firm == {"ids"}:
            return self._meaning("ids", groups)
        if not firm and any(any(group.pixels) for group in groups):
            doubts.refuse_nearly_black(split, groups)
        return own

    def _decide_alone(self, split: str) -> LabelMeaning | None:
        if split not in self._own:
            groups = self._survey(split)
            self._own[split] = self._decide(split, groups) if groups else None
        return self._own[split]

    def _survey(self, split: str) -> list[MaskGroup]:
        entries = [entry for entry in self._entries(split) if entry.label_path is not None]
        groups: dict[tuple, MaskGroup] = {}
        for entry in progress(entries, len(entries), f"mask values of {split}"):
            try:
                self._count(groups, entry.label_path, read_mask(entry.label_path))
            except BadFile:  # reported when the sample is read
                continue
        return list(groups.values())

    def _count(self, groups: dict[tuple, MaskGroup], path: Path, pixels: MaskPixels) -> None:
        found, counts, _ = pixels.distinct()
        is_known = {name: self._is_known(name, pixels, found) for name in ("colours", "ids")}
        strays = ~is_known["colours"]
        fits_colours = not strays.any() or self._may_be_stray(pixels, found[strays], int(counts[strays].sum()))
        is_255_nodata = bool(pixels.is_255_nodata and found[-1] == IGNORE_INDEX)
        fits_colours = fits_colours and not is_255_nodata
        # Bits are black and white, which are ids only if nothing is white.
        is_white_bits = pixels.form == "bits" and found[-1] == 1
        fits_ids = is_known["ids"].all() and not is_white_bits and not pixels.is_lossy
        is_0_255 = pixels.form == "grey" and found[-1] == IGNORE_INDEX and set(found.tolist()) <= {0, IGNORE_INDEX}
        facts = (pixels.form, pixels.palette, fits_colours, bool(fits_ids), pixels.is_lossy, is_0_255, is_255_nodata)
        group = groups.setdefault((*facts, is_white_bits), MaskGroup(*facts))
        group.num_files += 1
        if len(group.examples) < _LISTED:
            group.examples.append(path)
        for value, count in zip(found.tolist(), counts.tolist()):
            if value in group.pixels or len(group.pixels) < _MAX_COUNTED:
                group.pixels[value] += count

    def _is_known(self, reading: str, pixels: MaskPixels, found: np.ndarray) -> np.ndarray:
        """Whether each value has a meaning by a reading."""
        one = LabelMeaning(self._classes, reading, self._has_own_table)
        return np.array([one.class_of(pixels.form, pixels.palette, value) is not None for value in found.tolist()])

    def _may_be_stray(self, pixels: MaskPixels, colours: np.ndarray, num: int) -> bool:
        """Few pixels of blended colours, in a mask of colours: greys and palettes with them may be ids."""
        if pixels.form != "colours" or num > self._max_stray_share * pixels.values.size:
            return False
        return all(blended_class(colour, self._classes) is not None for colour in colours.tolist())

    def _decide(self, split: str, groups: list[MaskGroup]) -> LabelMeaning:
        if self._setting != "auto":
            if self._setting == "binary":
                doubts.refuse_two_whites(split, groups)
            return self._meaning(self._setting, groups)
        usable = [group for group in groups if group.is_usable]
        doubts.refuse_ids_from_one(split, groups, self._classes)
        num_unfit = sum(group.num_files for group in groups if not group.is_usable)
        if not usable or num_unfit > sum(group.num_files for group in usable):
            return self._meaning("", groups)
        if all(group.fits_colours for group in usable):
            doubts.refuse_equal_palette_colours(split, usable)
            is_palette = all(group.form == "palette" for group in usable)
            return self._meaning("palette" if is_palette else "colours", groups, self._is_firm(usable))
        if any(group.is_white_bits for group in usable):
            doubts.refuse_unclear_bits(split, usable, self._classes)
            return self._meaning("binary", groups)
        if not all(group.fits_ids for group in usable):
            doubts.refuse_two_kinds(split, usable)
        doubts.refuse_doubtful_ids(split, usable, self._classes)
        return self._meaning("ids", groups)

    def _is_firm(self, groups: list[MaskGroup]) -> bool:
        """False for greys, often of empty masks alone, that are ids as well as colours, but of other classes."""
        as_colours, as_ids = (LabelMeaning(self._classes, name, False) for name in ("colours", "ids"))
        both = [
            (as_colours.class_of(group.form, (), value), as_ids.class_of(group.form, (), value))
            for group in groups
            for value in group.pixels
            if group.form != "palette"
        ]
        is_certain = any(group.form == "palette" or (group.form == "bits" and group.pixels[1]) for group in groups)
        return is_certain or any(by_id is None for _, by_id in both) or all(one == other for one, other in both)

    def _meaning(self, reading: str, groups: list[MaskGroup], is_firm: bool = True) -> LabelMeaning:
        bare = LabelMeaning(self._classes, reading, self._has_own_table)
        facts = {"setting": self._setting, "reading": reading, "pixel_types": {}, "classes": {}}
        names = (*self._classes.names, *["?"] * (IGNORE_INDEX - self._classes.num_classes), "unknown")
        for group in groups:
            facts["pixel_types"][group.kind] = facts["pixel_types"].get(group.kind, 0) + group.num_files
            for value, count in sorted(group.pixels.items()):
                class_id = bare.class_of(group.form, group.palette, value)
                if class_id is None:
                    continue
                one = facts["classes"].setdefault(names[class_id], {"pixels": 0, "values": []})
                one["pixels"] += count
                text = value_text(group, value, reading)
                one["values"] += [text] if text not in one["values"] else []
        order = {name: facts["classes"][name] for name in names if name in facts["classes"]}
        greys = frozenset(value for group in groups if group.form == "grey" for value in group.pixels)
        palettes = frozenset(
            (value, group.colour(value))
            for group in groups
            if group.form == "palette"
            for value in group.pixels
            if group.colour(value) is not None
        )
        meaning = replace(bare, is_firm=is_firm, greys=greys, palettes=palettes)
        return replace(meaning, facts=facts | {"classes": order} | meaning.known_numbers())

    def _refuse_lossy_ids(self, path: Path, pixels: MaskPixels, meaning: LabelMeaning) -> None:
        by_id = meaning.reading == "ids" or (meaning.reading == "palette" and pixels.form != "palette")
        # Also where all pixels are equal, which compression makes of ids; as black and white 1 would be white.
        if pixels.is_lossy and (by_id or (meaning.reading == "binary" and (pixels.values == 1).any())):
            raise BadFile(path, JPEG_IDS)

    def _no_meaning(self, pixels: MaskPixels, values: list[int], meaning: LabelMeaning) -> str:
        if pixels.is_lossy:
            return JPEG_IDS
        group = MaskGroup(pixels.form, pixels.palette, False, False)
        if not meaning.reading:
            both = [LabelMeaning(self._classes, name, self._has_own_table) for name in ("ids", "colours")]
            known_one = [any(one.class_of(pixels.form, pixels.palette, v) is not None for one in both) for v in values]
            if all(known_one):
                return (
                    "may hold ids or class colours, but most masks of the split hold neither; set prepare.mask_values"
                )
            values = [value for value, is_known in zip(values, known_one) if not is_known]
        named = ", ".join(colour_text(group, value) for value in values[:_LISTED])
        more = " ..." if len(values) > _LISTED else ""
        unknown = f" ({IGNORE_INDEX}: unknown)" if self._has_own_table else ""
        known = f"neither ids 0 to {self._classes.num_classes - 1}{unknown} nor class colours"
        if self._setting != "auto":
            known = f"not read by prepare.mask_values {self._setting}"
        if pixels.form == "colours" and all(pack(unpack(value)[::-1]) in colour_ids(self._classes) for value in values):
            known += ", which they are with red and blue exchanged, as OpenCV writes RGB arrays"
        table = "complete the class table (prepare.classes), " if self._has_own_table else ""
        return (
            f"holds {len(values)} value(s) that are {known}: {named}{more}; {table}fix the mask, or set "
            "prepare.mask_values"
        )
