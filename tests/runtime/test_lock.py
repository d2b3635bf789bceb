"""One writer a folder: with the kernel's lock, and without one as far as the owner's record allows."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal

import pytest

from dakd.runtime import lock
from dakd.runtime.lock import locked


def hold(folder, ready):
    with locked(folder):
        ready.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder; killed at the end if it still is there."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_held_folder_is_refused_naming_its_owner_and_free_once_that_is_killed(tmp_path, holder):
    with pytest.raises(RuntimeError, match=rf"being written by process {holder.pid} on "), locked(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


def without_locks(monkeypatch, number=errno.ENOLCK):
    def refuse(*_):
        raise OSError(number, "no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)


def test_without_locks_a_living_owner_of_this_host_is_refused_and_a_dead_one_is_not(tmp_path, monkeypatch, holder):
    without_locks(monkeypatch)
    with pytest.raises(RuntimeError, match=rf"process {holder.pid} on "), locked(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locked(tmp_path):
        pass


def test_without_locks_a_process_that_took_over_the_number_is_not_the_owner(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    owner = {"host": lock.socket.gethostname(), "pid": os.getpid(), "started": 1}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    with locked(tmp_path):
        taken = json.loads((tmp_path / ".lock").read_text())
    assert taken["pid"] == os.getpid() and taken["started"] != 1


def test_without_locks_an_owner_on_another_host_is_refused_with_the_file_to_remove(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    (tmp_path / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1}))
    message = r"process 1 on elsewhere.*once it is not, remove .*\.lock"
    with pytest.raises(RuntimeError, match=message), locked(tmp_path):
        pass


def test_another_error_of_the_file_system_is_not_hidden(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="no locks available"), locked(tmp_path):
        pass
