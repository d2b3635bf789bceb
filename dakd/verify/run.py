"""The state of every file of a run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from dakd.runtime.kept_config import CONFIG
from dakd.runtime.runlog import progress
from dakd.verify.found import STEPS, Found, has_steps, run_around
from dakd.verify.one_file import look_at
from dakd.verify.together import absent_and_foreign


def verify_run(run: Path) -> list[Found]:
    """The state of every file of a run, in order of the paths; ValueError where there is no run folder."""
    if not run.is_dir():
        raise ValueError(f"no run folder at {run}; give the folder of a run: runs/NAME")
    around = run_around(run)
    if around is not None and ((around / CONFIG).is_file() or not has_steps(run)):  # else a run called `report`
        raise ValueError(
            f"found a step's folder of {around}: {run}; expected a run's folder; run: dakd verify "
            f"{shlex.quote(str(around))}"
        )
    if not any((run / name).exists() for name in (*STEPS, CONFIG)):
        raise ValueError(f"{run} is not a run folder: found none of {CONFIG}, {', '.join(STEPS)}; give runs/NAME")
    files = sorted(path for path in _files(run) if "wandb" not in path.relative_to(run).parts)
    found = {path: _look_at(path, run) for path in progress(files, len(files), f"verify {run.name}")}
    for one in absent_and_foreign(run):
        if one.state != "unfinished" or one.path not in found or found[one.path].state == "ok":
            found[one.path] = one
    return [found[path] for path in sorted(found)]


def _look_at(path: Path, run: Path) -> Found:
    """Files of others, as of a model that was saved into the run, have no checksums that are ours."""
    step, *inner = path.relative_to(run).parts
    if inner and step not in STEPS:
        return Found("unexpected", path, "no step writes into such a folder")
    return look_at(path)


def _files(run: Path) -> Iterator[Path]:
    """All files of a run, also those of a step's folder that was moved elsewhere and linked; each folder once."""
    seen = set()
    for folder, inner, names in os.walk(run, followlinks=True):
        seen.add(os.path.realpath(folder))
        inner[:] = [name for name in inner if os.path.realpath(os.path.join(folder, name)) not in seen]
        yield from (path for name in names if (path := Path(folder, name)).is_file())
