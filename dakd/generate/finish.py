"""What is written when all shards are there: index.json, manifest.jsonl and a contact sheet, derived from the shards.

All three are functions of the sidecars and written whole, so two workers that finish at once write the same.
"""

from __future__ import annotations

import json
from pathlib import Path

from dakd.data.indexing import write_index
from dakd.data.pictures import contact_sheet
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.generate.plan import Plan
from dakd.generate.progress import finished_shards
from dakd.generate.sidecar import checked_sidecar, manifest_line
from dakd.runtime.files import replacing

SUMMARIES = ("index.json", "manifest.jsonl")
_SHEET_PAIRS = 32
_SHEET_SIDE = 96  # pixels; smaller images are magnified


def finish(plan: Plan, classes: ClassTable) -> None:
    """Write what the set says of itself, unless that is there.

    Raises ValueError where a sidecar belongs to another set.
    """
    if _says_so(plan):
        return
    _write_manifest(plan)
    write_index(plan.folder, classes, **describe_set(plan))
    draw_sheet(first_samples(ShardSet(plan.folder)), classes, plan.folder / "contact_sheet.png")


def retract(plan: Plan) -> None:
    """Take the summaries back where the index names a shard that is gone, for it may come back with other bytes."""
    missing = set(range(plan.num_shards)).difference(finished_shards(plan))
    named = {shard["file"] for shard in _read_index(plan).get("shards", [])}
    if named & {plan.tar(shard).name for shard in missing}:
        remove_summaries(plan)


def remove_summaries(plan: Plan) -> None:
    for name in SUMMARIES:
        (plan.folder / name).unlink(missing_ok=True)


def describe_set(plan: Plan) -> dict:
    """What the index is told, beside what it finds in the sidecars."""
    return {
        "kind": "synthetic",
        "codec": plan.provenance["codec"],
        "provenance": plan.provenance,
        "kept": plan.kept(),
    }


def first_samples(shards: ShardSet) -> list[Sample]:
    return [shards.read(i) for i in range(min(_SHEET_PAIRS, len(shards)))]


def draw_sheet(samples: list[Sample], classes: ClassTable, path: Path) -> None:
    scale = max(1, _SHEET_SIDE // samples[0].sar.shape[0])
    with replacing(path) as aside:
        contact_sheet(samples, classes, columns=4, scale=scale).save(aside, format="PNG")


def _write_manifest(plan: Plan) -> None:
    with replacing(plan.folder / "manifest.jsonl") as aside, open(aside, "w") as stream:
        for shard in range(plan.num_shards):
            stream.write(manifest_line(checked_sidecar(plan, shard)))


def _says_so(plan: Plan) -> bool:
    """Whether the last file that `finish` writes is there, for just this set."""
    index = _read_index(plan)
    same = index.get("num_samples") == plan.num_samples and index.get("provenance") == plan.provenance
    return same and (plan.folder / "contact_sheet.png").exists()


def _read_index(plan: Plan) -> dict:
    """The index that is there; {} where there is none, or none that can be read."""
    try:
        index = json.loads((plan.folder / "index.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
