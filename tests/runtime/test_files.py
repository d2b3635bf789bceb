"""Files are whole or absent, and their hash is that of their bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os

import pytest

from dakd.runtime import files
from dakd.runtime.files import file_hash, is_alive, open_to_append, replacing, write_text, written_aside


def test_a_file_is_replaced_as_a_whole_and_its_folder_made(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    with replacing(path) as aside:
        aside.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_a_name_that_is_not_utf_8_can_be_written_into_a_text(tmp_path):
    write_text(tmp_path / "a.txt", f"not read: {os.fsdecode(bytes([0x70, 0xE9]))}")
    assert (tmp_path / "a.txt").read_text() == "not read: p\\udce9"


def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, '{"a": 1}')
    with pytest.raises(RuntimeError), replacing(path) as aside:
        aside.write_text("{ha")
        raise RuntimeError("killed")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_reported_with_the_file_for_which_there_was_no_room(tmp_path):
    with pytest.raises(OSError) as raised, replacing(tmp_path / "a.txt"), open("/dev/full", "w") as full:
        full.write("text")
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path / "a.txt")


def test_a_file_that_cannot_be_made_is_named_not_its_hidden_part(tmp_path):
    with pytest.raises(PermissionError) as raised, written_aside(tmp_path / "a.txt") as aside:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(aside))
    assert raised.value.filename == str(tmp_path / "a.txt")


def test_the_bytes_are_on_the_disk_before_the_name_stands_for_them(tmp_path, monkeypatch):
    done, real_replace = [], os.replace
    monkeypatch.setattr(files, "sync", lambda path: done.append(("sync", path.read_text())))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append(("replace", paths[0].name)), real_replace(*paths)))
    write_text(tmp_path / "a.txt", "one")
    assert [what for what, _ in done] == ["sync", "replace"] and done[0][1] == "one"


def test_hash_is_the_sha256_of_the_bytes(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 9000)
    assert file_hash(path) == hashlib.sha256(bytes(range(256)) * 9000).hexdigest()


def test_what_is_appended_comes_after_what_is_there_and_can_be_read(tmp_path):
    for word in ("one", "two"):
        with open_to_append(tmp_path / "log") as stream:
            stream.write(word)
            stream.seek(0)
            assert stream.read().endswith(word)
    assert (tmp_path / "log").read_text() == "onetwo"


@pytest.mark.parametrize("kind", ["symbolic link", "pipe", "folder"])
def test_a_log_under_whose_name_something_else_was_planted_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "log"
    if kind == "symbolic link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(ValueError, match=rf"log is a {kind}.*; expected a plain file"):
        open_to_append(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_process_is_alive_even_if_it_may_not_be_signalled(monkeypatch):
    def refuse(pid, number):
        raise PermissionError

    assert is_alive(os.getpid()) and not is_alive(2**22 + 1) and not is_alive(1 << 70)
    monkeypatch.setattr(files.os, "kill", refuse)
    assert is_alive(1)
