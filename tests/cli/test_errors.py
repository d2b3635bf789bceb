"""Every error that ends a command is one message: what, where, what to do; never a traceback."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from dakd.cli import COMMANDS, main
from dakd.cli.errors import message_of
from dakd.data.balance import balancing_factor


def undecodable() -> Exception:
    try:
        return ValueError(b"\xff".decode())
    except UnicodeDecodeError as error:
        return error


def no_json() -> Exception:
    try:
        return ValueError(json.loads(""))
    except ValueError as error:
        return error


@pytest.mark.parametrize("error, parts", [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a.tar"), ["/a.tar: no space left", "free some space"]),
    (PermissionError(errno.EACCES, "Permission denied", "/a"), ["/a: permission denied", "change its permissions"]),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/a"), ["/a: is a directory", "move it away"]),
    (FileExistsError(errno.EEXIST, "File exists", "/a"), ["/a: file exists", "move it away"]),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), ["/a/b: not a directory", "move it away"]),
    (FileNotFoundError(errno.ENOENT, "No such file", "/a"), ["/a: no such file", "check the path"]),
    (OSError(errno.EMFILE, "Too many open files", "/a"), ["/a: too many open files", "ulimit -n"]),
    (OSError(errno.EXDEV, "Invalid link", "/a", None, "/b"), ["/a and /b: invalid link"]),
    (MemoryError(), ["not enough memory", "micro_batch"]),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), ["not enough memory"]),
    (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), ["pid 12", "fewer num_workers"]),
    (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), ["pid(s) 12", "fewer num_workers"]),
    (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), ["not enough memory", "CUDA out of memory"]),
    (KeyError("Oil"), ["does not expect, KeyError: 'Oil'"]),
    (TypeError("no int"), ["does not expect, TypeError: no int"]),
    (AttributeError("'list' object has no attribute 'get'"), ["does not expect, AttributeError"]),
    (IndexError(), ["does not expect, IndexError: without a message"]),
    (RecursionError("maximum recursion depth"), ["does not expect, RecursionError"]),
    (ZeroDivisionError("division by zero"), ["does not expect, ZeroDivisionError"]),
    (AssertionError(), ["does not expect, AssertionError"]),
    (undecodable(), ["no text that can be read", "codec"]),
    (no_json(), ["no text that can be read", "Expecting value"]),
], ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "")  # fmt: skip
def test_an_error_of_any_kind_is_a_message_and_status_1(error, parts, capsys, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setitem(COMMANDS, "balance", COMMANDS["balance"]._replace(run=fail))
    monkeypatch.delenv("DAKD_TRACEBACK", raising=False)
    assert main(["balance", "--config", "demo"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("dakd balance: ") and printed.endswith("DAKD_TRACEBACK=1 shows where it happened)\n")
    assert [part for part in parts if part not in printed] == [] and printed.count("\n") == 2, printed


def test_an_unexpected_error_names_the_last_line_of_dakd_that_it_passed():
    with pytest.raises(TypeError) as caught:
        balancing_factor("x")
    assert "in dakd/data/balance.py line " in message_of(caught.value)
