"""What `dakd verify` finds: a file or folder and its state; and the run that a path lies in."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from dakd.runtime.kept_config import CONFIG
from dakd.runtime.sealed import remedy

State = Literal["ok", "damaged", "missing", "unexpected", "unfinished"]
STEPS = ("prepare", "balance", "train_jointnet", "generate", "refine", "pseudo_label", "train_saross", "evaluate",
         "predict", "report")  # fmt: skip
OWN_FOLDERS = ("pictures", "features")  # in evaluate/, of the run's own evaluation
# What reading a damaged file raises.
ERRORS = (OSError, EOFError, ValueError, RuntimeError, KeyError, TypeError, SyntaxError, zipfile.BadZipFile,
          zlib.error, yaml.YAMLError)  # fmt: skip


class Found(NamedTuple):
    """A file or folder of a run and its state.  reason: why it is not ok."""

    state: State
    path: Path
    reason: str = ""


def short(error: BaseException, path: Path) -> str:
    """An error's first line without the file's own path and without the remedies, which stand at the end."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.removesuffix(f"; {remedy(path)}").replace(f"{path} ", "").replace(f"{path}: ", "")[:300]


def has_steps(folder: Path) -> bool:
    """Whether steps have written to a folder, as to that of a run."""
    return any((folder / step).is_dir() for step in STEPS)


def run_around(path: Path) -> Path | None:
    """The run in whose steps' folders a file or folder lies; None where it lies in none."""
    place = Path(os.path.abspath(path))
    for run in place.parents:
        step = place.relative_to(run).parts[0]
        if step in STEPS and any((run / name).exists() for name in (*STEPS, CONFIG) if name != step):
            return run
    return None
