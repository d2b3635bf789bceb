"""The rank of a task of `srun`, and the number of a task of a job array, from SLURM's variables.

Standard library only, and read before anything else: the variables decide which process prints and writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

from dakd.runtime.place import PLACE_VARIABLES, number

_OF_A_TASK = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")


def set_rank_from_slurm(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT from those of an `srun` step.

    Where RANK is set nothing changes: `deepspeed` and `torchrun` may themselves run under srun. A batch script is no
    task of a step, though SLURM numbers it too, and neither is a step of one task.
    Raises ValueError where the variables of a step of several tasks are not all there, or contradict one another.
    """
    for name in PLACE_VARIABLES:
        if name in environ and not environ[name].strip():
            del environ[name]  # `export RANK=` unsets it for a person
    world = number("SLURM_STEP_NUM_TASKS", 1, environ=environ)
    if "RANK" in environ or "SLURM_PROCID" not in environ or world < 2:
        return
    absent = [name for name in _OF_A_TASK if not environ.get(name)]
    if absent:
        raise _refusal(world, f"{', '.join(absent)} not set", "all variables of a task of srun")
    rank = number("SLURM_PROCID", 0, environ=environ)
    if rank >= world:
        raise _refusal(world, f"SLURM_PROCID is {rank}", "SLURM_PROCID below it")
    node, tasks = number("SLURM_NODEID", 0, environ=environ), environ["SLURM_STEP_TASKS_PER_NODE"]
    try:
        local_world = tasks_of_node(tasks, node)
    except (ValueError, IndexError):
        found = f"SLURM_STEP_TASKS_PER_NODE is {tasks!r}, and SLURM_NODEID is {node}"
        raise _refusal(world, found, "the tasks of this node, such as 8(x2)") from None
    own_gpu_alone = local_world > 1 and len(environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1
    place = 64 * number("SLURM_JOB_ID", 0, environ=environ) + number("SLURM_STEP_ID", 0, environ=environ)
    local_rank = number("SLURM_LOCALID", 0, environ=environ)
    host = first_host(environ["SLURM_STEP_NODELIST"])
    environ["RANK"] = str(rank)
    environ["WORLD_SIZE"] = str(world)
    # With --gpus-per-task a task sees only its own GPU, as number 0.
    environ["LOCAL_RANK"] = "0" if own_gpu_alone else str(local_rank)
    environ["LOCAL_WORLD_SIZE"] = str(local_world)
    environ.setdefault("MASTER_ADDR", host)
    # Steps that share a host have ports of their own, outside the range that the kernel hands out.
    environ.setdefault("MASTER_PORT", str(15000 + place % 15000))
    environ["DAKD_PLACE_FROM"] = "srun"  # for messages


def _refusal(world: int, found: str, expected: str) -> ValueError:
    return ValueError(
        f"SLURM_STEP_NUM_TASKS is {world}, and {found}; expected {expected}; start with srun, or to run alone: "
        "unset SLURM_PROCID SLURM_STEP_NUM_TASKS"
    )


def array_task(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """The number of this task of a job array, from 0, and how many tasks the array has; (0, 1) outside one."""
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return 0, 1
    first = number("SLURM_ARRAY_TASK_MIN", 0, environ=environ)
    step = number("SLURM_ARRAY_TASK_STEP", 1, 1, environ)
    task = max(0, number("SLURM_ARRAY_TASK_ID", first, environ=environ) - first) // step
    return task, max(number("SLURM_ARRAY_TASK_COUNT", 1, environ=environ), task + 1)


def tasks_of_node(counts: str, node: int) -> int:
    """The number of tasks of a node from SLURM's short form: `2(x3),1` is 2, 2, 2, 1."""
    tasks = []
    for part in counts.split(","):
        number, _, times = part.partition("(x")
        tasks += [int(number)] * int(times.rstrip(")") or 1)
    return tasks[node]


def first_host(nodes: str) -> str:
    """The first name of a SLURM node list: of `gpu[003-006,9],login` it is gpu003."""
    match = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST is {nodes!r}; expected names such as node[1-4]; set MASTER_ADDR")
    return match.group(1) + (match.group(2) or "")
