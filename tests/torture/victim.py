"""Processes that suffer a fault: forks of this one, which start at once because everything is imported already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 120.0


class Victim:
    """A forked process that does some work, its output in a file."""

    def __init__(self, work: Callable[[], object], log: Path) -> None:
        self.log = log

        def run() -> None:
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            work()

        self._process = multiprocessing.get_context("fork").Process(target=run)
        self._process.start()
        self.pid: int = self._process.pid

    def kill(self) -> bool:
        """Send SIGKILL; True if the process had not ended before."""
        self._process.kill()
        self._process.join()
        return self._process.exitcode == -signal.SIGKILL

    def stop(self) -> bool:
        """Send SIGSTOP and wait until it takes effect; True if the process had not ended before."""
        os.kill(self.pid, signal.SIGSTOP)
        state = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return state.si_code == os.CLD_STOPPED

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> int:
        """The exit status. A process that does not end is killed, and RuntimeError raised."""
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self.kill()
            raise RuntimeError(f"a process did not end within {PATIENCE_S:.0f} s; it printed: {self.output()[-300:]}")
        return self._process.exitcode

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def wait_until(condition: Callable[[], bool], what: str, poll_s: float = 0.002, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition; RuntimeError, with `what`, if it does not hold in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {patience_s:.0f} s")
        time.sleep(poll_s)
