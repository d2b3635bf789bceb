"""The rank, world size and device of this process, set up once under any launcher, and the collectives.

`deepspeed` and `torchrun` give a process its rank in the environment (RANK, WORLD_SIZE, LOCAL_RANK), `srun` in SLURM's
variables (see slurm.py). Plain `python` gives none, and is a world of one.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dakd.runtime.console import show
from dakd.runtime.place import CORES_SHARED_BY, check_place, hint_about_slurm, number, refuse_mpi, seconds
from dakd.runtime.rendezvous import meet
from dakd.runtime.slurm import set_rank_from_slurm
from dakd.runtime.stopping import end_with_launcher
from dakd.runtime.waiting import saying_after

# How long ranks wait for one that hangs, or that writes a large checkpoint to a slow file system.
COLLECTIVE_S = 7200.0  # DAKD_COLLECTIVE_S is another limit


def rank() -> int:
    return number("RANK", 0)


def world_size() -> int:
    return number("WORLD_SIZE", 1, 1)


def local_rank() -> int:
    return number("LOCAL_RANK", 0)


def is_main() -> bool:
    return rank() == 0


def device() -> torch.device:
    """This rank's device: its GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def device_of(name: str | torch.device | None) -> torch.device:
    """The device of that name; None takes this rank's.  ValueError for one that does not exist."""
    if name is None:
        return device()
    try:
        found = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {str(name)!r}; expected cpu, cuda, or cuda:N for GPU number N") from None
    if found.type == "cuda" and not (found.index or 0) < torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise ValueError(f"device is {str(name)!r}, and torch sees {seen} GPUs; use cpu, or run dakd doctor to see why")
    if found.type not in ("cpu", "cuda") and not _computes(found):
        raise ValueError(f"device is {str(name)!r}, which this torch does not compute on; use cpu, cuda, or cuda:N")
    return found


def _computes(device: torch.device) -> bool:
    try:
        return float(torch.ones(1, device=device)) == 1  # of the device meta there is no value
    except (RuntimeError, NotImplementedError, AssertionError, ImportError):
        return False


def init_process_group() -> None:
    """Join the process group, in a world of one too (DeepSpeed wants a group); a second call does nothing.

    NCCL on GPUs, gloo on CPUs.
    Raises ValueError where a launcher's variables contradict one another, and RuntimeError where ranks do not come
    within DAKD_RENDEZVOUS_S.
    """
    if dist.is_initialized():
        return
    set_rank_from_slurm()
    check_place()
    refuse_mpi()
    if "RANK" in os.environ:
        end_with_launcher()
    elif hint := hint_about_slurm():
        show(f"dakd: {hint}")
    if world_size() == 1:
        # torch and DeepSpeed read these variables, in a world of one too. What another launcher has left in them may
        # name a host that is gone.
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
        )  # fmt: skip
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank())
    timeout = timedelta(seconds=collective_timeout_s())
    store = meet(timeout) if world_size() > 1 else dist.HashStore()
    backend = "nccl" if on_gpu else "gloo"
    with saying_after(f"rank {rank()} of {world_size()} connects to the others by {backend}; DAKD_COLLECTIVE_S allows "
                      f"{timeout.total_seconds():g} s"):  # fmt: skip
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)
    # Destroyed when the process ends and not before: DeepSpeed caches the group, and a second one would confuse it.
    atexit.register(shut_down)


def collective_timeout_s() -> float:
    """After how long a rank that waits for others, or for its data, ends with an error."""
    return seconds("DAKD_COLLECTIVE_S", COLLECTIVE_S)


def init_if_many() -> None:
    """Join the process group where a launcher started several processes; a lone process needs none."""
    set_rank_from_slurm()
    check_place()
    refuse_mpi()
    if world_size() > 1:
        init_process_group()


def shut_down() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Sums over the ranks, in float64; the same list on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(tensor)
    return tensor.tolist()


def all_gather_text(text: str) -> list[str]:
    """Every rank's text, by rank; the same list on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [text]
    # frombuffer refuses an empty buffer: an empty text travels as a space, which the receiver strips.
    mine = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8).to(device())
    sizes = [int(size) for size in all_gather_number(mine.numel())]
    # gloo's all_gather takes tensors of one size.
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device())
    padded[: mine.numel()] = mine
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return [bytes(part[:size].tolist()).decode().strip() for part, size in zip(gathered, sizes)]


def all_gather_number(value: float) -> list[float]:
    """Every rank's number, by rank."""
    # Each rank fills only its own place, so the sum over the ranks gathers the numbers.
    mine = [0.0] * world_size()
    mine[rank()] = value
    return all_reduce_sum(mine)


def broadcast(value: Any) -> Any:
    """Rank 0's JSON-serialisable value, on every rank."""
    return json.loads(all_gather_text(json.dumps(value) if is_main() else "")[0])


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Fill tensors on this rank's device with rank 0's, in place; all ranks give as many, of the same shapes."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def limit_threads(threads: int) -> None:
    """Give this rank its share of the host's cores: `threads`, or with 0 an equal share among the host's ranks, and the
    processes that work beside them (see side_by_side.py).

    Two ranks that each start a thread a core slow one another down several times over.
    """
    sharers = number("LOCAL_WORLD_SIZE", world_size(), 1) * number(CORES_SHARED_BY, 1, 1)
    torch.set_num_threads(threads or max(1, num_cores() // sharers))


def num_cores() -> int:
    """The cores of the host that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A TCP port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
