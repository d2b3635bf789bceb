"""The inputs of an evaluation: its students, its images, and the folder for its tables.

The images are a prepared split, or labelled images of any folder, read as `prepare` would read them, without packing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from dakd.config import Config, PrepareConfig
from dakd.data.index import load_index
from dakd.data.prepare import resize_sample
from dakd.data.prepared import open_prepared
from dakd.data.readers import BadDataset, BadFile, Dataset, SampleFiles
from dakd.data.readers.base import find_folder
from dakd.data.readers.folder import FolderDataset
from dakd.data.readers.label_meaning import LabelMeaning, meaning_of_facts, refuse_contradiction
from dakd.data.readers.osd import OsdDataset
from dakd.data.readers.sos import SosDataset
from dakd.data.records import content_hash
from dakd.data.sample import IGNORE_INDEX, ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.names import file_part, hashed, same_file, unique_names
from dakd.runtime.distributed import device
from dakd.runtime.runlog import progress, say
from dakd.runtime.sealed import MANIFEST, read_json
from dakd.weights import STUDENT_FILES, load_student_of, read_student_metadata

# The order of the paper's ablation, then self-training; students of other names follow by name.
_ORDER = ("real", "synthetic", "real+synthetic", "real+pseudo", "real+synthetic+pseudo")
_OF_SOS = ("sensor", "polarity", "mask_threshold")  # settings of prepare that say how its masks are read


def find_students(run_dir: Path, weights: str = "ema") -> dict[str, Path]:
    """Weight files by the name of the training set, in the order of the paper's ablation.

    weights: "ema" or "raw". Raises ValueError where there is none.
    """
    file = STUDENT_FILES[weights]
    paths = sorted((run_dir / "train_saross").glob(f"*/{file}"))
    found = dict(zip(_student_names([path.parent.name for path in paths]), paths))
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
    title = path.resolve().parent.name if path.name in STUDENT_FILES.values() else path.stem
    return {_student_names([title])[0]: path}


def _student_names(titles: list[str]) -> list[str]:
    """Names that the students' files can have, different from one another and from those of other files."""
    # Of tables and of pictures, as `evaluate.py` and `pictures.py` write them.
    taken = (MANIFEST, "table.json", "generation.json", "image.json", "truth.json")
    names = unique_names([(file_part(title), hashed(title)) for title in titles], [".json"], taken)
    for title, name in zip(titles, names):
        if title != name:
            say(f"the student {title!r} is called {name}, for its own name is taken or no safe name of a file")
    return names


def open_images(cfg: Config, run_dir: Path, students: dict[str, Path]) -> ShardSet | LabelledFolder:
    """The prepared split, or the images of `evaluate.folder`, read with the class table of the first student.

    ValueError where there are students, and images without a label to compare them with.
    """
    if cfg.evaluate.folder is None:
        shards = open_prepared(cfg, cfg.evaluate.split, run_dir)
        if students:
            refuse_unlabelled(max(shards.index.num_labelled, shards.index.num_soft), len(shards), cfg.evaluate.split)
        return shards
    return LabelledFolder(cfg, student_classes(next(iter(students.values()))), learnt_meaning(cfg, run_dir))


def learnt_meaning(cfg: Config, run_dir: Path) -> LabelMeaning | None:
    """How the masks that the run's own students learnt from were read; None for another student, or without masks."""
    path = run_dir / "prepare" / "train" / "index.json"
    if cfg.evaluate.student is not None or not path.is_file():
        return None
    index = load_index(path)
    facts = index.provenance.get("mask_values")
    return None if facts is None else meaning_of_facts(index.classes, facts)


def refuse_other_meaning(learnt: LabelMeaning | None, found: LabelMeaning) -> None:
    """ValueError where a number means another class in the masks of evaluate.folder than in those of the training."""
    if learnt is not None:
        refuse_contradiction({"train": learnt, "evaluate.folder": found})


def refuse_unlabelled(num_labelled: int, num_images: int, split: str) -> None:
    """ValueError where a split that students are to be evaluated on has images without labels."""
    if num_labelled < num_images:
        raise ValueError(
            f"the {split} split has labels for {num_labelled} of {num_images} images; expected all, to compare the "
            "students with: put the masks into masks/ next to its images/ and prepare again, or name other images by "
            "evaluate.split or evaluate.folder"
        )


def student_classes(path: Path) -> ClassTable:
    """The class table in a student's weights file."""
    return ClassTable.from_dict(read_student_metadata(path)["classes"])


