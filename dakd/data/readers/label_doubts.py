"""Masks whose values have two meanings, or one that contradicts the class table: refused, with what decides."""

from __future__ import annotations

from dakd.data.readers.label_meaning import CHOICES, class_name, colour_ids, nearest_class
from dakd.data.readers.mask_groups import MaskGroup, colour_text, listed
from dakd.data.readers.mask_pixels import BLACK, WHITE, pack, unpack
from dakd.data.sample import IGNORE_INDEX, ClassTable

_NEAR = 32  # grey values per channel


def refuse_two_whites(split: str, groups: list[MaskGroup]) -> None:
    """1 and 255 cannot both be white."""
    greys = {value for group in groups if group.form == "grey" and not group.is_lossy for value in group.pixels}
    if {1, 255} <= greys:
        raise ValueError(
            f"prepare.mask_values is binary and the masks of the split {split!r} hold 1 and 255, which would both be "
            f"white ({listed(groups)}); expected 0 and 1, or 0 and 255: save all masks alike, or choose ids or colours"
        )


def refuse_ids_from_one(split: str, groups: list[MaskGroup], classes: ClassTable) -> None:
    """Ids that begin at 1 would all be the next class."""
    plain = [group for group in groups if not group.fits_colours and group.form in ("grey", "palette")]
    values = {value for group in plain for value in group.pixels} - {IGNORE_INDEX}
    if values and min(values) == 1 and max(values) == classes.num_classes:
        raise ValueError(
            f"the masks of the split {split!r} hold the values 1 to {classes.num_classes} and no 0; expected ids from "
            f"0 to {classes.num_classes - 1}: subtract 1 from all masks, or add the class of id 0 to prepare.classes "
            f"({listed(plain)})"
        )


def refuse_equal_palette_colours(split: str, groups: list[MaskGroup]) -> None:
    """Values in use that show one colour would melt into one class."""
    for palette in {group.palette for group in groups if group.form == "palette"}:
        members = [group for group in groups if group.form == "palette" and group.palette == palette]
        used = sorted({value for group in members for value in group.pixels})
        if len({palette[value] for value in used}) < len(used):
            raise ValueError(
                f"the masks of the split {split!r} have palettes in which several values in use show one colour, so "
                f"that classes would melt into one ({listed(members)}); {CHOICES}"
            )


def refuse_nearly_black(split: str, groups: list[MaskGroup]) -> None:
    """Small greys that are colours of the table and ids, of other classes, where no other split tells which."""
    raise ValueError(
        f"the masks of the split {split!r} hold numbers that are ids and class colours, of other classes "
        f"({listed(groups)}); give the classes other colours than nearly black ones in prepare.classes, or {CHOICES}"
    )


def refuse_two_kinds(split: str, groups: list[MaskGroup]) -> None:
    """Masks that fit the colours alone beside masks that fit ids alone; one meaning cannot be given to both."""
    by_colour = next(group for group in groups if not group.fits_ids)
    by_id = next(group for group in groups if not group.fits_colours)
    raise ValueError(
        f"the masks of the split {split!r} contradict each other: {by_colour.text} fits the colours of the class table "
        f"alone, {by_id.text} ids alone; expected one kind of masks: save all as ids or all in class colours, or "
        f"{CHOICES}"
    )


def refuse_unclear_bits(split: str, groups: list[MaskGroup], classes: ClassTable) -> None:
    """Bits without a white class are clear only of two classes of which the first is black."""
    are_bits = all(group.form == "bits" for group in groups)
    first_is_black = pack(classes.colours[0]) == BLACK
    if not (are_bits and classes.num_classes == 2 and first_is_black and not _has(classes, WHITE)):
        second = class_name(classes, 1)
        raise ValueError(
            f"the masks of the split {split!r} hold black and white in 1-bit pictures, and no class is white, so that "
            f"white may be {second!r}, another class or unknown ({listed(groups)}); give the class that "
            f"is white the colour [255, 255, 255] in prepare.classes and the one that is black [0, 0, 0], or {CHOICES}"
        )


def refuse_doubtful_ids(split: str, groups: list[MaskGroup], classes: ClassTable) -> None:
    """Masks of ids whose 255 may be white, or whose palettes say something else."""
    values = {value for group in groups for value in group.pixels}
    greys = {group.colour(value) for group in groups if group.form != "palette" for value in group.pixels}
    are_grey = all(group.form != "palette" for group in groups)
    if values == {0, IGNORE_INDEX} or (are_grey and greys == {BLACK, WHITE}):
        last = " or ".join(repr(name) for name in classes.names[1:3]) + (" ..." if classes.num_classes > 3 else "")
        means, remedies = "255 means unknown", []
        if any(group.is_255_nodata for group in groups):
            means = "their no-data tag says that 255 is no data"
            remedies.append("where 255 is a class, remove the tag (gdal_translate -a_nodata none IN OUT)")
        if not (remedies and _has(classes, WHITE)):
            remedies.append(
                "in prepare.classes give the class that is white the colour [255, 255, 255] and the one that is black "
                "[0, 0, 0]"
            )
        raise ValueError(
            f"the masks of the split {split!r} hold only 0 and 255, and {means}, so that no pixel would be {last} "
            f"({listed(groups)}); {' and '.join(remedies)}, write the ids into the masks, or {CHOICES}"
        )
    _refuse_0_255_beside_ids(split, groups)
    if _has(classes, WHITE) and any(group.pixels[IGNORE_INDEX] and not group.is_255_nodata for group in groups):
        name = class_name(classes, colour_ids(classes)[WHITE])
        raise ValueError(
            f"the masks of the split {split!r} hold ids and 255, which may be unknown or {name!r}, whose colour is "
            f"white ({listed(groups)}); {CHOICES}, or give {name!r} another colour in prepare.classes"
        )
    palettes = [group for group in groups if group.form == "palette"]
    for group in palettes:
        _refuse_half_known_palette(split, group, classes)
    _refuse_changing_palettes(split, palettes)


