"""This process's place among the ranks: the launcher's variables, and a refusal where they contradict one another.

A container, a shell inside a job or a notebook often keeps variables of another launcher. Then one process would wait
for ranks that nobody has started. Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

PLACE_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CORES_SHARED_BY = "DAKD_CORES_SHARED_BY"  # the number of processes of a step that run side by side on this host
_SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def number(name: str, default: int, least: int = 0, environ: Mapping[str, str] = os.environ) -> int:
    """A whole number from a variable; unset and empty are the default.  ValueError for anything else."""
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise ValueError(f"{name} is {text!r}; expected a whole number, {least} or more; to run alone: unset {name}")
    return int(text)


def seconds(name: str, default: float, environ: Mapping[str, str] = os.environ) -> float:
    """A time from a variable.  ValueError for anything but a number above 0."""
    text = environ.get(name, "").strip() or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ValueError(f"{name} is {text!r}; expected seconds, such as {default:g}")
    return value


def without_place(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process that this one starts and that has no place among its ranks."""
    return {name: value for name, value in environ.items() if name not in PLACE_VARIABLES}


def check_place(environ: Mapping[str, str] = os.environ) -> None:
    """ValueError where the variables say no place: some are missing, are no numbers, or exceed one another."""
    values = {name: number(name, -1, int(name.endswith(("SIZE", "PORT"))), environ) for name in PLACE_VARIABLES
              if name != "MASTER_ADDR"}  # fmt: skip
    rank, world, local_rank = values["RANK"], values["WORLD_SIZE"], values["LOCAL_RANK"]
    if rank < 0 and world > 1:
        raise _refusal(f"WORLD_SIZE is {world}, and RANK is not set", "both or neither", environ)
    if rank < 0 and local_rank > 0:
        raise _refusal(f"LOCAL_RANK is {local_rank}, and RANK is not set", "both or neither", environ)
    if rank >= 0 and world < 0:
        raise _refusal(f"RANK is {rank}, and WORLD_SIZE is not set", "both or neither", environ)
    for small, large in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if 0 <= values[large] <= values[small]:
            found = f"{small} is {values[small]}, and {large} is {values[large]}"
            raise _refusal(found, f"{small} below {large}", environ)
    if 0 <= world < values["LOCAL_WORLD_SIZE"]:
        found = f"LOCAL_WORLD_SIZE is {values['LOCAL_WORLD_SIZE']}, and WORLD_SIZE is {world}"
        raise _refusal(found, "at most WORLD_SIZE processes on this host", environ)
    if values["MASTER_PORT"] > 65535:
        raise _refusal(f"MASTER_PORT is {values['MASTER_PORT']}", "a port, 1 to 65535", environ)


def check_address(environ: Mapping[str, str] = os.environ) -> None:
    """ValueError where several ranks have no place to meet at."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name, "").strip()]
    if missing and number("WORLD_SIZE", 1, environ=environ) > 1:
        found = f"{describe_place(environ)}, and {' and '.join(missing)} not set"
        raise _refusal(found, "the host and the port of rank 0 in MASTER_ADDR and MASTER_PORT", environ)


def refuse_mpi(environ: Mapping[str, str] = os.environ) -> None:
    """ValueError below an `mpirun` of several processes: each would take itself for the only one."""
    for name in _MPI_SIZES:
        size = number(name, 1, environ=environ)
        if size > 1 and not environ.get("RANK"):
            raise ValueError(
                f"{name} is {size} (mpirun), and RANK is not set; expected RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR "
                f"and MASTER_PORT; start the processes with torchrun, deepspeed or srun, or to run alone: unset {name}"
            )


def refuse_launcher(command: str, environ: Mapping[str, str] = os.environ) -> None:
    """ValueError where a command that starts the ranks itself was started as one of several."""
    if number("WORLD_SIZE", 1, environ=environ) > 1:
        raise _refusal(f"{describe_place(environ)}, and `dakd {command}` starts the ranks itself",
                       "one process that is no rank", environ)  # fmt: skip


def hint_about_slurm(environ: Mapping[str, str] = os.environ) -> str:
    """A line for a process that runs alone though its SLURM job has more tasks; empty elsewhere."""
    tasks = environ.get("SLURM_NTASKS", "")
    if environ.get("SLURM_STEP_NUM_TASKS") or not tasks.isdecimal() or int(tasks) < 2:
        return ""
    return f"SLURM_NTASKS is {tasks}, and this process runs alone; to use all tasks, start it with srun"


def describe_place(environ: Mapping[str, str] = os.environ) -> str:
    """The variables that say the place: `RANK=0, WORLD_SIZE=2, MASTER_ADDR=...`, with those that srun set."""
    named = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *_slurm_names(environ))
    return ", ".join(f"{name}={environ[name]}" for name in named if environ.get(name))


def how_to_run_alone(environ: Mapping[str, str] = os.environ) -> str:
    names = [name for name in PLACE_VARIABLES if environ.get(name)]
    # Variables that this process has made from SLURM's are not there in the shell.
    return "to run alone: unset " + " ".join(_slurm_names(environ) or names)


def _slurm_names(environ: Mapping[str, str]) -> tuple[str, ...]:
    is_from_slurm = environ.get("DAKD_PLACE_FROM") == "srun"
    return _SLURM_VARIABLES if is_from_slurm else ()


def _refusal(found: str, expected: str, environ: Mapping[str, str]) -> ValueError:
    return ValueError(
        f"{found}; expected {expected}; start with torchrun, deepspeed or srun, or {how_to_run_alone(environ)}"
    )
