"""Small sets of generated pairs: made by an undisturbed worker, and compared with one that suffered faults."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torture.damage import hashes
from torture.trials import Findings

from dakd.config import Config, ScheduleConfig, build_config
from dakd.data.index import Index
from dakd.data.sample import OSD_CLASSES
from dakd.data.shards import ShardSet
from dakd.generate.faults import find_faults
from dakd.generate.generate import generate
from dakd.generate.plan import open_plan
from dakd.generate.teacher import teacher_file_name
from dakd.models.jointnet import SARJointNet
from dakd.runtime.tensor_files import save_weights

SHARD_SIZE = 64
CLAIM_PATIENCE_S = 0.5
TINY_UNET = {"channels": [8, 16], "blocks_per_level": 1, "attention_levels": [1], "norm_groups": 4}


@dataclass(frozen=True)
class UndisturbedSet:
    """The work of an undisturbed worker: the hash of each tar, the index, and the keys in order."""

    config: Config
    tars: dict[str, str]
    index: Index
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


def make_undisturbed_set(run: Path, num_shards: int) -> UndisturbedSet:
    config = tiny_run(run, num_shards * SHARD_SIZE)
    generate(config)
    folder = run / "generate"
    shards = ShardSet(folder)
    return UndisturbedSet(config, hashes(folder.glob("shard-*.tar")), shards.index, keys_of(shards))


def tiny_run(run: Path, num_pairs: int) -> Config:
    """A run with a small teacher of random weights, ready to generate. Deterministic: equal sets have equal bytes."""
    generate_settings = {
        "num_samples": num_pairs, "size": (16, 16), "sampling_steps": 4, "micro_batch": 32, "shard_size": SHARD_SIZE,
        "deterministic": True, "claim_patience_s": CLAIM_PATIENCE_S,
    }  # fmt: skip
    sections = {"train_jointnet": {"unet": TINY_UNET}, "generate": generate_settings}
    config = build_config({"name": "torture", "run_dir": str(run), **sections})
    unet, num_classes = config.train_jointnet.unet, len(OSD_CLASSES.names)
    torch.manual_seed(0)
    net = SARJointNet.from_config(unet, num_classes)
    for parameter in (*net.sar_bridge.parameters(), *net.label_bridge.parameters()):
        torch.nn.init.normal_(parameter, std=0.02)  # they start at zero, which would hide a wrong sum
    facts = {
        "kind": "jointnet",
        "unet": unet.model_dump(mode="json"),
        "num_classes": num_classes,
        "schedule": ScheduleConfig().model_dump(mode="json"),
        "b": 0.528,
        "classes": OSD_CLASSES.to_dict(),
    }
    save_weights(teacher_file_name(config), net.state_dict(), facts)
    return config


def keys_of(shards: ShardSet) -> list[str]:
    return [shards.key(i) for i in range(len(shards))]


def compare_begun(config: Config, undisturbed: UndisturbedSet) -> Findings:
    """Compare an unfinished set: every file under its final name must be complete."""
    found, folder = Findings(), config.run_path / "generate"
    for name, tar_hash in hashes(folder.glob("shard-*.tar")).items():
        if undisturbed.tars.get(name) != tar_hash:
            found.accepted += 1
            found.problems.append(f"{folder / name} is not the tar that an undisturbed worker made")
    for sidecar in sorted(folder.glob("shard-*.json")):
        tar = sidecar.with_suffix(".tar").name
        try:
            recorded = json.loads(sidecar.read_text())["sha256"]
        except (ValueError, KeyError) as error:
            recorded = repr(error)
        if recorded != undisturbed.tars.get(tar):
            found.accepted += 1
            found.problems.append(f"{sidecar} says {recorded}")
    return found


def compare_finished(config: Config, undisturbed: UndisturbedSet) -> Findings:
    """Compare a finished set: the tars byte for byte, the index, the keys, and the faults that verify finds."""
    found, folder = compare_begun(config, undisturbed), config.run_path / "generate"
    problems = [fault.what for fault in find_faults(open_plan(config), OSD_CLASSES)]
    found.problems += problems[:3]
    missing = set(undisturbed.tars) - {path.name for path in folder.glob("shard-*.tar")}
    found.expect(not missing, f"{folder} lacks {sorted(missing)[:3]}")
    if not (folder / "index.json").exists():
        found.problems.append(f"{folder} has no index")
        found.lost += len(undisturbed.keys)
        return found
    shards = ShardSet(folder)
    found.expect(shards.index == undisturbed.index, f"{folder}/index.json differs from the undisturbed set's")
    counts = Counter() if problems else Counter(keys_of(shards))
    found.lost += 0 if problems else len(set(undisturbed.keys) - set(counts))
    found.doubled += sum(counts.values()) - len(counts)
    return found


def state_of(config: Config, pid: int) -> str:
    """What a dead worker was doing, judged by its temporary files."""
    left = [path.name for path in (config.run_path / "generate").glob(f".*.{pid}.*.tmp")]
    if any(name.startswith(".shard-") and ".tar." in name for name in left):
        return "writing a shard"
    return "writing a sidecar or summary" if left else "starting or between two shards"
