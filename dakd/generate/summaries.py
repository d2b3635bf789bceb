"""The files of a finished set: index.json, manifest.jsonl, a contact sheet, and verdicts.jsonl where there is a gate.

All are functions of the sidecars and of the gate's measures, and each is written whole, so two workers that finish at
once write the same. The last one, manifest.json, lists the others: without it the set is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dakd.data.index import Index, gather_index, load_index, save_index
from dakd.data.pictures import contact_sheet
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.generate.gate import Gate, judge
from dakd.generate.plan import GenerationPlan, Selection
from dakd.generate.sidecar import checked_sidecar, manifest_line
from dakd.runtime.files import replacing
from dakd.runtime.kept_config import CONFIG
from dakd.runtime.sealed import MANIFEST, is_as_listed, remove_manifest, write_manifest

_SUMMARIES = ("index.json", "manifest.jsonl", "verdicts.jsonl")
_SHEET_PAIRS = 32
_SHEET_SIDE = 96  # pixels; smaller images are magnified


def write_summaries(plan: GenerationPlan, gate: Gate | None, selection: Selection, classes: ClassTable) -> None:
    """Write the files of a finished set, unless they are there.

    Raises ValueError where a sidecar belongs to another set.
    """
    index, sheet = _find_index(plan), plan.folder / "contact_sheet.png"
    expected = (plan.num_samples, _provenance(plan, gate, selection))
    is_same = index is not None and (index.num_samples, index.provenance) == expected and _is_of_shards(plan, index)
    if is_same and is_as_listed(plan.folder):
        return
    remove_manifest(plan.folder)
    _write_lines(plan.folder / "manifest.jsonl", manifest_lines(plan), sort_keys=True)
    if gate is None:
        (plan.folder / "verdicts.jsonl").unlink(missing_ok=True)
    else:
        _write_lines(plan.folder / "verdicts.jsonl", (verdict.line for verdict in judge(plan, gate)))
    save_index(plan.folder, index_of(plan, gate, selection, classes))
    shards = ShardSet(plan.folder)
    draw_sheet([shards.read(i) for i in range(min(_SHEET_PAIRS, len(shards)))], classes, sheet)
    written = [plan.folder / name for name in (*_SUMMARIES, "contact_sheet.png", "provenance.json", CONFIG)]
    write_manifest(plan.folder, [path for path in written if path.is_file()])


def retract_summaries(plan: GenerationPlan) -> None:
    """Remove the summaries where the index names a shard that is gone: it may come back with other bytes."""
    missing = set(range(plan.num_shards)).difference(plan.finished_shards())
    index = _find_index(plan)
    named = set() if index is None else {entry.file for entry in index.shards}
    if named & {plan.tar(shard).name for shard in missing}:
        remove_summaries(plan)


def remove_summaries(plan: GenerationPlan) -> None:
    for name in (MANIFEST, *_SUMMARIES):
        (plan.folder / name).unlink(missing_ok=True)


def index_of(plan: GenerationPlan, gate: Gate | None, selection: Selection, classes: ClassTable) -> Index:
    """The index of the finished set, from its sidecars."""
    provenance = _provenance(plan, gate, selection)
    return gather_index(plan.folder, classes, kind="synthetic", codec=plan.provenance["codec"], provenance=provenance,
                        kept=selection.places)  # fmt: skip


def _provenance(plan: GenerationPlan, gate: Gate | None, selection: Selection) -> dict[str, Any]:
    if gate is None:
        return plan.provenance
    counted = {"num_candidates": selection.num_candidates, "refused": selection.refused}
    return plan.provenance | {"gate": gate.facts | counted}


def manifest_lines(plan: GenerationPlan) -> Iterable[dict]:
    return (manifest_line(checked_sidecar(plan, shard)) for shard in range(plan.num_shards))


def draw_sheet(samples: list[Sample], classes: ClassTable, path: Path) -> None:
    scale = max(1, _SHEET_SIDE // samples[0].sar.shape[0])
    with replacing(path) as aside:
        contact_sheet(samples, classes, columns=4, scale=scale).save(aside, format="PNG")


def _write_lines(path: Path, lines: Iterable[dict], sort_keys: bool = False) -> None:
    with replacing(path) as aside, open(aside, "w") as stream:
        for line in lines:
            stream.write(json.dumps(line, sort_keys=sort_keys) + "\n")


def _is_of_shards(plan: GenerationPlan, index: Index) -> bool:
    """Whether the shards that an index names are those that are there, by their sidecars."""
    there = {plan.tar(shard).name: checked_sidecar(plan, shard).sha256 for shard in range(plan.num_shards)}
    return all(there.get(entry.file) == entry.sha256 for entry in index.shards)


def _find_index(plan: GenerationPlan) -> Index | None:
    """The set's index; None where there is none, or none that can be read."""
    try:
        return load_index(plan.folder / "index.json")
    except (FileNotFoundError, ValueError):  # another worker may remove it at any time
        return None
