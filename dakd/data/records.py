"""One record of a shard: a sample to the members of a tar and back.

A record with key K has the members

    K.json        height, width, num_classes, meta; sha256 of these and of the other members
    K.sar.u8      H * W bytes, grey values, rows first (speckle does not compress)
    K.label.u8    H * W bytes, class ids, 255 = ignore; absent where there is no label
    K.soft.CODEC  the teacher's logits (K, H, W), as `soft_labels.py` stores them (codes with their range in front);
                  absent where there are none
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dakd.data.sample import IGNORE_INDEX, MAX_PIXELS, ClassTable, Sample
from dakd.data.soft_labels import Codec, get_codec, likeliest_class
from dakd.data.tars import KEY_FORM, is_key

try:
    from isal.isal_zlib import crc32  # the same numbers, ten times as fast
except ImportError:
    from zlib import crc32


class BadRecord(RuntimeError):
    """A record that cannot be used, or its whole shard: the message names it and says why."""


def encode_record(sample: Sample, classes: ClassTable, codec: Codec | None) -> dict:
    if not is_key(sample.key):
        raise ValueError(
            f"sample key {sample.key!r} is not usable in a tar; expected {KEY_FORM}, nor a slash at an end"
        )
    _check_arrays(sample, classes)
    if not isinstance(sample.meta, dict):
        raise ValueError(f"{sample.key}: meta is {sample.meta!r:.80}; expected a dict of facts: give {{}} for none")
    height, width = sample.sar.shape
    facts = {"height": height, "width": width, "num_classes": classes.num_classes, "meta": sample.meta}
    members = {
        "sar.u8": np.ascontiguousarray(sample.sar).tobytes(),
    }
    if sample.label is not None:
        members["label.u8"] = np.ascontiguousarray(sample.label).tobytes()
    if sample.soft_label is not None:
        if codec is None:
            raise ValueError(f"{sample.key} has a soft label but no codec is named; give codec='fp16'")
        is_coded = sample.soft_range is not None
        soft = sample.soft_label
        try:
            members[f"soft.{codec.name}"] = codec.pack(soft, sample.soft_range) if is_coded else codec.encode(soft)
        except ValueError as error:
            raise ValueError(f"{sample.key}: check its soft label: {error}") from None
    facts["sha256"] = _digest(facts, members)
    return {"__key__": sample.key, "json": json.dumps(facts, sort_keys=True).encode(), **members}


def decode_record(key: str, members: Mapping[str, bytes | memoryview], *, foreign: bool = True) -> Sample:
    """The sample of a record's members. Its arrays lie in their memory, and are writable where that is.

    foreign: whether a record that others wrote is taken too (see `foreign_records.py`).
    Raises ValueError for members that are missing, unknown or do not fit together.
    """
    if foreign and "sar.u8" not in members:
        from dakd.data.foreign_records import decode_foreign

        return decode_foreign(key, members)
    missing = [extension for extension in ("json", "sar.u8") if extension not in members]
    if missing:
        raise ValueError(
            f"record {key!r} lacks {' and '.join(missing)}; it has {', '.join(sorted(members))}; write it "
            "again"
        )
    facts = _read_facts(members["json"])
    height, width = facts["height"], facts["width"]
    sar = np.frombuffer(members["sar.u8"], np.uint8).reshape(height, width)
    label = soft_label = soft_range = None
    if "label.u8" in members:
        label = np.frombuffer(members["label.u8"], np.uint8).reshape(height, width)
    for extension, data in members.items():
        if extension.startswith("soft."):
            shape = (facts["num_classes"], height, width)
            soft_label, soft_range = get_codec(extension.removeprefix("soft.")).decode(data, shape)
    return Sample(key, sar, label, soft_label, soft_range, meta=facts["meta"])


def _read_facts(data: bytes | memoryview) -> dict:
    try:
        facts = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"json cannot be read ({error}); write the record again") from None
    counts = [facts.get(name) for name in ("height", "width", "num_classes")] if isinstance(facts, dict) else []
    is_sound = bool(counts) and all(type(count) is int and count > 0 for count in counts)
    # Bounded before memory is taken for what the counts claim.
    is_sound = is_sound and counts[0] * counts[1] <= MAX_PIXELS and counts[2] <= IGNORE_INDEX
    if not is_sound or not isinstance(facts.get("meta"), dict):
        raise ValueError(f"json says {str(facts)[:200]}; expected height, width, num_classes and meta")
    return facts


def check_digest(key: str, members: dict[str, bytes]) -> None:
    """Raises ValueError where the members of a record are not those that were written."""
    facts = json.loads(members.get("json", b"{}"))
    wanted = facts.pop("sha256", None)
    found = _digest(facts, {name: data for name, data in members.items() if name != "json"})
    if found != wanted:
        raise ValueError(f"record {key!r} has sha256 {found} and says {wanted}; its bytes have changed; write it again")


def read_members(fileno: int, members: Mapping[str, tuple[int, int]], path: Path) -> dict[str, bytes]:
    """The bytes of a record's members {extension: (offset, bytes)}. RuntimeError where the tar ends before them."""
    content = {}
    for extension, (offset, size) in members.items():
        content[extension] = os.pread(fileno, size, offset)
        if len(content[extension]) != size:
            raise RuntimeError(f"{path} ends before byte {offset + size}, where its index expects data; write it again")
    return content


