"""The message of an error that ends a command: what was found, where, and what to do next."""

from __future__ import annotations

import errno
import json
import re
import traceback
from pathlib import Path

import dakd

_SHOW = "DAKD_TRACEBACK=1 shows where it happened"
_HERE = Path(dakd.__file__).parent
_REMEDIES = {
    errno.ENOSPC: "free some space on that disk; the same command then resumes",
    errno.EDQUOT: "free some of your quota; the same command then resumes",
    errno.EACCES: "change its permissions (ls -l shows them), or give another path",
    errno.EPERM: "change its permissions (ls -l shows them), or give another path",
    errno.EROFS: "give a path on a disk that can be written",
    errno.EISDIR: "a folder lies where a file is expected: move it away, or give another path",
    errno.EEXIST: "a file lies where a folder is to be made: move it away, or give another path",
    errno.ENOTDIR: "a file lies where a folder is expected: move it away, or give another path",
    errno.ENOENT: "check the path, or run the step that writes it first",
    errno.EMFILE: "allow more open files (ulimit -n 4096), or set fewer num_workers",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "the disk fails: copy the data to another one",
}
_MEMORY = (
    "there is not enough memory; set a smaller micro_batch, crop or num_workers (--dry-run estimates what a training "
    "takes), or predict smaller images"
)

# torch raises it wherever the rank is when it hears of the death, not only where a batch is asked for.
_DEAD_READER = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)")


def message_of(error: Exception) -> str:
    """The text about an error; the last line says how to see where it happened, if the message alone may not do."""
    if is_out_of_memory(error):
        return f"{_MEMORY}\n({_first_line(error)}; {_SHOW})"
    if isinstance(error, RuntimeError) and _DEAD_READER.match(str(error)):
        return (
            f"a process that reads the data has died, and its rank needs it to the end ({_first_line(error)}); the "
            "kernel kills one where memory runs out (see dmesg): set fewer num_workers; the same command resumes the "
            f"work\n({_SHOW})"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"{_of_system(error)}\n({_SHOW})"
    if isinstance(error, json.JSONDecodeError | UnicodeError):
        return f"a file holds no text that can be read ({error}), in {_place(error)}\n({_SHOW})"
    if isinstance(error, ValueError) and str(error).strip():
        return str(error)
    if isinstance(error, RuntimeError | OSError) and not isinstance(error, RecursionError | NotImplementedError):
        return f"{str(error).strip() or type(error).__name__}\n({_SHOW})"
    return (
        f"an error that dakd does not expect, {type(error).__name__}: {_first_line(error)}, in {_place(error)}; a file "
        f"of another program or version may cause it, otherwise please report it\n({_SHOW})"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory of the host or of a GPU did not suffice."""
    is_no_room = isinstance(error, OSError) and error.errno == errno.ENOMEM
    is_torchs = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)[:1000]
    return isinstance(error, MemoryError) or is_no_room or (isinstance(error, RuntimeError) and is_torchs)


def _of_system(error: OSError) -> str:
    files = " and ".join(str(one) for one in (error.filename, error.filename2) if one is not None)
    what = (error.strerror or type(error).__name__).lower()
    remedy = _REMEDIES.get(error.errno)
    return f"{files or 'a file'}: {what}" + (f"; {remedy}" if remedy else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["without a message"])[0][:300]


def _place(error: Exception) -> str:
    """The last line of dakd's own that the error passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(_HERE))]
    if not frames:
        return "a library"
    return f"{Path(frames[-1].filename).relative_to(_HERE.parent)} line {frames[-1].lineno}"
