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
from dakd.generate.sidecar import checked_sidecar, manifest_line
from dakd.runtime.files import replacing

_SHEET_PAIRS = 32
_SHEET_SIDE = 96  # pixels; smaller images are magnified


def finish(plan: Plan, classes: ClassTable) -> None:
    """Write what the set says of itself, unless that is there.

    Raises ValueError where a sidecar belongs to another set.
    """
    if _says_so(plan):
        return
    _write_manifest(plan)
    write_index(
        plan.folder,
        classes,
        kind="synthetic",
        codec=plan.provenance["codec"],
        provenance=plan.provenance,
        kept=plan.kept(),
    )
    draw_sheet(first_samples(ShardSet(plan.folder)), classes, plan.folder / "contact_sheet.png")


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
    path = plan.folder / "index.json"
    if not path.exists() or not (plan.folder / "contact_sheet.png").exists():
        return False
    index = json.loads(path.read_text())
    return index["num_samples"] == plan.num_samples and index["provenance"] == plan.provenance
