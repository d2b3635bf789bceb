"""One writer a folder: with the kernel's lock, and without one as far as the owner's record allows."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal

import pytest

from dakd.runtime import lock
from dakd.runtime.lock import locked, trainings_in


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


@pytest.mark.parametrize("content", ["[1]", "7", "{}", '{"host": "here", "pid": "x", "started": 1}', "[" * 100_000])
def test_a_lock_with_other_content_names_nobody_and_holds_nobody_up(tmp_path, monkeypatch, content):
    (tmp_path / ".lock").write_text(content)
    with locked(tmp_path):
        (tmp_path / ".lock").write_text(content)
        with pytest.raises(RuntimeError, match="being written by another process"), locked(tmp_path):
            pass
    (tmp_path / ".lock").write_text(content)
    without_locks(monkeypatch)
    with locked(tmp_path):
        pass


def test_another_error_of_the_file_system_is_not_hidden(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="no locks available"), locked(tmp_path):
        pass


def test_a_lock_that_is_a_planted_link_is_refused_and_its_target_stays_as_it_was(tmp_path):
    target = tmp_path / "precious"
    for content in ("kept", None):
        if content:
            target.write_text(content)
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / ".lock").symlink_to(target)
        message = r"\.lock is a symbolic link; expected a plain file.*remove it"
        with pytest.raises(ValueError, match=message), locked(tmp_path / "run"):
            pass
        assert target.exists() == bool(content) and (not content or target.read_text() == content)
        (tmp_path / "run" / ".lock").unlink()
        target.unlink(missing_ok=True)


def test_a_lock_that_is_a_second_name_of_a_file_is_refused_and_the_file_stays_as_it_was(tmp_path):
    (tmp_path / "precious").write_text("kept")
    os.link(tmp_path / "precious", tmp_path / ".lock")
    with pytest.raises(ValueError, match="another name of a file that is no lock"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_run_that_was_copied_by_hard_links_is_locked_as_any(tmp_path):
    with locked(tmp_path / "run"):
        pass
    os.link(tmp_path / "run" / ".lock", tmp_path / "copy")
    with locked(tmp_path / "run"):
        assert (tmp_path / "copy").samefile(tmp_path / "run" / ".lock")


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_training_is_found_while_its_owner_lives(tmp_path, monkeypatch, has_locks):
    folder = tmp_path / "train_jointnet" / "stage1"
    assert trainings_in(tmp_path) == []
    with locked(folder):
        if not has_locks:
            without_locks(monkeypatch)
        assert trainings_in(tmp_path) == [f"{folder}, process {os.getpid()} on {lock.socket.gethostname()}"]
    assert trainings_in(tmp_path) == []


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_training_that_was_killed_is_none_unless_another_host_may_still_run_it(tmp_path, monkeypatch, has_locks):
    folder = tmp_path / "train_saross" / "real"
    folder.mkdir(parents=True)
    if not has_locks:
        without_locks(monkeypatch)
    owner = {"host": lock.socket.gethostname(), "pid": os.getpid(), "started": 1}
    (folder / ".lock").write_text(json.dumps(owner))
    assert trainings_in(tmp_path) == []
    (folder / ".lock").write_text(json.dumps(owner | {"host": "elsewhere"}))
    assert trainings_in(tmp_path) == [f"{folder}, process {os.getpid()} on elsewhere"]


def test_a_training_of_a_container_with_this_hosts_name_is_found_by_its_lock(tmp_path, monkeypatch):
    folder = tmp_path / "train_saross" / "real"
    with locked(folder):
        monkeypatch.setattr(lock, "_start_of", lambda pid: None)
        assert trainings_in(tmp_path) != []
