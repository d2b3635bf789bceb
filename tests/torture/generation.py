"""Generating workers: killed at random instants, stopped, racing for a shard, under a clock that jumps."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import time
from functools import partial
from pathlib import Path

from torture.clock_jumps import jump_clock, jump_file_times
from torture.pair_sets import UndisturbedSet, compare_begun, compare_finished, make_undisturbed_set, state_of
from torture.trials import Findings, Trials
from torture.victim import Victim, wait_until

from dakd.config import Config
from dakd.data import publish as publishing
from dakd.generate.claims import Claims
from dakd.generate.faults import clear_away
from dakd.generate.generate import generate
from dakd.generate.plan import open_plan
from dakd.runtime.files import left_overs

_WORKERS = 3
_LONGEST_LIFE_S = 1.5


def kill_workers(folder: Path, chance: random.Random, kills: int) -> Trials:
    """Three workers at a time; each is killed at a random instant, and another one takes its place."""
    trials = Trials("generation, writing shards", "kill -9")
    undisturbed = make_undisturbed_set(folder / "alone", 16)
    number = 0
    while trials.tried < kills:
        number += 1
        _kill_in_one_set(undisturbed, undisturbed.begin(folder / f"run-{number}"), folder, chance, kills, trials)
    return trials


def _kill_in_one_set(
    undisturbed: UndisturbedSet, config: Config, folder: Path, chance: random.Random, kills: int, trials: Trials
) -> None:
    """Until a worker finishes the set, or enough have died."""
    running: dict[int, tuple[Victim, float]] = {}
    index = config.run_path / "generate" / "index.json"

    def start(place: int) -> None:
        victim = Victim(lambda: generate(config), folder / f"worker-{place}.log")
        running[place] = victim, time.monotonic() + chance.uniform(0, _LONGEST_LIFE_S)

    for place in range(_WORKERS):
        start(place)
    while trials.tried < kills and not index.exists():
        for place, (victim, end_s) in list(running.items()):
            if time.monotonic() < end_s or trials.tried == kills:
                continue
            if victim.kill():
                trials.count(state_of(config, victim.pid), compare_begun(config, undisturbed))
            else:
                trials.missed += 1
            start(place)
        time.sleep(0.002)
    for victim, _ in running.values():
        victim.wait()
    finish(config, folder)
    trials.note(compare_finished(config, undisturbed))
    trials.note(_clean_up(config))


def finish(config: Config, folder: Path) -> None:
    """Let one more worker do the rest."""
    last = Victim(lambda: generate(config), folder / "last.log")
    if last.wait():
        raise RuntimeError(f"a worker could not resume:\n{last.output()[-2000:]}")


def _clean_up(config: Config) -> Findings:
    """`--repair` removes the temporary files of dead workers."""
    plan, found = open_plan(config), Findings()
    clear_away(plan, [])
    found.expect(not left_overs(plan.folder), f"{plan.folder} still holds files of dead workers")
    return found


def race(folder: Path, chance: random.Random, races: int) -> Trials:
    """Four workers that ignore claims publish the same shard at the same instant."""
    trials = Trials("generation", "workers race for a shard")
    undisturbed = make_undisturbed_set(folder / "alone", 1)
    for _ in range(races):
        trials.count("linking the same shard", _race_once(undisturbed, undisturbed.begin(folder / "run"), folder))
    return trials


def _race_once(undisturbed: UndisturbedSet, config: Config, folder: Path) -> Findings:
    context = multiprocessing.get_context("fork")
    start_line, winners, publish = context.Barrier(4), context.Value("i", 0), publishing.publish

    def at_once(aside: Path, target: Path) -> bool:
        is_tar = target.suffix == ".tar"
        if is_tar:
            start_line.wait(60)
        won = publish(aside, target)
        if won and is_tar:
            with winners.get_lock():
                winners.value += 1
        return won

    def work() -> None:
        Claims.take, publishing.publish = (lambda self, shard: True), at_once
        generate(config)

    racers = [Victim(work, folder / f"racer-{i}.log") for i in range(4)]
    statuses = [racer.wait() for racer in racers]
    found = compare_finished(config, undisturbed)
    found.expect(statuses == [0] * 4, f"racers ended with {statuses}: {racers[0].output()[-300:]}")
    found.expect(winners.value == 1, f"{winners.value} of 4 racers believe that they published the shard")
    return found


def hang(folder: Path, chance: random.Random, hangs: int) -> Trials:
    """One of two workers is stopped at a random instant; the other one finishes the set; then the first resumes."""
    trials = Trials("generation", "a worker hangs (SIGSTOP)")
    undisturbed = make_undisturbed_set(folder / "alone", 6)
    while trials.tried < hangs:
        config = undisturbed.begin(folder / "run")
        generated = config.run_path / "generate"
        hung, other = (Victim(partial(generate, config), folder / f"{name}.log") for name in ("hung", "other"))
        time.sleep(chance.uniform(0.02, 0.6))
        if not hung.stop() or (generated / "index.json").exists():
            trials.missed += 1
            hung.resume()
            hung.wait(), other.wait()
            continue
        state = state_of(config, hung.pid)
        found = Findings()
        found.expect(other.wait() == 0, f"the other worker failed: {other.output()[-300:]}")
        found.add(compare_finished(config, undisturbed))
        before = _inodes(generated)
        hung.resume()
        found.expect(hung.wait() == 0, f"the worker that resumed failed: {hung.output()[-300:]}")
        found.expect(_inodes(generated) == before, "the worker that resumed replaced a shard")
        trials.count(state, found.add(compare_finished(config, undisturbed)))
    return trials


def _inodes(folder: Path) -> list[int]:
    return [path.stat().st_ino for path in sorted(folder.glob("shard-*"))]


def jump(folder: Path, chance: random.Random, jumps: int) -> Trials:
    """Two workers with jumping clocks, among files of the past and the future; one is killed and replaced."""
    trials = Trials("generation", "the clock jumps")
    undisturbed = make_undisturbed_set(folder / "alone", 6)
    for _ in range(jumps):
        config = undisturbed.begin(folder / "run")

        def work(config: Config = config, seed: int = chance.randrange(1 << 30)) -> None:
            jump_clock(seed)
            generate(config)

        workers = [Victim(work, folder / f"worker-{i}.log") for i in range(2)]
        time.sleep(chance.uniform(0.05, 0.5))
        with contextlib.suppress(FileNotFoundError):
            jump_file_times(config.run_path / "generate", chance)
        workers[0].kill()
        workers[0] = Victim(work, folder / "worker-0.log")
        found = Findings()
        wait_until(lambda run=config.run_path: (run / "generate" / "index.json").exists(), "the set was not finished")
        statuses = [worker.wait() for worker in workers]
        found.expect(statuses == [0, 0], f"workers ended with {statuses}: {workers[1].output()[-300:]}")
        trials.count("at work", found.add(compare_finished(config, undisturbed)))
    return trials
