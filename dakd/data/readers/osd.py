"""Oil Spill Detection (Krestenitis et al. 2019): {train,test}/images/*.jpg with labels_1D/*.png or labels/*.png.

`labels_1D` holds class ids and is taken where present; `labels` holds colours. label_values.py decides by their values
what they hold. Pixels of a colour that is not in the table take the nearest one and are counted; more than 1 % of a
label are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dakd.data.readers.base import Dataset, SampleFiles, find_folder, list_pictures, require_root, stem
from dakd.data.readers.label_meaning import LabelMeaning
from dakd.data.readers.label_values import LabelValues
from dakd.data.sample import OSD_CLASSES

_MAX_STRAY_SHARE = 0.01  # of the pixels of a label; in the published ones at most 0.0004


class OsdDataset(Dataset):
    """root: the folder with train/ and test/ (folder names in any case), or of those splits that are asked for.

    splits: () takes the root itself, with images/ and labels in it, as the one split "all".
    mask_values: the setting, see label_values.py.
    """

    classes = OSD_CLASSES
    layout = "images/ with labels_1D/ or labels/ beside it, in train/ and test/"

    def __init__(self, root: str, splits: tuple[str, ...] = ("train", "test"), mask_values: str = "auto") -> None:
        path = require_root(root, "osd")
        super().__init__(path)
        self._values = LabelValues(
            self.classes,
            mask_values,
            self.entries,
            lambda: self.splits,
            has_own_table=False,
            max_stray_share=_MAX_STRAY_SHARE,
        )
        for split in splits:
            self._scan(split, find_folder(path, split), path)
        if not splits:
            self._scan("all", path, path)

    def _scan(self, split: str, folder: Path | None, root: Path) -> None:
        images = find_folder(folder, "images") if folder else None
        labels = find_folder(folder, "labels_1D", "labels") if folder else None
        if images is None or labels is None:
            inside = "" if folder == root else f"{split}/"
            raise ValueError(
                f"{root} is not an OSD folder: expected {inside}images and {inside}labels_1D or {inside}labels; "
                "set prepare.root to the folder that holds train and test"
            )
        self._add_split(split, list_pictures(images, stem), list_pictures(labels, stem), images, labels)

    def label_meaning(self, split: str) -> LabelMeaning | None:
        return self._values.meaning(split)

    def _read_label(self, entry: SampleFiles) -> tuple[np.ndarray, dict]:
        label, num_off = self._values.read(entry)
        return label, {"off_palette": num_off}
