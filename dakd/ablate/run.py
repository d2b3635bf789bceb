"""The jobs of a plan, done by any number of workers that share a folder; the same call resumes stopped work.

A job is locked while a worker does it, and its folder holds `job.json` once it is done. A worker does the jobs that are
ready, skips those that another one has locked, and waits for them at the end. A job that fails is reported and tried
again by the next call; jobs that build on it are left out, and all others are done.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dakd.ablate.cost import measure_cost
from dakd.ablate.plan import Job, TablePlan
from dakd.config import Config, dump_config
from dakd.data.prepare import prepare
from dakd.evaluate.evaluate import evaluate
from dakd.generate.generate import generate
from dakd.pipeline import UNDER_DEEPSPEED, Stopped, finish_step, fitting_processes, step_command
from dakd.pseudo_label.step import pseudo_label
from dakd.refine.refine import refine
from dakd.runtime.files import write_text
from dakd.runtime.lock import locked
from dakd.runtime.runlog import format_duration, say
from dakd.runtime.sealed import read_json, write_json
from dakd.runtime.stopping import Preempted, stop_signals
from dakd.shipped import code_version
from dakd.train.jointnet import train_jointnet
from dakd.train.saross import train_saross
from dakd.weights import STUDENT_FILES

RECORD = "job.json"  # written last: the job is done
SECONDS = "seconds.json"  # by name those of the jobs that a result from elsewhere was built on, see `kept_results`
_SPENT = "spent.json"  # seconds that all calls have spent on the job, including those that were stopped
_POLL_S = 2.0


@dataclass
class Unfinished:
    """Jobs that a worker could not do.  failed: their errors, by name.  blocked: jobs that build on a failed one."""

    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)


class JobStore:
    """The folder of all jobs. Tables with the same store share the jobs that are the same in both."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def folder_of(self, job: Job) -> Path:
        return self.folder / job.name

    def record(self, job: Job) -> dict | None:
        """The commit, device and seconds of a job that is done; None before. ValueError where it is another job's."""
        path = self.folder_of(job) / RECORD
        how = f"remove {path.parent}, and its zip where --results has one, and the job is done again"
        found = read_json(path, how)
        if found is not None and (name := found.get("job", job.name)) != job.name:
            raise ValueError(f"{path} is the record of {name}; expected that of {job.name}; {how}")
        return found

    def is_done(self, job: Job) -> bool:
        return (self.folder_of(job) / RECORD).is_file()

    def remaining(self, plan: TablePlan) -> list[Job]:
        """The jobs that results of the table still need, in the plan's order.

        What only finished jobs build on is not among them: a store may lack it where their results came from elsewhere.
        """
        needed: set[str] = set()

        def visit(job: Job) -> None:
            if job.name not in needed and not self.is_done(job):
                needed.add(job.name)
                for other in job.needs:
                    visit(other)

        for cell in plan.cells:
            for job in cell.jobs.values():
                visit(job)
        return [job for job in plan.jobs if job.name in needed]


def work(
    plan: TablePlan,
    store: JobStore,
    processes: int | None = None,
    first: int = 0,
    after_each: Callable[[], object] = lambda: None,
) -> Unfinished:
    """Do the remaining jobs of the plan, and wait for those that other workers are doing.

    processes: ranks of each training and generation; None: one per GPU, or 1; 0: in this process, which spares small
    experiments the start of many others.
    first: the job that this worker looks at first, so that several workers start apart.  after_each: called after each
    job that this worker has done.
    Raises Preempted where a training was asked to stop, and Stopped where another step was ended by a signal to this
    process: after a stop request a worker begins no other job.
    """
    unfinished, reported = Unfinished(), None
    needed = {job.name for job in store.remaining(plan)}
    waiting = [job for job in (*plan.jobs[first:], *plan.jobs[:first]) if job.name in needed]
    with _signals_as_preempted():
        while waiting := [job for job in waiting if not _is_settled(job, store, unfinished)]:
            ready = [job for job in waiting if all(store.is_done(one) for one in job.needs)]
            # Only the first one that can be done: it may make jobs ready that stand before the others.
            if any(_visit(job, store, processes, unfinished) for job in ready):
                after_each()
                continue
            names = ", ".join(job.name for job in ready)
            if ready and names != reported:
                say(f"ablate: waiting for other workers, or for the checkpoints of killed ones: {names}")
                reported = names
            time.sleep(_POLL_S)
    return unfinished


