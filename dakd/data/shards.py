"""Tar shards with an index: written aside, then renamed, so that a shard is whole or absent.

A shard is a WebDataset tar. A record with key K has the members

    K.json        height, width, num_classes, meta
    K.sar.u8      H * W bytes, grey values, rows first (speckle does not compress)
    K.label.u8    H * W bytes, class ids, 255 = ignore; absent where there is no label
    K.soft.CODEC  the teacher's logits (K, H, W), as `soft_labels.py` stores them; absent where there are none

Beside each `shard-000000.tar` stands `shard-000000.json` (checksum, and where each record's bytes lie), and a folder
has one `index.json` (counts, class shares, fingerprint, balancing factor). Records are read by offset.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from dakd.data.sample import IGNORE_INDEX, ClassTable, Sample
from dakd.data.soft_labels import get_codec
from dakd.diffusion.balance import balancing_factor, image_power
from dakd.runtime.files import file_hash, replacing, write_json, write_text

FORMAT = 1
_KEY_PATTERN = re.compile(r"[^\s./\\][^\s.\\]*")


@dataclass(frozen=True)
class ShardInfo:
    """What the sidecar of a shard says.

    records: one dict a record: key, height, width, sha256 of its arrays, members {extension: [offset, size]} in bytes.
    class_pixels: pixels of each class (a soft label counts by its argmax); ignored ones apart.
    power_sum: sum over images of mean((g / 127.5 - 1)^2).
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


def shard_name(index: int) -> str:
    """`shard-000012`: the name of a shard's files without their suffix."""
    return f"shard-{index:06d}"


# --- writing ----------------------------------------------------------------------------------------------------------


def write_shard(
    folder: str | Path,
    index: int,
    samples: Iterable[Sample],
    classes: ClassTable,
    codec: str | None = None,
    provenance: dict | None = None,
) -> ShardInfo:
    """Writes `shard-INDEX.tar` and its sidecar into `folder`; the same samples give the same bytes.

    codec: name of the soft-label codec; needed when a sample has a soft label.  provenance: JSON facts for the sidecar.
    Raises ValueError for a bad or doubled key, arrays of unequal size, or a class id outside the table.
    """
    from webdataset.writer import TarWriter

    folder = Path(folder)
    tar_path = folder / f"{shard_name(index)}.tar"
    with replacing(tar_path) as aside:
        # Fixed owner, mode and time: the bytes depend on the samples alone.
        fixed = {"user": "dakd", "group": "dakd", "mode": 0o644, "mtime": 0, "encoder": False}
        with open(aside, "wb") as stream, TarWriter(stream, **fixed) as writer:
            for sample in samples:
                writer.write(_encode(sample, classes, codec))
        info = describe_shard(aside, classes, file=tar_path.name, provenance=provenance)
    write_text(tar_path.with_suffix(".json"), json.dumps(asdict(info)) + "\n")
    return info


def describe_shard(
    tar_path: str | Path, classes: ClassTable, file: str | None = None, provenance: dict | None = None
) -> ShardInfo:
    """The sidecar of a tar, from the tar alone: every record is decoded on the way, so a described shard is sound."""
    tar_path = Path(tar_path)
    members = _list_members(tar_path)
    pixels, ignored, powers = np.zeros(classes.num_classes, np.int64), 0, []
    records, num_labelled, num_soft = [], 0, 0
    with open(tar_path, "rb") as stream:
        for key, places in members.items():
            sample = _decode(key, _read_members(stream.fileno(), places, tar_path))
            counts = np.bincount(_hard_label(sample).ravel(), minlength=256)
            _refuse_unknown_ids(key, counts, classes)
            pixels += counts[: classes.num_classes]
            ignored += int(counts[IGNORE_INDEX])
            powers.append(image_power(sample.sar))
            num_labelled += sample.label is not None
            num_soft += sample.soft_label is not None
            height, width = sample.sar.shape
            records.append(
                {"key": key, "height": height, "width": width, "sha256": _content_hash(sample), "members": places}
            )
    return ShardInfo(
        file=file or tar_path.name,
        sha256=file_hash(tar_path),
        num_bytes=tar_path.stat().st_size,
        num_samples=len(records),
        num_labelled=num_labelled,
        num_soft=num_soft,
        class_pixels=pixels.tolist(),
        ignored_pixels=ignored,
        power_sum=math.fsum(powers),
        records=records,
        provenance=provenance or {},
    )


