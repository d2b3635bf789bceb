"""The sidecar of a generated shard: its check against the set, and its derivation from a tar that has none."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from dakd.data.index import ShardInfo, describe_shard, load_sidecar, pixel_shares
from dakd.data.records import read_members
from dakd.data.sample import ClassTable
from dakd.generate.plan import GenerationPlan, refuse_other_provenance, sample_key
from dakd.runtime.sealed import Changed

# What reading a damaged tar or sidecar raises.
DAMAGE_ERRORS = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError, tarfile.TarError)


def sidecar_facts(info: ShardInfo, indices: range) -> dict:
    """The facts of a generated shard's sidecar that follow from its tar."""
    return {
        "sample_range": [indices.start, indices.stop],
        "class_pixel_shares": pixel_shares(info.class_pixels),
    }


def derive_sidecar(plan: GenerationPlan, shard: int, classes: ClassTable) -> ShardInfo:
    """The sidecar of a shard's tar from the tar alone: all but where and how fast it was made.

    Raises one of DAMAGE_ERRORS where the tar is damaged or another shard's.
    """
    path = plan.tar(shard)
    info = describe_shard(path, classes)
    _refuse_other_samples(plan, shard, [record.key for record in info.records])
    for index, meta in zip(plan.indices(shard), _read_meta(path, info)):
        if meta.pop("index") != index:
            raise ValueError(f"{path} holds a record {sample_key(index)} of another sample")
        refuse_other_provenance(path, meta, plan)
    return info.model_copy(
        update={"provenance": plan.provenance, "facts": sidecar_facts(info, plan.indices(shard))}
    )


def checked_sidecar(plan: GenerationPlan, shard: int) -> ShardInfo:
    """A shard's sidecar; ValueError where it is of another set, or lacks, doubles or adds a sample."""
    path = plan.sidecar(shard)
    try:
        info = load_sidecar(path)
        keys = [record.key for record in info.records]
    except Changed:
        raise ValueError(f"{path} is damaged (its bytes have changed); run the same with --repair") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); run the same with --repair") from None
    refuse_other_provenance(path, info.provenance, plan)
    _refuse_other_samples(plan, shard, keys)
    return info


def refuse_damaged(plan: GenerationPlan, found: Sequence[str]) -> None:
    """ValueError that lists the damaged shards of a set whose others are all there; found: a line for each."""
    if found:
        lines = "\n".join(f"  {what}" for what in found)
        raise ValueError(
            f"{len(found)} of {plan.num_shards} shards are damaged, all others are there; run the same with --repair "
            f"to put them into quarantine and make them again\n{lines}"
        )


def manifest_line(info: ShardInfo) -> dict:
    """A shard's line of manifest.jsonl: its sidecar without its records."""
    line = info.model_dump(exclude={"records"})
    return line.pop("facts") | line


def _refuse_other_samples(plan: GenerationPlan, shard: int, keys: list[str]) -> None:
    expected = plan.keys(shard)
    if keys == expected:
        return
    missing, added = sorted(set(expected) - set(keys)), sorted(set(keys) - set(expected))
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    found = [
        f"{what} {', '.join(names[:3])}{' and others' * (len(names) > 3)}"
        for what, names in (("lacks", missing), ("doubles", doubled), ("adds", added))
        if names
    ]
    raise ValueError(f"{plan.tar(shard)} {', '.join(found) or 'holds its samples in another order'}")


def _read_meta(path: Path, info: ShardInfo) -> list[dict]:
    with open(path, "rb") as stream:
        places = [{"json": record.members["json"]} for record in info.records]
        return [json.loads(read_members(stream.fileno(), place, path)["json"])["meta"] for place in places]
