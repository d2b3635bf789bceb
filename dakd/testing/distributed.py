"""Worlds of several gloo processes on one machine, for tests of distributed code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from dakd.runtime.distributed import free_port, shut_down


def run_world(function: Callable[..., Any], world_size: int, folder: Path, *args: Any) -> list[Any]:
    """Run `function(*args)` on `world_size` new processes that see themselves as ranks; their results, by rank.

    function: importable by name; its result must be loadable without code (tensors, numbers, strings, dicts, lists).
    folder: an empty folder for the results. A process that fails makes the call raise with its traceback.
    """
    mp.spawn(_run_rank, args=(function, world_size, free_port(), str(folder), args), nprocs=world_size, join=True)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]


def _run_rank(rank: int, function: Callable, world_size: int, port: int, folder: str, args: tuple) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
        CUDA_VISIBLE_DEVICES="",
    )
    torch.set_num_threads(1)
    torch.save(function(*args), os.path.join(folder, f"rank{rank}.pt"))
    shut_down()