def write_index(
    folder: str | Path,
    classes: ClassTable,
    *,
    kind: str,
    codec: str | None = None,
    provenance: dict | None = None,
) -> dict:
    """Gathers the sidecars of `folder` into index.json and returns it.

    kind: "real" or "synthetic".  provenance: JSON facts on where the set came from.
    Raises ValueError when there is no record or a key stands twice.
    """
    folder = Path(folder)
    shards = [_load_sidecar(path) for path in sorted(folder.glob("shard-*.json"))]
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


# --- reading ----------------------------------------------------------------------------------------------------------


class ShardSet:
    """A folder of shards with an index, as a list of samples; safe to share with forked and spawned readers."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "index.json"
        if not path.is_file():
            raise ValueError(f"{self.folder} is no set of shards: {path} is absent; run the step that writes it first")
        self.index = json.loads(path.read_text())
        if self.index.get("format") != FORMAT:
            raise ValueError(f"{path} has format {self.index.get('format')}, wanted {FORMAT}; write the set again")
        self.classes = ClassTable.from_dict(self.index["classes"])
        self._records = [
            (self.folder / shard["file"], record)
            for shard in self.index["shards"]
            for record in _load_sidecar((self.folder / shard["file"]).with_suffix(".json")).records
        ]
        if len(self._records) != self.index["num_samples"]:
            raise ValueError(
                f"{path} counts {self.index['num_samples']} samples, the sidecars {len(self._records)}; write it again"
            )

    def __len__(self) -> int:
        return len(self._records)

    def key(self, i: int) -> str:
        return self._records[i][1]["key"]

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of a sample, without reading it."""
        record = self._records[i][1]
        return record["height"], record["width"]

    def read(self, i: int) -> Sample:
        """The sample at place i, its arrays writable. RuntimeError when the shard is shorter than its index says."""
        path, record = self._records[i]
        with open(path, "rb", buffering=0) as stream:
            return _decode(record["key"], _read_members(stream.fileno(), record["members"], path))


def open_split(prepared: str | Path, split: str) -> ShardSet:
    """A split of a prepared dataset (RUN/prepare).

    ValueError where prepare has not run, and where it has but the dataset has no such split.
    """
    prepared = Path(prepared)
    splits = sorted(path.parent.name for path in prepared.glob("*/index.json"))
    if splits and split not in splits:
        raise ValueError(
            f"the dataset in {prepared} has no {split} split, only {', '.join(splits)}; put labelled images "
            f"into {split}/images and {split}/masks of prepare.root, remove {prepared} and run prepare again"
        )
    return ShardSet(prepared / split)


def verify(folder: str | Path) -> list[str]:
    """What is wrong with a set of shards, one line each: absent files, checksums that differ. Empty when sound."""
    shards = ShardSet(folder)
    problems = []
    for shard in shards.index["shards"]:
        path = shards.folder / shard["file"]
        if not path.is_file():
            problems.append(f"{path}: absent")
        elif (found := file_hash(path)) != shard["sha256"]:
            problems.append(f"{path}: sha256 is {found}, the index says {shard['sha256']}")
    return problems


# --- one record -------------------------------------------------------------------------------------------------------


def _encode(sample: Sample, classes: ClassTable, codec: str | None) -> dict:
    if not _KEY_PATTERN.fullmatch(sample.key):
        raise ValueError(f"sample key {sample.key!r} is not usable in a tar; wanted no dot, space or leading slash")
    _check_arrays(sample, classes)
    height, width = sample.sar.shape
    facts = {"height": height, "width": width, "num_classes": classes.num_classes, "meta": sample.meta}
    members = {
        "__key__": sample.key,
        "json": json.dumps(facts, sort_keys=True).encode(),
        "sar.u8": np.ascontiguousarray(sample.sar).tobytes(),
    }
    if sample.label is not None:
        members["label.u8"] = np.ascontiguousarray(sample.label).tobytes()
    if sample.soft_label is not None:
        if codec is None:
            raise ValueError(f"{sample.key} has a soft label but no codec is named; give codec='fp16'")
        members[f"soft.{codec}"] = get_codec(codec).encode(sample.soft_label)
    return members


