"""How a process ends: exit statuses, a training's stop at the end of a step on request, a rank's with its launcher.

A stop request is SIGTERM, SIGUSR1, SIGHUP (a closed terminal), the end of the launcher, of what reads the output, or of
the allotted time, or a file in the run folder (`dakd stop RUN`), for launchers that pass no signal on. A rank that
receives one only remembers it, and votes to stop in its next step. The ranks add up their votes in the sum that every
step takes anyhow, so all of them stop after the same step, with its checkpoint. Standard library only: a rank listens
before it imports torch, which takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dakd.runtime.console import show
from dakd.runtime.family import call_when_launcher_ends, die_with_parent
from dakd.runtime.files import parse_json
from dakd.runtime.place import number
from dakd.runtime.sealed import write_json

_LAUNCHER_ENDED, _OUTPUT_CLOSED = "end of the launcher", "closed output"
REASONS = (_LAUNCHER_ENDED, "SIGTERM", "SIGUSR1", "SIGHUP", _OUTPUT_CLOSED, "time limit", "request")
STOP_MARGIN_S = 300.0  # for the running step and its checkpoint, before the end of a SLURM job
REQUEST_FILE, MARKER_FILE = "stop.json", "requeue.json"
_listener: StopListener | None = None
_ends_with_launcher = _watches_output = False

# Exit statuses that dakd returns, or reads from the processes of its steps.
FAILED = 1
WRONG_ARGUMENTS = 2
PREEMPTED = 85  # a training stopped because it was asked to; the same command resumes it
INTERRUPTED = 128 + signal.SIGINT  # as shells report a command that Ctrl-C ended
BROKEN_PIPE = 128 + signal.SIGPIPE  # and one whose reader has left
PROOF_VARIABLE = "DAKD_PROOF_OF_END"  # names the file that rank 0 of a pipeline's step makes when it has finished


class Stopped(RuntimeError):
    """A step has ended early because this process received a signal to stop.  exit_status: 130 after Ctrl-C."""

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.exit_status = INTERRUPTED if number == signal.SIGINT else FAILED


class Preempted(Exception):
    """A training has stopped because it was asked to; its checkpoint and the marker for a restart are there."""


# --- stop requests ----------------------------------------------------------------------------------------------------


class StopListener:
    """The stop requests that one rank has received."""

    def __init__(self, run_path: Path):
        self.request_file = run_path / REQUEST_FILE
        self.reasons: set[str] = set()
        self._since_s = time.monotonic()
        # Wall-clock time is read once: a clock that jumps later moves no deadline.
        end = number("SLURM_JOB_END_TIME", 0) or float("inf")
        left_s = end - time.time()
        if left_s < 0:  # of another job: this one runs
            left_s = float("inf")
            if is_rank_0():
                show(f"dakd: SLURM_JOB_END_TIME is {end}, which is past, and not used; unset SLURM_JOB_END_TIME",
                     sys.stderr)  # fmt: skip
        self._job_left_s = left_s

    def votes(self, max_hours: float | None) -> list[float]:
        """One number for each of REASONS, 1 where this rank has received such a request.

        max_hours: of this listener's life. The end of a SLURM job (SLURM_JOB_END_TIME) is a limit too: STOP_MARGIN_S
        before it, or at half of what was left of the job when listening began, whichever is later. An end that was past
        then is that of an earlier job, which a shell kept.
        """
        elapsed = time.monotonic() - self._since_s
        limit = self._job_left_s - min(STOP_MARGIN_S, self._job_left_s / 2)
        if elapsed >= min(limit, float("inf") if max_hours is None else 3600 * max_hours):
            self.reasons.add("time limit")
        # Only one rank looks for the file: a network file system would show it to the others at another step.
        if is_rank_0() and self.request_file.exists():
            self.reasons.add("request")
        return [float(reason in self.reasons) for reason in REASONS]


def stop_reason(votes: Sequence[float]) -> str | None:
    """Why to stop, from the ranks' votes added up; None where no rank has voted."""
    return next((reason for reason, count in zip(REASONS, votes) if count), None)


def stop_signals() -> tuple[int, ...]:
    """The signals that ask for a stop: SIGHUP comes from a closed terminal, and is none of them under `nohup`."""
    hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGTERM, signal.SIGUSR1, *hang_up)


def received_request() -> str | None:
    """Why this rank was asked to stop, for one that waits and takes no step; None where it was not."""
    return next(iter(_listener.reasons), None) if _listener is not None else None


