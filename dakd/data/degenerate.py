"""Sets from which nothing can be learnt, refused before a training starts: no labelled pixel, images of one grey.

Their losses and statistics exist, and mean nothing: a student's loss is 0 where every pixel is unknown, and b follows
from the one grey that constant images happen to have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dakd.data.index import Index, RecordInfo

# Below it the images lie within about six greys of the middle one, and the label's clean state drowns in the noise.
SMALL_B = 0.05


def refuse_unknown_labels(index: Index, where: str) -> None:
    """ValueError where a set has labels and not one pixel with a class; where: names the set in the message."""
    if index.num_labelled and not sum(index.class_pixels) and index.ignored_pixels:
        raise ValueError(
            f"{where}: every pixel of its {index.num_labelled} labels is unknown; expected pixels with a class; check "
            "the values of the masks against the class table (prepare.classes)"
        )


def refuse_black_and_white(records: Iterable[RecordInfo], first_class: str, where: str) -> None:
    """ValueError where labels that others wrote may be black and white in place of ids.

    Then 255 is in labels that hold 0 beside it at most, and never beside another id. first_class: the name of id 0.
    """
    unknown = [record for record in records if record.ignored_pixels]
    if any(record.class_pixels[0] for record in unknown) and not any(any(one.class_pixels[1:]) for one in unknown):
        raise ValueError(
            f"{where}: {len(unknown)} of its labels hold only 0 and 255, and 255 means unknown, so that every other "
            f"pixel of them is {first_class}; expected class ids: write them, or take the masks as files, with dakd "
            "prepare, where prepare.mask_values says what they mean"
        )


def refuse_flat_images(num_flat: int, num_images: int, where: str) -> None:
    """ValueError where all images have one grey each."""
    if num_images and num_flat == num_images:
        raise ValueError(
            f"{where}: each of its {num_images} images has one grey in all pixels; expected images; check that they "
            "are not empty exports or no-data"
        )


def notes_on_set(split: str, facts: dict) -> list[str]:
    """Sentences on what makes a split nearly useless; facts: of the split in report.json."""
    lines = []
    if split == "train" and facts["num_labelled"]:
        shares = facts["class_pixel_shares"]
        absent = [name for name, share in shares.items() if share == 0]
        lines += [f"train: no pixel is of the class {', '.join(absent)}; it cannot be learnt"] if absent else []
        if len(absent) == len(shares) - 1:
            only = next(name for name in shares if name not in absent)
            lines.append(f"train: every labelled pixel is {only}; a student can learn only to answer {only} everywhere")
    if facts["num_samples"] == 1:
        lines.append(f"{split}: one image; what holds for it may hold for no other")
    if flat := facts.get("num_flat"):
        lines.append(f"{split}: {flat} of {facts['num_samples']} images have one grey in all pixels; are they no-data?")
    if facts["balancing_factor"] < SMALL_B:
        lines.append(
            f"{split}: b is {facts['balancing_factor']:.4f}, since the images hardly differ from the middle grey; with "
            "balance.b auto the label drowns in noise: stretch the images' greys, or set balance.b"
        )
    return lines
