"""Writers without DeepSpeed, which start at once: of checkpoints and logs, and of prepared shards."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import torch
from torture.tally import Outcome, Tally
from torture.traces import Trace, compare, is_writing, logged_step, read_trace
from torture.victims import HARMS, Victim, jump_clock, jump_file_times, tree_hash, wait_until

from dakd.config import Config, build_config
from dakd.data.prepare import prepare
from dakd.runtime.lock import locked
from dakd.runtime.runlog import RunLog
from dakd.train.checkpoint import list_checkpoints, load_latest, save_checkpoint
from dakd.weights import save_weights

GLOBAL_BATCH = 4
_IDENTITY = {"experiment": "toy"}
_SIZE = 20_000  # numbers of each kind
_RATES = {"master/w": 0.1, "exp_avg/w": 0.2, "ema/w": 0.01}
_LONGEST_LIFE_S = 0.15


def walk(folder: Path, steps: int, keep: int = 2) -> None:
    """A training in all but the net: its state wanders with the step, and each step is logged and checkpointed.

    The same call goes on from the newest checkpoint.
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


def whole_walk(folder: Path, steps: int) -> Trace:
    """An undisturbed walk."""
    run_to_end(folder, steps, keep=steps)
    return read_trace(folder, GLOBAL_BATCH)


def run_to_end(folder: Path, steps: int, keep: int = 2) -> None:
    last = Victim(lambda: walk(folder, steps, keep), folder.with_suffix(".log"))
    if last.wait():
        raise RuntimeError(f"a walk could not go on:\n{last.told()[-2000:]}")


def kill_walks(folder: Path, chance: random.Random, kills: int) -> Tally:
    """One after the other is killed at a random instant, and the next one goes on from what it finds."""
    tally = Tally("writing checkpoints and logs", "kill -9")
    steps, number = 240, 0
    trace = whole_walk(folder / "alone", steps)
    while tally.tried < kills:
        number += 1
        run = folder / f"run-{number}"
        while tally.tried < kills:
            victim = Victim(lambda run=run: walk(run, steps), folder / "victim.log")
            time.sleep(chance.uniform(0, _LONGEST_LIFE_S))
            if not victim.kill():
                tally.missed += 1
                break
            state = "between two checkpoints" if "  step " in victim.told() else "starting"
            state = "writing a checkpoint" if is_writing(run, [victim.pid]) else state
            tally.count(state, compare(run, trace, is_finished=False))
        run_to_end(run, steps)
        tally.note(compare(run, trace, is_finished=True))
    return tally


def damage_walks(folder: Path, chance: random.Random, damages: int) -> list[Tally]:
    """The newest of two checkpoints is damaged: the one before it is taken. Both are: nothing is started anew."""
    trace = whole_walk(folder / "alone", 12)
    run_to_end(folder / "begun", 8)
    run = folder / "run"
    tallies = []
    for harm, do in HARMS.items():
        tally = Tally("checkpoints", harm)
        tallies.append(tally)
        for number in range(damages):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(folder / "begun", run)
            (run / "weights.safetensors").unlink()
            is_total = number % 8 == 7
            victims = list_checkpoints(run / "checkpoints")[0 if is_total else -1 :]
            told = [do(chance.choice(sorted(path.iterdir())), chance) for path in victims]
            if is_total:
                tally.count("in both checkpoints", _is_refused(run, told))
                continue
            last, found = Victim(lambda: walk(run, 12), folder / "last.log"), Outcome()
            found.expect(last.wait() == 0, f"{told[0]}: the walk could not go on: {last.told()[-300:]}")
            found.add(compare(run, trace, is_finished=True))
            is_aside = (run / "checkpoints" / f"damaged-{victims[0].name}").is_dir()
            found.accepted += not is_aside
            found.expect(is_aside, f"{told[0]}: the checkpoint was not set aside")
            tally.count("in the newest checkpoint", found)
    return tallies


def _is_refused(run: Path, told: list[str]) -> Outcome:
    found = Outcome()
    victim = Victim(lambda: walk(run, 12), run.with_suffix(".log"))
    is_refused = victim.wait() != 0 and "every checkpoint in" in victim.told()
    found.accepted += not is_refused
    found.expect(is_refused, f"{told}: the walk went on from a damaged checkpoint, or anew")
    return found


