"""Any folder of images, with or without masks, and a class table from the configuration.

    ROOT/{train,test,val}/images/* and ROOT/{train,test,val}/{masks,labels}/*     with splits
    ROOT/images/* and ROOT/{masks,labels}/*                                       everything is the train split
    ROOT/{train,test,val}/* or ROOT/*                                             images without masks

training, testing, valid and validation are other names of the splits.

A mask has the stem of its image and holds class ids (255 = unknown) or the colours of the table. Without masks the data
serves only the teacher's first stage.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.base import Dataset, find_folder, list_pictures, require_root, stem
from dakd.data.readers.read_picture import open_picture
from dakd.data.sample import IGNORE_INDEX, ClassTable

_SPLITS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation")}
_MASK_FOLDERS = ("masks", "mask", "labels", "label")


class FolderDataset(Dataset):
    """classes: {name: (r, g, b)} in the order of the ids."""

    layout = (
        "images/ or image/ with masks/, mask/, labels/ or label/ beside it, or images without masks, in the root or in "
        "its train/, test/ and val/ (training/, testing/, valid/ or validation/)"
    )

    def __init__(self, root: str, classes: dict[str, tuple[int, int, int]]) -> None:
        path = require_root(root, "folder")
        super().__init__(path)
        self.classes = ClassTable(tuple(classes), tuple(tuple(colour) for colour in classes.values()))
        self._palette = {_pack(np.array(colour)): i for i, colour in enumerate(self.classes.colours)}
        self._values: set[int] = set()  # of the masks of ids that were read since the last check_labels
        splits = {split: folder for split, names in _SPLITS.items() if (folder := find_folder(path, *names))}
        for split, folder in splits.items() or [("train", path)]:
            self._scan(split, folder)

    def check_labels(self, split: str) -> None:
        """Masks of only 0 and 255 mean black and white, not one class and unknown pixels."""
        values, self._values = self._values, set()
        if self.classes.num_classes == 2 and values == {0, IGNORE_INDEX}:
            first, second = self.classes.names
            raise ValueError(
                f"the masks of the split {split!r} hold only 0 and 255, and 255 means unknown, so that no pixel would "
                f"be {second!r}; in prepare.classes give {first!r} or {second!r}, whichever is white, the colour "
                "[255, 255, 255] and the other [0, 0, 0], or write the ids 0 and 1 into the masks"
            )

    def _scan(self, split: str, folder: Path) -> None:
        images, masks = find_folder(folder, "images", "image"), find_folder(folder, *_MASK_FOLDERS)
        if masks and not images:
            raise ValueError(f"{folder} has {masks.name}/ but no images/; put the images there")
        labels = list_pictures(masks, stem) if masks else None
        self._add_split(split, list_pictures(images or folder, stem), labels, images or folder, masks)

    def _read_label(self, path: Path) -> tuple[np.ndarray, dict]:
        picture = open_picture(path)
        if picture.mode in ("L", "P", "1"):
            values = np.array(picture).astype(np.uint8)
            label = self._ids(values)
            if label is not None:
                self._values.update(np.unique(label).tolist())
                return label, {}
        return self._colours(path, np.array(picture.convert("RGB"))), {}

    def _ids(self, values: np.ndarray) -> np.ndarray | None:
        """The values as ids; None where one is neither an id nor 255, or where 255 is white in the class table."""
        is_white_a_class = (255, 255, 255) in self.classes.colours
        known = [*range(self.classes.num_classes), *([] if is_white_a_class else [IGNORE_INDEX])]
        return values if np.isin(values, known).all() else None

    def _colours(self, path: Path, colours: np.ndarray) -> np.ndarray:
        packed = _pack(colours)
        found, places = np.unique(packed, return_inverse=True)
        unknown = [value for value in found.tolist() if value not in self._palette]
        if unknown:
            named = ", ".join(str((value >> 16, value >> 8 & 255, value & 255)) for value in unknown[:5])
            more = " ..." if len(unknown) > 5 else ""
            raise BadFile(
                path,
                f"holds {len(unknown)} value(s) that are neither ids 0 to {self.classes.num_classes - 1} "
                f"nor class colours: {named}{more}; complete prepare.classes or fix the mask",
            )
        ids = np.array([self._palette[value] for value in found.tolist()], np.uint8)
        return ids[places.reshape(packed.shape)]


def _pack(colours: np.ndarray):
    packed = np.asarray(colours).astype(np.int64) @ np.array([65536, 256, 1])
    return int(packed) if packed.ndim == 0 else packed
