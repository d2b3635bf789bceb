"""Samples by their place in an order, a batch at a time, and what happens where a record is bad.

The records of a batch are read in the order in which they lie on the disk, each with one read, into one block of memory
that serves batch after batch: what is handed out are views, and the batch's tensors are the only copies.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np

from dakd.data.lookup import BadRecord
from dakd.data.order import ShardOrder
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.runtime.seeding import Stream

OnBadRecord = Literal["stop", "skip"]
MOST_BAD_IN_A_ROW = 10_000  # records; beyond, the set is not there rather than damaged
_ALIGNMENT = 64  # bytes, of each record of a batch in memory


@dataclass(frozen=True)
class Skipped:
    """A record that another one was taken for, and why."""

    epoch: int
    place: int
    reason: str


class OrderedRecords:
    """Several sets of shards as one, whose records are asked for by (epoch, place).

    window: shards whose records are shuffled among themselves (see `order`).  limit: only the first records, as the
    sets list them.  on_bad_record: `stop` raises BadRecord; `skip` takes the next good record of the epoch in its
    place, whoever asks and whenever, so that all ranks stay in step and a resumed run sees the same.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        seed: int,
        window: int,
        *,
        on_bad_record: OnBadRecord = "stop",
        stream: Stream = Stream.ORDER,
        limit: int | None = None,
    ) -> None:
        counts = np.concatenate([source.counts for source in sets])
        if limit is not None:
            counts = np.clip(limit - (np.cumsum(counts) - counts), 0, counts)
        self.sets, self.on_bad_record = list(sets), on_bad_record
        self.order = ShardOrder(counts, seed, window, stream)
        self._ends = list(accumulate(len(source.counts) for source in sets))
        self._memory = bytearray()

    def __len__(self) -> int:
        return self.order.num_records

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_memory": bytearray()}

    @property
    def classes(self) -> ClassTable:
        return self.sets[0].classes

    def read(self, places: Sequence[tuple[int, int]]) -> tuple[list[Sample], list[Skipped]]:
        """The samples at the places (epoch, place), and what was passed over for them.

        The samples' arrays are valid until the next call. Raises BadRecord where on_bad_record is `stop`, or nothing
        good follows.
        """
        skipped: list[Skipped] = []
        samples: list[Sample | None] = [None] * len(places)
        found: list[tuple[_Found, int]] = []
        for i, (epoch, place) in enumerate(places):
            try:
                found.append((self._find(epoch, place), i))
            except BadRecord as error:
                samples[i] = self._follow(epoch, place, error, skipped)
        needed = sum(_aligned(entry.length) for entry, _ in found)
        if len(self._memory) < needed:
            self._memory = bytearray(needed)  # a new one: samples of the last call may still be looked at
        memory, start = memoryview(self._memory), 0
        for entry, i in sorted(found, key=lambda pair: pair[0][:2]):
            try:
                samples[i] = entry.read(memory[start : start + entry.length])
            except BadRecord as error:
                samples[i] = self._follow(*places[i], error, skipped)
            start += _aligned(entry.length)
        return samples, skipped

    def _find(self, epoch: int, place: int) -> _Found:
        """Where the record at a place of an epoch lies. Raises BadRecord where its shard cannot be opened."""
        shard, record = self.order.at(epoch, place)
        number = bisect.bisect_right(self._ends, shard)
        source, local = self.sets[number], shard - (self._ends[number - 1] if number else 0)
        entry = source.place(local, record)
        return _Found(shard, entry.first, entry.length, source, local, record)

    def _follow(self, epoch: int, place: int, error: BadRecord, skipped: list[Skipped]) -> Sample:
        """The first good record after a bad one, where bad ones are passed over at all."""
        if self.on_bad_record == "stop":
            raise BadRecord(
                f"{error}. Mend the shard, or set data.on_bad_record: skip to take the next good record in its place"
            ) from None
        skipped.append(Skipped(epoch, place, str(error)))
        most = min(len(self) - 1, MOST_BAD_IN_A_ROW)
        for step in range(1, most + 1):
            try:
                found = self._find(epoch, (place + step) % len(self))
                return found.read(memoryview(bytearray(found.length)))
            except BadRecord as next_error:
                error = next_error
        raise BadRecord(f"no good record follows within {most} places; the last reason: {error}")


class _Found(NamedTuple):
    """Where a record lies; its first two fields tell in which order to read."""

    number: int
    first: int
    length: int
    source: ShardSet
    shard: int
    record: int

    def read(self, buffer: memoryview) -> Sample:
        return self.source.read_record(self.shard, self.record, buffer)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT
