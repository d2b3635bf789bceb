"""All steps, one after the other, each in a process of its own: the trainings and the generation under `deepspeed`.

Every step is repeatable, so the same command goes on where a stopped one was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from dakd.config import Config
from dakd.runtime.distributed import free_port
from dakd.runtime.runlog import format_duration, say

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
STEP_ORDER = ("prepare", "balance", "train_jointnet", "generate", "train_saross", "evaluate", "predict", "report")
# Ended by SIGINT or SIGTERM, as a child process and as a shell would report it.
STOPPED = (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)
UNDER_DEEPSPEED = ("train_jointnet", "generate", "train_saross")


def run_pipeline(config: Config, config_file: Path, overrides: list[str], processes: int | None = None) -> None:
    """Run every step of the experiment. Raises RuntimeError naming the step that failed."""
    processes = processes or fitting_processes(config, torch.cuda.device_count())
    seconds = {}
    for number, step in enumerate(STEP_ORDER, 1):
        say(f"\n=== {number}/{len(STEP_ORDER)} {step} ===")
        start = time.monotonic()
        code = run_command(step_command(step, config_file, overrides, processes))
        if code in STOPPED:
            raise RuntimeError(f"stopped during {step}; the same command goes on from what is there")
        if code != 0:
            raise RuntimeError(f"step {step} ended with status {code}; mend what it says above and run the same again")
        seconds[step] = time.monotonic() - start
    table = config.run_path / "evaluate" / "table.txt"
    if table.exists():
        say("\n" + table.read_text().rstrip())
    say("\ntime: " + ", ".join(f"{step} {format_duration(spent)}" for step, spent in seconds.items()))
    say(f"report: {config.run_path / 'report' / 'index.html'}")


def fitting_processes(config: Config, available: int) -> int:
    """The most processes, up to `available`, that share the global batches of both trainings evenly."""
    batches = (config.train_jointnet.global_batch, config.train_saross.global_batch)
    return max(n for n in range(1, max(1, available) + 1) if all(batch % n == 0 for batch in batches))


def run_command(command: list[str]) -> int:
    """Run a step and return its status. When this process is told to stop, the step's whole family is told too.

    DeepSpeed's launcher does not pass SIGTERM on to its ranks, so the step gets a process group of its own.
    """
    step = subprocess.Popen(command, env=step_environment(), start_new_session=True)

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(step.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return step.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def step_command(step: str, config_file: Path, overrides: list[str], processes: int) -> list[str]:
    """The command line of a step, as a person would type it."""
    arguments = ["--config", str(config_file), *overrides]
    if step not in UNDER_DEEPSPEED:
        return [sys.executable, "-m", "dakd", step, *arguments]
    runner = shutil.which("deepspeed", path=str(Path(sys.executable).parent)) or shutil.which("deepspeed")
    if runner is None:
        raise RuntimeError("the deepspeed launcher is not installed; run: pip install -e '.[train]'")
    # a port of its own: two pipelines may share a host
    options = ["--num_gpus", str(processes), "--master_port", str(free_port()), "--log_level", "error"]
    return [runner, *options, str(LAUNCH / f"{step}.py"), *arguments]


def step_environment() -> dict[str, str]:
    """DeepSpeed's launcher is told that there is no GPU where there is none."""
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment
