"""One shard that is open for reading: where each record's bytes lie, checked before they are believed.

A sidecar is data from elsewhere: no offset or size in it reaches outside its tar or makes a reader take more memory
than the tar holds.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from dakd.data.index import RecordInfo, ShardEntry, load_sidecar, records_digest
from dakd.data.records import BadRecord
from dakd.data.sample import MAX_PIXELS
from dakd.runtime.sealed import Changed

_MAX_JSON_BYTES = 1 << 24
_HEADERS_BETWEEN = 1 << 16  # bytes between two members of a record: padding and headers, no other record


class RecordSpan(NamedTuple):
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
    """A tar that is open for reading, and the spans of the records that belong to the set."""

    def __init__(self, path: Path, fileno: int) -> None:
        """fileno: open for reading; it is closed with this object."""
        self.path, self._fileno = path, fileno
        self.spans: list[RecordSpan] = []
        self.sidecar: Path | None = None  # that the spans are of

    def read_into(self, buffer: memoryview, span: RecordSpan) -> None:
        """Fill `buffer`, of span.length bytes, with the bytes of a record: one read. BadRecord where the tar ends."""
        done = 0
        while done < span.length:
            # Positioned, because forked readers share a descriptor's offset; a read may return fewer bytes than asked.
            count = os.preadv(self._fileno, [buffer[done:]], span.first + done)
            if count == 0:
                raise BadRecord(
                    f"{self.path} ends before byte {span.first + span.length}, where its index expects record "
                    f"{span.key!r}: it is truncated; fetch or write it again"
                )
            done += count

    def __del__(self) -> None:
        os.close(self._fileno)


def read_spans(sidecar: Path, entry: ShardEntry) -> list[RecordSpan]:
    """The spans of the records of one shard that belong to the set.

    entry: the shard's entry in the index.  Raises ValueError where the sidecar is absent, damaged or of another tar.
    """
    try:
        info = load_sidecar(sidecar)
    except Changed:
        raise ValueError(
            f"{sidecar} has changed: it is not the sidecar that dakd wrote; "
            "remove it, and it is made again from its tar"
        ) from None
    if info.sha256 != entry.sha256:
        raise ValueError(f"{sidecar} is of another tar than the index: sha256 {info.sha256}, expected {entry.sha256}")
    runs = [(0, len(info.records))] if entry.kept is None else entry.kept
    if sum(stop - first for first, stop in runs) != entry.num_samples or runs[-1][1] > len(info.records):
        raise ValueError(
            f"{sidecar} lists {len(info.records)} records, the index {entry.num_samples} of this shard; write it again"
        )
    spans = [_span_of(record, info.num_bytes, sidecar) for first, stop in runs for record in info.records[first:stop]]
    # Checked last: where a record is impossible, the error above says which.
    digest = records_digest(info.records)
    if digest != entry.records_sha256:
        raise ValueError(
            f"{sidecar} has changed: its records' names and places have the sha256 {digest}, in the index "
            f"{entry.records_sha256}; remove it, and it is made again from its tar"
        )
    return spans


def _span_of(record: RecordInfo, num_bytes: int, sidecar: Path) -> RecordSpan:
    where, pixels = f"{sidecar}: record {record.key[:80]!r}", record.height * record.width
    if not 0 < pixels <= MAX_PIXELS:
        raise ValueError(f"{where} is {record.height} x {record.width} pixels; expected 1 to {MAX_PIXELS} in all")
    members = sorted((offset, size, extension) for extension, (offset, size) in record.members.items())
    if not members:
        raise ValueError(f"{where} has no members; write the set again")
    for offset, size, extension in members:
        if offset + size > num_bytes:
            raise ValueError(f"{where}: {extension} lies at {offset} to {offset + size} of a tar of {num_bytes} bytes; "
                             "write it again")  # fmt: skip
        if extension in ("sar.u8", "label.u8") and size != pixels:
            raise ValueError(f"{where}: {extension} has {size} bytes; expected one a pixel, {pixels}")
        if extension == "json" and size > _MAX_JSON_BYTES:
            raise ValueError(f"{where}: json has {size} bytes; expected at most {_MAX_JSON_BYTES}")
    for (offset, size, extension), (following, _, _) in pairwise(members):
        if not offset + size <= following <= offset + size + _HEADERS_BETWEEN:
            raise ValueError(f"{where}: {extension} overlaps the next member or lies apart; write the set again")
    first, last = members[0][0], members[-1][0] + members[-1][1]
    inside = tuple((extension, offset - first, size) for offset, size, extension in members)
    return RecordSpan(record.key, record.height, record.width, record.crc32, first, last - first, inside)