def hang_walks(folder: Path, chance: random.Random, hangs: int) -> Tally:
    """A writer is stopped: a second one is refused by its lock; it goes on, or is killed, and all is as undisturbed."""
    tally = Tally("writing checkpoints and logs", "the writer hangs (SIGSTOP)")
    steps = 60
    trace, run = whole_walk(folder / "alone", steps), folder / "run"
    while tally.tried < hangs:
        shutil.rmtree(run, ignore_errors=True)
        hung = Victim(lambda: walk(run, steps), folder / "hung.log")
        wait_until(lambda: logged_step(run) > 0 or (run / "weights.safetensors").exists(), "no step was taken")
        time.sleep(chance.uniform(0, 0.15))
        if not hung.stop() or (run / "weights.safetensors").exists():
            tally.missed += 1
            hung.kill()
            continue
        state, found = "writing a checkpoint" if is_writing(run, [hung.pid]) else "between two checkpoints", Outcome()
        second = Victim(lambda: walk(run, steps), folder / "second.log")
        is_refused = second.wait() != 0 and f"is being written by process {hung.pid}" in second.told()
        found.expect(is_refused, f"the second writer was not refused: {second.told()[-300:]}")
        if chance.random() < 0.5:
            hung.go_on()
            found.expect(hung.wait() == 0, f"the writer that went on failed: {hung.told()[-300:]}")
        else:
            hung.kill()
            run_to_end(run, steps)
        tally.count(state, found.add(compare(run, trace, is_finished=True)))
    return tally


def race_walks(folder: Path, chance: random.Random, races: int) -> Tally:
    """Four writers start in one folder at the same instant: one works, three are refused."""
    tally = Tally("writing checkpoints and logs", "writers race for a folder")
    steps = 30
    trace = whole_walk(folder / "alone", steps)
    for _ in range(races):
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        gate_read, gate_write = os.pipe()

        def work(run: Path = run, gate_read: int = gate_read, gate_write: int = gate_write) -> None:
            os.close(gate_write)
            os.read(gate_read, 1)  # ends when the last writer's end is closed: for all at once
            walk(run, steps)

        racers = [Victim(work, folder / f"racer-{i}.log") for i in range(4)]
        os.close(gate_read)
        time.sleep(0.02)
        os.close(gate_write)
        statuses = sorted(racer.wait() for racer in racers)
        found = compare(run, trace, is_finished=True)
        # Who comes when the first has finished finds nothing to do, which is no refusal.
        refusals = sum("is being written by" in racer.told() for racer in racers)
        found.expect(statuses.count(0) + refusals == 4 and 0 in statuses, f"four writers ended with {statuses}")
        tally.count(f"starting ({refusals} refused)", found)
    return tally


def jump_walks(folder: Path, chance: random.Random, jumps: int) -> Tally:
    """The clock runs wildly while checkpoints are written; the writer is killed, files get other times, it goes on."""
    tally = Tally("writing checkpoints and logs", "the clock jumps")
    steps = 60
    trace = whole_walk(folder / "alone", steps)
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
        found.expect(last.wait() == 0, f"the writer could not go on: {last.told()[-300:]}")
        tally.count("at work", found.add(compare(run, trace, is_finished=True)))
    return tally


# --- prepared shards --------------------------------------------------------------------------------------------------


def prepare_config(run: Path, seed: int) -> Config:
    simulation = {"num_train": 24, "num_test": 8, "size": [32, 32]}
    settings = {"prepare": {"simulation": simulation, "shard_size": 5}, "seed": seed}
    return build_config({"name": "prepare", "run_dir": str(run), **settings})


def kill_prepares(folder: Path, chance: random.Random, kills: int) -> Tally:
    """A set of shards is replaced by another one; the writer is killed; what is there is wholly the one or the other.

    Then the same call goes on, and what is there is wholly the other.
    """
    tally = Tally("preparing shards", "kill -9")
    wanted = []
    for seed in (1, 2):
        prepare(prepare_config(folder / f"alone-{seed}", seed))
        wanted.append(tree_hash(folder / f"alone-{seed}" / "prepare"))
    run = folder / "run"
    start_s = time.monotonic()
    prepare(prepare_config(run, 1))
    longest_s = 1.1 * (time.monotonic() - start_s)
    turn = 0
    while tally.tried < kills:
        turn = 1 - turn
        config = prepare_config(run, (1, 2)[turn])

        def work(config: Config = config) -> None:
            prepare(config, rebuild=True)

        victim = Victim(work, folder / "victim.log")
        time.sleep(chance.uniform(0, longest_s))
        has_landed = victim.kill()
        state = "writing shards" if (run / "prepare.partial").exists() else "starting or replacing the old set"
        found = Outcome()
        if (run / "prepare").exists():  # between the two renamings of an exchange the old set has another name
            is_whole = tree_hash(run / "prepare") in wanted
            found.accepted += not is_whole
            found.expect(is_whole, f"{run / 'prepare'} is neither the old set nor the new one")
        last = Victim(work, folder / "last.log")
        found.expect(last.wait() == 0, f"prepare could not go on: {last.told()[-300:]}")
        is_same = tree_hash(run / "prepare") == wanted[turn]
        found.expect(is_same, f"{run / 'prepare'} is not the undisturbed set")
        if has_landed:
            tally.count(state, found)
        else:
            tally.missed += 1
            tally.note(found)
    return tally
