"""`dakd verify --accept FILE`: an edit of one's own stays, with a checksum that fits."""

from __future__ import annotations

import json
import math
from pathlib import Path

from dakd.config import read_yaml
from dakd.runtime.files import parse_json, write_text
from dakd.runtime.kept_config import CONFIG
from dakd.runtime.runlog import METRICS, drop_records_after
from dakd.runtime.sealed import MANIFEST, list_again, seal, seal_yaml
from dakd.runtime.tensor_files import load_foreign_state, read_metadata, save_weights
from dakd.train.validation import SCORES
from dakd.verify.found import has_steps, run_around


def accept(path: Path) -> None:
    """Give a file that was edited by hand a checksum that fits, and have the manifest that lists it list it so.

    Of a log of lines the whole ones stay. A file that was removed is no longer listed.
    ValueError for a file that `dakd verify` does not check, is not JSON or YAML any more or has values that are not
    finite.
    """
    if not path.is_file():
        if not list_again(path):
            raise ValueError(f"there is no {path}, and no {MANIFEST} lists it; give a file of a run")
        return
    has_own = path.suffix in _SEALS
    if has_own:
        _SEALS[path.suffix](path)
    elif path.name in (METRICS, SCORES) and run_around(path) is not None:
        drop_records_after(path, math.inf)
        has_own = True
    if not list_again(path) and not has_own:
        raise ValueError(f"{path} holds no checksum of its own and no {MANIFEST} lists it; give another file of a run")


def _seal_weights(path: Path) -> None:
    metadata = dict(read_metadata(path))
    if not metadata:
        raise ValueError(f"{path} has no metadata of dakd, so dakd did not write it; give weights of a run")
    save_weights(path, load_foreign_state(path), metadata)


def _seal_json(path: Path) -> None:
    content = parse_json(path.read_bytes(), path, "fix it first")
    if content.pop("content_sha256", None) is None:
        raise ValueError(f"{path} has no content_sha256, so dakd did not write it; give a JSON file of a run")
    write_text(path, seal(json.dumps(content, indent=1)))


def _seal_settings(path: Path) -> None:
    if path.name != CONFIG or not (has_steps(path.parent) or run_around(path)):
        raise ValueError(f"{path} is no file that dakd verify checks; expected the {CONFIG} of a run or of its steps")
    if not isinstance(tree := read_yaml(path).tree, dict):
        raise ValueError(f"{path} holds {tree!r:.40}; expected settings, names and values; fix it first")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(path, seal_yaml("".join(line for line in lines if not line.startswith("# content_sha256: "))))


_SEALS = {".safetensors": _seal_weights, ".json": _seal_json, ".yaml": _seal_settings}
