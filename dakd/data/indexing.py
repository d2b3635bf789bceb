"""What is known of shards without reading them: the sidecar of a tar and the index of a folder.

Beside each `shard-000000.tar` stands `shard-000000.json` (checksum, and where each record's bytes lie), and a folder
has one `index.json` (counts, class shares, fingerprint, balancing factor).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from dakd.data.balance import balancing_factor, image_power
from dakd.data.foreign import is_label, is_soft_label
from dakd.data.records import (
    check_digest,
    content_hash,
    decode_record,
    hard_label,
    members_crc,
    read_members,
    refuse_unknown_ids,
)
from dakd.data.sample import IGNORE_INDEX, ClassTable
from dakd.data.soft_labels import common_range
from dakd.data.tars import list_members
from dakd.runtime.files import file_hash, write_json

FORMAT = 2
_PLACE = ("key", "height", "width", "crc32", "members")  # of a record: what readers go by


@dataclass(frozen=True)
class ShardInfo:
    """What the sidecar of a shard says.

    records: one dict a record: key, height, width, sha256 of its arrays, crc32 of its bytes, members
    {extension: [offset, size]} in bytes, and its own class_pixels, ignored_pixels and power.
    class_pixels: pixels of each class (a soft label counts by its argmax); ignored ones apart.
    power_sum: sum over images of power, mean((g / 127.5 - 1)^2).
    soft_range: nats that code 255 of its soft labels stands for; None where they are logits, or there are none.
    facts: what does not follow from the tar, such as how fast it was made.
    """

    file: str
    sha256: str
    num_bytes: int
    num_samples: int
    num_labelled: int
    num_soft: int
    class_pixels: list[int]
    ignored_pixels: int
    power_sum: float
    records: list[dict]
    format: int = FORMAT
    provenance: dict = field(default_factory=dict)
    soft_range: float | None = None
    facts: dict = field(default_factory=dict)


def describe_shard(
    tar_path: str | Path,
    classes: ClassTable,
    file: str | None = None,
    provenance: dict | None = None,
    *,
    foreign: bool = False,
) -> ShardInfo:
    """The sidecar of a tar, from the tar alone: every record is decoded on the way, so a described shard is sound.

    foreign: whether records that others wrote are taken too (see `foreign.py`).
    Raises ValueError or RuntimeError where the tar or a record is damaged.
    """
    tar_path = Path(tar_path)
    members = list_members(tar_path)
    records, num_labelled, soft_ranges = [], 0, []
    with open(tar_path, "rb") as stream:
        for key, places in members.items():
            content = read_members(stream.fileno(), places, tar_path)
            sample = decode_record(key, content, foreign=foreign)
            if "sar.u8" in content:  # a record of dakd's own
                check_digest(key, content)
            counts = np.bincount(hard_label(sample).ravel(), minlength=256)
            refuse_unknown_ids(key, counts, classes)
            num_labelled += sample.label is not None
            soft_ranges += [] if sample.soft_label is None else [sample.soft_range]
            height, width = sample.sar.shape
            records.append(
                {
                    "key": key,
                    "height": height,
                    "width": width,
                    "sha256": content_hash(sample),
                    "crc32": members_crc(content),
                    "members": places,
                    "class_pixels": counts[: classes.num_classes].tolist(),
                    "ignored_pixels": int(counts[IGNORE_INDEX]),
                    "power": image_power(sample.sar),
                }
            )
    return ShardInfo(
        file=file or tar_path.name,
        sha256=file_hash(tar_path),
        num_bytes=tar_path.stat().st_size,
        num_samples=len(records),
        num_labelled=num_labelled,
        num_soft=len(soft_ranges),
        class_pixels=_sum_pixels(records, classes),
        ignored_pixels=sum(record["ignored_pixels"] for record in records),
        power_sum=math.fsum(record["power"] for record in records),
        records=records,
        provenance=provenance or {},
        soft_range=common_range(soft_ranges, str(tar_path)),
    )


def write_index(
    folder: str | Path,
    classes: ClassTable,
    *,
    kind: str,
    codec: str | None = None,
    provenance: dict | None = None,
    kept: Mapping[str, Sequence[int] | None] | None = None,
) -> dict:
    """Gathers the sidecars of `folder` into index.json and returns it.

    kind: "real" or "synthetic".  provenance: JSON facts on where the set came from.
    kept: which records make the set, as ascending places within each shard's file by name (None for all of the file's);
    a shard that is not named is no part of it. None takes every record of every shard that is there.
    Raises ValueError when there is no record, a key stands twice, or soft labels are of different kinds.
    """
    folder = Path(folder)
    index = gather_index(folder, classes, kind=kind, codec=codec, provenance=provenance, kept=kept)
    write_json(folder / "index.json", index)
    return index


def gather_index(
    folder: Path,
    classes: ClassTable,
    *,
    kind: str,
    codec: str | None = None,
    provenance: dict | None = None,
    kept: Mapping[str, Sequence[int] | None] | None = None,
) -> dict:
    """What `write_index` writes."""
    names = sorted(path.name for path in folder.glob("shard-*.json")) if kept is None else sorted(kept)
    shards, lines, powers, soft_ranges = [], [], [], set()
    sizes, counts = Counter(), Counter()
    pixels = np.zeros(classes.num_classes, np.int64)
    for name in names:  # one shard's records at a time: a set may have millions
        shard = load_sidecar((folder / name).with_suffix(".json"))
        places = None if kept is None else kept[name]
        places = range(shard.num_samples) if places is None else places
        if len(places) == 0:  # all its candidates were refused: no part of the set
            continue
        entry = {"file": shard.file, "sha256": shard.sha256, "num_samples": len(places)}
        entry["places_sha256"] = places_digest(shard.records)
        if len(places) < shard.num_samples:
            entry["kept"] = _as_runs(places)
        shards.append(entry)
        records = [shard.records[place] for place in places]
        lines += [f"{record['key']} {record['sha256']}\n" for record in records]
        powers.append(math.fsum(record["power"] for record in records))
        pixels += _sum_pixels(records, classes)
        sizes.update(f"{record['height']}x{record['width']}" for record in records)
        counts["labelled"] += sum(any(map(is_label, record["members"])) for record in records)
        counts["soft"] += sum(any(map(is_soft_label, record["members"])) for record in records)
        soft_ranges |= {shard.soft_range} if shard.num_soft else set()
        counts["ignored"] += sum(record["ignored_pixels"] for record in records)
        counts["bytes"] += shard.num_bytes
    if not lines:
        raise ValueError(f"{folder} holds no records; wanted at least one shard with one sample")
    lines.sort()
    _refuse_doubled_keys(folder, lines)
    power = math.fsum(powers) / len(lines)
    return {
        "format": FORMAT,
        "kind": kind,
        "classes": classes.to_dict(),
        "codec": codec,
        "soft_range": common_range(soft_ranges, str(folder)),
        "num_samples": len(lines),
        "num_labelled": counts["labelled"],
        "num_soft": counts["soft"],
        "num_bytes": counts["bytes"],
        "sizes": dict(sorted(sizes.items())),
        "class_pixels": pixels.tolist(),
        "class_pixel_shares": pixel_shares(pixels.tolist()),
        "ignored_pixels": counts["ignored"],
        # The same for the same samples, however they are packed.
        "fingerprint": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "mean_power": power,
        "balancing_factor": balancing_factor(power),
        "shards": shards,
        "provenance": provenance or {},
    }


def pixel_shares(pixels: Sequence[int]) -> list[float]:
    """Counts by class to shares that sum to 1; zeros where nothing was counted."""
    return (np.asarray(pixels) / max(1, sum(pixels))).tolist()


def places_digest(records: Sequence[Mapping]) -> str:
    """The sha256 of what a sidecar says of where its records lie and what they are called.

    It holds nothing but what follows from the tar to the bit, on any machine: a sidecar that was derived again has it.
    """
    places = [[record.get(name) for name in _PLACE] for record in records]
    return hashlib.sha256(json.dumps(places, sort_keys=True).encode()).hexdigest()


def load_sidecar(path: Path) -> ShardInfo:
    if not path.is_file():
        raise ValueError(f"{path} is absent, though the index names its shard; write the set again")
    tree = json.loads(path.read_text())
    if tree.get("format") != FORMAT:
        raise ValueError(f"{path} has format {tree.get('format')}; this version reads {FORMAT}; write the set again")
    return ShardInfo(**tree)


def _as_runs(places: Sequence[int]) -> list[list[int]]:
    """Ascending numbers as [first, stop) runs."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1][1] += 1
        else:
            runs.append([place, place + 1])
    return runs


def _sum_pixels(records: list[dict], classes: ClassTable) -> list[int]:
    counts = np.array([record["class_pixels"] for record in records], np.int64).reshape(-1, classes.num_classes)
    return counts.sum(axis=0).tolist()


def _refuse_doubled_keys(folder: Path, lines: list[str]) -> None:
    """lines: sorted, each starting with a key and a space."""
    keys = [line.split(" ", 1)[0] for line in lines]
    doubled = sorted({key for key, following in pairwise(keys) if key == following})
    if doubled:
        raise ValueError(f"{folder} holds keys twice: {doubled[:10]}; every sample needs its own key")
