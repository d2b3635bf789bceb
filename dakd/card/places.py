"""Removes paths and URLs of the machine that a model was trained on, which a publication must not hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Settings with a folder of data, which are left out, and settings with a file, of which the name is kept.
_PLACES = {"root", "cache", "cache_gib", "run_dir"}
_FILES = {"pretrained", "deepspeed", "synthetic", "extra_images", "streams", "student"}


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
