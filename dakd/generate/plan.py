"""What a set consists of, before anything is made: its shards, their samples, and what they are a function of.

Shards are always full: a set of N pairs has ceil(N / shard_size) of them, or as many more as the gate asks for, and the
index says which of their samples are kept. So a set may grow or shrink at any time without a shard that has to be made
anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dakd.config import GenerateConfig
from dakd.data.indexing import load_sidecar
from dakd.data.publish import publish_text
from dakd.data.shards import shard_name
from dakd.runtime import distributed
from dakd.runtime.slurm import place_in_array

if TYPE_CHECKING:
    from dakd.generate.gate import Gate, Selection

_KEY = "synthetic-{:08d}"


@dataclass(frozen=True)
class Plan:
    """The shards of a set in a folder.

    num_samples: pairs that the set keeps.
    provenance: all that a sample depends on but its own number, with a hash of it under "config".
    gate: decides what is kept; None keeps the first `num_samples`.
    num_candidates: samples of the gate's rounds so far; None before the second.
    selection: what the gate keeps, when that is enough.
    """

    folder: Path
    num_samples: int
    shard_size: int
    provenance: dict
    gate: Gate | None = None
    num_candidates: int | None = None
    selection: Selection | None = None

    @property
    def num_shards(self) -> int:
        return -(-(self.num_candidates or self.num_samples) // self.shard_size)

    def indices(self, shard: int) -> range:
        """The numbers of a shard's samples."""
        return range(shard * self.shard_size, (shard + 1) * self.shard_size)

    def tar(self, shard: int) -> Path:
        return self.folder / f"{shard_name(shard)}.tar"

    def sidecar(self, shard: int) -> Path:
        return self.folder / f"{shard_name(shard)}.json"

    def is_there(self, shard: int) -> bool:
        """Whether a shard is finished. The tar comes first, so a sidecar says that both are there."""
        return self.sidecar(shard).exists()

    def is_done(self, shard: int) -> bool:
        """Whether nothing is left to do for a shard: it is finished, and measured where a gate asks for it."""
        return self.is_there(shard) and (self.gate is None or self.gate.is_measured(self, shard))

    def kept(self) -> Mapping[str, Sequence[int]]:
        """The places of the kept samples within each shard: what the gate selects, or the first `num_samples`."""
        if self.selection is not None:
            return self.selection.places
        return {
            self.tar(shard).name: range(min(self.shard_size, self.num_samples - shard * self.shard_size))
            for shard in range(self.num_shards)
        }


def sample_key(index: int) -> str:
    return _KEY.format(index)


def provenance_of(
    cfg: GenerateConfig, *, checkpoint: str, b: float, precision: str, threads: int, temperature: float
) -> dict:
    """What every sample of a set depends on.  checkpoint: the hash of the teacher's file.

    temperature: what a student will soften by, where the codec asks.
    """
    facts = {
        "seed": cfg.seed,
        "sampler": "ddim",
        "steps": cfg.sampling_steps,
        "eta": cfg.eta,
        "clip": cfg.clip,
        "b": b,
        "checkpoint": checkpoint,
        "weights": cfg.weights,
        "size": list(cfg.size),
        "shard_size": cfg.shard_size,
        "codec": cfg.codec,
        "precision": precision,
        "deterministic": cfg.deterministic,
    }
    if cfg.codec != "fp16":
        facts["temperature"] = temperature
    if cfg.deterministic:  # elsewhere they change a sample by no more than a rounding
        facts |= {"micro_batch": cfg.micro_batch, "threads": threads}
    return facts | {"config": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def settle(plan: Plan) -> None:
    """Write down what the folder's set is a function of, or see that it is what another worker wrote down.

    Raises ValueError naming the settings that differ.
    """
    path = plan.folder / "provenance.json"
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        for sidecar in sorted(plan.folder.glob("shard-*.json")):
            refuse_other_provenance(sidecar, load_sidecar(sidecar).provenance, plan)
    publish_text(path, json.dumps(plan.provenance, indent=1) + "\n")
    refuse_other_provenance(path, read_provenance(path), plan)


def read_provenance(path: Path) -> dict:
    """What a folder's set is a function of; ValueError with the remedy where the file is damaged."""
    try:
        provenance = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it: the shards say the same") from None
    if not isinstance(provenance, dict) or "shard_size" not in provenance:
        raise ValueError(f"{path} is damaged (no shard_size); remove it: the shards say the same")
    return provenance


def refuse_other_provenance(path: Path, found: dict, plan: Plan) -> None:
    differing = sorted(key for key in plan.provenance.keys() | found if found.get(key) != plan.provenance.get(key))
    if differing:
        named = ", ".join(key for key in differing if key != "config") or "config"
        raise ValueError(
            f"{path} was made with another {named}; set it back to keep the shards, "
            f"or remove {plan.folder} to generate anew"
        )


@dataclass(frozen=True)
class Place:
    """Which of how many workers this is, as far as a launcher says; it decides where a worker starts, nothing else."""

    number: int = 0
    count: int = 1


def place_from_environment() -> Place:
    """Ranks of `deepspeed` or torchrun within tasks of a SLURM array, or either alone, or a process started by hand."""
    task, tasks = place_in_array()
    ranks = distributed.world_size()
    return Place(task * ranks + distributed.rank(), tasks * ranks)
