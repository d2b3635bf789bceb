"""Jobs, each in its own process, forked from a parent that has imported everything they need.

Imports take seconds, here only once. The parent never touches CUDA, which a child could not inherit; it waits, and
kills jobs over their limits: a crash or a hang costs one job. A job's output goes to the log, its measurements to the
tables line by line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lib.device import UNTIL_VARIABLE
from lib.timing import reason

from dakd.runtime.family import die_with_parent

# A job needs at least this much time to start; a killed one gets this long to be gone.
_LEAST_S, _GONE_S = 3.0, 5.0
_POLL_S = 0.02
_NOTE_BYTES = 4096
FAULTS = ("crash", "hang", "wrong")


@dataclass(frozen=True)
class Job:
    """call: runs in the child and returns a note.  skip: why not to run it."""

    name: str
    call: Callable[[], str | None]
    limit_s: float
    skip: str | None = None


@dataclass(frozen=True)
class Phase:
    """Jobs that run `workers` at once, and all of them within limit_s."""

    name: str
    limit_s: float
    jobs: Sequence[Job]
    workers: int = 1


@dataclass(frozen=True)
class JobResult:
    phase: str
    job: str
    status: str  # ok, WRONG, FAILED, crashed, timed out, no time left, skipped
    seconds: float
    note: str = ""


class Wrong(Exception):
    """A job has found an error: numbers over their budget, or a sum that changes."""


@dataclass
class _Child:
    job: Job
    start: float
    limit_s: float
    note_fd: int
    killed: bool = False


@dataclass
class Workers:
    """log: gets the children's output.  plant: a fault by the job's name, for rehearsals."""

    log: Path
    plant: dict[str, str] = field(default_factory=dict)
    _running: dict[int, _Child] = field(default_factory=dict)

    def run(self, phase: Phase, until: float) -> Iterator[JobResult]:
        """Yields each job's result when it ends.  until: time.monotonic() at which all must be over."""
        until = min(until, time.monotonic() + phase.limit_s)
        waiting = list(phase.jobs)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < phase.workers:
                    job = waiting.pop(0)
                    left_s = until - time.monotonic()
                    if job.skip is not None:
                        yield JobResult(phase.name, job.name, "skipped", 0.0, job.skip)
                    elif left_s < min(_LEAST_S, job.limit_s):
                        yield JobResult(phase.name, job.name, "no time left", 0.0)
                    else:
                        self._start(job, min(job.limit_s, left_s), phase.workers)
                yield from self._ended(phase.name)
                time.sleep(_POLL_S)
        finally:
            self.end_all()

    def end_all(self) -> None:
        """Kills all jobs and the processes that they started."""
        for pid in list(self._running):
            _kill(pid)
            _wait(pid, _GONE_S)
            self._running.pop(pid)

    def _start(self, job: Job, limit_s: float, workers: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # else the child would print the buffered text again
        reading, writing = os.pipe()
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            # Jobs that run at once share the cores.
            torch.set_num_threads(max(1, torch.get_num_threads() // workers))
            _live(job, limit_s, self.log, writing, self.plant.get(job.name))
        os.close(writing)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # so does the child: whichever is first
        self._running[pid] = _Child(job, start, limit_s, reading)

    def _ended(self, phase: str) -> Iterator[JobResult]:
        for pid, child in list(self._running.items()):
            seconds = time.monotonic() - child.start
            if seconds > child.limit_s and not child.killed:
                child.killed = True
                _kill(pid)
            status = _wait(pid, 0)
            if status is None and seconds < child.limit_s + _GONE_S:
                continue
            del self._running[pid]
            _kill(pid)  # the job's own children
            note = _read_note(child.note_fd)
            yield JobResult(phase, child.job.name, _in_words(status, child.killed), seconds, note)


def _live(job: Job, limit_s: float, log: Path, note_fd: int, fault: str | None) -> None:
    """The whole life of a child."""
    status, note = 1, ""
    try:
        os.setpgid(0, 0)
        die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        _redirect(log)
        os.environ[UNTIL_VARIABLE] = f"{time.monotonic() + max(1.0, limit_s - 2):.3f}"
        print(f"\n== {job.name} (at most {limit_s:.0f} s)", flush=True)
        _suffer(fault)
        note, status = job.call() or "", 0
    except Wrong as error:
        note, status = str(error), 3
        print(f"WRONG   {error}")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        note = "" if status == 0 else f"exit status {error.code}"
    # Any error is the job's result; the log has the traceback.
    except BaseException as error:
        traceback.print_exc()
        note = reason(error)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(note_fd, note.encode()[:_NOTE_BYTES])
        os._exit(status)


def _redirect(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, errors="replace") for number in (1, 2))


def _suffer(fault: str | None) -> None:
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hang":
        time.sleep(1e6)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _wait(pid: int, seconds: float) -> int | None:
    """The child's wait status, or None after `seconds`: a driver may hold a killed process for ever."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() >= until:
            return None
        time.sleep(_POLL_S)


def _read_note(fd: int) -> str:
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        text = os.read(fd, _NOTE_BYTES).decode(errors="replace")
        os.close(fd)
        return " ".join(text.split())
    os.close(fd)
    return ""


def _in_words(status: int | None, was_killed: bool) -> str:
    if was_killed or status is None:
        return "timed out"
    if os.WIFSIGNALED(status):
        return f"crashed ({signal.Signals(os.WTERMSIG(status)).name})"
    return {0: "ok", 3: "WRONG"}.get(os.WEXITSTATUS(status), "FAILED")
