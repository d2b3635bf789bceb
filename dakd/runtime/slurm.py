"""The rank of a task of `srun`, and the number of a task of a job array, from SLURM's variables.

Standard library only, and read before anything else: the variables decide which process prints and writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping


def set_rank_from_slurm(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT from those of an `srun` step.

    Where RANK is set nothing changes: `deepspeed` and `torchrun` may themselves run under srun. A batch script is no
    task of a step, though SLURM numbers it too, and neither is a step of one task.
    """
    world = int(environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if "RANK" in environ or "SLURM_PROCID" not in environ or world < 2:
        return
    local_world = tasks_of_node(environ["SLURM_STEP_TASKS_PER_NODE"], int(environ["SLURM_NODEID"]))
    own_gpu_alone = local_world > 1 and len(environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1
    environ["RANK"] = environ["SLURM_PROCID"]
    environ["WORLD_SIZE"] = str(world)
    # With --gpus-per-task a task sees only its own GPU, as number 0.
    environ["LOCAL_RANK"] = "0" if own_gpu_alone else environ["SLURM_LOCALID"]
    environ["LOCAL_WORLD_SIZE"] = str(local_world)
    environ.setdefault("MASTER_ADDR", first_host(environ["SLURM_STEP_NODELIST"]))
    # Steps that share a host have ports of their own, outside the range that the kernel hands out.
    place = 64 * int(environ["SLURM_JOB_ID"]) + int(environ.get("SLURM_STEP_ID") or 0)
    environ.setdefault("MASTER_PORT", str(15000 + place % 15000))


def array_task(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """The number of this task of a job array, from 0, and how many tasks the array has; (0, 1) outside one."""
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return 0, 1
    first = int(environ.get("SLURM_ARRAY_TASK_MIN", 0))
    step = int(environ.get("SLURM_ARRAY_TASK_STEP", 1))
    task = (int(environ["SLURM_ARRAY_TASK_ID"]) - first) // step
    return task, max(int(environ.get("SLURM_ARRAY_TASK_COUNT", 1)), task + 1)


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