def inputs_of(cfg: Config, run_dir: Path, students: dict[str, Path]) -> dict[str, Any] | None:
    """The inputs besides the run's own, JSON-serialisable; None for its own students on its held-out images.

    Of a folder and of a student also how they are read: weights, scales and the settings of labels, where these are not
    the defaults.
    """
    if cfg.evaluate.folder is None and cfg.evaluate.student is None:
        is_own = not students or own_tables(run_dir, cfg.evaluate.split) == run_dir / "evaluate"
        return None if is_own else {"folder": None, "student": None, "split": cfg.evaluate.split}
    folder = None if cfg.evaluate.folder is None else str(Path(cfg.evaluate.folder).expanduser().resolve())
    student = None if cfg.evaluate.student is None else str(next(iter(students.values())).resolve())
    inputs: dict[str, Any] = {"folder": folder, "student": student, "split": cfg.evaluate.split}
    if student is None and cfg.evaluate.weights != "ema":
        inputs["weights"] = cfg.evaluate.weights
    if cfg.evaluate.scales != (1.0,):
        inputs["scales"] = list(cfg.evaluate.scales)
    if folder is not None:
        if _layout(cfg) != _layout(cfg, "auto"):
            inputs["dataset"] = _layout(cfg)
        if cfg.prepare.resize is not None:
            inputs["resize"] = list(cfg.prepare.resize)
        names = ("mask_values", *_OF_SOS) if _layout(cfg) == "sos" else ("mask_values",)
        values = {name: (getattr(cfg.prepare, name), PrepareConfig.model_fields[name].default) for name in names}
        inputs |= {name: value for name, (value, default) in values.items() if value != default}
    return inputs


def own_tables(run_dir: Path, split: str) -> Path:
    """The folder for the tables of the run's own students on a prepared split.

    RUN/evaluate, except for the training images of a run that has test images: RUN/evaluate/train.
    """
    has_test = (run_dir / "prepare" / "test" / "index.json").is_file()
    return run_dir / "evaluate" / "train" if split == "train" and has_test else run_dir / "evaluate"


def out_folder(cfg: Config, run_dir: Path, students: dict[str, Path]) -> Path:
    """The folder of the tables: RUN/evaluate for the run's own students on its held-out images, else one below it.

    The latter is named after the split, the folder or the student. Where the name of a folder or student is no safe one
    or has the tables of others or of other settings (`inputs_of`), it ends in digits of a hash, the same in every call
    with these inputs.
    """
    own, inputs = run_dir / "evaluate", inputs_of(cfg, run_dir, students)
    if inputs is None:
        return own
    if inputs["folder"] is None and inputs["student"] is None:
        folder = own_tables(run_dir, inputs["split"])
        say(f"the tables of the {inputs['split']} split go to {folder}")
        return folder
    title = next(iter(students)) if inputs["folder"] is None else Path(inputs["folder"]).name
    name = file_part(title)
    if not _is_free(own / name, inputs):
        name = hashed(title, json.dumps(inputs, sort_keys=True))
    if name != title:
        say(f"the tables go to {own / name}, for the name {title!r} has others or is no safe name of a folder")
    return own / name


