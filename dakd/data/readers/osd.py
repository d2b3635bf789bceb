"""Oil Spill Detection (Krestenitis et al. 2019): {train,test}/images/*.jpg with labels_1D/*.png or labels/*.png.

`labels_1D` holds class ids and is taken where present; `labels` holds colours, which are decoded by the nearest colour
of the palette, and the pixels whose colour was not in it are counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.base import Dataset, find_folder, list_pictures, require_root, stem
from dakd.data.readers.read_picture import open_picture
from dakd.data.sample import IGNORE_INDEX, OSD_CLASSES, ClassTable


class OsdDataset(Dataset):
    """root: the folder with train/ and test/ (folder names in any case), or of those splits that are asked for.

    splits: () takes the root itself, with images/ and labels in it, as the one split "all".
    """

    classes = OSD_CLASSES
    layout = "images/ with labels_1D/ or labels/ beside it, in train/ and test/"

    def __init__(self, root: str, splits: tuple[str, ...] = ("train", "test")) -> None:
        path = require_root(root, "osd")
        super().__init__(path)
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

    def _read_label(self, path: Path) -> tuple[np.ndarray, dict]:
        if path.parent.name.lower() == "labels_1d":
            return read_ids(path, self.classes), {"off_palette": 0}
        label, num_off = decode_palette(np.array(open_picture(path).convert("RGB")), self.classes)
        return label, {"off_palette": num_off}


def read_ids(path: Path, classes: ClassTable) -> np.ndarray:
    """(H, W) uint8 class ids of a one-channel picture (three equal channels will do); BadFile for an unknown id."""
    array = np.array(open_picture(path))
    label = array if array.ndim == 2 else array[..., 0]
    if array.ndim == 3 and (array[..., :3] != label[..., None]).any():
        raise BadFile(path, "holds colours; expected class ids in one channel")
    unknown = np.setdiff1d(label, np.arange(classes.num_classes))
    if unknown.size:
        raise BadFile(path, f"holds the ids {unknown[:10].tolist()}; expected 0 to {classes.num_classes - 1}")
    return label.astype(np.uint8)


def decode_palette(colours: np.ndarray, classes: ClassTable) -> tuple[np.ndarray, int]:
    """(H, W, 3) uint8 colours to (H, W) ids of the nearest palette colour, and how many were not exactly in it."""
    label = np.full(colours.shape[:2], IGNORE_INDEX, np.uint8)
    red, green, blue = (colours[..., channel] for channel in range(3))
    for class_id, (r, g, b) in enumerate(classes.colours):
        label[(red == r) & (green == g) & (blue == b)] = class_id
    is_off = label == IGNORE_INDEX
    strays = colours[is_off].astype(np.int64)
    distances = ((strays[:, None] - np.array(classes.colours)) ** 2).sum(axis=-1)
    label[is_off] = distances.argmin(axis=1)
    return label, len(strays)
