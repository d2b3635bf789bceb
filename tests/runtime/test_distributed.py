"""The process's place in the world, from the environment."""

from __future__ import annotations

import socket

import torch
from torch_threads import torch_threads
from worlds import use_collectives

from dakd.runtime import distributed
from dakd.testing.distributed import run_world


def test_lone_process_is_rank_0_of_1(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
    assert distributed.is_main()
    assert distributed.all_reduce_sum([1.5, 2.0]) == [1.5, 2.0]


def test_launchers_environment_is_read(monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (5, 8, 1)
    assert not distributed.is_main()


def test_ranks_of_a_host_share_its_cores(monkeypatch):
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda _: set(range(8)))
    with torch_threads(1):
        for ranks, wanted in (("2", 4), ("16", 1)):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
            distributed.limit_threads(0)
            assert torch.get_num_threads() == wanted
        distributed.limit_threads(3)
        assert torch.get_num_threads() == 3


def test_free_ports_can_be_listened_on():
    port = distributed.free_port()
    with socket.create_server(("127.0.0.1", port)) as server:
        assert server.getsockname()[1] == port


def test_sums_texts_numbers_and_barriers_reach_all_ranks(tmp_path):
    (tmp_path / "results").mkdir()
    found = run_world(use_collectives, 2, tmp_path / "results", str(tmp_path / "late"))
    assert found[0] == found[1]
    sums, numbers, texts, sent, was_late_file_there = found[0]
    assert sums == [3.0, 2.0] and numbers == [7.0, 8.0] and texts == ["", "rank 1"]
    assert sent == {"from": 0} and was_late_file_there
