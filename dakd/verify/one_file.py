"""One file of a run: its checksum, and the manifest of its folder."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import yaml
from PIL import Image

from dakd.data.index import load_index, load_sidecar
from dakd.runtime.files import file_hash
from dakd.runtime.kept_config import CONFIG
from dakd.runtime.sealed import listed_in, parse_sealed, refuse_changed_yaml, refuse_unlisted
from dakd.runtime.tensor_files import load_state
from dakd.train.checkpoint import verified_facts
from dakd.verify.found import ERRORS, Found, short

_STATE = {"state.json", "state.safetensors"}  # the files of a checkpoint or snapshot


def look_at(path: Path) -> Found:
    """The state of a file by itself, and by the manifest of its folder where that lists it."""
    if path.name.startswith(".") or path.parent.name.startswith("."):
        is_part = path.name.endswith((".tmp", ".old")) or path.parent.name.startswith(".")
        return Found("unfinished", path, "left by a writer that was killed, or being written") if is_part else Found(
            "ok", path)  # fmt: skip
    if any(part.endswith(".partial") or part.startswith(("damaged-step-", "quarantine")) for part in path.parts):
        return Found("unfinished", path, "set aside by its step")
    is_ours = path.name == CONFIG if path.suffix == ".yaml" else path.suffix in _CHECKS
    if not is_ours and "claims" not in path.parts and path.name != "wandb_id":
        return Found("unexpected", path, "no step writes such a file")
    try:
        _CHECKS.get(path.suffix, lambda _: None)(path)
        if path.name not in _STATE and path.name in listed_in(path.parent):
            refuse_unlisted(path)
    except ERRORS as error:
        # An old checkpoint is renamed before it is removed, and found gone by an error of its own.
        if isinstance(error, FileNotFoundError) or not path.exists():
            return Found("unfinished", path, "it went away: its step is at work")
        return Found("damaged", path, short(error, path))
    return Found("ok", path)


def _check_json(path: Path) -> None:
    if path.name == "state.json":
        verified_facts(path.parent)
    elif path.name == "index.json" and path.parent.name != "pictures":
        load_index(path)
    elif path.name.startswith("shard-") and "measures" not in path.parts:
        load_sidecar(path)
    else:
        parse_sealed(path.read_bytes(), path)


def _check_tensors(path: Path) -> None:
    if path.name == "state.safetensors":
        verified_facts(path.parent)
    else:
        load_state(path)


def _check_tar(path: Path) -> None:
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise ValueError(f"{sidecar.name} does not exist")
    info = load_sidecar(sidecar)
    if (found := file_hash(path)) != info.sha256:
        raise ValueError(f"found the sha256 {found[:12]}, expected {info.sha256[:12]} ({sidecar.name})")


def _check_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


def _check_arrays(path: Path) -> None:
    with zipfile.ZipFile(path) as arrays:
        if (name := arrays.testzip()) is not None:
            raise ValueError(f"the checksum of {name} differs")


def _check_lines(path: Path) -> None:
    # What follows the last line's end may be a line that is being written.
    for number, line in enumerate(path.read_text().split("\n")[:-1], 1):
        try:
            json.loads(line)
        except ValueError:
            raise ValueError(f"line {number} is not JSON") from None


def _check_settings(path: Path) -> None:
    refuse_changed_yaml(path)
    if not isinstance(yaml.safe_load(path.read_text()), dict):
        raise ValueError("holds no settings")


def _check_text(path: Path) -> None:
    if not path.read_text().strip():
        raise ValueError("is empty")


_CHECKS = {
    ".json": _check_json,
    ".safetensors": _check_tensors,
    ".tar": _check_tar,
    ".png": _check_picture,
    ".npz": _check_arrays,
    ".jsonl": _check_lines,
    ".yaml": _check_settings,
    ".txt": _check_text,
    ".html": _check_text,
    ".md": _check_text,
}
