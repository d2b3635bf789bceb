"""Labelled images of any folder, read for evaluation as `prepare` would read them, without packing them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dakd.config import Config, PrepareConfig
from dakd.data.prepare import resize_sample
from dakd.data.readers import BadDataset, BadFile, Dataset, SampleFiles
from dakd.data.readers.base import find_folder
from dakd.data.readers.folder import FolderDataset
from dakd.data.readers.osd import OsdDataset
from dakd.data.readers.sos import SosDataset
from dakd.data.records import content_hash
from dakd.data.sample import ClassTable, Sample
from dakd.runtime.runlog import progress, say


class LabelledFolder:
    """A folder's images with masks, read one by one as a set of shards is.

    classes: of the masks.  split: the one that is read.  fingerprint: of the content.  skipped: files that
    were left out, where prepare.on_bad_file is skip. Every file is read once at the start, so that one error names all
    problems. Raises ValueError for a folder of another layout, without masks or of other classes than the student's,
    BadDataset for files that cannot be used.
    """

    def __init__(self, cfg: Config, student_classes: ClassTable) -> None:
        self.folder = Path(cfg.evaluate.folder).expanduser()
        self._resize = cfg.prepare.resize
        self._dataset = _open(cfg, self.folder, student_classes)
        self.classes, splits = self._dataset.classes, self._dataset.splits
        if self.classes.names != student_classes.names:
            raise ValueError(
                f"{self.folder} is read as a dataset with the classes {', '.join(self.classes.names)}, the student "
                f"distinguishes {', '.join(student_classes.names)}; set evaluate.dataset to the folder's layout, or "
                "take another student"
            )
        self.split = cfg.evaluate.split if cfg.evaluate.split in splits or len(splits) != 1 else splits[0]
        self._entries, self.fingerprint, self.skipped = self._read_all(self.split, cfg.prepare.on_bad_file == "skip")

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, index: int) -> str:
        return self._entries[index].key

    def read(self, index: int) -> Sample:
        sample = self._dataset.read(self._entries[index])
        return sample if self._resize is None else resize_sample(sample, self._resize)

    def _read_all(self, split: str, may_skip: bool) -> tuple[list[SampleFiles], str, list[BadFile]]:
        """The usable entries, the sha256 of their content, and the problems of the others."""
        dataset, entries = self._dataset, self._dataset.entries(split)
        if entries and all(entry.label_path is None for entry in entries):
            raise ValueError(
                f"{self.folder} has {len(entries)} images and no masks to compare with; put the masks, with their "
                "images' names, into masks/ next to images/, or let dakd predict draw them (predict.inputs)"
            )
        problems, usable, digest = dataset.problems(), [], hashlib.sha256()
        if entries:
            dataset.check()
        for entry in progress(entries, len(entries), f"read {self.folder.name}"):
            try:
                digest.update(content_hash(dataset.read(entry)).encode())
            except BadFile as problem:
                problems.append(problem)
            else:
                usable.append(entry)
        dataset.check_labels(split)
        if not usable or (problems and not may_skip):
            raise BadDataset(
                f"{self.folder} has {len(problems)} problem(s) and {len(usable)} usable images:",
                problems,
                "fix or remove these files, set evaluate.dataset to the layout of the masks (osd, sos, folder), "
                "or set prepare.on_bad_file to skip to leave them out",
            )
        if problems:
            say(f"{self.folder}: {len(problems)} bad files are left out")
        return usable, digest.hexdigest(), problems


def _open(cfg: Config, folder: Path, student_classes: ClassTable) -> Dataset:
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}; set evaluate.folder to a folder of images with masks")
    settings, kind = cfg.prepare, cfg.evaluate.dataset
    if kind == "auto":
        kind = "folder" if settings.dataset == "simulated" else settings.dataset
    if kind == "osd":
        return OsdDataset(str(folder), tuple(name for name in ("train", "test") if find_folder(folder, name)))
    if kind == "sos":
        return _open_sos(settings, folder)
    own = dict(zip(student_classes.names, student_classes.colours))
    return FolderDataset(str(folder), settings.classes or own)


def _open_sos(settings: PrepareConfig, folder: Path) -> Dataset:
    """A whole dataset, where the folder has splits; else the folder itself."""
    images = find_folder(folder, "images", "image")
    has_splits = any(find_folder(place, "train", "test", "val", "dataset") for place in (folder, images) if place)
    if has_splits and settings.sensor is None:
        raise ValueError(
            f"{folder} holds splits of several sensors; set prepare.sensor to palsar or sentinel, or evaluate.folder "
            "to the one folder that holds the images and masks"
        )
    sensor = settings.sensor if has_splits else None
    return SosDataset(str(folder), sensor, settings.polarity, settings.mask_threshold)
