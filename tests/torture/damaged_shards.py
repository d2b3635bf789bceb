"""Shards with a flipped bit or a cut tail: read record by record, verified, repaired and compared."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
from torture.damage import DAMAGES
from torture.pair_sets import UndisturbedSet, compare_finished, make_undisturbed_set
from torture.trials import Findings, Trials
from torture.victim import Victim

from dakd.config import Config
from dakd.data.ordered_records import OrderedRecords
from dakd.data.records import BadRecord
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.shards import ShardSet
from dakd.generate.faults import find_faults
from dakd.generate.generate import repair
from dakd.generate.plan import open_plan


def damage_shards(folder: Path, chance: random.Random, damages: int) -> list[Trials]:
    undisturbed = make_undisturbed_set(folder / "alone", 4)
    shards = ShardSet(undisturbed.folder)
    samples = {key: shards.read(i) for i, key in enumerate(undisturbed.keys)}
    rows = []
    for damage, do in DAMAGES.items():
        trials = Trials("shards", damage)
        rows.append(trials)
        while trials.tried < damages:
            config = undisturbed.copy(folder / "run")
            # Three tars to a sidecar.
            suffix = chance.choice(("tar", "tar", "tar", "json"))
            path = chance.choice(sorted((config.run_path / "generate").glob(f"shard-*.{suffix}")))
            damaged = do(path, chance)
            found = _read_all(config, samples, damaged)
            faults = find_faults(open_plan(config), OSD_CLASSES)
            found.accepted += not faults
            found.expect(bool(faults), f"{damaged}: verify finds nothing")
            found.add(_repair_and_compare(config, undisturbed, folder))
            trials.count(f"in a {'tar' if suffix == 'tar' else 'sidecar'}", found)
        shutil.rmtree(folder / "run")
    return rows


def _read_all(config: Config, samples: dict[str, Sample], damaged: str) -> Findings:
    """Every record that is read must be as written; damaged ones must be replaced by others."""
    found, wrong, taken = Findings(), [], 0
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
        found.problems.append(f"{damaged}: reading with skip ended in {error}")
    found.expect(taken == len(samples), f"{damaged}: {taken} of {len(samples)} positions were filled")
    found.accepted += bool(wrong)
    found.expect(not wrong, f"{damaged}: {len(wrong)} records were read though they had changed, the first {wrong[:1]}")
    return found


def _repair_and_compare(config: Config, undisturbed: UndisturbedSet, folder: Path) -> Findings:
    worker = Victim(lambda: repair(config), folder / "repair.log")
    found = Findings()
    found.expect(worker.wait() == 0, f"repair failed: {worker.output()[-500:]}")
    return found.add(compare_finished(config, undisturbed))
