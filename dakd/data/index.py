"""The index of a folder of shards and the sidecars of its tars: facts on samples that need no reading of the tars.

Next to each `shard-000000.tar` lies `shard-000000.json` (`ShardInfo`: its checksum, and where each record's bytes lie),
and a folder has one `index.json` (`Index`: counts, class shares, fingerprint, balancing factor). Both may come from
elsewhere, so they are strictly parsed: a file with another form is an error that names the file, the field, what was
found and what was expected.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from dakd.config import plain_fault
from dakd.data.balance import balancing_factor, image_power
from dakd.data.foreign_records import is_label, is_soft_label
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
from dakd.runtime.files import file_hash
from dakd.runtime.sealed import seal, unseal, write_json

_TAR_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]*\.tar", re.ASCII)
_Count = Annotated[int, Field(ge=0, lt=1 << 62)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Model = TypeVar("_Model", bound=BaseModel)
_Item = TypeVar("_Item")

# Parsing stops at the first fault: the errors of a hostile file would take a thousand times its size. Lists do so by
# pydantic; of mappings and unknown fields it collects all faults, so these are checked here.
_List = Annotated[list[_Item], Field(fail_fast=True)]


def _checked_counts(sizes: dict[str, Any]) -> dict[str, int]:
    for name, count in sizes.items():
        if not _is_count(count):
            raise ValueError(f"{name!r:.80} is {count!r:.80}, expected a number of images")
    return sizes


def _checked_places(members: dict[str, Any]) -> dict[str, tuple[int, int]]:
    for name, place in members.items():
        if not (isinstance(place, list | tuple) and len(place) == 2 and all(map(_is_count, place))):
            raise ValueError(f"{name!r:.80} is {place!r:.80}, expected its offset and its size in bytes")
    return {name: tuple(place) for name, place in members.items()}


def _class_table(table: Any) -> ClassTable:
    return table if isinstance(table, ClassTable) else ClassTable.from_dict(table)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


class _Facts(BaseModel):
    # Strict: neither true nor "16" is a number. Infinity and NaN are written as Python's json writes them.
    model_config = ConfigDict(frozen=True, strict=True, extra="allow", ser_json_inf_nan="constants")

    @model_validator(mode="after")
    def _has_no_other_field(self) -> Self:
        if self.model_extra:
            raise ValueError(f"the field {next(iter(self.model_extra))!r:.80} is unknown")
        return self


class RecordInfo(_Facts):
    """A record's facts in a sidecar. Readers go by the first five fields.

    crc32: of the bytes of its members.  members: {extension: (offset in the tar, bytes)}.
    sha256: of its arrays.  class_pixels: pixels of each class (a soft label counts by its argmax); ignored ones apart.
    power: mean((g / 127.5 - 1)^2) of its image.
    """

    key: str
    height: _Count
    width: _Count
    crc32: _Count
    members: Annotated[dict[str, Any], AfterValidator(_checked_places)]
    sha256: _Sha256
    class_pixels: _List[_Count]
    ignored_pixels: _Count
    power: float


class ShardInfo(_Facts):
    """The sidecar of a shard.

    class_pixels, ignored_pixels: sums over the records.  power_sum: the sum of their powers.
    soft_range: nats that code 255 of its soft labels stands for; None where they are logits, or there are none.
    facts: JSON facts that do not follow from the tar, such as how fast it was made.
    """

    format: Literal[1]
    file: str
    sha256: _Sha256
    num_bytes: _Count
    num_samples: _Count
    num_labelled: _Count
    num_soft: _Count
    class_pixels: _List[_Count]
    ignored_pixels: _Count
    power_sum: float
    soft_range: float | None
    provenance: dict[str, Any]
    facts: dict[str, Any] = {}
    records: _List[RecordInfo]

    def to_json(self) -> str:
        """The content of its file."""
        return seal(self.model_dump_json())


class ShardEntry(_Facts):
    """A shard's entry in an index.

    num_samples: how many of its records are part of the set.  kept: which, as ascending runs (first, stop); None: all.
    records_sha256: the digest of the sidecar's records, see `records_digest`.
    """

    file: str
    sha256: _Sha256
    num_samples: _Count
    records_sha256: _Sha256
    kept: _List[tuple[_Count, _Count]] | None = None

    @field_validator("file")
    @classmethod
    def _lies_in_the_folder(cls, file: str) -> str:
        # No folder, no scheme, no command: a set never makes its reader look elsewhere or run anything.
        if not _TAR_NAME.fullmatch(file):
            raise ValueError("expected the name of a .tar in the folder of the index, without a folder")
        return file

    @field_validator("kept")
    @classmethod
    def _ascends(cls, kept: list[tuple[int, int]] | None) -> list[tuple[int, int]] | None:
        if kept == []:
            raise ValueError("expected at least one run, or null for all records")
        last = 0
        for first, stop in kept or ():
            if not last <= first < stop:
                raise ValueError("expected ascending runs [first, stop)")
            last = stop
        return kept


class Index(_Facts):
    """The index of a set of shards: sums over the records that are part of it.

    kind: "real" or "synthetic".  codec: of the soft labels.  soft_range: as in `ShardInfo`.
    num_bytes: of the tars.  sizes: {"HxW": images}.
    fingerprint: the same for the same samples, however they are packed.
    provenance: JSON facts on where the set comes from.
    """

    format: Literal[1]
    kind: str
    classes: Annotated[ClassTable, BeforeValidator(_class_table)]
    codec: str | None
    soft_range: float | None
    num_samples: Annotated[int, Field(ge=1, lt=1 << 62)]
    num_labelled: _Count
    num_soft: _Count
    num_bytes: _Count
    sizes: Annotated[dict[str, Any], AfterValidator(_checked_counts)]
    class_pixels: _List[_Count]
    class_pixel_shares: _List[float]
    ignored_pixels: _Count
    fingerprint: str
    mean_power: float
    balancing_factor: float
    shards: Annotated[_List[ShardEntry], Field(min_length=1)]
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _counts_agree(self) -> Index:
        counted = sum(entry.num_samples for entry in self.shards)
        if counted != self.num_samples:
            raise ValueError(f"counts {self.num_samples} samples, its shards {counted}")
        for name in ("num_labelled", "num_soft"):
            if getattr(self, name) > counted:
                raise ValueError(f"says {name} {getattr(self, name)} of {counted} samples")
        return self


def parse_index(text: str | bytes, path: str | Path) -> Index:
    """The content of an index.json. Raises ValueError where it is not one that can be used."""
    return _parse(Index, text, path, "index of shards")


def load_index(path: Path) -> Index:
    """The index in a file; ValueError where it is absent or cannot be used."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run the step that writes it first")
    return parse_index(path.read_bytes(), path)


