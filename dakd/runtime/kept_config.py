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
    CHECKSUM_LINE,
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


def open_config(path: str | Path, overrides: Sequence[Override] | None = None, *, only_shown: bool = False) -> Config:
    """`load_config` for a file that the user named: a run's own config.yaml only as the run has written it.

    only_shown: whether nothing is written by it. ValueError where a run's config.yaml leads to another folder than its
    own, as in a run that was copied or moved, and no override says which is meant.
    """
    named = Path(path).expanduser()
    is_kept = named.name == CONFIG and named.is_file() and _is_of_a_run(named)
    if is_kept:
        refuse_changed_config(named)
    config = load_config(path, overrides)
    keys = [one.partition("=")[0] if isinstance(one, str) else one[0] for one in overrides or ()]
    if is_kept and not only_shown and not {"name", "run_dir"}.intersection(keys):
        run = config.run_path.resolve()
        if run not in named.resolve().parents:
            raise ValueError(
                f"{named} is of the run in {run}; expected its own folder: add run_dir={named.parent} to use the run "
                f"that it lies in, or run_dir={config.run_path} for the other one"
            )
    return config


def _is_of_a_run(path: Path) -> bool:
    """Whether a config.yaml is the one that a run keeps, or was: its checksum is there, or a manifest lists it."""
    if CONFIG in listed_in(path.parent):
        return True
    steps = (inner for name in (CONFIG, MANIFEST) for inner in path.parent.glob(f"*/{name}"))
    is_among_others = (path.parent / MANIFEST).exists() or any(steps)
    with open(path, errors="replace") as stream:
        return is_among_others and stream.readline().startswith(CHECKSUM_LINE)
