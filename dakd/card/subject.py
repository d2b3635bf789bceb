"""The model of a card, the files of its run that describe it, and its metadata without paths of this machine."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dakd.config import STUDENT_KINDS, Config, StudentConfig, load_config
from dakd.data.sample import ClassTable
from dakd.runtime.kept_config import CONFIG, refuse_changed_config
from dakd.runtime.sealed import read_json

TITLES = {"jointnet": "SAR-JointNet", "ddpm": "DDPM"}
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# Settings with a folder of data, which are left out, and settings with a file, of which the name is kept.
_PLACES = {"root", "cache", "cache_gib", "run_dir"}
_FILES = {"pretrained", "init_from", "labelled", "deepspeed", "synthetic", "pseudo", "extra_images", "streams",
          "student"}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """The model of a card.

    file: the name of its weights file.  sha256: of that file, or None where the run has no evaluation.
    run, its folder of the training, and config: None for a card from the metadata only.
    """

    metadata: dict[str, Any]
    num_parameters: int
    file: str
    licence: str | None = None
    run: Path | None = None
    folder: Path | None = None
    config: Config | None = None
    sha256: str | None = None

    @property
    def is_student(self) -> bool:
        return self.metadata["kind"] == "student"

    @property
    def classes(self) -> ClassTable:
        return ClassTable.from_dict(self.metadata["classes"])

    @property
    def title(self) -> str:
        """The net's name in print."""
        return STUDENT_KINDS[self.student.name].title if self.is_student else TITLES[self.metadata["kind"]]

    @property
    def student(self) -> StudentConfig:
        """The settings of a student's net."""
        return StudentConfig.model_validate(self.metadata["student"])

    @property
    def dataset(self) -> str | None:
        return None if self.config is None else self.config.prepare.dataset


def count_parameters(shapes: Mapping[str, Sequence[int]]) -> int:
    """The number of parameters of a net, from the shapes of its state by name; batch norms' statistics are none."""
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(_STATISTICS))


def read_config(run: Path, folder: Path | None = None) -> Config:
    """The configuration that a training's folder keeps, else the run's; ValueError where `run` is not a run folder."""
    if not (run / CONFIG).is_file():
        refuse_changed_config(run / CONFIG)
        raise ValueError(f"{run} is not a run folder: it has no {CONFIG}; give the folder of a run: runs/NAME")
    own = run if folder is None else folder
    refuse_changed_config(own / CONFIG)
    path = (own if (own / CONFIG).is_file() else run) / CONFIG
    refuse_changed_config(path)
    return load_config(path)


def refuse_unknown(metadata: Mapping, source: str) -> None:
    """ValueError where the metadata do not describe a student or a teacher of pairs."""
    kind = metadata.get("kind")
    if kind != "student" and kind not in TITLES:
        raise ValueError(
            f"{source} holds {kind or 'weights of unknown kind'}; expected a student or a teacher of pairs: give a "
            "student.safetensors, or the weights of stage 2 or 3, or of ddpm"
        )
    try:
        ClassTable.from_dict(metadata["classes"])
        if kind == "student":
            StudentConfig.model_validate(metadata["student"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the metadata of {source} are not whole; write or copy it again: {error!r:.300}") from error


def trained_on(model: Subject, folder: str) -> dict | None:
    """The index of a set of the run, where the model was trained on exactly that set; else None."""
    index = None if model.run is None else read_json(model.run / folder / "index.json")
    return index if index is not None and index.get("fingerprint") in model.metadata.get("data", ()) else None


def without_places(tree: Any) -> Any:
    """A copy of JSON-serialisable settings or metadata without paths of this machine.

    Folders of data are left out, of files only the name is kept; the class table is kept as it is.
    """
    if isinstance(tree, Mapping):
        kept = {key: value for key, value in tree.items() if key not in _PLACES}
        return {key: value if key == "classes" else _without_place(key, value) for key, value in kept.items()}
    if isinstance(tree, list | tuple):
        return [without_places(value) for value in tree]
    return file_name(tree) if isinstance(tree, str) and _is_place(tree) else tree


def _without_place(key: str, value: Any) -> Any:
    if key not in _FILES or isinstance(value, Mapping):
        return without_places(value)
    if isinstance(value, list | tuple):
        return [_without_place(key, one) for one in value]
    return file_name(value) if isinstance(value, str) else value


def _is_place(text: str) -> bool:
    return bool(re.match(r"[/~]|[A-Za-z]:[\\/]|\\\\|pipe:|[a-z0-9+]+://", text))


def file_name(text: str) -> str:
    """The last part of a path or URL; of a command, which may hold anything, nothing."""
    return "pipe:..." if text.startswith("pipe:") else re.split(r"[\\/]", re.split(r"[?#]", text)[0].rstrip("\\/"))[-1]
