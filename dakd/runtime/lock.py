"""One writer a folder: rank 0 holds a lock on what it writes, and says who it is."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dakd.runtime.distributed import is_main


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder/.lock` on rank 0; the kernel lets go of it when the process ends, however it ends.

    Raises RuntimeError naming the owner where another process holds it.
    """
    if not is_main():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise RuntimeError(
                f"{folder} is being written by {stream.read().strip() or 'another process'}; wait for it, or stop it "
                "(a launcher that was killed may have left its ranks running)"
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
