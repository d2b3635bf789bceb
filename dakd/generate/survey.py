"""A set seen from outside: how far it is, whether it is sound, and how what is not gets out of the way.

Nothing here needs the teacher's net but its file's metadata, so that a login node can ask while others generate.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from dakd.config import Config
from dakd.data.indexing import ShardInfo, gather_index
from dakd.data.sample import ClassTable
from dakd.generate.claims import clear_dead_claims, living_claims
from dakd.generate.finish import describe_set, remove_summaries, verdict_lines
from dakd.generate.gate import advance, as_far_as_known, open_gate
from dakd.generate.plan import Plan, read_provenance
from dakd.generate.progress import finished_shards, projection
from dakd.generate.sidecar import UNSOUND, checked_sidecar, derive_sidecar, manifest_line
from dakd.generate.teacher import teacher_file
from dakd.runtime.files import left_overs
from dakd.runtime.runlog import format_duration
from dakd.weights import read_metadata

_NUM_TIMED = 64


@dataclass(frozen=True)
class Fault:
    """What is wrong with a shard, or with what the set says of itself (shard None).

    part: what has to go for the set to be made good: the tar with its sidecar, the sidecar alone, the gate's measures,
    the summaries; or nothing, where something is absent that the next worker makes.
    """

    what: str
    part: Literal["tar", "sidecar", "measures", "summary", "nothing"]
    shard: int | None = None


def open_plan(config: Config) -> Plan:
    """The plan of a set that was begun; ValueError where there is none."""
    folder = config.run_path / "generate"
    path = folder / "provenance.json"
    if not path.exists():
        raise ValueError(f"no set was begun in {folder}: {path.name} is absent; run generate without this option first")
    provenance = read_provenance(path)
    gate = open_gate(config, teacher_classes(config)) if config.generate.gate.enabled else None
    return Plan(folder, config.generate.num_samples, provenance["shard_size"], provenance, gate)


def teacher_classes(config: Config) -> ClassTable:
    return ClassTable.from_dict(read_metadata(teacher_file(config))["classes"])


def status(config: Config) -> str:
    """What is there, claimed and missing; at what rate it was made, when the rest will be there, how large it will be.

    The rate of a worker is that of the shards that are there; claims of another host's dead workers count as work.
    """
    plan = as_far_as_known(open_plan(config))
    there = finished_shards(plan)
    missing = sorted(set(range(plan.num_shards)) - set(there))
    claimed = [shard for shard in living_claims(plan.folder) if shard in set(missing)]
    bare = [shard for shard in missing if plan.tar(shard).exists()]
    rates = [rate for shard in there[-_NUM_TIMED:] if (rate := checked_sidecar(plan, shard).facts.get("images_per_s"))]
    lines = [
        f"{plan.folder}: {len(there)} of {plan.num_shards} shards are there, for {plan.num_samples} pairs",
        f"  being made  {_listed(claimed)}",
        f"  missing     {_listed(sorted(set(missing) - set(claimed)))}",
    ]
    if bare:
        lines.append(f"  no sidecar  {_listed(bare)} (the next worker derives it from the tar)")
    if plan.selection is not None:
        lines.append(f"  gate        keeps {plan.num_samples} of {plan.selection.num_candidates} candidates")
    elif plan.gate is not None:
        measured = sum(plan.gate.is_measured(plan, shard) for shard in there)
        lines.append(f"  gate        {measured} shards are measured; it may ask for more")
    if rates:
        line = f"  rate        {median(rates):.3g} img/s a worker"
        if claimed:
            left = len(missing) * plan.shard_size / (median(rates) * len(claimed))
            line += f", {len(claimed)} at work, eta {format_duration(left)}"
        lines.append(line)
    if there:
        lines.append(f"  size        {projection(plan, there)}")
    return "\n".join(lines)


def find_faults(plan: Plan, classes: ClassTable) -> list[Fault]:
    """Read every byte of the set and say what is wrong, in order of the shards; an empty list when it is sound."""
    faults, manifest, first, num_seen = [], [], {}, 0

    def look_at(shards: Iterable[int]) -> None:
        for shard in shards:
            found = _look_at_shard(plan, shard, classes)
            if isinstance(found, Fault):
                faults.append(found)
            else:
                faults.extend(_find_doubles(shard, found, first))
                faults.extend(_look_at_measures(plan, shard))
                manifest.append(json.loads(manifest_line(found)))

    while not faults and num_seen < plan.num_shards:
        look_at(range(num_seen, plan.num_shards))
        num_seen = plan.num_shards
        if not faults and plan.gate is not None:
            plan = advance(plan)
    if not faults:
        faults.extend(_look_at_summaries(plan, classes, manifest[: plan.num_shards]))
    elif plan.gate is not None:  # what else it will ask for cannot be told yet
        look_at(shard for shard in _shards_in(plan.folder) if shard >= num_seen)
    return faults


def clear_away(plan: Plan, faults: list[Fault]) -> list[str]:
    """Move what is not sound into `quarantine/`, and remove what dead processes of this host left; what was done."""
    done = []
    if any(fault.part != "nothing" for fault in faults):
        remove_summaries(plan)
    for fault in faults:
        if fault.part in ("tar", "sidecar") and fault.shard is not None:
            # The sidecar first: a kill in between leaves a tar without one, which is looked at wholly.
            done += _quarantine(plan.sidecar(fault.shard))
            if fault.part == "tar":
                done += _quarantine(plan.tar(fault.shard))
        if fault.part in ("tar", "measures") and fault.shard is not None:
            done += _remove_measures(plan, fault.shard)
    remains = [path for folder in [plan.folder, *plan.folder.glob("measures/*")] for path in left_overs(folder)]
    for path in remains:
        path.unlink(missing_ok=True)
    if remains:
        done.append(f"removed {len(remains)} unfinished files of dead processes")
    if others := len(list(plan.folder.glob(".*.tmp"))):
        done.append(f"left {others} unfinished files of living processes or of other hosts")
    if cleared := clear_dead_claims(plan.folder):
        done.append(f"removed {cleared} claims of dead processes")
    return done


def _shards_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-??????.tar"))


def _look_at_shard(plan: Plan, shard: int, classes: ClassTable) -> ShardInfo | Fault:
    tar, sidecar = plan.tar(shard), plan.sidecar(shard)
    if not tar.exists():
        if sidecar.exists():
            return Fault(f"{tar}: absent, though its sidecar is there", "sidecar", shard)
        return Fault(f"{tar}: absent", "nothing", shard)
    try:
        derived = derive_sidecar(plan, shard, classes)
    except UNSOUND as error:
        return Fault(f"{tar}: {error}", "tar", shard)
    if not sidecar.exists():
        return Fault(f"{sidecar}: absent, though its tar is there", "nothing", shard)
    try:
        info = checked_sidecar(plan, shard)
    except UNSOUND as error:
        return Fault(f"{sidecar}: {error}", "sidecar", shard)
    if info.sha256 != derived.sha256:
        return Fault(f"{tar}: sha256 is {derived.sha256}, its sidecar says {info.sha256}", "tar", shard)
    wanted, found = asdict(derived), asdict(info)
    found["facts"] = {key: found["facts"].get(key) for key in wanted["facts"]}
    differing = [key for key in wanted if found[key] != wanted[key]]
    if differing:
        return Fault(f"{sidecar}: {', '.join(differing)} differ from what the tar holds", "sidecar", shard)
    return info


def _find_doubles(shard: int, info: ShardInfo, first: dict[str, str]) -> Iterator[Fault]:
    """Samples with the arrays of another one; two starts of noise never end in the same pair.

    first: the keys of the samples before, by the hash of their arrays; this shard's are added.
    """
    for record in info.records:
        other = first.setdefault(record["sha256"], record["key"])
        if other != record["key"]:
            yield Fault(f"{info.file}: {record['key']} is {other} once more", "tar", shard)


def _look_at_measures(plan: Plan, shard: int) -> Iterator[Fault]:
    if plan.gate is None:
        return
    path = plan.gate.path(plan, shard)
    if not path.exists():
        yield Fault(f"{path}: absent, though its shard is there", "nothing", shard)
        return
    try:
        plan.gate.read(plan, shard)
    except ValueError as error:
        yield Fault(str(error), "measures", shard)


def _look_at_summaries(plan: Plan, classes: ClassTable, manifest: list[dict]) -> Iterator[Fault]:
    wanted = {"index.json": gather_index(plan.folder, classes, **describe_set(plan)), "manifest.jsonl": manifest}
    if plan.selection is not None:
        wanted["verdicts.jsonl"] = list(verdict_lines(plan))
    for name, told in wanted.items():
        path, content = plan.folder / name, json.loads(json.dumps(told))
        if not path.exists():
            yield Fault(f"{path}: absent, though all shards are there", "summary")
        elif _parse(path) not in (content, _as_before(content)):
            yield Fault(f"{path}: differs from what the shards' sidecars say", "summary")


def _as_before(content: object) -> object:
    """An index as it was written before it held its sidecars' digests; no other summary is meant."""
    if not isinstance(content, dict):
        return content
    shards = [{name: value for name, value in entry.items() if name != "places_sha256"} for entry in content["shards"]]
    return content | {"shards": shards}


def _parse(path: Path) -> object:
    """The content of a summary; None where it is not even JSON."""
    try:
        text = path.read_text()
        return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    except ValueError:
        return None


def _remove_measures(plan: Plan, shard: int) -> list[str]:
    """Those of all gates; they are functions of the shard and quickly made again."""
    paths = sorted(plan.folder.glob(f"measures/*/{plan.sidecar(shard).name}"))
    for path in paths:
        path.unlink(missing_ok=True)
    return [f"removed {path}" for path in paths]


def _quarantine(path: Path) -> list[str]:
    if not path.exists():
        return []
    target = path.parent / "quarantine" / f"{path.stem}.{secrets.token_hex(4)}{path.suffix}"
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    return [f"moved {path.name} to {target}"]


def _listed(shards: list[int]) -> str:
    """`5: 0, 3, 4, 7 and 1 more`."""
    if not shards:
        return "0"
    more = f" and {len(shards) - 8} more" if len(shards) > 8 else ""
    return f"{len(shards)}: {', '.join(map(str, shards[:8]))}{more}"
