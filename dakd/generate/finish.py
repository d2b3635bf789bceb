"""What is written when all shards are there: index.json, manifest.jsonl, a contact sheet, and a gate's verdicts.jsonl.

All are functions of the sidecars and of the gate's measures, and written whole, so two workers that finish at once
write the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dakd.data.indexing import write_index
from dakd.data.pictures import contact_sheet
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.generate.gate import judge
from dakd.generate.plan import Plan
from dakd.generate.progress import finished_shards
from dakd.generate.sidecar import checked_sidecar, manifest_line
from dakd.runtime.files import replacing

SUMMARIES = ("index.json", "manifest.jsonl", "verdicts.jsonl")
_SHEET_PAIRS = 32
_SHEET_SIDE = 96  # pixels; smaller images are magnified


def finish(plan: Plan, classes: ClassTable) -> None:
    """Write what the set says of itself, unless that is there.

    Raises ValueError where a sidecar belongs to another set.
    """
    if _says_so(plan):
        return
    _write_manifest(plan)
    _write_verdicts(plan)
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
        "provenance": plan.provenance | _gate_facts(plan),
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


def _write_verdicts(plan: Plan) -> None:
    """A line for each candidate, in order; no file without a gate."""
    path = plan.folder / "verdicts.jsonl"
    if plan.selection is None:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as aside, open(aside, "w") as stream:
        for line in verdict_lines(plan):
            stream.write(json.dumps(line) + "\n")


def verdict_lines(plan: Plan) -> Iterator[dict]:
    return (verdict for _, _, verdict in judge(plan))


def _gate_facts(plan: Plan) -> dict:
    if plan.selection is None:
        return {}
    selection = plan.selection
    counted = {"num_candidates": selection.num_candidates, "refused": selection.refused}
    return {"gate": plan.gate.facts | counted}


def _says_so(plan: Plan) -> bool:
    """Whether the last file that `finish` writes is there, for just this set."""
    index = _read_index(plan)
    wanted = plan.provenance | _gate_facts(plan)
    same = index.get("num_samples") == plan.num_samples and index.get("provenance") == wanted
    return same and (plan.folder / "contact_sheet.png").exists()


def _read_index(plan: Plan) -> dict:
    """The index that is there; {} where there is none, or none that can be read."""
    try:
        index = json.loads((plan.folder / "index.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