def _check_arrays(sample: Sample, classes: ClassTable) -> None:
    shape = sample.sar.shape
    if sample.sar.dtype != np.uint8 or len(shape) != 2 or 0 in shape:
        raise ValueError(f"{sample.key}: image is {sample.sar.dtype} of shape {shape}; wanted uint8 (H, W), not empty")
    if sample.label is not None and (sample.label.shape != shape or sample.label.dtype != np.uint8):
        raise ValueError(
            f"{sample.key}: label is {sample.label.dtype} of shape {sample.label.shape}; wanted uint8 {shape}"
        )
    wanted = (classes.num_classes, *shape)
    if sample.soft_label is not None and sample.soft_label.shape != wanted:
        raise ValueError(f"{sample.key}: soft label has shape {sample.soft_label.shape}; wanted {wanted}")


def _decode(key: str, members: dict[str, bytes]) -> Sample:
    missing = [extension for extension in ("json", "sar.u8") if extension not in members]
    if missing:
        raise ValueError(f"record {key!r} lacks {' and '.join(missing)}; it has {', '.join(sorted(members))}")
    facts = json.loads(members["json"])
    height, width = facts["height"], facts["width"]
    sar = np.frombuffer(members["sar.u8"], np.uint8).reshape(height, width).copy()
    label = soft_label = None
    if "label.u8" in members:
        label = np.frombuffer(members["label.u8"], np.uint8).reshape(height, width).copy()
    for extension, data in members.items():
        if extension.startswith("soft."):
            shape = (facts["num_classes"], height, width)
            soft_label = get_codec(extension.removeprefix("soft.")).decode(data, shape)
    return Sample(key=key, sar=sar, label=label, soft_label=soft_label, meta=facts["meta"])


def _list_members(tar_path: Path) -> dict[str, dict[str, list[int]]]:
    """{key: {extension: [offset, size]}} in the order of the tar."""
    members: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(tar_path, "r:") as tar:
        for entry in tar:
            folder, slash, name = entry.name.rpartition("/")
            stem, _, extension = name.partition(".")
            places = members.setdefault(folder + slash + stem, {})
            if extension in places:
                raise ValueError(f"{tar_path} holds {entry.name} twice; keys must differ")
            places[extension] = [entry.offset_data, entry.size]
    return members


def _read_members(fileno: int, places: dict[str, list[int]], path: Path) -> dict[str, bytes]:
    members = {}
    for extension, (offset, size) in places.items():
        members[extension] = os.pread(fileno, size, offset)
        if len(members[extension]) != size:
            raise RuntimeError(f"{path} ends before byte {offset + size}, where its index expects data; write it again")
    return members


def _hard_label(sample: Sample) -> np.ndarray:
    if sample.label is not None:
        return sample.label
    if sample.soft_label is not None:
        return sample.soft_label.argmax(axis=0)
    return np.empty(0, np.uint8)


def _refuse_unknown_ids(key: str, counts: np.ndarray, classes: ClassTable) -> None:
    unknown = [int(value) for value in np.flatnonzero(counts) if classes.num_classes <= value != IGNORE_INDEX]
    if unknown:
        raise ValueError(f"{key}: label holds {unknown}; wanted 0 to {classes.num_classes - 1}, or {IGNORE_INDEX}")


def _content_hash(sample: Sample) -> str:
    digest = hashlib.sha256()
    for name, array in (("sar", sample.sar), ("label", sample.label), ("soft", sample.soft_label)):
        if array is not None:
            digest.update(f"{name}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


# --- one folder -------------------------------------------------------------------------------------------------------


def _load_sidecar(path: Path) -> ShardInfo:
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
