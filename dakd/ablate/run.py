"""Doing a plan's jobs: by any number of workers that share a folder, stopped at any time, begun again by the same call.

A job is locked while a worker is at it, and its folder holds `job.json` once it is done. A worker takes what it can do,
leaves what another one is at, and waits for that in the end. A job that fails is told and tried again by the next call;
what builds on it is left out, everything else goes on.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dakd.ablate.cost import measure_cost
from dakd.ablate.plan import Job, Plan
from dakd.config import Config, dump_config
from dakd.data.prepare import prepare
from dakd.evaluate.evaluate import evaluate
from dakd.generate.generate import generate
from dakd.pipeline import UNDER_DEEPSPEED, Stopped, finish_step, fitting_processes, step_command
from dakd.runtime.files import write_json, write_text
from dakd.runtime.lifetime import Preempted
from dakd.runtime.lock import locked
from dakd.runtime.runlog import format_duration, say
from dakd.runtime.version import code_version
from dakd.train.jointnet import train_jointnet
from dakd.train.saross import train_saross

_DONE = "job.json"
_SPENT = "spent.json"  # seconds of all calls that were at the job, also those that were stopped
_POLL_S = 2.0


@dataclass
class Outcome:
    """failed: why, by the job's name.  blocked: jobs that build on a failed one."""

    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)


class Store:
    """The folder of all jobs. Tables that share a store share what is the same in them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def place(self, job: Job) -> Path:
        return self.folder / job.name

    def record(self, job: Job) -> dict | None:
        """What is known of a job that is done: commit, device, seconds; None before."""
        path = self.place(job) / _DONE
        return json.loads(path.read_text()) if path.is_file() else None

    def is_done(self, job: Job) -> bool:
        return (self.place(job) / _DONE).is_file()


def work(plan: Plan, store: Store, processes: int | None = None, first: int = 0) -> Outcome:
    """Do what is left of the plan, and wait for what other workers are doing of it.

    processes: ranks of each training and generation; None: the GPUs there are, or 1; 0: in this process, which spares
    small experiments the start of many others.
    first: where in the list of jobs this worker starts to look, so that several do not meet at once.
    Raises Preempted where a training was asked to stop, and Stopped where another step was ended by a signal to this
    process: a worker that is told to stop begins no other job.
    """
    outcome, told = Outcome(), None
    waiting = [*plan.jobs[first:], *plan.jobs[:first]]
    with _stopping_when_told():
        while waiting := [job for job in waiting if not _is_settled(job, store, outcome)]:
            ready = [job for job in waiting if all(store.is_done(one) for one in job.links.values())]
            # The first that can be done, and then a new look: what has become ready by it may stand before the others.
            if any(_visit(job, store, processes, outcome) for job in ready):
                continue
            names = ", ".join(job.name for job in ready)
            if ready and names != told:
                say(f"ablate: waiting for other workers, or steps that have outlived theirs: {names}")
                told = names
            time.sleep(_POLL_S)
    return outcome


@contextmanager
def _stopping_when_told() -> Iterator[None]:
    """Within the block SIGTERM and SIGUSR1 raise Preempted where no step listens itself: a warning is no crash."""
    before: dict[int, Any] = {}

    def stop(number: int, _: object) -> None:
        raise Preempted(f"stopped by {signal.Signals(number).name}; the same command resumes the work")

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_settled(job: Job, store: Store, outcome: Outcome) -> bool:
    if any(one.name in outcome.failed or one.name in outcome.blocked for one in job.links.values()):
        outcome.blocked.add(job.name)
    return store.is_done(job) or job.name in outcome.failed or job.name in outcome.blocked


def _visit(job: Job, store: Store, processes: int | None, outcome: Outcome) -> bool:
    """Do a job unless another worker is at it; whether something was done."""
    if _is_settled(job, store, outcome):
        return False
    try:
        lock = locked(store.folder / "locks" / job.name)  # steps lock their run folder themselves
        descriptor = lock.__enter__()
    except RuntimeError:  # another worker holds it, or a step that has outlived its worker
        return False
    try:
        if not store.is_done(job):
            _do(job, store, processes, () if descriptor is None else (descriptor,))
    except Stopped:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        outcome.failed[job.name] = str(error)
        say(f"ablate: {job.name} failed: {error}")
    finally:
        lock.__exit__(None, None, None)
    return True


def _do(job: Job, store: Store, processes: int | None, locks: Sequence[int]) -> None:
    """locks: file descriptors that the job's steps hold too, so that a killed worker leaves none without a lock."""
    folder = store.place(job)
    config = job.config.model_copy(update={"run_dir": str(folder), "name": job.name})
    write_text(folder / "experiment.yaml", dump_config(config))
    for path, other in job.links.items():
        _link(folder / path, store.place(other) / path)
    say(f"ablate: {job.name}")
    with _time_kept(folder):
        for step, *options in job.steps:
            if processes == 0 or step == "cost":
                _do_here(step, options, config)
            else:
                ranks = processes or fitting_processes(config, torch.cuda.device_count())
                finish_step(step, _command(step, options, folder / "experiment.yaml", ranks), folder, locks)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    facts = {"job": job.name, "digest": job.digest, "commit": code_version(), "device": device}
    facts["seconds"] = _spent(folder)
    write_json(folder / _DONE, facts)
    say(f"ablate: {job.name} done in {format_duration(facts['seconds'])}")


@contextmanager
def _time_kept(folder: Path) -> Iterator[None]:
    """Add the time of the block to what earlier calls have spent on the job, however it ends short of a kill."""
    start = time.monotonic()
    try:
        yield
    finally:
        write_json(folder / _SPENT, {"seconds": round(_spent(folder) + time.monotonic() - start, 1)})


def _spent(folder: Path) -> float:
    path = folder / _SPENT
    return json.loads(path.read_text())["seconds"] if path.is_file() else 0.0


def _do_here(step: str, options: Sequence[str], config: Config) -> None:
    """A step in this process; options: as on its command line."""
    if step == "prepare":
        prepare(config)
    elif step == "train_jointnet":
        train_jointnet(config, *([(int(options[1]),)] if options else []))
    elif step == "generate":
        generate(config)
    elif step == "train_saross":
        train_saross(config, (options[1],))
    elif step == "evaluate":
        evaluate(config)
    elif step == "cost":
        write_json(config.run_path / "cost.json", measure_cost(config, int(options[0])))


def _link(place: Path, target: Path) -> None:
    """A link by relative path, so that the store can be moved; what an earlier call has linked stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(os.path.relpath(target, place.parent))


def _command(step: str, options: Sequence[str], config: Path, processes: int) -> list[str]:
    if step in UNDER_DEEPSPEED and processes > 1:
        return [*step_command(step, config, [], processes), *options]
    return [sys.executable, "-m", "dakd", step, "--config", str(config), *options]
