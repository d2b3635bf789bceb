"""Where the bytes of a record lie: the index of a set, and the table of a shard, both checked before they are believed.

An index and a sidecar are data from elsewhere. Whatever they say, a file name stays inside its folder, and no offset or
size reaches outside its tar; what does not fit is an error that names the file, what was found and what was wanted.
"""

from __future__ import annotations

import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from dakd.data.indexing import FORMAT, load_sidecar, places_digest
from dakd.data.sample import ClassTable

MAX_PIXELS = 1 << 28  # of one record; more is no image to train on, but a damaged or hostile size
_MAX_JSON_BYTES = 1 << 24
_HEADERS_BETWEEN = 1 << 16  # bytes between two members of a record: padding and headers, no other record
_TAR_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]*\.tar", re.ASCII)


class BadRecord(RuntimeError):
    """A record that cannot be used, or its whole shard: the message names it and says why."""


class Place(NamedTuple):
    """Where a record lies: one span of bytes, and its members within that span.

    crc32: of the members' bytes.  first: offset of the span in the tar.  length: bytes.
    members: (extension, offset in the span, bytes) of each.
    """

    key: str
    height: int
    width: int
    crc32: int
    first: int
    length: int
    members: tuple[tuple[str, int, int], ...]


class OpenShard:
    """A tar that is open for reading, and the places of the records that belong to the set."""

    def __init__(self, path: Path, fileno: int) -> None:
        """fileno: open for reading; it is closed with this object."""
        self.path, self._fileno = path, fileno
        self.places: list[Place] = []

    def read_into(self, buffer: memoryview, place: Place) -> None:
        """Fill `buffer`, of place.length bytes, with the span of a record: one read. BadRecord where the tar ends."""
        done = 0
        while done < place.length:
            count = os.preadv(self._fileno, [buffer[done:]], place.first + done)
            if count == 0:
                raise BadRecord(
                    f"{self.path} ends before byte {place.first + place.length}, where its index expects record "
                    f"{place.key!r}: it is truncated; fetch or write it again"
                )
            done += count

    def __del__(self) -> None:
        os.close(self._fileno)


def parse_index(text: str | bytes, path: str) -> dict:
    """The content of an index.json. Raises ValueError where it is not one that can be used."""
    index = _parse_json(text, path)
    if index.get("format") != FORMAT:
        raise ValueError(f"{path} has format {index.get('format')}, wanted {FORMAT}; write the set again")
    shards = index.get("shards")
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"{path} names no shards; write the set again")
    for entry in shards:
        _check_entry(entry, path)
    counted = sum(entry["num_samples"] for entry in shards)
    if counted != index.get("num_samples") or counted == 0:
        raise ValueError(
            f"{path} counts {index.get('num_samples')} samples, its shards {counted}; write the set again"
        )
    for name in ("num_labelled", "num_soft"):
        if not _is_count(index.get(name)) or index[name] > counted:
            raise ValueError(f"{path} says {name} {index.get(name)!r} of {counted} samples; write the set again")
    if not isinstance(index.get("provenance"), dict) or not isinstance(index.get("fingerprint"), str):
        raise ValueError(f"{path} lacks a provenance or a fingerprint; write the set again")
    return index


def parse_classes(index: dict, path: str) -> ClassTable:
    """The class table of an index; ValueError where it is none."""
    try:
        return ClassTable.from_dict(index["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no usable class table ({error!r}); write the set again") from None


def read_places(sidecar: Path, entry: dict) -> list[Place]:
    """The places of the records of one shard that belong to the set.

    entry: the shard's entry in the index.  Raises ValueError where the sidecar is absent, damaged or of another tar.
    """
    try:
        info = load_sidecar(sidecar)
        records, num_bytes, sha256 = info.records, info.num_bytes, info.sha256
        digest = places_digest(records)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{sidecar} is no sidecar of a shard ({error}); write the set again") from None
    if sha256 != entry["sha256"]:
        raise ValueError(f"{sidecar} is of another tar than the index: sha256 {sha256!r}, wanted {entry['sha256']!r}")
    if not isinstance(records, list) or not _is_count(num_bytes):
        raise ValueError(f"{sidecar} has no list of records or no size; write the set again")
    runs = entry.get("kept", [[0, len(records)]])
    if sum(stop - first for first, stop in runs) != entry["num_samples"] or runs[-1][1] > len(records):
        raise ValueError(
            f"{sidecar} lists {len(records)} records, the index {entry['num_samples']} of this shard; write it again"
        )
    places = [_read_place(record, num_bytes, sidecar) for first, stop in runs for record in records[first:stop]]
    if entry.get("places_sha256", digest) != digest:  # absent in the indexes of older sets
        raise ValueError(
            f"{sidecar} has changed: its records' names and places have the sha256 {digest}, in the index "
            f"{entry['places_sha256']}; remove it, and it is made again from its tar"
        )
    return places


def _parse_json(text: str | bytes, path: str) -> dict:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); write the set again") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds {type(tree).__name__}; wanted an index; write the set again")
    return tree


