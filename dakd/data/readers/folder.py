"""Any folder of images, with or without masks, and a class table from the configuration.

    ROOT/{train,test,val}/images/* and ROOT/{train,test,val}/{masks,labels}/*     with splits
    ROOT/images/* and ROOT/{masks,labels}/*                                       everything is the train split
    ROOT/{train,test,val}/* or ROOT/*                                             images without masks

training, testing, valid and validation are other names of the splits.

A mask has the stem of its image. Its values are class ids (255 = unknown) or the colours of the table; label_values.py
decides which, once for all masks of a split. Without masks the data serves only the teacher's first stage.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dakd.data.readers.base import Dataset, SampleFiles, find_folder, list_pictures, require_root, stem
from dakd.data.readers.label_meaning import LabelMeaning
from dakd.data.readers.label_values import LabelValues
from dakd.data.sample import ClassTable

_SPLITS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation")}
_MASK_FOLDERS = ("masks", "mask", "labels", "label")


class FolderDataset(Dataset):
    """classes: {name: (r, g, b)} in the order of the ids.  mask_values: the setting, see label_values.py."""

    layout = (
        "images/ or image/ with masks/, mask/, labels/ or label/ beside it, or images without masks, in the root or in "
        "its train/, test/ and val/ (training/, testing/, valid/ or validation/)"
    )

    def __init__(self, root: str, classes: dict[str, tuple[int, int, int]], mask_values: str = "auto") -> None:
        path = require_root(root, "folder")
        super().__init__(path)
        self.classes = ClassTable(tuple(classes), tuple(tuple(colour) for colour in classes.values()))
        self._values = LabelValues(self.classes, mask_values, self.entries, lambda: self.splits)
        splits = {split: folder for split, names in _SPLITS.items() if (folder := find_folder(path, *names))}
        for split, folder in splits.items() or [("train", path)]:
            self._scan(split, folder)

    def label_meaning(self, split: str) -> LabelMeaning | None:
        return self._values.meaning(split)

    def _scan(self, split: str, folder: Path) -> None:
        images, masks = find_folder(folder, "images", "image"), find_folder(folder, *_MASK_FOLDERS)
        if masks and not images:
            raise ValueError(f"{folder} has {masks.name}/ but no images/; put the images there")
        labels = list_pictures(masks, stem) if masks else None
        self._add_split(split, list_pictures(images or folder, stem), labels, images or folder, masks)

    def _read_label(self, entry: SampleFiles) -> tuple[np.ndarray, dict]:
        return self._values.read(entry)[0], {}
