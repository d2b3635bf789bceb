"""Workers that generate: killed at random instants, standing still, racing for a shard, under a clock that jumps."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import time
from functools import partial
from pathlib import Path

from torture.sets import WholeSet, compare_begun, compare_finished, make_whole_set, state_of
from torture.tally import Outcome, Tally
from torture.victims import Victim, jump_clock, jump_file_times, wait_until

from dakd.config import Config
from dakd.data import publish as publishing
from dakd.generate.claims import Claims
from dakd.generate.generate import generate
from dakd.generate.survey import clear_away, open_plan
from dakd.runtime.files import left_overs

_WORKERS = 3
_LONGEST_LIFE_S = 1.5


def kill_workers(folder: Path, chance: random.Random, kills: int) -> Tally:
    """Three workers at a time; each is killed at a random instant, and another one takes its place."""
    tally = Tally("generation, writing shards", "kill -9")
    whole = make_whole_set(folder / "alone", 16)
    number = 0
    while tally.tried < kills:
        number += 1
        _kill_in_one_set(whole, whole.begin(folder / f"run-{number}"), folder, chance, kills, tally)
    return tally


def _kill_in_one_set(
    whole: WholeSet, config: Config, folder: Path, chance: random.Random, kills: int, tally: Tally
) -> None:
    """Until a worker finishes the set, or enough have died."""
    running: dict[int, tuple[Victim, float]] = {}
    index = config.run_path / "generate" / "index.json"

    def start(place: int) -> None:
        victim = Victim(lambda: generate(config), folder / f"worker-{place}.log")
        running[place] = victim, time.monotonic() + chance.uniform(0, _LONGEST_LIFE_S)

    for place in range(_WORKERS):
        start(place)
    while tally.tried < kills and not index.exists():
        for place, (victim, end_s) in list(running.items()):
            if time.monotonic() < end_s or tally.tried == kills:
                continue
            if victim.kill():
                tally.count(state_of(config, victim.pid), compare_begun(config, whole))
            else:
                tally.missed += 1
            start(place)
        time.sleep(0.002)
    for victim, _ in running.values():
        victim.wait()
    finish(config, folder)
    tally.note(compare_finished(config, whole))
    tally.note(_clean_up(config))


def finish(config: Config, folder: Path) -> None:
    """Let one more worker do what is left."""
    last = Victim(lambda: generate(config), folder / "last.log")
    if last.wait():
        raise RuntimeError(f"a worker could not go on:\n{last.told()[-2000:]}")


def _clean_up(config: Config) -> Outcome:
    """What the dead left aside goes by `--repair`, and nothing else."""
    plan, found = open_plan(config), Outcome()
    clear_away(plan, [])
    found.expect(not left_overs(plan.folder), f"{plan.folder} still holds files of dead workers")
    return found


def race(folder: Path, chance: random.Random, races: int) -> Tally:
    """Four workers that heed no claim link one and the same shard at the same instant."""
    tally = Tally("generation", "workers race for a shard")
    whole = make_whole_set(folder / "alone", 1)
    for _ in range(races):
        tally.count("linking the same shard", _race_once(whole, whole.begin(folder / "run"), folder))
    return tally


def _race_once(whole: WholeSet, config: Config, folder: Path) -> Outcome:
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
    found = compare_finished(config, whole)
    found.expect(statuses == [0] * 4, f"racers ended with {statuses}: {racers[0].told()[-300:]}")
    found.expect(winners.value == 1, f"{winners.value} of 4 racers say that theirs is the shard")
    return found


def hang(folder: Path, chance: random.Random, hangs: int) -> Tally:
    """One of two workers is stopped at a random instant; the other one finishes the set; then the first goes on."""
    tally = Tally("generation", "a worker hangs (SIGSTOP)")
    whole = make_whole_set(folder / "alone", 6)
    while tally.tried < hangs:
        config = whole.begin(folder / "run")
        generated = config.run_path / "generate"
        hung, other = (Victim(partial(generate, config), folder / f"{name}.log") for name in ("hung", "other"))
        time.sleep(chance.uniform(0.02, 0.6))
        if not hung.stop() or (generated / "index.json").exists():
            tally.missed += 1
            hung.go_on()
            hung.wait(), other.wait()
            continue
        state = state_of(config, hung.pid)
        found = Outcome()
        found.expect(other.wait() == 0, f"the other worker failed: {other.told()[-300:]}")
        found.add(compare_finished(config, whole))
        before = _inodes(generated)
        hung.go_on()
        found.expect(hung.wait() == 0, f"the worker that went on failed: {hung.told()[-300:]}")
        found.expect(_inodes(generated) == before, "the worker that went on replaced a shard")
        tally.count(state, found.add(compare_finished(config, whole)))
    return tally


def _inodes(folder: Path) -> list[int]:
    return [path.stat().st_ino for path in sorted(folder.glob("shard-*"))]


def jump(folder: Path, chance: random.Random, jumps: int) -> Tally:
    """Two workers whose clocks run wildly, among files of the past and the future; one is killed, and replaced."""
    tally = Tally("generation", "the clock jumps")
    whole = make_whole_set(folder / "alone", 6)
    for _ in range(jumps):
        config = whole.begin(folder / "run")

        def work(config: Config = config, seed: int = chance.randrange(1 << 30)) -> None:
            jump_clock(seed)
            generate(config)

        workers = [Victim(work, folder / f"worker-{i}.log") for i in range(2)]
        time.sleep(chance.uniform(0.05, 0.5))
        with contextlib.suppress(FileNotFoundError):
            jump_file_times(config.run_path / "generate", chance)
        workers[0].kill()
        workers[0] = Victim(work, folder / "worker-0.log")
        found = Outcome()
        wait_until(lambda run=config.run_path: (run / "generate" / "index.json").exists(), "the set was not finished")
        statuses = [worker.wait() for worker in workers]
        found.expect(statuses == [0, 0], f"workers ended with {statuses}: {workers[1].told()[-300:]}")
        tally.count("at work", found.add(compare_finished(config, whole)))
    return tally
