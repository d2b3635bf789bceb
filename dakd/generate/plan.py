"""A set before it is made: its shards, their samples, and its provenance, all that a sample depends on.

Shards are always full: a set of N pairs has ceil(N / shard_size) of them, or more where a gate refuses candidates, and
the index says which of their samples are kept. So a set may grow or shrink at any time, and no shard is made again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dakd.config import Config
from dakd.data.index import load_sidecar
from dakd.data.publish import publish_text
from dakd.data.shards import shard_name
from dakd.runtime.sealed import Changed, parse_sealed, seal, write_json


@dataclass(frozen=True)
class GenerationPlan:
    """The shards of a set in a folder.

    num_samples: pairs that the set keeps.  num_candidates: pairs that are made, of which a gate may keep fewer.
    provenance: all that a sample depends on but its own index, with a hash of it under "config".
    """

    folder: Path
    num_samples: int
    num_candidates: int
    shard_size: int
    provenance: dict

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_candidates / self.shard_size)

    def indices(self, shard: int) -> range:
        """The indices of a shard's samples."""
        return range(shard * self.shard_size, (shard + 1) * self.shard_size)

    def keys(self, shard: int) -> list[str]:
        return [sample_key(index) for index in self.indices(shard)]

    def tar(self, shard: int) -> Path:
        return self.folder / f"{shard_name(shard)}.tar"

    def sidecar(self, shard: int) -> Path:
        return self.folder / f"{shard_name(shard)}.json"

    def is_finished(self, shard: int) -> bool:
        """Whether a shard is published. Its tar comes first, so a sidecar means that both are there."""
        return self.sidecar(shard).exists()

    def finished_shards(self) -> list[int]:
        """The published shards, in order, by one listing of the folder: there may be thousands."""
        names = {entry.name for entry in os.scandir(self.folder)}
        return [shard for shard in range(self.num_shards) if self.sidecar(shard).name in names]


class Selection(NamedTuple):
    """The candidates that a set keeps.

    places: of the kept samples in each shard, by the shard's file.  num_candidates: those that were judged.
    refused: how many, by reason.
    """

    places: Mapping[str, Sequence[int]]
    num_candidates: int
    refused: Mapping[str, int]

    @property
    def num_kept(self) -> int:
        return sum(map(len, self.places.values()))


def keep_first(plan: GenerationPlan) -> Selection:
    """The first `num_samples` candidates: the set without a gate."""
    places = {
        plan.tar(shard).name: range(min(plan.shard_size, plan.num_samples - shard * plan.shard_size))
        for shard in range(plan.num_shards)
    }
    return Selection(places, plan.num_samples, {})


def sample_key(index: int) -> str:
    return f"synthetic-{index:08d}"


def open_plan(config: Config) -> GenerationPlan:
    """The plan of a set that was begun; ValueError where there is none."""
    folder = config.run_path / "generate"
    path = folder / "provenance.json"
    if not path.exists():
        raise ValueError(
            f"{folder} holds no started set ({path.name} does not exist); run generate without this option first"
        )
    provenance, num_samples = _read_provenance(path), config.generate.num_samples
    return GenerationPlan(folder, num_samples, num_samples, provenance["shard_size"], provenance)


def record_provenance(plan: GenerationPlan) -> None:
    """Write the set's provenance.json, or check that it is the one that another worker wrote.

    Raises ValueError naming the settings that differ.
    """
    path = plan.folder / "provenance.json"
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():  # a user may have removed it: then the shards must agree
        for sidecar in sorted(plan.folder.glob("shard-*.json")):
            refuse_other_provenance(sidecar, load_sidecar(sidecar).provenance, plan)
    publish_text(path, seal(json.dumps(plan.provenance, indent=1)))
    refuse_other_provenance(path, _read_provenance(path), plan)


def restore_provenance(plan: GenerationPlan, wanted: GenerationPlan) -> bool:
    """Write the set's provenance.json again where it alone is wrong; whether it was.

    plan: by that file.  wanted: by the settings and the teacher. The file is wrong where the sidecars that can be read
    hold the provenance of `wanted` and none holds that of the file; with both, or neither, nobody can say.
    """
    made_with = []
    for sidecar in plan.folder.glob("shard-*.json"):
        with contextlib.suppress(ValueError):  # damaged: it says nothing
            made_with.append(load_sidecar(sidecar).provenance)
    is_wrong = wanted.provenance in made_with and plan.provenance not in made_with
    if is_wrong:
        write_json(plan.folder / "provenance.json", wanted.provenance)
    return is_wrong


def _read_provenance(path: Path) -> dict:
    """ValueError with the remedy where the file is damaged."""
    try:
        provenance = parse_sealed(path.read_bytes(), path)
    except Changed:
        raise ValueError(
            f"{path} is damaged (its bytes have changed); remove it: the shards hold the same facts"
        ) from None
    if not isinstance(provenance, dict) or "shard_size" not in provenance:
        raise ValueError(f"{path} is damaged (no shard_size); remove it: the shards hold the same facts")
    return provenance


def refuse_other_provenance(path: Path, found: dict, plan: GenerationPlan) -> None:
    differing = sorted(key for key in plan.provenance.keys() | found if found.get(key) != plan.provenance.get(key))
    if differing:
        named = ", ".join(key for key in differing if key != "config") or "config"
        if "precision" in differing:  # `auto` depends on the host: say what this one took
            named += f" (precision {found.get('precision')} there, {plan.provenance.get('precision')} on this host)"
        raise ValueError(
            f"{path} was made with another {named}; set it back to keep the shards, "
            f"or remove {plan.folder} to start again"
        )
