"""Stop requests are remembered, not obeyed at once; ranks end with their parent; readers outlive a rank's signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dakd.runtime import stopping
from dakd.runtime.stopping import (
    PROOF_VARIABLE,
    REASONS,
    StopListener,
    listen_for_stop,
    prove_end,
    read_requeue_markers,
    remove_requeue_markers,
    request_stop,
    signal_in,
    stop_reason,
    write_requeue_marker,
)


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    monkeypatch.setenv("RANK", "0")


def reason_of(listener, max_hours=None):
    return stop_reason(listener.votes(max_hours))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_while_listening_and_the_handler_from_before_comes_back(tmp_path, number):
    before = signal.getsignal(number)
    with listen_for_stop(tmp_path) as listener:
        assert reason_of(listener) is None
        os.kill(os.getpid(), number)
        assert reason_of(listener) == number.name
        with listen_for_stop(tmp_path) as inner:
            assert inner is listener
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before


def test_one_ranks_vote_is_the_reason_of_all():
    quiet, asked = [0.0] * len(REASONS), [float(reason == "SIGUSR1") for reason in REASONS]
    assert stop_reason(quiet) is None
    assert stop_reason([sum(pair) for pair in zip(quiet, asked)]) == "SIGUSR1"


def test_a_request_is_seen_by_rank_0_alone_and_dropped_at_the_end(tmp_path, monkeypatch):
    request_stop(tmp_path)
    with listen_for_stop(tmp_path) as listener:
        assert reason_of(listener) is None  # it was older than the listening
        request = request_stop(tmp_path)
        monkeypatch.setenv("RANK", "1")
        assert reason_of(listener) is None
        monkeypatch.setenv("RANK", "0")
        assert reason_of(listener) == "request"
    assert not request.exists()


def test_a_request_to_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        request_stop(tmp_path / "absent")


class Clock:
    """Both clocks, set by hand."""

    def __init__(self, monkeypatch):
        self.wall, self.steady = 1e9, 100.0
        monkeypatch.setattr(stopping.time, "time", lambda: self.wall)
        monkeypatch.setattr(stopping.time, "monotonic", lambda: self.steady)


def test_the_time_limit_counts_from_when_listening_began(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    listener = StopListener(tmp_path)
    clock.steady += 1799
    assert reason_of(listener, max_hours=0.5) is None
    clock.steady += 1
    assert reason_of(listener, max_hours=0.5) == "time limit"


@pytest.mark.parametrize("left_s, stops_after_s", [(3600, 3300), (200, 100), (0, 0)])
def test_a_slurm_jobs_end_stops_in_time_whatever_the_wall_clock_does(tmp_path, monkeypatch, left_s, stops_after_s):
    """Five minutes before the end, and in a job shorter than twice that at half of it."""
    clock = Clock(monkeypatch)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(clock.wall + left_s)))
    listener = StopListener(tmp_path)
    clock.wall += 86400  # a clock that jumps
    if stops_after_s:
        clock.steady += stops_after_s - 1
        assert reason_of(listener) is None
        clock.steady += 1
    assert reason_of(listener) == "time limit"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_end_of_a_past_slurm_job_is_none_and_rank_0_says_so(tmp_path, monkeypatch, capsys, rank):
    clock = Clock(monkeypatch)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "999999999")
    monkeypatch.setenv("RANK", rank)
    listener = StopListener(tmp_path)
    clock.steady += 86400
    assert reason_of(listener) is None
    warned = "dakd: SLURM_JOB_END_TIME is 999999999, which is past, and not used; unset SLURM_JOB_END_TIME\n"
    assert capsys.readouterr().err == (warned if rank == "0" else "")


def test_markers_of_a_steps_trainings_are_read_and_dropped(tmp_path):
    for stage, step in (("stage1", 4), ("stage2", 9)):
        write_requeue_marker(tmp_path / stage, "SIGUSR1", step, 10)
    assert [marker["step"] for marker in read_requeue_markers(tmp_path)] == [4, 9]
    assert {"reason": "SIGUSR1", "step": 4, "total_steps": 10}.items() <= read_requeue_markers(tmp_path)[0].items()
    remove_requeue_markers(tmp_path)
    assert read_requeue_markers(tmp_path) == []


def wait_until(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_process_ends_with_its_parent_however_that_ends(tmp_path):
    child = (
        "import os, time, pathlib; from dakd.runtime.family import die_with_parent; die_with_parent(); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()) + ' '); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent])
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith(" "), "no child")
    pid = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    wait_until(lambda: not is_running(pid), "the child still runs")
    assert not is_running(pid)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_reader_outlives_the_signals_of_its_rank_and_ends_when_the_rank_ends_it(tmp_path):
    code = (
        "import signal, time, sys; from dakd.runtime.stopping import ignore_stop_signals; ignore_stop_signals(0)\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.01)"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert reader.stdout.readline() == "ready\n"
    for number in (signal.SIGUSR1, signal.SIGTERM):
        reader.send_signal(number)
        time.sleep(0.2)
        assert reader.poll() is None
    reader.terminate()
    assert reader.wait(30) == -signal.SIGTERM
    reader.stdout.close()


def test_the_marker_is_json_that_a_script_can_read(tmp_path):
    write_requeue_marker(tmp_path, "time limit", 3, 8)
    assert json.loads((tmp_path / "requeue.json").read_text())["reason"] == "time limit"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(-9, signal.SIGKILL), (137, signal.SIGKILL), (247, signal.SIGKILL), (241, signal.SIGTERM), (130, signal.SIGINT),
     (0, None), (1, None), (85, None), (128, None), (160, None), (224, None), (255, None)],
)  # fmt: skip
def test_a_signal_is_known_from_the_status_of_a_child_a_shell_and_a_rank(code, expected):
    assert signal_in(code) == expected


def test_rank_0_alone_proves_the_end_of_a_step(tmp_path, monkeypatch):
    proof = tmp_path / "finished"
    monkeypatch.setenv(PROOF_VARIABLE, str(proof))
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        prove_end()
        assert proof.exists() == (rank == "0")
    monkeypatch.setenv(PROOF_VARIABLE, str(tmp_path / "gone" / "finished"))  # its pipeline has ended
    prove_end()
    monkeypatch.delenv(PROOF_VARIABLE)
    prove_end()