def load_sidecar(path: Path) -> ShardInfo:
    """The sidecar in a file; ValueError where it is absent or cannot be used."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist, though the index names its shard; write the set again")
    return parse_sidecar(path.read_bytes(), path)


def parse_sidecar(text: str | bytes, path: str | Path) -> ShardInfo:
    """The content of a sidecar. Raises ValueError where it is not one that can be used."""
    return _parse(ShardInfo, text, path, "sidecar of a shard")


def _parse(model: type[_Model], text: str | bytes, path: str | Path, what: str) -> _Model:
    # The form first: of a file that was never an index, its missing checksum is the least fault.
    text = text.encode() if isinstance(text, str) else text
    try:
        return model.model_validate_json(unseal(text, path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("format",) and first["type"] != "missing":
            raise ValueError(
                f"{path} has the format {first['input']!r:.20}; this version reads 1; write the set again"
            ) from None
        reason = plain_fault(first, model) if text.strip() else "it is empty"
        raise ValueError(f"{path} is not an intact {what} ({reason}); write the set again") from None


def describe_shard(
    tar_path: str | Path,
    classes: ClassTable,
    file: str | None = None,
    provenance: dict | None = None,
    *,
    foreign: bool = False,
) -> ShardInfo:
    """The sidecar of a tar, from the tar alone: every record is decoded on the way, so a described shard is intact.

    foreign: whether records that others wrote are taken too (see `foreign_records.py`).
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
                RecordInfo(
                    key=key,
                    height=height,
                    width=width,
                    crc32=members_crc(content),
                    members=places,
                    sha256=content_hash(sample),
                    class_pixels=counts[: classes.num_classes].tolist(),
                    ignored_pixels=int(counts[IGNORE_INDEX]),
                    power=image_power(sample.sar),
                )
            )
    return ShardInfo(
        format=1,
        file=file or tar_path.name,
        sha256=file_hash(tar_path),
        num_bytes=tar_path.stat().st_size,
        num_samples=len(records),
        num_labelled=num_labelled,
        num_soft=len(soft_ranges),
        class_pixels=_sum_pixels(records, classes),
        ignored_pixels=sum(record.ignored_pixels for record in records),
        power_sum=math.fsum(record.power for record in records),
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
) -> Index:
    """Gathers the sidecars of `folder` into index.json and returns it; see `gather_index`."""
    index = gather_index(folder, classes, kind=kind, codec=codec, provenance=provenance, kept=kept)
    save_index(folder, index)
    return index