@contextmanager
def _signals_as_preempted() -> Iterator[None]:
    """Within the block a signal to stop raises Preempted, unless a step handles them: a stop is not a failure."""
    before: dict[int, Any] = {}

    def stop(number: int, _: object) -> None:
        raise Preempted(f"stopped by {signal.Signals(number).name}; the same command resumes the work")

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_settled(job: Job, store: JobStore, unfinished: Unfinished) -> bool:
    if any(one.name in unfinished.failed or one.name in unfinished.blocked for one in job.needs):
        unfinished.blocked.add(job.name)
    return store.is_done(job) or job.name in unfinished.failed or job.name in unfinished.blocked


def _visit(job: Job, store: JobStore, processes: int | None, unfinished: Unfinished) -> bool:
    """Do a job unless another worker has locked it; whether something was done."""
    if _is_settled(job, store, unfinished):
        return False
    with ExitStack() as stack:
        try:
            # Not the lock of the job's folder: the steps lock that themselves.
            descriptor = stack.enter_context(locked(store.folder / "locks" / job.name))
        except RuntimeError:  # held by another worker, or by a step that writes its last checkpoint
            return False
        try:
            # Another worker may have finished it just before this one got the lock.
            if not store.is_done(job):
                _do(job, store, processes, () if descriptor is None else (descriptor,))
        except Stopped:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            unfinished.failed[job.name] = str(error)
            say(f"ablate: {job.name} failed: {error}")
    return True


def _do(job: Job, store: JobStore, processes: int | None, locks: Sequence[int]) -> None:
    """locks: file descriptors that the steps inherit: a step that outlives a killed worker keeps the lock."""
    folder = store.folder_of(job)
    config = job.config.model_copy(update={"run_dir": str(folder), "name": job.name})
    for other in job.needs:
        store.record(other)  # nothing is built on a job whose record is damaged or another's
    if job.start is not None:
        update = {"init_from": str(_weights_of(job.start, store))}
        config = config.model_copy(update={"train_saross": config.train_saross.model_copy(update=update)})
    write_text(folder / "experiment.yaml", dump_config(config))
    for path, other in job.links.items():
        _link(folder / path, store.folder_of(other) / path)
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
    # Last, because this file says that all results are there.
    write_json(folder / RECORD, facts)
    say(f"ablate: {job.name} done in {format_duration(facts['seconds'])}")


def _weights_of(student: Job, store: JobStore) -> Path:
    ((_, _, training_set),) = student.steps  # train_saross --training-set SET
    return store.folder_of(student) / "train_saross" / training_set / STUDENT_FILES["ema"]


@contextmanager
def _time_kept(folder: Path) -> Iterator[None]:
    """Add the time of the block to that of earlier calls, however it ends, except by a kill."""
    earlier, start = _spent(folder), time.monotonic()  # read first: a damaged file is no reason to lose a stop

    def write() -> None:
        write_json(folder / _SPENT, {"seconds": round(earlier + time.monotonic() - start, 1)})

    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk must not hide why the job ended: a stop is not a failure
            write()
        raise
    write()


def _spent(folder: Path) -> float:
    path = folder / _SPENT
    spent = read_json(path, f"remove {path}")
    return spent["seconds"] if spent is not None else 0.0


def _do_here(step: str, options: Sequence[str], config: Config) -> None:
    """A step in this process; options: as on its command line."""
    if step == "prepare":
        prepare(config)
    elif step == "train_jointnet":
        train_jointnet(config, *([(int(options[1]),)] if options else []))
    elif step == "generate":
        generate(config)
    elif step == "pseudo_label":
        pseudo_label(config)
    elif step == "refine":
        refine(config)
    elif step == "train_saross":
        train_saross(config, (options[1],))
    elif step == "evaluate":
        evaluate(config)
    elif step == "cost":
        write_json(config.run_path / "cost.json", measure_cost(config, int(options[0])))


def _link(place: Path, target: Path) -> None:
    """Link by a relative path, so that the store can be moved; a link of an earlier call stays.

    ValueError where something else is there: the job would be done from other data than its name says.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink() and not place.exists():
        place.symlink_to(os.path.relpath(target, place.parent))
    if not place.is_symlink() or place.resolve() != target.resolve():
        found = f"a link to {place.resolve()}" if place.is_symlink() else "no link"
        raise ValueError(f"{place} is {found}; expected a link to {target.resolve()}; move it away, and it is made")


def _command(step: str, options: Sequence[str], config: Path, processes: int) -> list[str]:
    if step in UNDER_DEEPSPEED and processes > 1:
        return [*step_command(step, config, [], processes), *options]
    return [sys.executable, "-m", "dakd", step, "--config", str(config), *options]
