"""Ranks that wait for others say for whom, and end in time; those that do not fit together are refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from dakd.runtime import rendezvous
from dakd.runtime.distributed import free_port
from dakd.runtime.place import PLACE_VARIABLES

ROOT = Path(__file__).resolve().parents[2]
JOIN = """
import sys
from dakd.runtime import rendezvous
rendezvous._FIRST_REPORT_S, rendezvous._NEXT_REPORT_S = 0.2, 0.5
from dakd.runtime.distributed import all_reduce_sum, init_process_group, shut_down
try:
    init_process_group()
except (RuntimeError, ValueError) as error:
    sys.exit(f"ended: {error}")
print(all_reduce_sum([1.0]))
shut_down()
"""


@pytest.fixture
def start(request):
    """Starts a rank; `names` are its launcher's variables."""
    started = []

    def start(code=JOIN, **names):
        kept = {name: value for name, value in os.environ.items() if name not in PLACE_VARIABLES}
        environment = kept | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | names
        started.append(
            subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def rank(number, port, world=2, **more):
    return {"RANK": str(number), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | more


def ended(process):
    printed, error = process.communicate(timeout=60)
    return process.returncode, printed + error


@pytest.mark.parametrize(
    "number, found",
    [(0, r"1 of 3 ranks are there; missing: rank 1, 2"), (1, r"nobody listens there")],
)
def test_a_rank_that_is_alone_says_for_whom_it_waits_and_ends_at_the_limit(start, number, found):
    port = free_port()
    status, error = ended(start(**rank(number, port, 3, DAKD_RENDEZVOUS_S="0.6")))
    facts = f"rank {number} of 3 waits at 127.0.0.1:{port}: {found}"
    assert status == 1
    assert f"dakd: {facts}; gives up after 0.6 s (RANK={number}, WORLD_SIZE=3, MASTER_ADDR=127.0.0.1" in error
    assert f"ended: {facts}; expected 3 ranks, and DAKD_RENDEZVOUS_S allows 0.6 s" in error
    assert error.count("to run alone: unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT") >= 2


def test_a_task_of_srun_names_sruns_variables(start):
    slurm = {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NODEID": "0",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "DAKD_RENDEZVOUS_S": "0.5",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    status, error = ended(start(**slurm))
    assert status == 1 and "1 of 8 ranks are there" in error and "SLURM_PROCID=0, SLURM_STEP_NUM_TASKS=8" in error
    assert "to run alone: unset SLURM_PROCID SLURM_STEP_NUM_TASKS" in error


@pytest.mark.slow
def test_ranks_that_come_at_different_times_meet(start):
    port = free_port()
    late = start(**rank(1, port))
    assert "nobody listens there" in late.stderr.readline()
    first = start(**rank(0, port))
    assert ended(first)[1].endswith("[2.0]\n") and "[2.0]" in ended(late)[1]


@pytest.mark.slow
def test_a_world_of_one_waits_for_nobody_whatever_is_left_over(start):
    assert ended(start(**rank(0, 1, 1, MASTER_ADDR="no.such.host.invalid"))) == (0, "[1.0]\n")
    left_over = {"MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert ended(start(**left_over))[0] == 0


@pytest.mark.slow
def test_a_second_process_with_a_rank_and_a_world_of_another_size_are_refused(start):
    port = free_port()
    with socket.create_server(("", port)):
        status, error = ended(start(**rank(0, port)))
    assert status == 1 and f"MASTER_PORT is {port}, and another process of this host listens there" in error
    first, second = start(**rank(0, port, 3)), start(**rank(1, port, 3))
    while "2 of 3 ranks are there; missing: rank 2" not in (line := first.stderr.readline()):
        assert "1 of 3" in line
    status, error = ended(start(**rank(1, port, 3)))
    assert status == 1 and f"RANK is 1, and process {second.pid} on {socket.gethostname()} has that rank" in error
    status, error = ended(start(**rank(2, port, 4)))
    assert status == 1 and "WORLD_SIZE is 4 in rank 2, and 3 in others" in error
    assert ended(start(**rank(2, port, 3)))[0] == ended(first)[0] == ended(second)[0] == 0


def test_a_stop_request_ends_a_wait(start, tmp_path):
    code = (
        "import pathlib, sys\nfrom dakd.runtime.stopping import Preempted, listen_for_stop\n"
        f"try:\n    with listen_for_stop(pathlib.Path({str(tmp_path)!r})):\n"
        + "".join(f"        {line}\n" for line in JOIN.strip().splitlines())
        + "except Preempted as stopped:\n    print(stopped)\n"
    )
    waiting = start(code, **rank(0, free_port()))
    assert "1 of 2 ranks" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGTERM)
    status, printed = ended(waiting)
    assert status == 0 and "stopped while waiting for other ranks (SIGTERM)" in printed


@pytest.mark.parametrize(
    ("key", "theirs", "message"),
    [
        ("rank1", "process 1 on other", "RANK is 1, and process 1 on other has"),
        ("world", "3", "WORLD_SIZE is 2 in rank 1, and 3 in others"),
    ],
)
def test_a_rank_that_is_there_twice_and_another_size_are_refused(key, theirs, message, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    store = dist.HashStore()
    store.set(key, theirs)
    with pytest.raises(ValueError, match=message):
        rendezvous._Wait(1.0)._agree(store)


def test_ranks_that_torchrun_starts_again_meet_again_in_the_store_that_outlived_them(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    store = dist.HashStore()
    monkeypatch.setattr(rendezvous._Wait, "connect", lambda _: store)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    first = rendezvous.meet(timedelta(seconds=1))
    first.set("a", "of the first attempt")
    store.set("dakd/meeting/0/rank0", "process 1 on other")  # which has ended
    with pytest.raises(ValueError, match="RANK is 0, and process 1 on other has that rank already"):
        rendezvous.meet(timedelta(seconds=1))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not rendezvous.meet(timedelta(seconds=1)).check(["a"])