def save_index(folder: str | Path, index: Index) -> None:
    """Writes the index.json of a folder, whole or not at all."""
    write_json(Path(folder) / "index.json", index.model_dump(mode="json"))


def gather_index(
    folder: str | Path,
    classes: ClassTable,
    *,
    kind: str,
    codec: str | None = None,
    provenance: dict | None = None,
    kept: Mapping[str, Sequence[int] | None] | None = None,
) -> Index:
    """The index of the sidecars of `folder`.

    kind: "real" or "synthetic".  codec: of its soft labels.  provenance: JSON facts on where the set came from.
    kept: which records make the set, as ascending places within each shard's file by name (None for all of the file's);
    a shard that is not named is not part of it. None takes every record of every shard that is there.
    Raises ValueError when there is no record, a key occurs twice, or soft labels are of different kinds.
    """
    folder = Path(folder)
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
        shards.append(
            ShardEntry(
                file=shard.file,
                sha256=shard.sha256,
                num_samples=len(places),
                records_sha256=records_digest(shard.records),
                kept=None if len(places) == shard.num_samples else _as_runs(places),
            )
        )
        records = [shard.records[place] for place in places]
        lines += [f"{record.key} {record.sha256}\n" for record in records]
        # fsum rounds once, so the order of the records within a shard cannot change b.
        powers.append(math.fsum(record.power for record in records))
        pixels += _sum_pixels(records, classes)
        sizes.update(f"{record.height}x{record.width}" for record in records)
        counts["labelled"] += sum(any(map(is_label, record.members)) for record in records)
        counts["soft"] += sum(any(map(is_soft_label, record.members)) for record in records)
        soft_ranges |= {shard.soft_range} if shard.num_soft else set()
        counts["ignored"] += sum(record.ignored_pixels for record in records)
        counts["bytes"] += shard.num_bytes
    if not lines:
        raise ValueError(f"{folder} holds no records; expected at least one shard with one sample")
    # By key: the fingerprint must not depend on the packing into shards.
    lines.sort()
    _refuse_doubled_keys(folder, lines)
    power = math.fsum(powers) / len(lines)
    return Index(
        format=1,
        kind=kind,
        classes=classes,
        codec=codec,
        soft_range=common_range(soft_ranges, str(folder)),
        num_samples=len(lines),
        num_labelled=counts["labelled"],
        num_soft=counts["soft"],
        num_bytes=counts["bytes"],
        sizes=dict(sorted(sizes.items())),
        class_pixels=pixels.tolist(),
        class_pixel_shares=pixel_shares(pixels.tolist()),
        ignored_pixels=counts["ignored"],
        fingerprint=hashlib.sha256("".join(lines).encode()).hexdigest(),
        mean_power=power,
        balancing_factor=balancing_factor(power),
        shards=shards,
        provenance=provenance or {},
    )


def pixel_shares(pixels: Sequence[int]) -> list[float]:
    """Counts by class to shares that sum to 1; zeros where nothing was counted."""
    return (np.asarray(pixels) / max(1, sum(pixels))).tolist()


def records_digest(records: Sequence[RecordInfo]) -> str:
    """The sha256 of what readers go by: the names of a shard's records, and where they lie.

    It depends only on the bytes of the tar, not on the machine: a sidecar that is derived again has the same hash.
    """
    facts = [[record.key, record.height, record.width, record.crc32, record.members] for record in records]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _as_runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as [first, stop) runs."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def _sum_pixels(records: Sequence[RecordInfo], classes: ClassTable) -> list[int]:
    counts = np.array([record.class_pixels for record in records], np.int64).reshape(-1, classes.num_classes)
    return counts.sum(axis=0).tolist()


def _refuse_doubled_keys(folder: Path, lines: list[str]) -> None:
    """lines: sorted, each starting with a key and a space."""
    keys = [line.split(" ", 1)[0] for line in lines]
    doubled = sorted({key for key, following in pairwise(keys) if key == following})
    if doubled:
        raise ValueError(f"{folder} holds keys twice: {doubled[:10]}; every sample needs its own key")
