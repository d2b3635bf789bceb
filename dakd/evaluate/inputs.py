"""The inputs of an evaluation: its students, its images, and the folder for its tables."""

from __future__ import annotations

from pathlib import Path

import torch

from dakd.config import Config
from dakd.data.sample import ClassTable
from dakd.data.shards import ShardSet, open_split
from dakd.evaluate.labelled_folder import LabelledFolder
from dakd.runtime.distributed import device
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
