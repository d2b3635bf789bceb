"""All steps, one after the other, each in a process of its own: the trainings and the generation under `deepspeed`.

Every step can be repeated, so the same command resumes after a stop. Before the first one the whole experiment is
checked (see check/): what a later step would refuse is refused at once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from dakd.config import Config
from dakd.runtime.distributed import free_port
from dakd.runtime.family import dying_with_this_process, processes_of_group
from dakd.runtime.place import refuse_launcher, without_place
from dakd.runtime.runlog import format_duration, say
from dakd.runtime.stopping import (
    BROKEN_PIPE,
    PROOF_VARIABLE,
    REQUEST_FILE,
    STOP_MARGIN_S,
    Preempted,
    Stopped,
    read_requeue_markers,
    remove_requeue_markers,
    request_stop,
    signal_in,
    stop_signals,
)
from dakd.shipped import extra_remedy

UNDER_DEEPSPEED = ("train_jointnet", "generate", "train_saross")
TRAININGS = ("train_jointnet", "train_saross")
_OF_THE_TEACHER = ("train_jointnet", "generate")
_REST_SAID_AFTER_S = 5.0


def run_pipeline(
    config: Config, config_file: Path, overrides: list[str], steps: Sequence[str], processes: int | None = None
) -> None:
    """Run the steps of the experiment, in the order given, as `pipeline_calls` has them.

    Raises RuntimeError naming the step that failed, and Preempted where one was asked to stop.
    """
    refuse_launcher("pipeline")
    processes = processes or fitting_processes(config, torch.cuda.device_count())
    _refuse_what_a_step_would_refuse(config, processes)
    seconds: dict[str, float] = {}
    calls = pipeline_calls(config, steps)
    if left_out := [step for step in _OF_THE_TEACHER if step in steps and (step,) not in calls]:
        sets = ", ".join(config.train_saross.training_sets)
        say(f"pipeline: without {' and '.join(left_out)}, whose pairs no student of {sets} learns from")
    for number, (step, *options) in enumerate(calls, 1):
        say(f"\n=== {number}/{len(calls)} {' '.join((step, *options))} ===")
        start = time.monotonic()
        finish_step(step, [*step_command(step, config_file, overrides, processes), *options], config.run_path)
        seconds[step] = seconds.get(step, 0.0) + time.monotonic() - start
    table = config.run_path / "evaluate" / "table.txt"
    if table.exists():
        from dakd.evaluate.earlier import earlier_scores

        # With another folder or student evaluated, the run's own table is of an earlier call.
        lines = [table.read_text().rstrip(), *earlier_scores(table.parent, config.run_path)]
        say("\n" + "\n".join(lines))
    say("\ntime: " + ", ".join(f"{step} {format_duration(spent)}" for step, spent in seconds.items()))
    say(f"report: {config.run_path / 'report' / 'index.html'}")


def pipeline_calls(config: Config, steps: Sequence[str]) -> list[tuple[str, ...]]:
    """The steps that the settings ask for, in order, each with its options.

    A teacher and its pairs are made where a student learns from them. The student of the set real is trained before the
    first step that reads it; train_saross then finds it done.
    """
    cfg = config.train_saross
    asked = dict.fromkeys(_OF_THE_TEACHER, cfg.reads_generated_pairs()) | {
        "refine": config.refine.is_set and any("synthetic" in name for name in cfg.training_sets),
        "pseudo_label": cfg.reads_pseudo_labels(),
    }
    calls = [(step,) for step in steps if asked.get(step, True)]
    reading = ["refine", "pseudo_label", *["generate"] * config.generate.gate.asks_own_student]
    if first := next((call for call in calls if call[0] in reading), None):
        calls.insert(calls.index(first), ("train_saross", "--training-set", "real"))
    return calls


def _refuse_what_a_step_would_refuse(config: Config, processes: int) -> None:
    """ValueError with every finding of `dakd check` that a later step would end with; warnings are printed."""
    from dakd.check.check import check, format_findings  # the nets: a table's jobs run steps and need none of them

    findings = check(config, processes)
    refused, warnings = ([one for one in findings if one.level == level] for level in ("refused", "warn"))
    if warnings:
        say(format_findings(warnings))
    if refused:
        raise ValueError(f"{len(refused)} finding(s) that a step would refuse:\n{format_findings(refused)}")


def finish_step(step: str, command: list[str], run_path: Path, pass_fds: Sequence[int] = ()) -> None:
    """Run a step's command in the run folder `run_path` to its end.

    pass_fds: file descriptors that the step keeps open, such as a lock's.
    Raises RuntimeError naming the step that failed, Preempted where a training was asked to stop, and Stopped
    where this process received a signal and the step left no checkpoint for it.
    """
    remove_requeue_markers(run_path / step)
    request = run_path / REQUEST_FILE if step in TRAININGS else None
    with tempfile.TemporaryDirectory(prefix="dakd-") as folder:
        # DeepSpeed's runner ends with status 0 also where its launch.py was killed: only the step itself is believed.
        proof = Path(folder) / "finished" if step in UNDER_DEEPSPEED else None
        code, received = run_command(command, request, pass_fds, proof)
        is_finished = code == 0 and (proof is None or proof.exists())
    is_requested = request is not None and request.exists()  # by `dakd stop`, maybe after the training's last step
    if is_requested:
        request.unlink(missing_ok=True)
    stopped_at = [f"step {m['step']} of {m['total_steps']}" for m in read_requeue_markers(run_path / step)]
    if stopped_at or ((received or is_requested) and code == 0):
        where = "".join(f" at {place}" for place in stopped_at)
        raise Preempted(f"stopped in {step}{where}; the same command resumes the work")
    if received:
        raise Stopped(f"stopped during {step}; the same command resumes the work", received)
    if code == BROKEN_PIPE:
        raise RuntimeError(f"stopped during {step}: what read its output has ended; the same command resumes the work")
    if not is_finished:
        _refuse_unfinished(step, code)


def _refuse_unfinished(step: str, code: int) -> NoReturn:
    """code: the exit status of a step that has not finished."""
    number = signal_in(code)
    if code == 0:
        raise RuntimeError(
            f"stopped during {step}: its launcher was ended before it; the same command resumes the work"
        )
    if number in (signal.SIGINT, signal.SIGTERM):
        raise RuntimeError(f"stopped during {step}; the same command resumes the work")
    if number is not None:
        why = ", as the kernel does where memory runs out (see dmesg)" if number == signal.SIGKILL else ""
        raise RuntimeError(
            f"a process of {step} was ended by {number.name}{why}; the same command resumes the work"
        )
    raise RuntimeError(
        f"step {step} ended with status {code}; fix the error above (without one, its launcher was ended) and run the "
        "same command again"
    )


def fitting_processes(config: Config, available: int) -> int:
    """The most processes, up to `available`, that share the global batches of both trainings evenly."""
    batches = (config.train_jointnet.global_batch, config.train_saross.global_batch)
    return max(n for n in range(1, max(1, available) + 1) if all(batch % n == 0 for batch in batches))


def run_command(
    command: list[str], request: Path | None = None, pass_fds: Sequence[int] = (), proof: Path | None = None
) -> tuple[int, int]:
    """Run a step. Returns its exit status, and the last signal to stop that this process received, 0 for none.

    proof: a file that the step's rank 0 makes at a good end; None where the exit status is proof enough. Without that
    end, the other processes of the step are waited for: ranks may still write their checkpoint.
    request: the file of a stop request, for a training. DeepSpeed's launcher passes no SIGTERM on to its ranks and dies
    of SIGUSR1, so a first SIGTERM, SIGUSR1 or SIGHUP becomes that file, and the training ends at a checkpoint. A second
    one, SIGINT, and a signal during any other step go to all processes of the step, which have a process group of their
    own. Should this process be killed, the step gets SIGTERM from the kernel, and its ranks see their launcher end.
    """
    environment = step_environment() | ({PROOF_VARIABLE: str(proof)} if proof is not None else {})
    step = subprocess.Popen(
        command, env=environment, start_new_session=True, pass_fds=pass_fds, preexec_fn=dying_with_this_process()
    )
    rest = _Rest(step.pid)
    received: list[int] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        if request is None or number == signal.SIGINT or len(received) > 1:
            end(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def end(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(step.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (*stop_signals(), signal.SIGINT)}
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = step.wait(timeout=0.2)
                if (code == 0 and (proof is None or proof.exists())) or rest.has_ended():
                    return code, (received or [0])[-1]
                time.sleep(0.2)
            if received and request is not None and not request.exists():
                try:
                    request_stop(request.parent)  # again and again: a training that just starts removes an older one
                except (OSError, ValueError):  # a full disk, or no run folder yet: the signal itself does it then
                    request = None
                    end(signal.SIGTERM)
    finally:
        if received and request is not None:
            request.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Rest:
    """The processes that are left of a step whose first one, the leader of their process group, has ended.

    dakd's ranks end within STOP_MARGIN_S of their launcher; what is left after that is killed.
    """

    def __init__(self, group: int) -> None:
        self._group, self._since_s, self._is_announced = group, None, False

    def has_ended(self) -> bool:
        members = processes_of_group(self._group)
        self._since_s = self._since_s or time.monotonic()
        waited = time.monotonic() - self._since_s
        if members and waited > _REST_SAID_AFTER_S and not self._is_announced:
            self._is_announced = True
            say(f"the step's launcher has ended; waiting for its processes {', '.join(map(str, members))} to end")
        if members and waited > STOP_MARGIN_S + _REST_SAID_AFTER_S:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)
        return not members


def step_command(step: str, config_file: Path, overrides: list[str], processes: int) -> list[str]:
    """The command line of a step, as a person would type it."""
    arguments = ["--config", str(config_file), *overrides]
    if step not in UNDER_DEEPSPEED:
        return [sys.executable, "-m", "dakd", step, *arguments]
    if importlib.util.find_spec("deepspeed") is None:
        raise RuntimeError(f"{step} runs under DeepSpeed, which is not installed; run: {extra_remedy('train')}")
    # By this very Python: the `deepspeed` script on PATH may belong to another one, with no dakd or an older one.
    runner = [sys.executable, "-m", "deepspeed.launcher.runner"]
    # a port of its own: two pipelines may share a host
    options = ["--num_gpus", str(processes), "--master_port", str(free_port()), "--log_level", "error"]
    options += ["--hostfile", os.devnull]  # this host alone, whatever DeepSpeed's default /job/hostfile lists
    # As a module, since an installed package has no launch/. The launcher would put --local_rank before the step.
    return [*runner, *options, "--no_local_rank", "--module", "dakd", step, *arguments]


def step_environment() -> dict[str, str]:
    """This process's environment without its own place among ranks, which a step would take for its own.

    Without a GPU it says so to DeepSpeed's launcher, which would look for one.
    """
    environment = without_place()
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    environment.pop(PROOF_VARIABLE, None)
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment
