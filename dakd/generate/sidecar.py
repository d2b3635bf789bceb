"""The sidecar of a generated shard: what it says, whether it belongs to the set, and how a tar without one gets one."""

from __future__ import annotations

import json
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

from dakd.data.indexing import ShardInfo, describe_shard, load_sidecar, pixel_shares
from dakd.data.records import read_members
from dakd.data.sample import ClassTable
from dakd.generate.plan import Plan, refuse_other_provenance, sample_key

# What a damaged tar or sidecar raises when it is read.
UNSOUND = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError, tarfile.TarError)


def sidecar_facts(info: ShardInfo, indices: range) -> dict:
    """What a sidecar says beside what describes a tar of any kind."""
    return {
        "sample_range": [indices.start, indices.stop],
        "class_pixel_shares": pixel_shares(info.class_pixels),
    }


def derive_sidecar(plan: Plan, shard: int, classes: ClassTable) -> ShardInfo:
    """The sidecar of a shard's tar from the tar alone, but for where and how fast it was made.

    Raises one of UNSOUND where the tar is not this shard, whole.
    """
    path = plan.tar(shard)
    info = describe_shard(path, classes)
    refuse_other_samples(plan, shard, [record["key"] for record in info.records])
    for index, meta in zip(plan.indices(shard), _read_meta(path, info)):
        if meta.pop("index") != index:
            raise ValueError(f"{path} holds a record {sample_key(index)} of another sample")
        refuse_other_provenance(path, meta, plan)
    return replace(info, provenance=plan.provenance, facts=sidecar_facts(info, plan.indices(shard)))


def manifest_line(info: ShardInfo) -> str:
    """A shard's line of manifest.jsonl: its sidecar without the places of its records."""
    facts = asdict(info)
    del facts["records"]
    return json.dumps(facts.pop("facts") | facts, sort_keys=True) + "\n"


def checked_sidecar(plan: Plan, shard: int) -> ShardInfo:
    """A shard's sidecar; ValueError where it is of another set or lacks, doubles or adds a sample."""
    path = plan.sidecar(shard)
    try:
        info = load_sidecar(path)
        keys = [record["key"] for record in info.records]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); run the same with --repair") from None
    refuse_other_provenance(path, info.provenance, plan)
    refuse_other_samples(plan, shard, keys)
    return info


def refuse_other_samples(plan: Plan, shard: int, keys: list[str]) -> None:
    wanted = [sample_key(index) for index in plan.indices(shard)]
    if keys == wanted:
        return
    missing, added = sorted(set(wanted) - set(keys)), sorted(set(keys) - set(wanted))
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    found = [
        f"{what} {', '.join(names[:3])}{' and others' * (len(names) > 3)}"
        for what, names in (("lacks", missing), ("doubles", doubled), ("adds", added))
        if names
    ]
    raise ValueError(f"{plan.tar(shard)} {', '.join(found) or 'holds its samples in another order'}")


def _read_meta(path: Path, info: ShardInfo) -> list[dict]:
    with open(path, "rb") as stream:
        places = [{"json": record["members"]["json"]} for record in info.records]
        return [json.loads(read_members(stream.fileno(), place, path)["json"])["meta"] for place in places]
