"""Text for people is printed whatever its characters, and by one function."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dakd.cli import main
from dakd.runtime.console import show
from dakd.runtime.runlog import say
from dakd.runtime.sealed import seal_yaml

DAKD = Path(__file__).resolve().parents[2] / "dakd"
NAME = os.fsdecode(b"p\xe9trole \xc3\xa9")  # one byte that is no UTF-8, and an accent


def stream_of(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding, errors, newline="")


@pytest.mark.parametrize("encoding, errors, printed", [
    ("utf-8", "strict", b"p\\udce9trole \xc3\xa9\n"),
    ("ascii", "strict", b"p\\udce9trole \\xe9\n"),
    ("latin-1", "strict", b"p\\udce9trole \xe9\n"),
    ("utf-8", "surrogateescape", b"p\xe9trole \xc3\xa9\n"),
])  # fmt: skip
def test_a_stream_gets_all_that_it_can_take_and_the_rest_in_escapes(encoding, errors, printed, monkeypatch):
    stream = stream_of(encoding, errors)
    show(NAME, stream)
    assert stream.buffer.getvalue() == printed
    monkeypatch.setattr(sys, "stdout", stream_of(encoding, errors))
    say(NAME)
    assert sys.stdout.buffer.getvalue() == printed


def test_a_text_stream_of_any_kind_serves_and_none_at_all(monkeypatch):
    stream = io.StringIO()
    show(NAME, stream, end="")
    assert stream.getvalue() == NAME
    monkeypatch.setattr(sys, "stdout", None)
    show(NAME)


def test_the_error_of_a_command_is_printed_whatever_its_characters(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream_of("utf-8"))
    assert main(["verify", NAME]) == 1
    assert sys.stderr.buffer.getvalue().startswith(b"dakd verify: no run folder at p\\udce9trole \xc3\xa9; give")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_fails_no_command_and_its_descriptor_goes_to_no_file(closed, tmp_path):
    """Of a command that prints, one that asks for a terminal, and a child process that prints."""
    (tmp_path / "config.yaml").write_text(seal_yaml("name: a\n"))
    code = (
        "import os, sys; from dakd.cli import main\n"
        f"found = [main(['verify', {str(tmp_path)!r}]), main(['verify', 'absent'])]\n"
        f"data = os.open({str(tmp_path / 'data')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "sys.exit(0 if found == [0, 1] and data > 2 and os.system('echo printed; echo more >&2') == 0 else 9)"
    )
    command = ["bash", "-c", f'exec "$@" {closed}', "bash", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "data").read_text() == ""


def test_nothing_else_in_dakd_prints():
    calls = [node for path in DAKD.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(), str(path)))
             if path.name != "console.py" and isinstance(node, ast.Call)]  # fmt: skip
    assert len(calls) > 1000 and [ast.unparse(one) for one in calls if ast.unparse(one.func) == "print"] == []