def _is_free(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether a folder has no tables, or those of the same inputs; not where it would take the place of files."""
    # Pictures, features of a net (`pairs.py`), and the tables of the run's training images (`own_tables`) lie there.
    is_taken = same_file(folder.name) in ("pictures", "features", "train") or folder.is_file()
    if is_taken or folder.suffix.lower() in (".json", ".npz", ".txt"):
        return False
    try:
        table = read_json(folder / "table.json")
    except (ValueError, OSError):  # damaged: nobody's; this evaluation replaces it
        return True
    return table is None or table.get("inputs") == inputs


def open_student(path: Path, classes: ClassTable, where: str | None = None) -> torch.nn.Module:
    """The student of a weight file; ValueError when it knows other classes than `classes`.

    where: the device; None takes this rank's.
    """
    return open_with_metadata(path, classes, where)[0]


def open_with_metadata(
    path: Path, classes: ClassTable, where: str | None = None
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The same with the file's metadata."""
    remedy = "train a student on this dataset, or evaluate on the other"
    return load_student_of(path, classes, where or device(), "images", remedy)


class LabelledFolder:
    """A folder's images with masks, read one by one as a set of shards is.

    classes: of the masks.  split: the one that is read.  fingerprint: of the content.  skipped: files that
    were left out, where prepare.on_bad_file is skip. Every file is read once at the start, so that one error names all
    problems. Raises ValueError for a folder of another layout, without masks, of other classes than the student's or
    of masks whose numbers mean others, BadDataset for files that cannot be used.
    """

    def __init__(self, cfg: Config, known: ClassTable, learnt: LabelMeaning | None = None) -> None:
        """known: the classes that the student distinguishes.  learnt: see `learnt_meaning`."""
        self._learnt = learnt
        self.folder = Path(cfg.evaluate.folder).expanduser()
        self._resize = cfg.prepare.resize
        self._dataset, self.split = open_folder(cfg, known)
        self.classes = self._dataset.classes
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
        problems, usable, digest = dataset.problems(), [], hashlib.sha256()
        has_class = False  # any pixel
        num_blended = 0
        if entries:
            if meaning := dataset.label_meaning(split):
                say(f"{self.folder}: {meaning.describe(split)}")
                refuse_other_meaning(self._learnt, meaning)
            dataset.check()
        for entry in progress(entries, len(entries), f"read {self.folder.name}"):
            try:
                sample = dataset.read(entry)
                digest.update(content_hash(sample).encode())
                has_class = has_class or bool((sample.label != IGNORE_INDEX).any())
                num_blended += sample.meta.get("off_palette", 0)
            except BadFile as problem:
                problems.append(problem)
            else:
                usable.append(entry)
        if not usable or (problems and not may_skip):
            raise BadDataset(
                f"{self.folder} has {len(problems)} problem(s) and {len(usable)} usable images:",
                problems,
                "fix or remove these files, set evaluate.dataset to the layout of the masks (osd, sos, folder), "
                "or set prepare.on_bad_file to skip to leave them out",
            )
        if not has_class:
            raise ValueError(
                f"{self.folder}: every pixel of the masks of {len(usable)} image(s) is unknown (255); expected pixels "
                "with a class to compare with: write the class ids into the masks, or see prepare.mask_values"
            )
        if num_blended:
            say(f"{self.folder}: {num_blended} label pixels took the nearer of two blended class colours")
        if problems:
            say(f"{self.folder}: {len(problems)} bad files are left out")
        if unread := dataset.unread():
            say(f"{self.folder}: not read: {', '.join(unread)}")
        return usable, digest.hexdigest(), problems


def open_folder(cfg: Config, known: ClassTable) -> tuple[Dataset, str]:
    """The dataset in `evaluate.folder`, and its split that is evaluated.  known: the student's classes.

    Raises ValueError for a folder without masks, or of other classes.
    """
    folder = Path(cfg.evaluate.folder).expanduser()
    dataset = _open(cfg, folder, known)
    if dataset.classes.names != known.names:
        raise ValueError(
            f"{folder} is read as a dataset with the classes {', '.join(dataset.classes.names)}, the student "
            f"distinguishes {', '.join(known.names)}; set evaluate.dataset to the folder's layout, or take another "
            "student"
        )
    splits, wanted = dataset.splits, cfg.evaluate.split
    split = wanted if wanted in splits or len(splits) != 1 else splits[0]
    entries = dataset.entries(split)
    if entries and all(entry.label_path is None for entry in entries):
        raise ValueError(
            f"{folder} has {len(entries)} images and no masks to compare with; put the masks, with their images' "
            "names, into masks/ next to images/, or let dakd predict draw them (predict.inputs)"
        )
    return dataset, split


def _open(cfg: Config, folder: Path, student_classes: ClassTable) -> Dataset:
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}; set evaluate.folder to a folder of images with masks")
    settings, kind = cfg.prepare, _layout(cfg)
    if kind == "osd":
        return OsdDataset(
            str(folder),
            tuple(name for name in ("train", "test") if find_folder(folder, name)),
            settings.mask_values,
        )
    if kind == "sos":
        return _open_sos(settings, folder)
    own = dict(zip(student_classes.names, student_classes.colours))
    return FolderDataset(str(folder), settings.classes or own, settings.mask_values)


def _layout(cfg: Config, asked: str | None = None) -> str:
    """The layout of `evaluate.folder`: osd, sos or folder.  asked: in place of `evaluate.dataset`."""
    asked, own = asked or cfg.evaluate.dataset, cfg.prepare.dataset
    return asked if asked != "auto" else "folder" if own == "simulated" else own


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
    return SosDataset(str(folder), sensor, settings.polarity, settings.mask_threshold, settings.mask_values)
