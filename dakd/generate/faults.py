"""`generate --verify` and `--repair`: find every fault of a set, and clear damaged files out of the way.

Faults are found from outside: other workers may be generating at the same time, and the teacher's net is not needed.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dakd.data.index import ShardInfo
from dakd.data.sample import ClassTable
from dakd.generate.claims import clear_dead_claims
from dakd.generate.gate import Gate, judge, next_round
from dakd.generate.plan import GenerationPlan, Selection
from dakd.generate.sidecar import DAMAGE_ERRORS, checked_sidecar, derive_sidecar, manifest_line, refuse_damaged
from dakd.generate.summaries import index_of, remove_summaries
from dakd.generate.worker import Share
from dakd.runtime.files import file_hash, left_overs
from dakd.runtime.runlog import progress
from dakd.runtime.sealed import parse_sealed


class Fault(NamedTuple):
    """A fault of a shard, or of the set's summaries (shard None).

    what: the file and its fault.
    part: what has to be removed: the tar with its sidecar, the sidecar alone, the gate's measures, or the summaries;
    "nothing" where a file is absent, which the next worker makes.
    """

    what: str
    part: Literal["tar", "sidecar", "measures", "summary", "nothing"]
    shard: int | None = None


def find_faults(plan: GenerationPlan, classes: ClassTable, gate: Gate | None = None) -> list[Fault]:
    """Read every byte of the set; its faults in order of the shards, an empty list when it is complete and intact."""
    faults: list[Fault] = []
    manifest: list[dict] = []
    first_keys: dict[str, str] = {}

    def check(shards: Iterable[int]) -> None:
        for shard in shards:
            found = _check_shard(plan, shard, classes)
            if isinstance(found, Fault):
                faults.append(found)
                continue
            faults.extend(_find_doubles(shard, found, first_keys))
            if gate is not None:
                faults.extend(_check_measures(plan, gate, shard))
            manifest.append(manifest_line(found))

    selection, num_checked = None, 0
    while not faults and selection is None:
        check(range(num_checked, plan.num_shards))
        num_checked = plan.num_shards
        if not faults:
            plan, selection = next_round(plan, gate)
    if selection is not None:
        faults.extend(_check_summaries(plan, gate, selection, classes, manifest[: plan.num_shards]))
    elif gate is not None:  # which further rounds the gate needs is unknown: check the shards that are there
        check(shard for shard in _shards_in(plan.folder) if shard >= num_checked)
    return faults


def refuse_changed_shards(plan: GenerationPlan, share: Share) -> None:
    """ValueError where a shard of a finished set belongs to another one, or its tar is not the one of its sidecar.

    Reads all sidecars and, of the share's shards, every byte: nothing cheaper shows that one has changed.
    """
    found = []
    for shard in progress(range(plan.num_shards), plan.num_shards, "generate: checksums"):
        tar, is_own = plan.tar(shard), shard % share.count == share.index
        try:
            info = checked_sidecar(plan, shard)
        except ValueError as error:
            found.append(str(error))
            continue
        if not tar.exists():
            found.append(f"{tar}: missing, though its sidecar is there")
        elif tar.stat().st_size != info.num_bytes:
            found.append(f"{tar}: has {tar.stat().st_size} bytes, its sidecar says {info.num_bytes}")
        elif is_own and (sha256 := file_hash(tar)) != info.sha256:
            found.append(f"{tar}: sha256 is {sha256}, its sidecar says {info.sha256}")
    refuse_damaged(plan, found)


def clear_away(plan: GenerationPlan, faults: list[Fault]) -> list[str]:
    """Move damaged shards into `quarantine/`, remove other damaged files and what dead processes of this host left.

    Returns a line for each thing that was done.
    """
    done = []
    if any(fault.part != "nothing" for fault in faults):
        remove_summaries(plan)
    for fault in faults:
        if fault.shard is None:
            continue
        if fault.part in ("tar", "sidecar"):
            # The sidecar first: a kill in between leaves a tar without one, and the next worker checks such a tar.
            done += _quarantine(plan.sidecar(fault.shard))
        if fault.part == "tar":
            done += _quarantine(plan.tar(fault.shard))
        if fault.part in ("tar", "measures"):
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


def _check_shard(plan: GenerationPlan, shard: int, classes: ClassTable) -> ShardInfo | Fault:
    """The sidecar of an intact shard, or the first fault found."""
    tar, sidecar = plan.tar(shard), plan.sidecar(shard)
    if not tar.exists():
        if sidecar.exists():
            return Fault(f"{tar}: missing, though its sidecar is there", "sidecar", shard)
        return Fault(f"{tar}: missing", "nothing", shard)
    try:
        derived = derive_sidecar(plan, shard, classes)
    except DAMAGE_ERRORS as error:
        return Fault(f"{tar}: {error}", "tar", shard)
    if not sidecar.exists():
        return Fault(f"{sidecar}: missing, though its tar is there", "nothing", shard)
    try:
        info = checked_sidecar(plan, shard)
    except DAMAGE_ERRORS as error:
        return Fault(f"{sidecar}: {error}", "sidecar", shard)
    if info.sha256 != derived.sha256:
        return Fault(f"{tar}: sha256 is {derived.sha256}, its sidecar says {info.sha256}", "tar", shard)
    expected, found = derived.model_dump(), info.model_dump()
    # Where and how fast the shard was made does not follow from the tar.
    found["facts"] = {key: found["facts"].get(key) for key in expected["facts"]}
    differing = [key for key in expected if found[key] != expected[key]]
    if differing:
        return Fault(f"{sidecar}: {', '.join(differing)} differ from the content of the tar", "sidecar", shard)
    return info


def _find_doubles(shard: int, info: ShardInfo, first_keys: dict[str, str]) -> Iterator[Fault]:
    """Samples with the arrays of another one: different noise never ends in the same pair.

    first_keys: the keys of earlier samples by the hash of their arrays; this shard's are added.
    """
    for record in info.records:
        other = first_keys.setdefault(record.sha256, record.key)
        if other != record.key:
            yield Fault(f"{info.file}: {record.key} is a copy of {other}", "tar", shard)


def _check_measures(plan: GenerationPlan, gate: Gate, shard: int) -> Iterator[Fault]:
    path = gate.path(plan, shard)
    if not path.exists():
        yield Fault(f"{path}: missing, though its shard is there", "nothing", shard)
        return
    try:
        gate.read(plan, shard)
    except ValueError as error:
        yield Fault(str(error), "measures", shard)


def _check_summaries(
    plan: GenerationPlan, gate: Gate | None, selection: Selection, classes: ClassTable, manifest: list[dict]
) -> Iterator[Fault]:
    index = index_of(plan, gate, selection, classes)
    expected: dict[str, Any] = {"index.json": index.model_dump(mode="json"), "manifest.jsonl": manifest}
    if gate is not None:
        expected["verdicts.jsonl"] = [verdict.line for verdict in judge(plan, gate)]
    for name, content in expected.items():
        path = plan.folder / name
        if not path.exists():
            yield Fault(f"{path}: missing, though all shards are there", "summary")
        elif not _holds(path, content):
            yield Fault(f"{path}: differs from the shards' sidecars", "summary")


def _holds(path: Path, content: Any) -> bool:
    """Whether a summary, sealed or of lines, has this content."""
    text = path.read_bytes()
    try:
        is_sealed = path.suffix == ".json"
        found = parse_sealed(text, path) if is_sealed else [json.loads(line) for line in text.splitlines()]
    except ValueError:
        return False
    return found == json.loads(json.dumps(content))


def _remove_measures(plan: GenerationPlan, shard: int) -> list[str]:
    """Remove a shard's measures, those of all gates: they are functions of the shard and quickly made again."""
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
