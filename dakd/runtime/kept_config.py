"""The config.yaml of a run and of its steps: the settings that were run, believed only as they were written here.

Its first line is a checksum of the rest. The folder's manifest lists it, so that one of another run is noticed too: the
run's own manifest has nothing else in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dakd.config import Config, load_config
from dakd.config.overrides import Override
from dakd.runtime.sealed import (
    MANIFEST,
    Changed,
    listed_in,
    read_manifest,
    refuse_changed_yaml,
    refuse_unlisted,
    remedy,
)

CONFIG = "config.yaml"


def refuse_changed_config(path: Path) -> None:
    """Changed where a config.yaml is not as written, is another run's, or is gone though a manifest lists it.

    One that no manifest lists, of an older version, must have its own checksum only.
    """
    if path.is_file():
        refuse_changed_yaml(path)
        refuse_unlisted(path)
    elif path.name in (read_manifest(path.parent) or {}):
        raise Changed(f"{path} does not exist, though {path.with_name(MANIFEST)} lists it; {remedy(path)}")


def open_config(path: str | Path, overrides: Sequence[Override] | None = None) -> Config:
    """`load_config` for a file that the user named: a run's own config.yaml only as the run has written it."""
    named = Path(path)
    if named.name == CONFIG and named.is_file() and CONFIG in listed_in(named.parent):
        refuse_unlisted(named)
    return load_config(path, overrides)
