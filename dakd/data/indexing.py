"""What is known of shards without reading them: the sidecar of a tar and the index of a folder.

Beside each `shard-000000.tar` stands `shard-000000.json` (checksum, and where each record's bytes lie), and a folder
has one `index.json` (counts, class shares, fingerprint, balancing factor).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dakd.data.records import content_hash, decode_record, hard_label, members_crc, read_members, refuse_unknown_ids
from dakd.data.sample import IGNORE_INDEX, ClassTable
from dakd.data.soft_labels import common_range
from dakd.data.tars import list_members
from dakd.diffusion.balance import balancing_factor, image_power
from dakd.runtime.files import file_hash, write_json

FORMAT = 1


@dataclass(frozen=True)
class ShardInfo:
    """What the sidecar of a shard says.

    records: one dict a record: key, height, width, sha256 of its arrays, crc32 of its bytes, members
    {extension: [offset, size]} in bytes.
    class_pixels: pixels of each class (a soft label counts by its argmax); ignored ones apart.
    power_sum: sum over images of mean((g / 127.5 - 1)^2).
    soft_range: nats that code 255 of its soft labels stands for; None where they are logits, or there are none.
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
    Raises ValueError where the tar or a record is damaged.
    """
    tar_path = Path(tar_path)
    members = list_members(tar_path)
    pixels, ignored, powers = np.zeros(classes.num_classes, np.int64), 0, []
    records, num_labelled, soft_ranges = [], 0, []
    with open(tar_path, "rb") as stream:
        for key, places in members.items():
            content = read_members(stream.fileno(), places, tar_path)
            sample = decode_record(key, content, foreign=foreign)
            counts = np.bincount(hard_label(sample).ravel(), minlength=256)
            refuse_unknown_ids(key, counts, classes)
            pixels += counts[: classes.num_classes]
            ignored += int(counts[IGNORE_INDEX])
            powers.append(image_power(sample.sar))
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
                }
            )
    return ShardInfo(
        file=file or tar_path.name,
        sha256=file_hash(tar_path),
        num_bytes=tar_path.stat().st_size,
        num_samples=len(records),
        num_labelled=num_labelled,
        num_soft=len(soft_ranges),
        class_pixels=pixels.tolist(),
        ignored_pixels=ignored,
        power_sum=math.fsum(powers),
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
    kept: Mapping[str, Sequence[int]] | None = None,
) -> dict:
    """Gathers the sidecars of `folder` into index.json and returns it.

    kind: "real" or "synthetic".  provenance: JSON facts on where the set came from.
    kept: the files that make the set; None takes every shard that is there.
    Raises ValueError when there is no record, a key stands twice, or soft labels are of different kinds.
    """
    folder = Path(folder)
    names = sorted(path.name for path in folder.glob("shard-*.json")) if kept is None else sorted(kept)
    paths = [(folder / name).with_suffix(".json") for name in names]
    shards = [load_sidecar(path) for path in paths]
    records = [record for shard in shards for record in shard.records]
    if not records:
        raise ValueError(f"{folder} holds no records; wanted at least one shard with one sample")
    _refuse_doubled_keys(folder, records)
    pixels = np.sum([shard.class_pixels for shard in shards], axis=0)
    power = math.fsum(shard.power_sum for shard in shards) / len(records)
    index = {
        "format": FORMAT,
        "kind": kind,
        "classes": classes.to_dict(),
        "codec": codec,
        "soft_range": common_range((shard.soft_range for shard in shards if shard.num_soft), str(folder)),
        "num_samples": len(records),
        "num_labelled": sum(shard.num_labelled for shard in shards),
        "num_soft": sum(shard.num_soft for shard in shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "sizes": _count_sizes(records),
        "class_pixels": pixels.tolist(),
        "class_pixel_shares": (pixels / max(1, pixels.sum())).tolist(),
        "ignored_pixels": sum(shard.ignored_pixels for shard in shards),
        "fingerprint": _fingerprint(records),
        "mean_power": power,
        "balancing_factor": balancing_factor(power),
        "shards": [{"file": shard.file, "sha256": shard.sha256, "num_samples": shard.num_samples} for shard in shards],
        "provenance": provenance or {},
    }
    write_json(folder / "index.json", index)
    return index


def load_sidecar(path: Path) -> ShardInfo:
    if not path.is_file():
        raise ValueError(f"{path} is absent, though the index names its shard; write the set again")
    tree = json.loads(path.read_text())
    if tree.get("format") != FORMAT:
        raise ValueError(f"{path} has format {tree.get('format')}; this version reads {FORMAT}; write the set again")
    return ShardInfo(**tree)


def _refuse_doubled_keys(folder: Path, records: list[dict]) -> None:
    seen: set[str] = set()
    doubled = {record["key"] for record in records if record["key"] in seen or seen.add(record["key"])}
    if doubled:
        raise ValueError(f"{folder} holds keys twice: {sorted(doubled)[:10]}; every sample needs its own key")


def _count_sizes(records: list[dict]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for record in records:
        name = f"{record['height']}x{record['width']}"
        sizes[name] = sizes.get(name, 0) + 1
    return dict(sorted(sizes.items()))


def _fingerprint(records: list[dict]) -> str:
    """sha256 over the sorted (key, content): the same for the same samples, however they are packed."""
    lines = sorted(f"{record['key']} {record['sha256']}\n" for record in records)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
