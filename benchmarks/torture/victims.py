"""Processes that are to be killed, and what harms files: in quick-starting forks of a process that is warm."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dakd.runtime.files import file_hash

PATIENCE_S = 120.0  # for what must come about


class Victim:
    """A fork that does some work with its output in a file; nobody waits for what it was forked with."""

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
        """SIGKILL; whether it landed: the process had not ended before."""
        self._process.kill()
        self._process.join()
        return self._process.exitcode == -signal.SIGKILL

    def stop(self) -> bool:
        """SIGSTOP; whether it landed, once the process stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        told = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return told.si_code == os.CLD_STOPPED

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> int:
        """The exit status; RuntimeError where it does not end, and it is killed."""
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self.kill()
            raise RuntimeError(f"a process did not end within {PATIENCE_S:.0f} s; its last words: {self.told()[-300:]}")
        return self._process.exitcode

    def told(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def wait_until(condition: Callable[[], bool], what: str, poll_s: float = 0.002, patience_s: float = PATIENCE_S) -> None:
    """RuntimeError where it does not come about."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {patience_s:.0f} s")
        time.sleep(poll_s)


def jump_clock(seed: int) -> None:
    """From here on the wall clock of this process shows any time between 1970 and 2096 whenever it is asked.

    A stand-in for setting the host's clock: what asks C or the kernel for the time is not misled.
    """
    chance = random.Random(seed)
    time.time = lambda: chance.uniform(0, 4e9)
    time.time_ns = lambda: chance.randrange(4 * 10**18)


def jump_file_times(folder: Path, chance: random.Random) -> None:
    """Give the files below a folder, some of which may go meanwhile, times of the past and of the future."""
    for path in list(folder.rglob("*")):
        moment = chance.uniform(0, 4e9)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (moment, moment))


def flip_a_bit(path: Path, chance: random.Random) -> str:
    """Flip one bit anywhere in a file; says which."""
    place = chance.randrange(8 * path.stat().st_size)
    with open(path, "r+b") as stream:
        stream.seek(place // 8)
        byte = stream.read(1)[0]
        stream.seek(place // 8)
        stream.write(bytes([byte ^ 1 << place % 8]))
    return f"{path.name}: bit {place} flipped"


def cut_the_tail(path: Path, chance: random.Random) -> str:
    """Cut a file anywhere; says where."""
    size = chance.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.name}: cut at byte {size}"


HARMS = {"bit flipped": flip_a_bit, "tail cut": cut_the_tail}


def hashes(paths: Iterator[Path] | list[Path]) -> dict[str, str]:
    """sha256 by file name."""
    return {path.name: file_hash(path) for path in sorted(paths)}


def tree_hash(folder: Path) -> str:
    """One hash of all files below a folder, with their places."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder)} {file_hash(path)}\n".encode())
    return total.hexdigest()
