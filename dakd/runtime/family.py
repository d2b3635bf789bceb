"""Processes end with the one that started them: ranks with their launcher, steps with their pipeline, readers with
their rank. Standard library only, and in effect on Linux; elsewhere a rank still sees that its parent has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 0.5
_ENDED = -1


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel (Linux) to send this process a signal when the one that started it ends, however it ends.

    A rank that outlives its launcher would keep writing where the next run of the same command writes. The kernel looks
    at the thread that started this process: launchers start their ranks from the main one.
    """
    _die_with(os.getppid(), number)


def dying_with_this_process(number: int = signal.SIGTERM) -> Callable[[], None]:
    """For a child's `preexec_fn`: the child gets the signal when this process ends, whatever program it then runs."""
    _libc()  # here, because a fork should load nothing
    return functools.partial(_die_with, os.getpid(), number)


def _die_with(parent: int, number: int) -> None:
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, number)
        # It may have ended before the kernel was asked. Compared with its number and not with 1, which in a container
        # is a launcher like any other.
        if os.getppid() != parent:
            with contextlib.suppress(OSError):
                os.kill(os.getpid(), number)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def call_when_launcher_ends(call: Callable[[], None]) -> None:
    """Call back, from a thread, when the parent of this rank has ended, or the process that started that parent.

    `deepspeed` starts launch.py, which starts the ranks. A signal to `deepspeed` ends it alone: launch.py would go on
    with its ranks. Other launchers are their ranks' parents, and who started them is no matter of ours: it may be a
    shell that was closed on purpose, below `nohup`.
    """
    parent = os.getppid()
    starter = _starter_of(parent)

    def watch() -> None:
        while os.getppid() == parent and starter != _ENDED and (starter is None or _parent_of(parent) == starter):
            time.sleep(_POLL_S)
        call()

    threading.Thread(target=watch, name="dakd-launcher-watch", daemon=True).start()


def processes_of_group(group: int) -> list[int]:
    """The processes of a process group that run; those that have ended and wait to be reaped are none.  Linux."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        state = _state_of(int(folder.name))
        if state is not None and state.group == group and state.letter not in "ZX":
            found.append(int(folder.name))
    return sorted(found)


def _starter_of(launcher: int) -> int | None:
    """The process that started DeepSpeed's launch.py, _ENDED where that is over; None for another launcher."""
    try:
        arguments = Path(f"/proc/{launcher}/cmdline").read_bytes().replace(b"/", b".")
        parent, session = _parent_of(launcher), os.getsid(launcher)
    except OSError:
        return None
    # On another node it leads a session of its own, below ssh.
    if b"deepspeed.launcher.launch" not in arguments or parent is None or session == launcher:
        return None
    try:
        # An orphan's new parent, a container's first process or the user's systemd, is of another session.
        return parent if os.getsid(parent) == session else _ENDED
    except OSError:
        return parent


class _State(NamedTuple):
    letter: str
    parent: int
    group: int


def _state_of(pid: int) -> _State | None:
    """None for a process that has ended."""
    try:
        # Counted from behind the command's name: that name may hold spaces and brackets.
        letter, parent, group, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return _State(letter, int(parent), int(group))


def _parent_of(pid: int) -> int | None:
    state = _state_of(pid)
    return None if state is None else state.parent
