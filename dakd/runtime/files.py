"""Files that are whole or absent: written aside, flushed to the disk, then renamed. No reader sees a part."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from dakd.runtime.named import Named

REMEDY = "run the step that writes it again, or copy it again"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # of a disk, and of a user's share of it


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path next to `path` to write to; it replaces `path` when the block ends, and is removed when it fails.

    The folder is created where it is missing.
    """
    with written_aside(path) as aside:
        yield aside
        # Bytes before the name: after a power failure the name could otherwise stand for an empty file.
        sync(aside)
        os.replace(aside, path)


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a path next to `path` to write to, which no other writer on any host has; it is removed in the end.

    The folder is created where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename works only within one file system. The suffix keeps it out of searches for
    # *.tar or *.json; host, process and token keep writers apart.
    start = path.name.encode(errors="surrogateescape")[:100].decode(errors="ignore")  # 255 bytes are for the whole
    aside = path.with_name(f".{start}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield aside
    except OSError as error:
        # Of a write the kernel names no file, and of one that cannot be made a hidden one.
        if (error.filename is None and error.errno in NO_ROOM) or error.filename == str(aside):
            error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def open_to_append(path: str | Path) -> TextIO:
    """Open a file of a predictable name to append to it and to read it; it is made where it is missing.

    Raises ValueError for anything but a plain file: in a folder that others can write to, a link planted under that
    name would let us change a file elsewhere, and a pipe would hold us up.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if Path(path).is_symlink():
            raise _not_plain(path, "a symbolic link") from None
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _not_plain(path, "a folder" if error.errno == errno.EISDIR else "a socket") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_plain(path, "a pipe or a device")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "a+")


def _not_plain(path: str | Path, found: str) -> ValueError:
    return ValueError(f"{path} is {found}; expected a plain file that dakd made itself; remove it and run this again")


def left_overs(folder: str | Path, pattern: str = ".*.tmp") -> list[Path]:
    """The files in a folder that writers of this host left there when they were killed.

    pattern: of their names; a library may have put files of its own next to one.
    """
    mine = f".{socket.gethostname()}."
    found = []
    for path in sorted(Path(folder).glob(pattern)):
        owner, _, rest = path.name.rpartition(mine)
        pid = rest.split(".")[0]
        if owner and pid.isdecimal() and not is_alive(int(pid)):
            found.append(path)
    return found


def is_alive(pid: int) -> bool:
    """Whether this host has a process of that id."""
    try:
        # Signal 0 is never delivered: the call only checks the process.
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # or more than an id can be
        return False
    except PermissionError:
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text whole or not at all; bytes of file names that are no text are written as `\\udce9`."""
    with replacing(path) as aside:
        aside.write_text(text, errors="backslashreplace")


def holds(path: Path, text: str) -> bool:
    """Whether a file is what `write_text` makes of a text."""
    return path.is_file() and path.read_bytes() == text.encode(errors="backslashreplace")


def parse_json(text: str | bytes, path: str | Path, remedy: str = REMEDY) -> Named:
    """The table, a mapping of names to values, of a JSON text.

    path: where it comes from, remedy: what to do, for the messages.  Raises ValueError that names the file where it is
    empty, damaged or holds another thing; so does a name in it that is not there.
    """
    if not text.strip():
        raise ValueError(f"{path} is empty; expected JSON; {remedy}")

    def named(values: dict) -> Named:
        return Named(values, lambda name: f"{path} has no {name!r}; {remedy}")

    try:
        table = json.loads(text, object_hook=named)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not JSON ({reason}); {remedy}") from None
    if not isinstance(table, Named):
        raise ValueError(f"{path} holds a {type(table).__name__}; expected names and values in braces; {remedy}")
    return table


def sync(path: Path) -> None:
    """Return when a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