def members_crc(members: Mapping[str, bytes | memoryview]) -> int:
    """The CRC-32 of the members' bytes, one after the other: cheap enough to be compared at every read."""
    crc = 0
    for data in members.values():
        crc = crc32(data, crc)
    return crc


def hard_label(sample: Sample) -> np.ndarray:
    if sample.label is not None:
        return sample.label
    if sample.soft_label is not None:
        return likeliest_class(sample.soft_label)
    return np.empty(0, np.uint8)


def refuse_unknown_ids(key: str, counts: np.ndarray, classes: ClassTable) -> None:
    unknown = [int(value) for value in np.flatnonzero(counts) if classes.num_classes <= value != IGNORE_INDEX]
    if unknown:
        raise ValueError(f"{key}: label holds {unknown}; expected 0 to {classes.num_classes - 1}, or {IGNORE_INDEX}")


def content_hash(sample: Sample) -> str:
    digest = hashlib.sha256()
    soft = "soft" if sample.soft_range is None else f"soft of {sample.soft_range!r} nats"
    for name, array in (("sar", sample.sar), ("label", sample.label), (soft, sample.soft_label)):
        if array is not None:
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _digest(facts: dict, members: dict[str, bytes]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(members):
        digest.update(f"\n{name} {len(members[name])}\n".encode() + members[name])
    return digest.hexdigest()


def _check_arrays(sample: Sample, classes: ClassTable) -> None:
    shape = sample.sar.shape
    if sample.sar.dtype != np.uint8 or len(shape) != 2 or 0 in shape:
        raise ValueError(f"{sample.key}: image is {sample.sar.dtype} {shape}; expected uint8 (H, W), not empty")
    for what, array, remedy in (
        ("image", sample.sar, "cut or fill it"),
        ("label", sample.label, f"fill it (label.filled({IGNORE_INDEX}): unknown)"),
        ("soft label", sample.soft_label, "fill it, or write a hard label"),
    ):
        if np.ma.is_masked(array):
            raise ValueError(f"{sample.key}: a mask hides pixels of the {what}; expected a value in each: {remedy}")
    if sample.label is not None and (sample.label.shape != shape or sample.label.dtype != np.uint8):
        raise ValueError(
            f"{sample.key}: label is {sample.label.dtype} of shape {sample.label.shape}; expected uint8 {shape}"
        )
    wanted = (classes.num_classes, *shape)
    if sample.soft_label is not None and sample.soft_label.shape != wanted:
        raise ValueError(f"{sample.key}: soft label has shape {sample.soft_label.shape}; expected {wanted}")
