"""How a process of a training ends: with its launcher, or at the end of a step once it was asked to stop.

The wish to stop comes as SIGTERM or SIGUSR1, as the end of the allotted time, or as a request file in the run folder
(`dakd stop RUN`), for launchers that pass no signal on. Whoever notices only notes it; the ranks add up their notes in
the sum that every step takes anyhow, so that all of them write the checkpoint of one and the same step and leave.
Standard library alone: a rank listens before it imports what takes seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dakd.runtime.files import write_json

PREEMPTED = 85  # exit status of a training that stopped when asked, to be started again
REASONS = ("SIGTERM", "SIGUSR1", "time limit", "request")
STOP_MARGIN_S = 300.0  # for the running step and its checkpoint, before the end of a SLURM job
REQUEST, MARKER = "stop.json", "requeue.json"
_SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_listener: Listener | None = None


class Preempted(Exception):
    """A training has stopped because it was asked to; its checkpoint and the marker for a restart are there."""


class Listener:
    """What one rank knows of a wish to stop."""

    def __init__(self, run_path: Path):
        self.request = run_path / REQUEST
        self.noted: set[str] = set()
        self._since_s = time.monotonic()
        # Wall-clock time is read once: a clock that jumps later moves no deadline.
        end = float(os.environ.get("SLURM_JOB_END_TIME") or "inf")
        self._job_left_s = max(0.0, end - time.time())

    def wishes(self, max_hours: float | None) -> list[float]:
        """One number for each of REASONS, 1 where this rank wishes to stop for it.

        max_hours: of this listener's life. The end of a SLURM job (SLURM_JOB_END_TIME) is a limit too: STOP_MARGIN_S
        before it, or at half of what was left of the job when listening began, whichever is later.
        """
        elapsed = time.monotonic() - self._since_s
        limit = self._job_left_s - min(STOP_MARGIN_S, self._job_left_s / 2)
        if elapsed >= min(limit, float("inf") if max_hours is None else 3600 * max_hours):
            self.noted.add("time limit")
        if is_rank_0() and self.request.exists():
            self.noted.add("request")
        return [float(reason in self.noted) for reason in REASONS]


def wished_reason(totals: Sequence[float]) -> str | None:
    """Why to stop, from the ranks' wishes added up; None where no rank wishes to."""
    return next((reason for reason, total in zip(REASONS, totals) if total), None)


@contextmanager
def listening(run_path: Path) -> Iterator[Listener]:
    """Until the block ends, SIGTERM and SIGUSR1 are noted instead of ending the process; inside another, that one.

    A request to stop that is older than the block is dropped, and so is one that was not needed any more.
    """
    global _listener
    if _listener is not None:
        yield _listener
        return
    listener = _listener = Listener(run_path)
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number, name in _SIGNALS.items():
            before[number] = signal.signal(number, lambda *_, name=name: listener.noted.add(name))
    _drop_request(listener.request)
    try:
        yield listener
    finally:
        _listener = None
        _drop_request(listener.request)
        for number, handler in before.items():
            signal.signal(number, handler)


def _drop_request(request: Path) -> None:
    if is_rank_0():
        request.unlink(missing_ok=True)


def request_stop(run_path: Path) -> Path:
    """Ask the training that runs in a folder to stop; ValueError where there is no such folder."""
    if not run_path.is_dir():
        raise ValueError(f"no run folder at {run_path}; give the one that the training writes to (runs/NAME)")
    write_json(run_path / REQUEST, {"asked_by": os.getpid()})
    return run_path / REQUEST


def leave_marker(folder: Path, reason: str, step: int, total_steps: int) -> None:
    """Tell whoever started the training that the same command is to be started again: launchers lose exit codes."""
    write_json(folder / MARKER, {"reason": reason, "step": step, "total_steps": total_steps})


def read_markers(step_folder: Path) -> list[dict]:
    """What the markers below the folder of a pipeline step say."""
    return [json.loads(path.read_text()) for path in sorted(step_folder.glob(f"*/{MARKER}"))]


def drop_markers(step_folder: Path) -> None:
    """Before a start: what an earlier one has left says nothing of this one."""
    for path in step_folder.glob(f"*/{MARKER}"):
        path.unlink(missing_ok=True)


def shield_reader(_: int = 0) -> None:
    """In a reader process: stop with the rank that reads from it, not by the signals that are meant for the rank.

    SLURM and process groups send them to all. The second SIGTERM, which the rank itself sends, is obeyed.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when the one that started it ends, however it ends.

    A rank that outlives its launcher would go on writing where the next run of the same command writes.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended in between
            with contextlib.suppress(OSError):
                os.kill(os.getpid(), signal.SIGKILL)


def is_rank_0() -> bool:
    return int(os.environ.get("RANK", 0)) == 0
