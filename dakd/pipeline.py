"""All steps, one after the other, each in a process of its own: the trainings and the generation under `deepspeed`.

Every step is repeatable, so the same command goes on where a stopped one was.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dakd.config import Config
from dakd.runtime.distributed import free_port
from dakd.runtime.lifetime import REQUEST, Preempted, drop_markers, read_markers, request_stop
from dakd.runtime.runlog import format_duration, say
from dakd.shipped import extra_remedy

STEP_ORDER = ("prepare", "balance", "train_jointnet", "generate", "train_saross", "evaluate", "predict", "report")
# Ended by SIGINT or SIGTERM, as a child process and as a shell would report it.
STOPPED = (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)
UNDER_DEEPSPEED = ("train_jointnet", "generate", "train_saross")
TRAININGS = ("train_jointnet", "train_saross")


class Stopped(RuntimeError):
    """A step has ended before its time because this process was told to stop."""


def run_pipeline(config: Config, config_file: Path, overrides: list[str], processes: int | None = None) -> None:
    """Run every step of the experiment.

    Raises RuntimeError naming the step that failed, and Preempted where one was asked to stop.
    """
    processes = processes or fitting_processes(config, torch.cuda.device_count())
    seconds = {}
    for number, step in enumerate(STEP_ORDER, 1):
        say(f"\n=== {number}/{len(STEP_ORDER)} {step} ===")
        start = time.monotonic()
        finish_step(step, step_command(step, config_file, overrides, processes), config.run_path)
        seconds[step] = time.monotonic() - start
    table = config.run_path / "evaluate" / "table.txt"
    if table.exists():
        say("\n" + table.read_text().rstrip())
    say("\ntime: " + ", ".join(f"{step} {format_duration(spent)}" for step, spent in seconds.items()))
    say(f"report: {config.run_path / 'report' / 'index.html'}")


def finish_step(step: str, command: list[str], run_path: Path, pass_fds: Sequence[int] = ()) -> None:
    """Run a step's command in the run folder `run_path` to its end.

    pass_fds: file descriptors that the step keeps open, such as a lock's.
    Raises RuntimeError naming the step that failed, Stopped where this process was told to stop and the step could not
    say where it was, and Preempted where it was asked to stop.
    """
    drop_markers(run_path / step)
    request = run_path / REQUEST if step in TRAININGS else None
    code, was_told = run_command(command, request, pass_fds)
    stopped_at = [f"step {m['step']} of {m['total_steps']}" for m in read_markers(run_path / step)]
    if stopped_at or (was_told and code == 0):
        where = "".join(f" at {place}" for place in stopped_at)
        raise Preempted(f"stopped in {step}{where}; the same command resumes the work")
    if was_told:
        raise Stopped(f"stopped during {step}; the same command resumes the work")
    if code in STOPPED:
        raise RuntimeError(f"stopped during {step}; the same command resumes the work")
    if code != 0:
        raise RuntimeError(f"step {step} ended with status {code}; mend what it says above and run the same again")


def fitting_processes(config: Config, available: int) -> int:
    """The most processes, up to `available`, that share the global batches of both trainings evenly."""
    batches = (config.train_jointnet.global_batch, config.train_saross.global_batch)
    return max(n for n in range(1, max(1, available) + 1) if all(batch % n == 0 for batch in batches))


def run_command(
    command: list[str], request: Path | None = None, pass_fds: Sequence[int] = ()
) -> tuple[int, bool]:
    """Run a step; its status, and whether this process was told to stop meanwhile.

    DeepSpeed's launcher passes no SIGTERM on to its ranks and dies of SIGUSR1. So where a training looks for a
    `request` file, SIGTERM and SIGUSR1 become that file, and the step ends by itself; the second one, SIGINT, and any
    for another step are sent to the step's whole family, which has a process group of its own.
    """
    step = subprocess.Popen(command, env=step_environment(), start_new_session=True, pass_fds=pass_fds)
    told: list[int] = []

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        if request is None or number == signal.SIGINT or len(told) > 1:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(step.pid, signal.SIGTERM if number == signal.SIGUSR1 else number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return step.wait(timeout=0.2), bool(told)
            if told and request is not None and not request.exists():
                request_stop(request.parent)  # again and again: a training that only starts drops an older one
    finally:
        if told and request is not None:
            request.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def step_command(step: str, config_file: Path, overrides: list[str], processes: int) -> list[str]:
    """The command line of a step, as a person would type it."""
    arguments = ["--config", str(config_file), *overrides]
    if step not in UNDER_DEEPSPEED:
        return [sys.executable, "-m", "dakd", step, *arguments]
    if importlib.util.find_spec("deepspeed") is None:
        raise RuntimeError(f"{step} runs under DeepSpeed, which is not installed; run: {extra_remedy('train')}")
    # By this very Python: the script `deepspeed` on PATH may be that of another one, which has no dakd or an older one.
    runner = [sys.executable, "-m", "deepspeed.launcher.runner"]
    # a port of its own: two pipelines may share a host
    options = ["--num_gpus", str(processes), "--master_port", str(free_port()), "--log_level", "error"]
    # As a module, for an installed package has no launch/; the launcher would put --local_rank before the step's name.
    return [*runner, *options, "--no_local_rank", "--module", "dakd", step, *arguments]


def step_environment() -> dict[str, str]:
    """DeepSpeed's launcher is told that there is no GPU where there is none."""
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment
