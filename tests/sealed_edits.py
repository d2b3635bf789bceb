"""Edits of sealed JSON files as a hostile writer would make them: with a checksum that fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dakd.runtime.sealed import remove_manifest, seal, unseal


def content_of(path: Path) -> Any:
    return json.loads(unseal(path.read_bytes(), path))


def reseal(path: Path, content: Any) -> None:
    remove_manifest(path.parent)
    path.write_text(seal(json.dumps(content)))