@contextmanager
def listen_for_stop(run_path: Path) -> Iterator[StopListener]:
    """Until the block ends, SIGTERM, SIGUSR1 and SIGHUP are stop requests instead of ending the process.

    So are the end of a rank's launcher and of what reads its output. Within another such block the outer listener
    serves. A request file that is older than the block is removed, and so is one that came too late to be needed: by
    the pipeline, where there is one, which then starts no further step.
    """
    global _listener
    if _listener is not None:
        yield _listener
        return
    listener = _listener = StopListener(run_path)
    before = {}
    if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
        for number in stop_signals():
            name = signal.Signals(number).name
            before[number] = signal.signal(number, lambda *_, name=name: listener.reasons.add(name))
    if _ends_with_launcher:
        die_with_parent(signal.SIGTERM)
    _watch_output()
    _remove_request(listener.request_file)
    try:
        yield listener
    finally:
        _listener = None
        if PROOF_VARIABLE not in os.environ:
            _remove_request(listener.request_file)
        if _ends_with_launcher:
            die_with_parent()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch_output() -> None:
    """Once a process: a training that prints to a closed terminal or pipe stops at a checkpoint, in place of failing.

    Its own print would otherwise be what ends it, steps after the last checkpoint.
    """
    global _watches_output
    if _watches_output:
        return
    _watches_output = True
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)  # 0: only what cannot be written to any more

    def watch() -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor, _ in outputs.poll():
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        if _listener is not None:
            _listener.reasons.add(_OUTPUT_CLOSED)

    threading.Thread(target=watch, name="dakd-output-watch", daemon=True).start()


def _remove_request(request_file: Path) -> None:
    if is_rank_0():
        request_file.unlink(missing_ok=True)


def request_stop(run_path: Path) -> Path:
    """Ask the training that runs in a folder to stop; ValueError where there is no such folder."""
    if not run_path.is_dir():
        raise ValueError(f"no run folder at {run_path}; give the one that the training writes to (runs/NAME)")
    write_json(run_path / REQUEST_FILE, {"asked_by": os.getpid()})
    return run_path / REQUEST_FILE


# --- markers for a restart --------------------------------------------------------------------------------------------


def write_requeue_marker(folder: Path, reason: str, step: int, total_steps: int) -> None:
    """Leave a file that says to start the same command again: launchers lose exit statuses."""
    write_json(folder / MARKER_FILE, {"reason": reason, "step": step, "total_steps": total_steps})


def read_requeue_markers(step_folder: Path) -> list[dict]:
    """The contents of the markers below the folder of a pipeline step."""
    return [
        parse_json(path.read_bytes(), path, "remove it and start the step again")
        for path in sorted(step_folder.glob(f"*/{MARKER_FILE}"))
    ]


def remove_requeue_markers(step_folder: Path) -> None:
    """Before a start: a marker that an earlier one has left says nothing about this one."""
    for path in step_folder.glob(f"*/{MARKER_FILE}"):
        path.unlink(missing_ok=True)


# --- the end of a step ------------------------------------------------------------------------------------------------


def signal_in(code: int) -> signal.Signals | None:
    """The signal that an exit status stands for; None for another status.

    Three forms: -N of a child process, 128 + N of a shell, and 256 - N, which is what exit makes of a rank's -N in
    DeepSpeed's launch.py. 255 is none: many programs give it for any error.
    """
    forms = (-code, code - 128, 256 - code) if code != 255 else ()
    return next((signal.Signals(form) for form in forms if 0 < form < 32), None)


def prove_end() -> None:
    """In rank 0 of a step that has finished: make the file that its pipeline asks for, if one does."""
    path = os.environ.get(PROOF_VARIABLE)
    if path and is_rank_0():
        with contextlib.suppress(OSError):  # the pipeline then says that the step was stopped
            Path(path).touch()


# --- processes --------------------------------------------------------------------------------------------------------


def ignore_stop_signals(_: int = 0) -> None:
    """In a reader process: stop with the rank that reads from it, not by the signals that are meant for the rank.

    SLURM, terminals and process groups send them to all. The second SIGTERM, which the rank itself sends, is obeyed.
    """
    rank = os.getppid()

    def end_without_rank(*_: object) -> None:
        # The kernel sends it also where no more than the thread ended that had started this reader.
        if os.getppid() != rank:
            os._exit(FAILED)

    signal.signal(signal.SIGHUP, end_without_rank)
    die_with_parent(signal.SIGHUP)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def end_with_launcher() -> None:
    """In a rank: end when the launcher ends; a training first writes a checkpoint, as after a stop request."""
    global _ends_with_launcher
    if not _ends_with_launcher:
        _ends_with_launcher = True
        die_with_parent(signal.SIGKILL if _listener is None else signal.SIGTERM)
        call_when_launcher_ends(_end)


def _end() -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed pipe
        show(f"dakd: the launcher of rank {os.environ.get('RANK', '0')} has ended; the rank ends too", sys.stderr)
    if _listener is None:
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        _listener.reasons.add(_LAUNCHER_ENDED)
    # A rank that waits for one that is gone takes no step, and would hold the run's lock for hours.
    time.sleep(STOP_MARGIN_S)
    os.kill(os.getpid(), signal.SIGKILL)


def is_rank_0() -> bool:
    """Whether this process prints and writes; a RANK that is no number is refused where a rank is needed."""
    return os.environ.get("RANK", "").strip() in ("", "0")
