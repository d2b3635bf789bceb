"""Checkpoints: one portable format (safetensors and JSON), whole or absent, found again by the same command.

A checkpoint is a folder `step-00001000` with `state.safetensors` (fp32 tensors by kind and parameter name) and
`state.json` (step, position, identity of the run, versions). It is written aside and renamed when it is on the disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dakd.runtime.distributed import barrier, is_main
from dakd.runtime.files import sync, write_json

FORMAT = 1


def save_checkpoint(folder: Path, step: int, state: dict[str, Tensor], facts: dict, keep: int) -> None:
    """Write checkpoint `step` from rank 0, then drop all but the newest `keep`. Other ranks wait."""
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover)
        target = folder / f"step-{step:08d}"
        aside = folder / f".{target.name}.{os.getpid()}"
        aside.mkdir()
        save_file({name: value.contiguous() for name, value in state.items()}, aside / "state.safetensors")
        write_json(aside / "state.json", {"format": FORMAT, "step": step, "torch": torch.__version__, **facts})
        sync(aside / "state.safetensors")
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside, target)
        sync(folder)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    barrier()


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(found, key=lambda path: int(path.name[5:]))


def load_latest(folder: Path, identity: dict) -> tuple[dict[str, Tensor], dict] | None:
    """State and facts of the newest checkpoint, or None.

    Raises ValueError when it belongs to another experiment: every differing setting is named.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    facts = json.loads((checkpoints[-1] / "state.json").read_text())
    if facts["format"] != FORMAT:
        raise ValueError(f"{checkpoints[-1]} has format {facts['format']}; this version reads {FORMAT}")
    saved = _flat(facts["identity"])
    wanted = _flat(json.loads(json.dumps(identity)))
    differing = [name for name in sorted({*saved, *wanted}) if saved.get(name) != wanted.get(name)]
    if differing:
        lines = "\n".join(f"  {name}: {saved.get(name)!r} there, {wanted.get(name)!r} now" for name in differing)
        if differing == ["starts_from"]:
            raise ValueError(
                f"{checkpoints[-1]} started from other weights than the stage before has now: that one was trained "
                f"again, or init_from was changed. To start anew from what it has now, remove {folder.parent}"
            )
        raise ValueError(
            f"{checkpoints[-1]} was made with other settings:\n{lines}\n"
            "Set them back to go on, or take another name (or remove the folder) to start anew"
        )
    return load_file(checkpoints[-1] / "state.safetensors"), facts


def _flat(tree: dict, prefix: str = "") -> dict:
    """Nested settings by their dotted names."""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
