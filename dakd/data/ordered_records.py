"""Samples by their place in an order, a batch at a time, and the rule by which bad records are skipped.

The records of a batch are read in the order in which they lie on the disk, each with one read, into memory that serves
record after record and so stays in the processor's cache: samples are views of it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np

from dakd.data.order import ShardOrder
from dakd.data.records import BadRecord
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.runtime.seeding import Stream

OnBadRecord = Literal["stop", "skip"]
MOST_BAD_IN_A_ROW = 10_000  # records; beyond, the set is not there rather than damaged


@dataclass(frozen=True)
class Skipped:
    """A record that another one was taken for, and why."""

    epoch: int
    place: int
    reason: str


class OrderedRecords:
    """Several sets of shards as one, whose records are read by (epoch, place).

    window: shards whose records are shuffled among themselves (see `order`).  limit: only the first records of the
    first set, as it lists them; the other sets are taken whole.  left_out: places, in the sets laid end to end, of
    records that do not belong to it; `limit` counts the others.  on_bad_record: `stop` raises BadRecord; `skip` takes
    the next good record of the epoch in its place, always the same one, so that all ranks stay in step and a resumed
    run sees the same.
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
        left_out: Sequence[int] = (),
    ) -> None:
        counts = np.concatenate([source.counts for source in sets])
        self._left_out = _by_shard(counts, left_out)
        for shard, records in self._left_out.items():
            counts[shard] -= len(records)
        if limit is not None:
            # Cut before anything is shuffled: a set of the first N pairs is the same in every epoch.
            first = counts[: len(sets[0].counts)]
            counts[: len(first)] = np.clip(limit - (np.cumsum(first) - first), 0, first)
        self.sets, self.on_bad_record = list(sets), on_bad_record
        self.order = ShardOrder(counts, seed, window, stream)
        self._ends = list(accumulate(len(source.counts) for source in sets))
        self._memory = bytearray()

    def __len__(self) -> int:
        return self.order.num_records

    def __getstate__(self) -> dict:
        # The memory is scratch space, of which each process has its own.
        return self.__dict__ | {"_memory": bytearray()}

    @property
    def classes(self) -> ClassTable:
        return self.sets[0].classes

    def read(self, places: Sequence[tuple[int, int]], take: Callable[[int, Sample], None]) -> list[Skipped]:
        """Call take(i, sample) for the sample at each place i, (epoch, place); returns the skipped records.

        The calls come in the order in which the records lie. A sample's arrays are valid until `take` returns.
        Raises BadRecord where on_bad_record is `stop`, or nothing good follows.
        """
        skipped: list[Skipped] = []
        found: list[tuple[_Found, int]] = []
        for i, (epoch, place) in enumerate(places):
            try:
                found.append((self._find(epoch, place), i))
            except BadRecord as error:
                take(i, self._follow(epoch, place, error, skipped))
        for entry, i in sorted(found, key=lambda pair: pair[0][:2]):
            if len(self._memory) < entry.length:
                self._memory = bytearray(entry.length)
            try:
                sample = entry.read(memoryview(self._memory)[: entry.length])
            except BadRecord as error:
                sample = self._follow(*places[i], error, skipped)
            take(i, sample)
        return skipped

    def _find(self, epoch: int, place: int) -> _Found:
        """Where the record at a place of an epoch lies. Raises BadRecord where its shard cannot be opened."""
        shard, record = self.order.at(epoch, place)
        if shard in self._left_out:
            record = _number_in_shard(record, self._left_out[shard])
        number = bisect.bisect_right(self._ends, shard)
        source, local = self.sets[number], shard - (self._ends[number - 1] if number else 0)
        span = source.span(local, record)
        return _Found(shard, span.first, span.length, source, local, record)

    def _follow(self, epoch: int, place: int, error: BadRecord, skipped: list[Skipped]) -> Sample:
        """The first good record after a bad one, where bad ones may be skipped at all."""
        if self.on_bad_record == "stop":
            raise BadRecord(
                f"{error}. Fix the shard, or set data.on_bad_record: skip to take the next good record in its place"
            ) from None
        skipped.append(Skipped(epoch, place, str(error)))
        most = min(len(self) - 1, MOST_BAD_IN_A_ROW)
        for step in range(1, most + 1):
            try:
                # Within the same epoch: the replacement depends on the order only, not on a rank or a reader.
                found = self._find(epoch, (place + step) % len(self))
                return found.read(memoryview(bytearray(found.length)))
            except BadRecord as next_error:
                error = next_error
        raise BadRecord(
            f"no good record follows within {most} places; write the shards again; the last reason: "
            f"{error}"
        )


def _by_shard(counts: np.ndarray, places: Sequence[int]) -> dict[int, np.ndarray]:
    """By shard, the ascending numbers of these records within it.  counts: records of each shard, end to end."""
    ends, found = np.cumsum(counts), np.unique(np.asarray(places, np.int64))
    if found.size and not 0 <= found[0] <= found[-1] < ends[-1]:
        raise ValueError(f"left_out has places from {found[0]} to {found[-1]}; expected 0 to {ends[-1] - 1}")
    shards = np.searchsorted(ends, found, side="right")
    return {int(one): found[shards == one] - (ends[one] - counts[one]) for one in np.unique(shards)}


def _number_in_shard(record: int, left_out: np.ndarray) -> int:
    """The number within a shard of the record that is number `record` among those that are not left out."""
    # Of each one left out, how many of the others lie before it.
    before = left_out - np.arange(len(left_out))
    return record + int(np.searchsorted(before, record, side="right"))


class _Found(NamedTuple):
    """Where a record lies; sorted by its first two fields, records are read in disk order."""

    number: int
    first: int
    length: int
    source: ShardSet
    shard: int
    record: int

    def read(self, buffer: memoryview) -> Sample:
        return self.source.read_record(self.shard, self.record, buffer)
