"""Small generated sets: how one is made undisturbed, and how another one compares with it, finished or not."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from generate.kill_and_compare import tiny_run
from torture.tally import Outcome
from torture.victims import hashes

from dakd.config import Config, build_config
from dakd.data.sample import OSD_CLASSES
from dakd.data.shards import ShardSet
from dakd.generate.generate import generate
from dakd.generate.survey import find_faults, open_plan

SHARD_SIZE = 64
CLAIM_PATIENCE_S = 0.5


@dataclass(frozen=True)
class WholeSet:
    """What an undisturbed worker made: the hash of each tar, the index, and the keys in order."""

    config: Config
    tars: dict[str, str]
    index: dict
    keys: list[str]

    @property
    def folder(self) -> Path:
        return self.config.run_path / "generate"

    def begin(self, run: Path) -> Config:
        """The same experiment in a run folder of its own, with nothing generated yet."""
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.config.run_path / "train_jointnet", run / "train_jointnet")
        return build_config(self.config.model_dump(mode="json") | {"run_dir": str(run)})

    def copy(self, run: Path) -> Config:
        """The same experiment in a run folder of its own, with a copy of the set."""
        config = self.begin(run)
        shutil.copytree(self.folder, run / "generate")
        return config


def make_whole_set(run: Path, num_shards: int) -> WholeSet:
    tree = tiny_run(run, num_shards * SHARD_SIZE).model_dump(mode="json")
    tree["generate"]["claim_patience_s"] = CLAIM_PATIENCE_S
    config = build_config(tree)
    generate(config)
    folder = run / "generate"
    shards = ShardSet(folder)
    return WholeSet(config, hashes(folder.glob("shard-*.tar")), shards.index, keys_of(shards))


def keys_of(shards: ShardSet) -> list[str]:
    return [shards.key(i) for i in range(len(shards))]


def compare_begun(config: Config, whole: WholeSet) -> Outcome:
    """A set that workers are at, or have died at: whatever has a final name must be whole."""
    found, folder = Outcome(), config.run_path / "generate"
    for name, tar_hash in hashes(folder.glob("shard-*.tar")).items():
        if whole.tars.get(name) != tar_hash:
            found.accepted += 1
            found.problems.append(f"{folder / name} is not the tar that an undisturbed worker made")
    for sidecar in sorted(folder.glob("shard-*.json")):
        tar = sidecar.with_suffix(".tar").name
        try:
            told = json.loads(sidecar.read_text())["sha256"]
        except (ValueError, KeyError) as error:
            told = repr(error)
        if told != whole.tars.get(tar):
            found.accepted += 1
            found.problems.append(f"{sidecar} says {told}")
    return found


def compare_finished(config: Config, whole: WholeSet) -> Outcome:
    """A set that a worker has finished: the tars byte for byte, the index, the keys, and what verify says."""
    found, folder = compare_begun(config, whole), config.run_path / "generate"
    problems = [fault.what for fault in find_faults(open_plan(config), OSD_CLASSES)]
    found.problems += problems[:3]
    missing = set(whole.tars) - {path.name for path in folder.glob("shard-*.tar")}
    found.expect(not missing, f"{folder} lacks {sorted(missing)[:3]}")
    if not (folder / "index.json").exists():
        found.problems.append(f"{folder} has no index")
        found.lost += len(whole.keys)
        return found
    shards = ShardSet(folder)
    found.expect(shards.index == whole.index, f"{folder}/index.json differs from the undisturbed set's")
    counts = Counter() if problems else Counter(keys_of(shards))
    found.lost += 0 if problems else len(set(whole.keys) - set(counts))
    found.doubled += sum(counts.values()) - len(counts)
    return found


def state_of(config: Config, pid: int) -> str:
    """What a dead worker was at, as its unfinished files tell."""
    left = [path.name for path in (config.run_path / "generate").glob(f".*.{pid}.*.tmp")]
    if any(name.startswith(".shard-") and ".tar." in name for name in left):
        return "writing a shard"
    return "writing a sidecar or summary" if left else "starting or between two shards"
