"""Shards with a flipped bit or a cut tail: read record by record, verified, mended, compared."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
from torture.sets import WholeSet, compare_finished, make_whole_set
from torture.tally import Outcome, Tally
from torture.victims import HARMS, Victim

from dakd.config import Config
from dakd.data.lookup import BadRecord
from dakd.data.reading import OrderedRecords
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.shards import ShardSet
from dakd.generate.generate import repair
from dakd.generate.survey import find_faults, open_plan

# What a sidecar says of the making of its tar, which nothing else tells.
_OF_THE_MAKING = ("device", "commit", "images_per_s")


def damage_shards(folder: Path, chance: random.Random, damages: int) -> list[Tally]:
    whole = make_whole_set(folder / "alone", 4)
    shards = ShardSet(whole.folder)
    samples = {key: shards.read(i) for i, key in enumerate(whole.keys)}
    tallies = []
    for harm, do in HARMS.items():
        tally = Tally("shards", harm)
        tallies.append(tally)
        while tally.tried < damages:
            config = whole.copy(folder / "run")
            # Three tars to a sidecar.
            suffix = chance.choice(("tar", "tar", "tar", "json"))
            path = chance.choice(sorted((config.run_path / "generate").glob(f"shard-*.{suffix}")))
            before = path.read_bytes()
            told = do(path, chance)
            if suffix == "json" and _tells_the_same(before, path.read_bytes()):
                tally.missed += 1
                continue
            found = _read_all(config, samples, told)
            faults = find_faults(open_plan(config), OSD_CLASSES)
            found.accepted += not faults
            found.expect(bool(faults), f"{told}: verify finds nothing")
            tally.count(f"in a {'tar' if suffix == 'tar' else 'sidecar'}", found.add(_mend(config, whole, folder)))
        shutil.rmtree(folder / "run")
    return tallies


def _read_all(config: Config, samples: dict[str, Sample], told: str) -> Outcome:
    """Whatever is handed out must be what was written; the rest must be counted."""
    found, wrong, taken = Outcome(), [], 0
    shards = ShardSet(config.run_path / "generate")
    records = OrderedRecords([shards], seed=0, window=2, on_bad_record="skip")

    def take(i: int, sample: Sample) -> None:
        nonlocal taken
        taken += 1
        wanted = samples[sample.key]
        is_same = np.array_equal(sample.sar, wanted.sar) and np.array_equal(sample.soft_label, wanted.soft_label)
        if not is_same or sample.meta != wanted.meta:
            wrong.append(sample.key)

    try:
        records.read([(0, place) for place in range(len(records))], take)
    except (BadRecord, ValueError) as error:
        found.problems.append(f"{told}: reading with skip ended in {error}")
    found.expect(taken == len(samples), f"{told}: {taken} of {len(samples)} places were filled")
    found.accepted += bool(wrong)
    found.expect(not wrong, f"{told}: {len(wrong)} records were read though they had changed, the first {wrong[:1]}")
    return found


def _mend(config: Config, whole: WholeSet, folder: Path) -> Outcome:
    worker = Victim(lambda: repair(config), folder / "repair.log")
    found = Outcome()
    found.expect(worker.wait() == 0, f"repair failed: {worker.told()[-500:]}")
    return found.add(compare_finished(config, whole))


def _tells_the_same(before: bytes, after: bytes) -> bool:
    """Whether two sidecars differ at most in what they say of the making."""
    try:
        trees = [json.loads(text) for text in (before, after)]
        for tree in trees:
            for name in _OF_THE_MAKING:
                tree["facts"].pop(name, None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    if {key for tree in trees for key in tree["facts"]} != set(trees[0]["facts"]):
        return set(trees[0]) == set(trees[1]) and trees[0] | {"facts": 0} == trees[1] | {"facts": 0}
    return trees[0] == trees[1]
