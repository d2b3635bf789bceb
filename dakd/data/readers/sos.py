"""Deep-SAR Oil Spill (Zhu et al. 2022), one sensor of it, in any of the three layouts that are in circulation:

    train/SENSOR/N_sat.jpg + N_mask.png,  test/SENSOR/sat/N_sat.jpg + gt/N_mask.png     the original
    {train,test}/SENSOR/{image,label}/N.png
    {images,masks}/{train,val}/SENSOR_N.png                                             val serves as the test split

Folder names may be in any case. Masks are grey with soft edges: they are cut at a threshold. Which side is oil is a
setting, because published scripts disagree; it is checked against the images of each split, where oil is the darker
side. Masks of 0 and 1 alone are read by these, since no pixel of them would reach the threshold; they may be no JPEG,
whose errors a threshold bears, and ids do not.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.base import Dataset, SampleFiles, find_folder, list_pictures, require_root, stem
from dakd.data.readers.label_meaning import JPEG_IDS, LabelMeaning
from dakd.data.readers.read_picture import is_lossy, open_picture, read_grey
from dakd.data.sample import SOS_CLASSES
from dakd.runtime.runlog import progress

_NUM_CHECKED = 64  # training images that the polarity is checked on
_NOISE, _MAX_NOISE_SHARE = 16, 0.001  # greys and pixels in a mask of sea alone; in published ones at most 10 and 0.0001
_SUFFIX = re.compile(r"_(sat|mask|gt|label|image)$", re.IGNORECASE)
_IMAGE_FOLDERS, _MASK_FOLDERS = ("sat", "image", "images"), ("gt", "label", "labels", "mask", "masks")


class SosDataset(Dataset):
    """root: the folder with train/ and test/, with images/ and masks/, or the one above it called dataset/.

    sensor: palsar or sentinel; None takes the root itself, with images and masks in it, as the one split "all".
    polarity: oil_is_white or oil_is_black.  threshold: greys from it on are white.
    mask_values: ids takes 1 for white, auto does so where the masks of a split hold 0 and 1 alone; it refuses masks
    that may hold unknown pixels or another white, which binary and others cut at the threshold.
    """

    classes = SOS_CLASSES
    layout = (
        "SENSOR/ with sat/, image/ or images/ and gt/, label/, labels/, mask/ or masks/, or with N_sat and N_mask, in "
        "train/ and test/; or SENSOR_N in images/ and masks/, in train/ and val/ of each"
    )

    def __init__(
        self,
        root: str,
        sensor: str | None,
        polarity: str = "oil_is_white",
        threshold: int = 128,
        mask_values: str = "auto",
    ) -> None:
        path = require_root(root, "sos")
        super().__init__(path)
        self._sensor, self._polarity, self._threshold, self._setting = sensor, polarity, threshold, mask_values
        self._meanings: dict[str, LabelMeaning] = {}
        if sensor is None:
            self._scan_pairs("all", path)
            return
        path = find_folder(path, "dataset") or path
        images, masks = find_folder(path, "images", "image"), find_folder(path, "masks", "mask", "labels")
        if images and masks:
            self._scan_images_and_masks(path, images, masks)
        elif find_folder(path, "train") and find_folder(path, "test"):
            for split in ("train", "test"):
                self._scan_sensor_folder(split, path)
        else:
            raise ValueError(
                f"{path} is not an SOS folder: expected train/ and test/ with {sensor}/ in each, or images/ and masks/ "
                "with train/ and val/ in each; set prepare.root to the folder that holds them"
            )

    def _scan_sensor_folder(self, split: str, root: Path) -> None:
        folder = find_folder(find_folder(root, split), self._sensor)
        if folder is None:
            raise ValueError(
                f"{root / split} has no folder {self._sensor} (in any case); check prepare.sensor and root"
            )
        self._scan_pairs(split, folder)

    def _scan_pairs(self, split: str, folder: Path) -> None:
        images, masks = find_folder(folder, *_IMAGE_FOLDERS), find_folder(folder, *_MASK_FOLDERS)
        if images and masks:
            pictures, labels = list_pictures(images, _number), list_pictures(masks, _number)
        else:
            images = masks = folder
            pictures = list_pictures(folder, lambda path: _ending(path, "_sat"))
            labels = list_pictures(folder, lambda path: _ending(path, "_mask"))
        self._add_split(split, pictures, labels, images, masks)

    def _scan_images_and_masks(self, root: Path, images: Path, masks: Path) -> None:
        def key(path: Path) -> str | None:
            sensor, _, number = path.stem.rpartition("_")
            return number if sensor.lower() == self._sensor else None

        for split, names in (("train", ("train",)), ("test", ("val", "test"))):
            pictures, labels = find_folder(images, *names), find_folder(masks, *names)
            if pictures is None or labels is None:
                raise ValueError(f"{root}: images/ and masks/ need {' or '.join(names)}/ in each for the {split} split")
            self._add_split(split, list_pictures(pictures, key), list_pictures(labels, key), pictures, labels)

    def label_meaning(self, split: str) -> LabelMeaning | None:
        meaning = self._meaning(split)
        return meaning if meaning.facts["classes"] else None

    def _meaning(self, split: str) -> LabelMeaning:
        if split not in self._meanings:
            self._meanings[split] = self._decide(split)
        return self._meanings[split]

    def _read_label(self, entry: SampleFiles) -> tuple[np.ndarray, dict]:
        grey, reading = _read_mask(entry.label_path), self._meaning(entry.split).reading
        if reading == "ids" and is_lossy(entry.label_path):
            raise BadFile(entry.label_path, JPEG_IDS)
        self._refuse_other_values(entry.label_path, grey, reading)
        return self._is_oil(grey, reading).astype(np.uint8), {"sensor": self._sensor}

    def _is_oil(self, grey: np.ndarray, reading: str) -> np.ndarray:
        white = grey == 1 if reading == "ids" else grey >= self._threshold
        return white if self._polarity == "oil_is_white" else ~white

    def _decide(self, split: str) -> LabelMeaning:
        """By the greys of all masks: 0 and 1 would all lie on one side of the threshold."""
        counts, num_files = np.zeros(256, np.int64), 0
        for entry in progress(self.entries(split), len(self.entries(split)), f"mask values of {split}"):
            try:
                counts += np.bincount(_read_mask(entry.label_path).ravel(), minlength=256)
            except BadFile:  # reported when the sample is read
                continue
            num_files += 1
        are_small = bool(counts[1] and not counts[2:].any())
        reading = "ids" if self._setting == "ids" or (self._setting == "auto" and are_small) else "threshold"
        if self._setting == "auto" or are_small:
            self._refuse_one_side(split, np.flatnonzero(counts), reading)
        facts = {"setting": self._setting, "reading": reading, "pixel_types": {"grey": num_files}, "classes": {}}
        is_oil = self._is_oil(np.arange(256), reading)
        for name, side in zip(self.classes.names, (~is_oil, is_oil)):
            if num := int(counts[side].sum()):
                values = np.flatnonzero(side & (counts > 0))
                text = str(values[0]) if len(values) == 1 else f"{values[0]}..{values[-1]}"
                facts["classes"][name] = {"pixels": num, "values": [text]}
        return LabelMeaning(self.classes, reading, facts=facts)

    def _refuse_one_side(self, split: str, values: np.ndarray, reading: str) -> None:
        """ValueError for masks of several greys that are all black or all white by the threshold."""
        if reading == "ids" or len(values) < 2 or values[0] < self._threshold <= values[-1]:
            return
        where = self.entries(split)[0].label_path.parent
        side = "white" if values[0] >= self._threshold else "black"
        raise ValueError(
            f"the masks of the split {split!r} hold the greys {values[0]} to {values[-1]}, so that by the threshold "
            f"{self._threshold} every pixel would be {side} ({where}); expected greys on both sides: set "
            "prepare.mask_threshold between the two, or prepare.mask_values to ids where they are 0 and 1"
        )

    def _refuse_other_values(self, path: Path, grey: np.ndarray, reading: str) -> None:
        """BadFile for a mask that is unlike the others of its split: ids beside greys, or the reverse."""
        highest = int(grey.max())
        if reading == "ids" and highest > 1:
            raise BadFile(path, f"holds the grey {highest}; expected 0 and 1, as the other masks or mask_values say")
        if reading == "threshold" and highest == 1:
            raise BadFile(path, "holds only 0 and 1, unlike other masks of the split; save all alike, black and white")
        if reading == "threshold" and self._setting == "auto":
            self._refuse_doubtful(path, np.bincount(grey.ravel(), minlength=256))

    def _refuse_doubtful(self, path: Path, counts: np.ndarray) -> None:
        """BadFile for a mask of ids and unknown pixels, or of a white that does not reach the threshold."""
        values = np.flatnonzero(counts)
        if values[-2:].tolist() == [1, 255]:
            raise BadFile(
                path,
                f"holds just {', '.join(map(str, values[:-1]))} and 255, which may be ids and unknown pixels, or black "
                "and white; expected 0 and 1, or 0 and 255: save it so, or set prepare.mask_values to binary, which "
                f"takes what is below {self._threshold} for black",
            )
        share = 1 - counts[0] / counts.sum()
        if 0 < values[-1] < self._threshold and (values[-1] > _NOISE or share > _MAX_NOISE_SHARE):
            raise BadFile(
                path,
                f"holds no grey above {values[-1]}, so that by the threshold {self._threshold} all of it would be "
                "black; expected greys on both sides, or 0 alone: save it with 0 and 255, or set prepare.mask_values "
                "to binary, which takes it as it is",
            )

    def check(self) -> None:
        """Oil damps the waves, so it is the darker side: averaged over up to 64 images of a split that hold both sides.

        ValueError, naming both means and the setting to flip, when it is the brighter one.
        """
        for split in self.splits:
            self._check_polarity(split)

    def _check_polarity(self, split: str) -> None:
        entries = self.entries(split)
        step = max(1, len(entries) // _NUM_CHECKED)
        means = [pair for entry in entries[::step] if (pair := self._means(entry)) is not None]
        if not means:
            return
        oil, sea = np.mean(means, axis=0)
        if oil >= sea:
            other = "oil_is_black" if self._polarity == "oil_is_white" else "oil_is_white"
            raise ValueError(
                f"with polarity {self._polarity!r} oil would be the brighter side (mean grey {oil:.1f}, sea {sea:.1f}, "
                f"over {len(means)} images of the split {split!r}), but oil is dark in SAR; set prepare.polarity to "
                f"{other}"
            )

    def _means(self, entry: SampleFiles) -> tuple[float, float] | None:
        """Mean grey of oil and of sea; None without both. Damaged files are reported when the whole set is read."""
        try:
            sample = self.read(entry)
        except BadFile:
            return None
        is_oil = sample.label == 1
        if is_oil.all() or not is_oil.any():
            return None
        return float(sample.sar[is_oil].mean()), float(sample.sar[~is_oil].mean())


def _read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 grey values; BadFile with a remedy for masks: that for images is one scale of the dataset."""
    try:
        return read_grey(path)
    except BadFile as error:
        open_picture(path)  # what no mask can be is refused here
        found = error.reason.partition("; ")[0]
        raise BadFile(
            path, f"{found}; expected a mask of 8-bit grey, all of it opaque: save it with 0 and 255, or with 0 and 1"
        ) from None


def _number(path: Path) -> str:
    return _SUFFIX.sub("", stem(path))


def _ending(path: Path, ending: str) -> str | None:
    return _number(path) if path.stem.lower().endswith(ending) else None
