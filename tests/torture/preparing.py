"""Prepared shards: the process that replaces one set by another is killed at random instants."""

from __future__ import annotations

import random
import time
from pathlib import Path

from torture.damage import tree_hash
from torture.trials import Findings, Trials
from torture.victim import Victim

from dakd.config import Config, build_config
from dakd.data.prepare import prepare


def prepare_config(run: Path, seed: int) -> Config:
    simulation = {"num_train": 24, "num_test": 8, "size": [32, 32]}
    settings = {"prepare": {"simulation": simulation, "shard_size": 5}, "seed": seed}
    return build_config({"name": "prepare", "run_dir": str(run), **settings})


def kill_prepares(folder: Path, chance: random.Random, kills: int) -> Trials:
    """A set of shards is replaced by another; the writer is killed; one of the two must be there, complete.

    Then the same call runs again, and the new set must be there.
    """
    trials = Trials("preparing shards", "kill -9")
    wanted = []
    for seed in (1, 2):
        prepare(prepare_config(folder / f"alone-{seed}", seed))
        wanted.append(tree_hash(folder / f"alone-{seed}" / "prepare"))
    run = folder / "run"
    start_s = time.monotonic()
    prepare(prepare_config(run, 1))
    longest_s = 1.1 * (time.monotonic() - start_s)
    turn = 0
    while trials.tried < kills:
        turn = 1 - turn
        config = prepare_config(run, (1, 2)[turn])

        def work(config: Config = config) -> None:
            prepare(config, rebuild=True)

        victim = Victim(work, folder / "victim.log")
        time.sleep(chance.uniform(0, longest_s))
        has_landed = victim.kill()
        state = "writing shards" if (run / "prepare.partial").exists() else "starting or replacing the old set"
        found = Findings()
        if (run / "prepare").exists():  # between the two renamings of an exchange the old set has another name
            is_whole = tree_hash(run / "prepare") in wanted
            found.accepted += not is_whole
            found.expect(is_whole, f"{run / 'prepare'} is neither the old set nor the new one")
        last = Victim(work, folder / "last.log")
        found.expect(last.wait() == 0, f"prepare could not resume: {last.output()[-300:]}")
        is_same = tree_hash(run / "prepare") == wanted[turn]
        found.expect(is_same, f"{run / 'prepare'} is not the undisturbed set")
        trials.count_if(has_landed, state, found)
    return trials
