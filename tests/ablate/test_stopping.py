"""After a stop request a worker begins no other job; its job stays locked as long as a process writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ablate_worlds import SOFT, plan_of

from dakd.ablate import command, run
from dakd.ablate.run import JobStore, work
from dakd.cli import run_step
from dakd.pipeline import Stopped
from dakd.runtime.lock import locked
from dakd.runtime.stopping import INTERRUPTED, PREEMPTED, Preempted

SLEEP = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(60)"]


def wait_for(is_so) -> None:
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_so()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_worker_ends_it_with_its_step_and_no_job_is_failed(tmp_path, monkeypatch, number):
    plan, store = plan_of({"name": "real"}, SOFT), JobStore(tmp_path)
    begun = []

    def command_of(step, options, config, ranks):
        begun.append(step)
        return SLEEP

    monkeypatch.setattr(run, "_command", command_of)
    threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(Stopped, match="stopped during prepare"):
            work(plan, store, processes=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert begun == ["prepare"] and not store.is_done(plan.jobs[0])
    with locked(store.folder / "locks" / plan.jobs[0].name):
        pass  # the lock of the job was given back


def test_a_step_that_somebody_kills_fails_its_job_alone(tmp_path, monkeypatch):
    plan, store = plan_of({"name": "real"}), JobStore(tmp_path)
    kill_itself = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    monkeypatch.setattr(run, "_command", lambda *_: kill_itself)
    unfinished = work(plan, store, processes=1)
    assert list(unfinished.failed) == [plan.jobs[0].name] and len(unfinished.blocked) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_that_waits_for_others_stops_when_asked(tmp_path, number):
    plan, store = plan_of({"name": "real"}), JobStore(tmp_path)
    handlers = signal.getsignal(number)
    with locked(store.folder / "locks" / plan.jobs[0].name):
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        with pytest.raises(Preempted, match=number.name):
            work(plan, store, processes=0)
    assert signal.getsignal(number) is handlers


def test_a_jobs_time_is_that_of_all_calls_that_it_took(tmp_path, monkeypatch):
    plan, store = plan_of({"name": "real"}), JobStore(tmp_path)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))

    def stop(step, options, config):
        raise Preempted("stopped after step 3 of 9")

    monkeypatch.setattr(run, "_do_here", stop)
    with pytest.raises(Preempted):
        work(plan, store, processes=0)
    monkeypatch.setattr(run, "_do_here", lambda *_: None)
    work(plan, store, processes=0)
    assert [store.record(job)["seconds"] for job in plan.jobs] == [20, 10, 10]


def test_a_stop_stays_a_stop_where_the_time_cannot_be_written(tmp_path, monkeypatch):
    """As on a full disk; as a failure of its job it would let the worker go on with the next one."""
    plan, store, begun = plan_of({"name": "real"}, SOFT), JobStore(tmp_path), []

    def stop(step, options, config):
        begun.append(step)
        (config.run_path / "spent.json").mkdir()
        raise Preempted("stopped after step 3 of 9")

    monkeypatch.setattr(run, "_do_here", stop)
    with pytest.raises(Preempted, match="step 3 of 9"):
        work(plan, store, processes=0)
    assert begun == ["prepare"]


def test_a_damaged_time_is_named_before_the_job_is_done(tmp_path, monkeypatch):
    plan, store, begun = plan_of({"name": "real"}), JobStore(tmp_path), []
    spent = store.folder_of(plan.jobs[0]) / "spent.json"
    spent.parent.mkdir()
    spent.write_text("{}")
    monkeypatch.setattr(run, "_do_here", lambda step, *_: begun.append(step))
    failed = work(plan, store, processes=0).failed
    assert not begun and f"remove {spent}" in failed[plan.jobs[0].name]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, PREEMPTED), (signal.SIGINT, INTERRUPTED)])
def test_the_command_says_that_it_was_stopped(monkeypatch, capsys, number, status):
    """Ctrl-C is no request to start again, which 85 is for SLURM's scripts."""

    def stop(_):
        raise Stopped("stopped during generate", number)

    monkeypatch.setattr(command, "_run", stop)
    assert run_step("ablate", ["--config", "any.yaml"]) == status
    assert capsys.readouterr().err == "dakd ablate: stopped during generate\n"


def test_a_step_keeps_its_jobs_lock_when_the_worker_is_killed(tmp_path):
    """So the next worker waits while the orphan writes its checkpoint, in place of writing into the same folder."""
    checkpointing = [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP[2]]
    code = (
        "from dakd.pipeline import finish_step\nfrom dakd.runtime.lock import locked\nimport pathlib\n"
        f"with locked(pathlib.Path({str(tmp_path)!r})) as lock:\n"
        f"    finish_step('prepare', {checkpointing!r}, pathlib.Path({str(tmp_path)!r}), (lock,))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "started\n"
    (step,) = _children(worker.pid)
    worker.kill()
    worker.wait()
    try:
        with pytest.raises(RuntimeError, match="is being written by"), locked(tmp_path):
            pass
    finally:
        os.kill(step, signal.SIGKILL)
    wait_for(lambda: _is_free(tmp_path))


def test_a_worker_hands_its_lock_to_the_steps(tmp_path, monkeypatch):
    plan, store = plan_of({"name": "real"}), JobStore(tmp_path)
    given = []
    monkeypatch.setattr(run, "finish_step", lambda step, command, folder, locks: given.append(locks))
    work(plan, store, processes=1)
    assert len(given) == 3 and all(len(locks) == 1 for locks in given)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: tasks.read_text().split())
    return [int(one) for one in tasks.read_text().split()]


def _is_free(folder) -> bool:
    try:
        with locked(folder):
            return True
    except RuntimeError:
        return False
