"""Stand-ins for SLURM's commands, for the tests of launch/slurm: `srun` starts tasks on two "nodes" of this machine.

A task sees the variables that srun sets. As SLURM does before a job's end, `srun` sends SIGUSR1 to all processes of
every task, once the file pattern in FAKE_SRUN_SIGNAL_WHEN matches something. `scontrol` keeps its arguments in the file
FAKE_SCONTROL_LOG.
"""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def install(folder: Path) -> Path:
    """Put `srun` and `scontrol` into a folder for the PATH."""
    folder.mkdir()
    for name in ("srun", "scontrol"):
        command = folder / name
        command.write_text(f"#!/bin/sh\nexec {sys.executable} {__file__} {name} \"$@\"\n")
        command.chmod(0o755)
    return folder


def srun(arguments: list[str]) -> int:
    """Run the command once a task; the highest status, 128 + signal for a task that a signal ended."""
    num_tasks = int(os.environ["SLURM_NTASKS"])
    while arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option.startswith("--ntasks="):
            num_tasks = int(option.partition("=")[2])
    tasks = [start_task(arguments, number, num_tasks) for number in range(num_tasks)]
    signal_when = os.environ.get("FAKE_SRUN_SIGNAL_WHEN")
    while any(task.poll() is None for task in tasks):
        if signal_when and glob.glob(signal_when):
            signal_when = None
            for task in tasks:
                os.killpg(task.pid, signal.SIGUSR1)
        if any(task.poll() for task in tasks):  # --kill-on-bad-exit
            time.sleep(0.2)
            for task in tasks:
                if task.poll() is None:
                    os.killpg(task.pid, signal.SIGKILL)
        time.sleep(0.02)
    return max(status if status >= 0 else 128 - status for status in (task.wait() for task in tasks))


def start_task(command: list[str], number: int, num_tasks: int) -> subprocess.Popen:
    variables = {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(num_tasks),
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{num_tasks})" if num_tasks > 1 else "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": str(number),
        "SLURM_NODEID": str(number),
        "SLURM_LOCALID": "0",
    }
    return subprocess.Popen(command, env=os.environ | variables, start_new_session=True)


if __name__ == "__main__":
    if sys.argv[1] == "srun":
        sys.exit(srun(sys.argv[2:]))
    with open(os.environ["FAKE_SCONTROL_LOG"], "a") as log:
        log.write(" ".join(sys.argv[2:]) + "\n")
