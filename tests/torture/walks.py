"""Writers of checkpoints and logs without DeepSpeed, which start at once: faults of every kind."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import torch
from torture.clock_jumps import jump_clock, jump_file_times
from torture.damage import DAMAGES
from torture.training_trace import Trace, compare, is_writing, logged_step, read_trace
from torture.trials import Findings, Trials
from torture.victim import Victim, wait_until

from dakd.config import build_config
from dakd.runtime.lock import locked
from dakd.runtime.runlog import RunLog
from dakd.runtime.tensor_files import save_weights
from dakd.train.checkpoint import list_checkpoints, load_latest, save_checkpoint

GLOBAL_BATCH = 4
_IDENTITY = {"experiment": "toy"}
_SIZE = 20_000  # numbers of each kind
_RATES = {"master/w": 0.1, "exp_avg/w": 0.2, "ema/w": 0.01}
_LONGEST_LIFE_S = 0.15


def walk(folder: Path, steps: int, keep: int = 2) -> None:
    """A training without a net: a random walk whose every step is logged and checkpointed.

    The same call resumes from the newest checkpoint.
    """
    config = build_config({"name": "walk", "run_dir": str(folder)})
    with locked(folder):
        saved = load_latest(folder / "checkpoints", _IDENTITY)
        first = saved[1]["step"] if saved else 0
        state = saved[0] if saved else {name: torch.zeros(_SIZE) for name in _RATES}
        log = RunLog(folder, "walk", steps, first, "off", config)
        for step in range(first + 1, steps + 1):
            push = torch.randn(_SIZE, generator=torch.Generator().manual_seed(step))
            state = {name: state[name].lerp(push, rate) for name, rate in _RATES.items()}
            log.report(step, step * GLOBAL_BATCH, {"loss": float(state["master/w"].square().mean())}, 1.0)
            log.flush()
            facts = {"identity": _IDENTITY, "position": step * GLOBAL_BATCH}
            save_checkpoint(folder / "checkpoints", step, state, facts, keep)
        log.close()
        save_weights(folder / "weights.safetensors", state, {"kind": "walk"})


def undisturbed_walk(folder: Path, steps: int) -> Trace:
    """An undisturbed walk."""
    run_to_end(folder, steps, keep=steps)
    return read_trace(folder, GLOBAL_BATCH)


def run_to_end(folder: Path, steps: int, keep: int = 2) -> None:
    last = Victim(lambda: walk(folder, steps, keep), folder.with_suffix(".log"))
    if last.wait():
        raise RuntimeError(f"a walk could not resume:\n{last.output()[-2000:]}")


def kill_walks(folder: Path, chance: random.Random, kills: int) -> Trials:
    """Walks are killed at random instants, one after another; the next one resumes from what it finds."""
    trials = Trials("writing checkpoints and logs", "kill -9")
    steps, number = 240, 0
    trace = undisturbed_walk(folder / "alone", steps)
    while trials.tried < kills:
        number += 1
        run = folder / f"run-{number}"
        while trials.tried < kills:
            victim = Victim(lambda run=run: walk(run, steps), folder / "victim.log")
            time.sleep(chance.uniform(0, _LONGEST_LIFE_S))
            if not victim.kill():
                trials.missed += 1
                break
            state = "between two checkpoints" if "  step " in victim.output() else "starting"
            state = "writing a checkpoint" if is_writing(run, [victim.pid]) else state
            trials.count(state, compare(run, trace, is_finished=False))
        run_to_end(run, steps)
        trials.note(compare(run, trace, is_finished=True))
    return trials


def damage_walks(folder: Path, chance: random.Random, damages: int) -> list[Trials]:
    """The newest of two checkpoints is damaged: the one before it is taken. If both are, the walk refuses to start."""
    trace = undisturbed_walk(folder / "alone", 12)
    run_to_end(folder / "begun", 8)
    run = folder / "run"
    rows = []
    for damage, do in DAMAGES.items():
        trials = Trials("checkpoints", damage)
        rows.append(trials)
        for number in range(damages):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(folder / "begun", run)
            (run / "weights.safetensors").unlink()
            is_total = number % 8 == 7
            victims = list_checkpoints(run / "checkpoints")[0 if is_total else -1 :]
            damaged = [do(chance.choice(sorted(path.iterdir())), chance) for path in victims]
            if is_total:
                trials.count("in both checkpoints", _is_refused(run, damaged))
                continue
            last, found = Victim(lambda: walk(run, 12), folder / "last.log"), Findings()
            found.expect(last.wait() == 0, f"{damaged[0]}: the walk could not resume: {last.output()[-300:]}")
            found.add(compare(run, trace, is_finished=True))
            is_aside = (run / "checkpoints" / f"damaged-{victims[0].name}").is_dir()
            found.accepted += not is_aside
            found.expect(is_aside, f"{damaged[0]}: the checkpoint was not renamed to damaged-*")
            trials.count("in the newest checkpoint", found)
    return rows


def _is_refused(run: Path, damaged: list[str]) -> Findings:
    found = Findings()
    victim = Victim(lambda: walk(run, 12), run.with_suffix(".log"))
    is_refused = victim.wait() != 0 and "every checkpoint in" in victim.output()
    found.accepted += not is_refused
    found.expect(is_refused, f"{damaged}: the walk resumed from a damaged checkpoint, or started from nothing")
    return found


def hang_walks(folder: Path, chance: random.Random, hangs: int) -> Trials:
    """A writer is stopped: its lock refuses a second one. Then it resumes, or is killed and another one finishes."""
    trials = Trials("writing checkpoints and logs", "the writer hangs (SIGSTOP)")
    steps = 60
    trace, run = undisturbed_walk(folder / "alone", steps), folder / "run"
    while trials.tried < hangs:
        shutil.rmtree(run, ignore_errors=True)
        hung = Victim(lambda: walk(run, steps), folder / "hung.log")
        wait_until(lambda: logged_step(run) > 0 or (run / "weights.safetensors").exists(), "no step was taken")
        time.sleep(chance.uniform(0, 0.15))
        if not hung.stop() or (run / "weights.safetensors").exists():
            trials.missed += 1
            hung.kill()
            continue
        state, found = "writing a checkpoint" if is_writing(run, [hung.pid]) else "between two checkpoints", Findings()
        second = Victim(lambda: walk(run, steps), folder / "second.log")
        is_refused = second.wait() != 0 and f"is being written by process {hung.pid}" in second.output()
        found.expect(is_refused, f"the second writer was not refused: {second.output()[-300:]}")
        if chance.random() < 0.5:
            hung.resume()
            found.expect(hung.wait() == 0, f"the writer that resumed failed: {hung.output()[-300:]}")
        else:
            hung.kill()
            run_to_end(run, steps)
        trials.count(state, found.add(compare(run, trace, is_finished=True)))
    return trials


def race_walks(folder: Path, chance: random.Random, races: int) -> Trials:
    """Four writers start in one folder at the same instant: one works, three are refused."""
    trials = Trials("writing checkpoints and logs", "writers race for a folder")
    steps = 30
    trace = undisturbed_walk(folder / "alone", steps)
    for _ in range(races):
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        gate_read, gate_write = os.pipe()

        def work(run: Path = run, gate_read: int = gate_read, gate_write: int = gate_write) -> None:
            os.close(gate_write)
            os.read(gate_read, 1)  # returns when the last writing end is closed: for all racers at once
            walk(run, steps)

        racers = [Victim(work, folder / f"racer-{i}.log") for i in range(4)]
        os.close(gate_read)
        time.sleep(0.02)
        os.close(gate_write)
        statuses = sorted(racer.wait() for racer in racers)
        found = compare(run, trace, is_finished=True)
        # A racer that comes when the first has finished finds nothing to do: it is not refused.
        refusals = sum("is being written by" in racer.output() for racer in racers)
        found.expect(statuses.count(0) + refusals == 4 and 0 in statuses, f"four writers ended with {statuses}")
        trials.count(f"starting ({refusals} refused)", found)
    return trials


def jump_walks(folder: Path, chance: random.Random, jumps: int) -> Trials:
    """The clock jumps; the writer is killed while writing checkpoints, file times change, another one resumes."""
    trials = Trials("writing checkpoints and logs", "the clock jumps")
    steps = 60
    trace = undisturbed_walk(folder / "alone", steps)
    for _ in range(jumps):
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)

        def work(run: Path = run, seed: int = chance.randrange(1 << 30)) -> None:
            jump_clock(seed)
            walk(run, steps)

        victim = Victim(work, folder / "victim.log")
        time.sleep(chance.uniform(0.02, 0.3))
        victim.kill()
        found = compare(run, trace, is_finished=False)
        jump_file_times(run, chance)
        last = Victim(work, folder / "victim.log")
        found.expect(last.wait() == 0, f"the writer could not resume: {last.output()[-300:]}")
        trials.count("at work", found.add(compare(run, trace, is_finished=True)))
    return trials