def _check_entry(entry: object, path: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{path} names the shard {entry!r}; wanted its file, sha256 and num_samples")
    file = entry.get("file")
    # No folder, no scheme, no command: a set never makes its reader look elsewhere or run anything.
    if not isinstance(file, str) or not _TAR_NAME.fullmatch(file):
        raise ValueError(f"{path} names the shard {file!r}; wanted the name of a .tar beside it, without a folder")
    if not isinstance(entry.get("sha256"), str) or not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
        raise ValueError(f"{path} has no sha256 for {file}, but {entry.get('sha256')!r}; write the set again")
    if not isinstance(entry.get("places_sha256", ""), str):
        raise ValueError(f"{path} has the places_sha256 {entry['places_sha256']!r} for {file}; write the set again")
    if not _is_count(entry.get("num_samples")):
        raise ValueError(f"{path} says that {file} has {entry.get('num_samples')!r} samples; wanted a count")
    runs, last = entry.get("kept", []), 0
    for run in runs if isinstance(runs, list) else [runs]:
        if not (isinstance(run, list) and len(run) == 2 and all(map(_is_count, run)) and last <= run[0] < run[1]):
            raise ValueError(f"{path} keeps {run!r} of {file}; wanted ascending runs [first, stop)")
        last = run[1]


def _read_place(record: object, num_bytes: int, sidecar: Path) -> Place:
    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
        raise ValueError(f"{sidecar} lists {str(record)[:80]!r}, a record without a key; write the set again")
    where = f"{sidecar}: record {record['key'][:80]!r}"
    height, width, members = record.get("height"), record.get("width"), record.get("members")
    if not (_is_count(height) and _is_count(width) and 0 < height * width <= MAX_PIXELS):
        raise ValueError(f"{where} is {height!r} x {width!r} pixels; wanted 1 to {MAX_PIXELS} in all")
    if not isinstance(members, dict) or not members or not _is_count(record.get("crc32")):
        raise ValueError(f"{where} has no members or no crc32; write the set again")
    spans = []
    for extension, span in members.items():
        if not (isinstance(span, list) and len(span) == 2 and all(map(_is_count, span)) and sum(span) <= num_bytes):
            raise ValueError(f"{where}: {extension} lies at {span!r} of a tar of {num_bytes} bytes; write it again")
        spans.append((span[0], span[1], extension))
    spans.sort()
    for (offset, size, extension), (following, _, _) in pairwise(spans):
        if not offset + size <= following <= offset + size + _HEADERS_BETWEEN:
            raise ValueError(f"{where}: {extension} overlaps the next member or lies apart; write the set again")
    _check_sizes(where, height * width, members)
    first, length = spans[0][0], spans[-1][0] + spans[-1][1] - spans[0][0]
    inside = tuple((extension, offset - first, size) for offset, size, extension in spans)
    return Place(record["key"], height, width, record["crc32"], first, length, inside)


def _check_sizes(where: str, pixels: int, members: dict) -> None:
    for extension in ("sar.u8", "label.u8"):
        if extension in members and members[extension][1] != pixels:
            raise ValueError(f"{where}: {extension} has {members[extension][1]} bytes; wanted one a pixel, {pixels}")
    if "json" in members and members["json"][1] > _MAX_JSON_BYTES:
        raise ValueError(f"{where}: json has {members['json'][1]} bytes; wanted at most {_MAX_JSON_BYTES}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
