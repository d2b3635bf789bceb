"""One process of a family gets a signal, alone: all others end, and the training has left a checkpoint.

The families are those of a person: `deepspeed` with launch.py and ranks, and a pipeline above them.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torture.training import Launcher, TrainingRun, UndisturbedTraining, _make_undisturbed, _try
from torture.training_trace import compare, logged_step
from torture.trials import Findings, Trials
from torture.victim import wait_until

from dakd.train.checkpoint import list_checkpoints, step_of

_POLL_S = 0.1
_LONGEST_LIFE_S = 1.5  # after its first step
_STEP = (
    "import sys; from pathlib import Path; from dakd.pipeline import finish_step, step_command\n"
    "command = step_command('train_jointnet', Path(sys.argv[1]), ['--stage', '1'], 2)\n"
    "finish_step('train_jointnet', command, Path(sys.argv[2]))"
)


class Pipeline(Launcher):
    """The part of `dakd pipeline` that runs a training.  Its victim is itself, or DeepSpeed's launch.py below it."""

    def command(self, script: list[str]) -> list[str]:
        config = script[script.index("--config") + 1]
        return [sys.executable, "-c", _STEP, config, config.removesuffix(".yaml")]


_DEEPSPEED, _PIPELINE = Launcher("deepspeed", 2, 2), Pipeline("pipeline", 2, 2)
_LAUNCH = Pipeline("pipeline's launch.py", 2, 2)
_FAULTS = (
    (_DEEPSPEED, signal.SIGTERM), (_DEEPSPEED, signal.SIGHUP), (_DEEPSPEED, signal.SIGKILL),
    (_PIPELINE, signal.SIGHUP), (_PIPELINE, signal.SIGKILL),
    (_LAUNCH, signal.SIGKILL),
)  # fmt: skip


def end_families(folder: Path, chance: random.Random, times: int) -> list[Trials]:
    """A row for each first process and signal."""
    with ThreadPoolExecutor(1) as pool:
        (undisturbed,) = _make_undisturbed(folder, [_DEEPSPEED], pool)
    rows = []
    for launcher, number in _FAULTS:
        name = f"{signal.Signals(number).name} to the {launcher.name} process alone"
        rows.append(row := Trials("training under DeepSpeed", name))
        for i in range(times):
            path = folder / f"{launcher.name.replace(' ', '-')}-{signal.Signals(number).name}-{i}"
            row.count(*_try(_end, undisturbed, path, launcher, number, chance))
    return rows


def _end(
    undisturbed: UndisturbedTraining, path: Path, launcher: Launcher, number: int, chance: random.Random
) -> tuple[str, Findings]:
    undisturbed.begin(path)
    run = TrainingRun(path, launcher)
    run.start()
    wait_until(lambda: logged_step(run.stage) > 0 or run.has_ended(), f"{path} has taken no step", _POLL_S)
    time.sleep(chance.uniform(0, _LONGEST_LIFE_S))
    has_landed = not run.has_ended() and not run.has_finished()
    os.kill(run.launch_py() if launcher is _LAUNCH else run.process.pid, number)
    found = run.wait_for_orphans()
    found.expect(has_landed, f"it ended before the signal: {run.output()[-500:]}")
    # DeepSpeed's runner ends with 0 when its launch.py was killed: the pipeline must not go on to the next step.
    found.expect(run.process.returncode != 0, f"it ended with status 0: {run.output()[-500:]}")
    step, kept = logged_step(run.stage), list_checkpoints(run.stage / "checkpoints")
    left = step_of(kept[-1]) if kept else 0
    found.expect(left == step, f"the newest checkpoint is of step {left}, and step {step} was taken: {run.output()}")
    found.add(compare(run.stage, undisturbed.trace, is_finished=False))
    run.finish()
    return "at work", found.add(compare(run.stage, undisturbed.trace, is_finished=True))
