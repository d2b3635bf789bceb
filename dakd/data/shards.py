"""Tar shards with an index: written aside, then renamed, so that a shard is whole or absent.

A shard is a WebDataset tar of records (`records.py`); a sidecar beside it and an index of the folder (`indexing.py`)
say where each record's bytes lie, so that records are read by offset.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from dakd.data.indexing import FORMAT, ShardInfo, describe_shard, kept_records, write_index
from dakd.data.records import decode_record, encode_record, read_members
from dakd.data.sample import ClassTable, Sample
from dakd.runtime.files import file_hash, replacing, write_text

__all__ = ["FORMAT", "ShardInfo", "ShardSet", "describe_shard", "open_split", "shard_name", "verify", "write_index",
           "write_shard"]  # fmt: skip


def shard_name(index: int) -> str:
    """`shard-000012`: the name of a shard's files without their suffix."""
    return f"shard-{index:06d}"


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
    tar_path = Path(folder) / f"{shard_name(index)}.tar"
    with replacing(tar_path) as aside:
        write_tar(aside, samples, classes, codec)
        info = describe_shard(aside, classes, file=tar_path.name, provenance=provenance)
    write_text(tar_path.with_suffix(".json"), json.dumps(asdict(info)) + "\n")
    return info


def write_tar(path: Path, samples: Iterable[Sample], classes: ClassTable, codec: str | None) -> None:
    """The records of a shard, as bytes that depend on the samples alone."""
    from webdataset.writer import TarWriter

    fixed = {"user": "dakd", "group": "dakd", "mode": 0o644, "mtime": 0, "encoder": False}
    with open(path, "wb") as stream, TarWriter(stream, **fixed) as writer:
        for sample in samples:
            writer.write(encode_record(sample, classes, codec))


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
            for record in kept_records(self.folder, shard)
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
            return decode_record(record["key"], read_members(stream.fileno(), record["members"], path))


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
