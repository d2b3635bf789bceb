"""One writer a folder: rank 0 locks the folder that it writes to, and records in the lock file who it is.

The lock is the kernel's (flock): it ends with its process, however that ends, so that nothing stale needs clearing. It
holds between hosts too where the file system carries it: NFS (4, and 3 with its lock daemon), GPFS, Lustre mounted with
`flock`. Where a file system knows no locks, the record of the owner decides, as far as it can. Standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from dakd.runtime.files import open_to_append
from dakd.runtime.place import number

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Hold `folder/.lock` on rank 0; its content is the owner's host, process and start time, and goes when it ends.

    Yields the lock's file descriptor, None on other ranks: a child process that is given it (`pass_fds`) holds the lock
    too, and on its own should its parent be killed.
    Raises RuntimeError naming the owner where another process holds it, ValueError where the lock is no plain file.
    """
    if number("RANK", 0) > 0:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Opening the file must not empty the record of a process that holds the lock.
    with open_to_append(folder / ".lock") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(folder, _read(stream)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _trust_record(folder, _read(stream))
        _refuse_foreign_content(folder / ".lock", stream)
        _write(stream, {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_of(os.getpid())})
        try:
            yield stream.fileno()
        finally:
            # The file stays: with it removed, one process could lock the old file while another locks a new one.
            _write(stream, None)


def trainings_in(run_path: Path) -> list[str]:
    """The trainings that write to a run folder, each as `FOLDER, process 12 on host`.

    Of an owner on another host that is all that can be known: its lock may not reach this host, and its record stays
    where it was killed.
    """
    found = {path.parent: _writer(path) for path in sorted(run_path.glob("train_*/*/.lock"))}
    return [f"{folder}, {owner}" for folder, owner in found.items() if owner is not None]


def _writer(path: Path) -> str | None:
    """The owner on a lock's record; None where there is none, and where it was one of this host that has ended."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open() as stream:
        owner = _read(stream)
        if owner is None:
            return None
        # A container may have this host's name and processes of its own, so the lock is asked too.
        is_here = owner["host"] == socket.gethostname()
        if is_here and _start_of(owner["pid"]) != owner["started"] and not _is_locked(stream):
            return None
    return _name(owner)


def _is_locked(stream: TextIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return False


def _trust_record(folder: Path, owner: dict | None) -> None:
    """Without locks: refuse where the owner on record is alive, or on another host, where it cannot be checked."""
    if owner is None:
        return
    if owner["host"] != socket.gethostname():
        raise RuntimeError(
            f"{folder} was being written by {_name(owner)}, and its file system has no locks to check whether "
            f"it still is; once it is not, remove {folder / '.lock'}"
        )
    if _start_of(owner["pid"]) == owner["started"]:
        raise _refusal(folder, owner)


def _refuse_foreign_content(path: Path, stream: TextIO) -> None:
    """A second name of somebody's file (a hard link) is not emptied; a copy of a run by such links is no danger."""
    found = os.fstat(stream.fileno())
    if found.st_nlink > 1 and found.st_size and _read(stream) is None:
        raise ValueError(f"{path} is another name of a file that is no lock; expected a lock of dakd; remove that name")


def _refusal(folder: Path, owner: dict | None) -> RuntimeError:
    return RuntimeError(
        f"{folder} is being written by {'another process' if owner is None else _name(owner)}; wait for it, or stop it "
        "(the ranks of a launcher that was killed write a checkpoint before they end)"
    )


def _name(owner: dict) -> str:
    return f"process {owner['pid']} on {owner['host']}"


def _read(stream: TextIO) -> dict[str, Any] | None:
    """The owner on record; None where there is none, or one that was killed while it wrote itself down."""
    stream.seek(0)
    try:
        owner = json.loads(stream.read())
    except (ValueError, RecursionError):
        return None
    is_owner = isinstance(owner, dict) and {"host", "started"} <= owner.keys() and isinstance(owner.get("pid"), int)
    return owner if is_owner else None


def _write(stream: TextIO, owner: dict | None) -> None:
    stream.truncate(0)
    if owner is not None:
        stream.write(json.dumps(owner) + "\n")
    stream.flush()


def _start_of(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since boot (Linux); None where there is none.

    Process numbers are used again, a number with its start is not.
    """
    try:
        # Field 22, counted from behind the command's name: that name may hold spaces and brackets.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None
