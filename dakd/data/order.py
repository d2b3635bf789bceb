"""Pure functions from (seed, epoch, position) to a record: data order is a look-up, so that resuming takes one integer.

A position counts samples from the start of a run, over all ranks. It depends on no world size: rank r of R takes the
positions p with p mod R = r, so every R sees the same global batches, and no rank needs shards of its own.

In an epoch the shards are permuted and cut into windows of W; the records of a window's shards are shuffled among
themselves. So a reader has at most W shards open at a time (2 W where a batch lies on the seam of two windows), and a
W of at least the number of shards shuffles the whole set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dakd.runtime.seeding import Stream, numpy_rng

# Two kinds of samples keep their ratio in every run of so many positions, to within one of each end.
MIX_BLOCK = 64
# Tables that are kept: a batch may lie on the seam of two epochs or windows.
_KEPT_EPOCHS, _KEPT_WINDOWS = 2, 4


class ShardOrder:
    """The order of the records of a set of shards, in any epoch. It keeps only tables; its methods are pure functions.

    counts: records of each shard.  window: W, shards.  stream: the random numbers of this order only.
    """

    def __init__(self, counts: Sequence[int], seed: int, window: int, stream: Stream = Stream.ORDER) -> None:
        self.counts, self.seed, self.window, self.stream = np.asarray(counts, np.int64), seed, window, stream
        if self.counts.ndim != 1 or window < 1 or (self.counts < 0).any() or not self.counts.sum():
            raise ValueError(
                f"an order of {self.counts.size} shards in windows of {window}; expected at least one record, no "
                "negative count and a window of at least one shard"
            )
        self.num_records = int(self.counts.sum())
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[tuple[int, int], _Window] = {}

    def at(self, epoch: int, place: int) -> tuple[int, int]:
        """(shard, record in it) at a place in an epoch, 0 <= place < num_records; an epoch holds each record once."""
        if epoch < 0 or not 0 <= place < self.num_records:
            raise ValueError(f"place {place} of epoch {epoch}; expected 0 to {self.num_records - 1}, and epoch >= 0")
        ends = self._epoch(epoch).window_ends
        # "right": the place at which a window ends belongs to the next window.
        number = int(np.searchsorted(ends, place, side="right"))
        window = self._window(epoch, number)
        place = int(window.order[place - (int(ends[number - 1]) if number else 0)])
        shard = int(np.searchsorted(window.ends, place, side="right"))
        return int(window.shards[shard]), place - (int(window.ends[shard - 1]) if shard else 0)

    def shards_of_window(self, epoch: int, number: int) -> list[int]:
        """The shards whose records make a window, in the order in which they were drawn."""
        shards = self._epoch(epoch).shards
        return shards[number * self.window : (number + 1) * self.window].tolist()

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            shards = numpy_rng(self.seed, epoch, stream=self.stream).permutation(self.counts.size)
            # Empty windows, of shards without records, end where they begin: no place is looked for in them.
            last = np.minimum(np.arange(self.window, self.counts.size + self.window, self.window), self.counts.size) - 1
            _keep(self._epochs, epoch, _Epoch(shards, np.cumsum(self.counts[shards])[last]), _KEPT_EPOCHS)
        return self._epochs[epoch]

    def _window(self, epoch: int, number: int) -> _Window:
        if (epoch, number) not in self._windows:
            shards = self.shards_of_window(epoch, number)
            ends = np.cumsum(self.counts[shards])
            order = numpy_rng(self.seed, epoch, number, stream=self.stream).permutation(int(ends[-1]))
            _keep(self._windows, (epoch, number), _Window(shards, ends, order), _KEPT_WINDOWS)
        return self._windows[epoch, number]


class _Epoch(NamedTuple):
    shards: np.ndarray  # permuted
    window_ends: np.ndarray  # places at which the windows end


class _Window(NamedTuple):
    shards: list[int]
    ends: np.ndarray  # ends of the shards, laid end to end
    order: np.ndarray  # the records of all its shards, shuffled


def _keep(tables: dict, key: object, value: object, most: int) -> None:
    while len(tables) >= most:
        # A dict keeps the order of insertion: its first key is the oldest.
        del tables[next(iter(tables))]
    tables[key] = value


def interleave(num_first: int, num_second: int, seed: int, epoch: int, place: int) -> tuple[bool, int]:
    """(whether it is of the second kind, its number among its kind) at a place in an epoch of both kinds.

    Each block of 64 places holds the two kinds in the epoch's ratio, to within one, in random order: no batch is all
    of one kind, and no rank always meets the same.
    """
    length = num_first + num_second
    if not 0 <= place < length:
        raise ValueError(f"place {place} of an epoch of {num_first} + {num_second} samples")
    block, inside = divmod(place, MIX_BLOCK)
    start = block * MIX_BLOCK
    # Counted from the start of the epoch, not block by block: roundings do not add up.
    seconds_before = start * num_second // length
    kinds = _kinds(num_second, length, seed, epoch, block)
    seconds = seconds_before + int(np.count_nonzero(kinds[:inside]))
    return bool(kinds[inside]), seconds if kinds[inside] else place - seconds


@lru_cache(maxsize=16)
def _kinds(num_second: int, length: int, seed: int, epoch: int, block: int) -> np.ndarray:
    start, stop = block * MIX_BLOCK, min((block + 1) * MIX_BLOCK, length)
    kinds = np.zeros(stop - start, bool)
    kinds[: stop * num_second // length - start * num_second // length] = True
    return numpy_rng(seed, epoch, block, stream=Stream.MIX).permutation(kinds)


def rank_positions(start: int, micro_batch: int, rank: int, world: int) -> list[int]:
    """The `micro_batch` positions of a rank among the next micro_batch * world, from the global position `start`."""
    if not 0 <= rank < world or micro_batch < 1 or start < 0:
        raise ValueError(
            f"rank {rank} of {world}, micro_batch {micro_batch}, start {start}; "
            "expected 0 <= rank < world, micro_batch >= 1, start >= 0"
        )
    # A rank owns the positions with its remainder, so any `start` is allowed, also one within a global batch.
    first = start + (rank - start) % world
    return list(range(first, first + micro_batch * world, world))


class PositionBatches:
    """Endless lists of a rank's positions, micro-batch by micro-batch, from a global position on."""

    def __init__(self, micro_batch: int, rank: int, world: int, start_position: int) -> None:
        rank_positions(start_position, micro_batch, rank, world)  # refuses what makes no sense
        self.micro_batch, self.rank, self.world, self.start = micro_batch, rank, world, start_position

    def __iter__(self) -> Iterator[list[int]]:
        start = self.start
        while True:
            yield rank_positions(start, self.micro_batch, self.rank, self.world)
            start += self.micro_batch * self.world
