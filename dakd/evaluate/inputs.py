"""The inputs of an evaluation: its students, its images, and the folder for its tables.

The images are a prepared split, or labelled images of any folder, read as `prepare` would read them, without packing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from dakd.config import Config, PrepareConfig
from dakd.data.prepare import resize_sample
from dakd.data.readers import BadDataset, BadFile, Dataset, SampleFiles
from dakd.data.readers.base import find_folder
from dakd.data.readers.folder import FolderDataset
from dakd.data.readers.osd import OsdDataset
from dakd.data.readers.sos import SosDataset
from dakd.data.records import content_hash
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet, open_split
from dakd.runtime.distributed import device
from dakd.runtime.runlog import progress, say
from dakd.runtime.tensor_files import read_metadata
from dakd.weights import STUDENT_FILES, load_student

# The order of the paper's ablation; students of other names follow by name.
_ORDER = ("real", "synthetic", "real+synthetic")


def find_students(run_dir: Path, weights: str = "ema") -> dict[str, Path]:
    """Weight files by the name of the training set, in the order of the paper's ablation.

    weights: "ema" or "raw". Raises ValueError where there is none.
    """
    file = STUDENT_FILES[weights]
    found = {path.parent.name: path for path in sorted((run_dir / "train_saross").glob(f"*/{file}"))}
    if not found:
        raise ValueError(f"no student at {run_dir}/train_saross/*/{file}; run the step train_saross first")
    names = [*(name for name in _ORDER if name in found), *(name for name in found if name not in _ORDER)]
    return {name: found[name] for name in names}


def choose_students(cfg: Config, run_dir: Path) -> dict[str, Path]:
    """The run's students by name, or the one of `evaluate.student`.

    The latter is named after its file, or after the folder of a student.safetensors. {} where the run has generated
    pairs and trained no student yet: then the pairs alone are evaluated.
    """
    if cfg.evaluate.student is None:
        has_pairs = (run_dir / "generate" / "index.json").is_file() and cfg.evaluate.folder is None
        if has_pairs and not (run_dir / "train_saross").exists():
            return {}
        return find_students(run_dir, cfg.evaluate.weights)
    path = Path(cfg.evaluate.student).expanduser()
    if not path.is_file():
        raise ValueError(f"no weights file at {path}; set evaluate.student to a student.safetensors")
    return {path.resolve().parent.name if path.name in STUDENT_FILES.values() else path.stem: path}


def open_images(cfg: Config, run_dir: Path, students: dict[str, Path]) -> ShardSet | LabelledFolder:
    """The prepared split, or the images of `evaluate.folder`, read with the class table of the first student."""
    if cfg.evaluate.folder is None:
        return open_split(run_dir / "prepare", cfg.evaluate.split)
    path = next(iter(students.values()))
    metadata = read_metadata(path)
    if metadata.get("kind") != "student":
        raise ValueError(f"{path} holds no student; give a student.safetensors")
    return LabelledFolder(cfg, ClassTable.from_dict(metadata["classes"]))


def out_folder(cfg: Config, run_dir: Path, students: dict[str, Path]) -> Path:
    """The folder of the tables: RUN/evaluate for the run's own students on its own images, else one below it."""
    folder = run_dir / "evaluate"
    if cfg.evaluate.folder is not None:
        folder /= Path(cfg.evaluate.folder).expanduser().resolve().name
    elif cfg.evaluate.student is not None:
        folder /= next(iter(students))
    if folder.name == "pictures":
        raise ValueError(f"{folder} holds the report's pictures; give the folder that is evaluated another name")
    return folder


def open_student(path: Path, classes: ClassTable) -> torch.nn.Module:
    """The student of a weight file on this rank's device; ValueError when it knows other classes than `classes`."""
    model, metadata = load_student(path, device())
    own = ClassTable.from_dict(metadata["classes"])
    if own.names != classes.names:
        raise ValueError(
            f"{path} distinguishes {', '.join(own.names)}, the images are labelled {', '.join(classes.names)}; "
            f"train a student on this dataset or evaluate on the other"
        )
    return model


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
        if unread := dataset.unread():
            say(f"{self.folder}: not read: {', '.join(unread)}")
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