def _refuse_0_255_beside_ids(split: str, groups: list[MaskGroup]) -> None:
    """255 that is never beside an id above 0 may be white in some masks, as 1 and others are ids in the rest."""
    unclear = [group for group in groups if group.is_0_255 and not group.is_255_nodata]
    others = [group for group in groups if not group.is_0_255]
    has_unknown_beside_ids = any(group.pixels[IGNORE_INDEX] for group in others)
    if any(group.pixels[0] for group in unclear) and not has_unknown_beside_ids:
        raise ValueError(
            f"the masks of the split {split!r} hold either only 0 and 255, which may be black and white or sea and "
            f"unknown, or ids without 255 ({listed([*unclear, *others])}); expected one kind of masks: save all as "
            f"ids, or {CHOICES}"
        )


def _refuse_half_known_palette(split: str, group: MaskGroup, classes: ClassTable) -> None:
    ids = colour_ids(classes)
    used = {value: group.colour(value) for value in group.pixels if value != IGNORE_INDEX}
    known = {value: ids[colour] for value, colour in used.items() if colour in ids}
    if any(value != class_id for value, class_id in known.items()):
        value, class_id = next(item for item in known.items() if item[0] != item[1])
        doubt = f"the value {value} shows the colour of {class_name(classes, class_id)!r}, whose id is {class_id}"
    elif (known.keys() - {0} or (0 in known and used[0] != BLACK)) and len(known) < len(used):
        doubt = f"only {len(known)} of {len(used)} colours in use are in the class table"
    elif set(used.values()) <= {BLACK, WHITE} and WHITE in used.values() and not (
        classes.num_classes == 2 and used.get(0, BLACK) == BLACK and used.get(1, WHITE) == WHITE
    ):  # fmt: skip
        doubt = "the palette is black and white, and no class is white"
    elif (other := _other_id(used, classes)) is not None:
        doubt = f"the value {other} shows the grey {used[other] & 255}, which is another id"
    elif (near := _near_classes(used, classes)) and any(value != class_id for value, class_id in near.items()):
        value, class_id = next(item for item in near.items() if item[0] != item[1])
        doubt = (
            f"the value {value} shows {unpack(used[value])}, nearly the colour of {class_name(classes, class_id)!r}, "
            f"whose id is {class_id}"
        )
    else:
        return
    raise ValueError(
        f"the masks of the split {split!r} have palettes that fit the class table in part: {doubt} "
        f"({listed([group])}); complete prepare.classes, or {CHOICES}"
    )


def _other_id(used: dict[int, int | None], classes: ClassTable) -> int | None:
    """The first value of a palette whose greys are ids themselves, of which it shows another one; else None.

    As where a program has turned greys into a palette, in an order of its own: then the greys are the ids.
    """
    greys = {pack((grey, grey, grey)): grey for grey in (*range(classes.num_classes), IGNORE_INDEX)}
    shown = set(used.values())
    if not shown <= greys.keys() or len(shown) < len(used) or (WHITE in shown and shown <= {BLACK, WHITE}):
        return None
    return next((value for value, colour in sorted(used.items()) if value != greys[colour]), None)


def _voc_colour(class_id: int) -> int:
    """Of an id in PASCAL VOC's palette, which LabelMe and others use: three bits at a time, for red, green and blue."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (class_id >> (3 * place + channel) & 1) << (7 - place)
    return pack((channels[0], channels[1], channels[2]))


def _near_classes(used: dict[int, int | None], classes: ClassTable) -> dict[int, int]:
    """Class ids by the values whose colours are nearly theirs, as after a colour profile.

    {} where two share one, and for VOC's palette, which says nothing but the ids.
    """
    if all(colour == _voc_colour(value) for value, colour in used.items()):
        return {}
    near = {value: nearest_class(colour, classes) for value, colour in used.items() if colour is not None}
    near = {
        value: class_id
        for value, class_id in near.items()
        if max(abs(a - b) for a, b in zip(unpack(used[value]), classes.colours[class_id])) <= _NEAR
    }
    return near if 1 < len(near) == len(set(near.values())) else {}


def _refuse_changing_palettes(split: str, groups: list[MaskGroup]) -> None:
    seen: dict[int, MaskGroup] = {}
    for group in groups:
        for value in group.pixels:
            other = seen.setdefault(value, group)
            if other.colour(value) != group.colour(value):
                raise ValueError(
                    f"the masks of the split {split!r} have palettes that differ: the value {value} shows "
                    f"{colour_text(other, value)} in {other.examples[0]} and {colour_text(group, value)} in "
                    f"{group.examples[0]}, and not all of these colours are in prepare.classes; complete it, or "
                    f"{CHOICES}"
                )


def _has(classes: ClassTable, colour: int) -> bool:
    return colour in colour_ids(classes)
