"""Checkpoints: one portable format (safetensors and JSON), whole or absent, found again by the same command.

A checkpoint is a folder `step-00001000` with `state.safetensors` (fp32 tensors by kind and parameter name) and
`state.json` (step, position, identity of the run, versions, and the checksums of both files). It is written aside and
renamed when it is on the disk. A checkpoint whose bytes have changed since is never loaded: it is renamed to
`damaged-step-00001000`, and the one before it is taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dakd.runtime.distributed import barrier, broadcast, is_main
from dakd.runtime.files import file_hash, sync
from dakd.runtime.runlog import say
from dakd.runtime.sealed import Changed, parse_sealed, write_json

FORMAT = 2
_TENSORS, _FACTS = "state.safetensors", "state.json"
_STEP_FOLDER = re.compile(r"step-\d{8,}")


class Damaged(ValueError):
    """A checkpoint whose bytes are not those that were written."""


# --- a folder of tensors and facts ------------------------------------------------------------------------------------


def write_state(target: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    """Write `tensors` and JSON-serialisable `facts` to the folder `target`.

    A kill at any byte leaves it whole or absent. OSError where the disk is full: what was written aside is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.mkdir()
    try:
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, aside / _TENSORS)
        except SafetensorError as error:
            raise OSError(f"{target} could not be written: {error}") from error
        # Tensors, facts with their checksum, folder, name: each is on the disk before the next one refers to it.
        sync(aside / _TENSORS)
        facts = {"format": FORMAT, "versions": _versions(), **facts, "sha256": file_hash(aside / _TENSORS)}
        write_json(aside / _FACTS, facts)
        sync(aside)
        # A folder cannot be renamed over one that holds files.
        _remove(target)
        os.replace(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(target.parent)


def remove_state(target: Path) -> None:
    """Remove a folder that `write_state` wrote, which is never seen in part; one that is not there is fine."""
    _remove(target)


def verified_facts(target: Path) -> dict:
    """The facts of a folder that `write_state` wrote, once both files have the checksums they were written with.

    Raises Damaged where they have not, or where the folder is named after another step; ValueError for another format.
    """
    try:
        facts = _facts_of(target)
    except Changed:
        raise Damaged(f"{target / _FACTS} has another checksum than it was written with") from None
    except (OSError, ValueError) as error:
        raise Damaged(f"{target / _FACTS} cannot be read: {error}") from None
    if facts["format"] != FORMAT:
        raise ValueError(f"{target} has format {facts['format']}; expected {FORMAT}; remove it, and train again")
    try:
        found = file_hash(target / _TENSORS)
    except OSError as error:
        raise Damaged(f"{target / _TENSORS} cannot be read: {error}") from None
    if found != facts["sha256"]:
        raise Damaged(f"{target / _TENSORS} has another checksum than it was written with")
    if _STEP_FOLDER.fullmatch(target.name) and facts.get("step", step_of(target)) != step_of(target):
        raise Damaged(f"{target / _FACTS} holds step {facts['step']}: its folder was renamed")
    return facts


def load_tensors(target: Path) -> dict[str, Tensor]:
    """The tensors of a folder whose checksums were verified."""
    return load_file(target / _TENSORS)


def _versions() -> dict[str, str]:
    """The versions that a run's numbers depend on, of packages that are installed."""
    found = {"python": platform.python_version()}
    for package in ("dakd", "torch", "deepspeed", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _facts_of(target: Path) -> dict:
    return parse_sealed((target / _FACTS).read_bytes(), target / _FACTS)


def _remove(path: Path) -> None:
    """Remove a folder that must never be seen in part: renamed first, so that a kill leaves only a hidden one."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.{os.getpid()}.old")
        os.replace(path, hidden)
        shutil.rmtree(hidden)


# --- the checkpoints of a training ------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, step: int, state: dict[str, Tensor], facts: dict, keep: int) -> None:
    """Write checkpoint `step` from rank 0, then drop all but the newest `keep`. Other ranks wait."""
    if is_main():
        # From a process that was killed: rank 0 holds the lock of the training's folder, so no other one writes.
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover)
        write_state(folder / f"step-{step:08d}", state, {"step": step, **facts})
        for old in list_checkpoints(folder)[:-keep]:
            _remove(old)
    barrier()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints, oldest first; their checksums are not verified."""
    found = (path for path in folder.glob("step-*") if _STEP_FOLDER.fullmatch(path.name))
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def load_latest(folder: Path, identity: dict) -> tuple[dict[str, Tensor], dict] | None:
    """State and facts of the newest intact checkpoint, or None if there is none; a collective.

    Rank 0 verifies and chooses for all. Damaged ones are named and renamed. Raises ValueError where every checkpoint
    is damaged, and where the newest whole one belongs to another experiment: every differing setting is named.
    """
    chosen = error = None
    if is_main():
        try:
            chosen = _choose(folder, identity)
        except (ValueError, OSError) as refusal:
            error = str(refusal)
    # The error reaches all ranks: those without it would wait in the next collective.
    chosen, error = broadcast([None if chosen is None else str(chosen), error])
    if error is not None:
        raise ValueError(error)
    if chosen is None:
        return None
    return load_tensors(Path(chosen)), _facts_of(Path(chosen))


def check_identity(folder: Path, identity: dict) -> None:
    """ValueError where the newest checkpoint belongs to another experiment; its tensors are not read."""
    for path in reversed(list_checkpoints(folder)):
        with contextlib.suppress(OSError, ValueError, KeyError):  # a damaged one: the training takes the one before it
            found = _facts_of(path)["identity"]
            break
    else:
        return
    refuse_another_experiment(path, found, identity)


def _choose(folder: Path, identity: dict) -> Path | None:
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        try:
            facts = verified_facts(path)
        except Damaged as error:
            damaged.append(path)
            say(f"damaged checkpoint: {error}; the one before it is taken")
            continue
        refuse_another_experiment(path, facts["identity"], identity)
        # Renamed only once the run is known to belong here: a wrong command changes nothing in the folder.
        for broken in damaged:
            aside = broken.with_name(f"damaged-{broken.name}")
            _remove(aside)
            os.replace(broken, aside)
        return path
    if damaged:
        raise ValueError(f"every checkpoint in {folder} is damaged; to start again, remove {folder.parent}")
    return None


def refuse_another_experiment(path: Path, found: dict, identity: dict) -> None:
    """ValueError naming the settings in which the identity found in a file differs from the present one."""
    # Through JSON, like the saved one: tuples become lists.
    saved, wanted = _flat(found), _flat(json.loads(json.dumps(identity)))
    differing = [name for name in sorted({*saved, *wanted}) if saved.get(name) != wanted.get(name)]
    if differing == ["starts_from"]:
        raise ValueError(
            f"{path} started from other weights than the stage before has now: that one was trained again, or "
            f"init_from was changed. To start again from its present weights, remove {path.parent.parent}"
        )
    if differing:
        lines = "\n".join(f"  {name}: {saved.get(name)!r} there, {wanted.get(name)!r} now" for name in differing)
        raise ValueError(
            f"{path} was made with other settings:\n{lines}\n"
            "Set them back to resume, or take another name (or remove the folder) to start again"
        )


def _flat(tree: dict, prefix: str = "") -> dict:
    """Nested settings by their dotted names."""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
