"""Pure functions from (seed, position) to a record: data order is a look-up, so that resuming takes one integer.

A position counts samples from the start of a run, over all ranks. It depends on no world size: rank r of R takes the
positions p with p mod R = r, so every R sees the same global batches.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dakd.runtime.seeding import Stream, numpy_rng


@lru_cache(maxsize=8)
def permutation(num_records: int, seed: int, epoch: int, stream: Stream = Stream.ORDER) -> np.ndarray:
    """(num_records,) int64, read-only: the order of the records in an epoch."""
    order = numpy_rng(seed, epoch, stream=stream).permutation(num_records)
    order.setflags(write=False)
    return order


def record_at(num_records: int, seed: int, position: int) -> tuple[int, int]:
    """(epoch, index) of the record at a global position; every epoch holds each record once."""
    if num_records < 1 or position < 0:
        raise ValueError(f"position {position} of {num_records} records; wanted position >= 0 and at least one record")
    epoch, place = divmod(position, num_records)
    return epoch, int(permutation(num_records, seed, epoch)[place])


def rank_positions(start: int, micro_batch: int, rank: int, world: int) -> list[int]:
    """The `micro_batch` positions of a rank among the next micro_batch * world, from the global position `start`."""
    if not 0 <= rank < world or micro_batch < 1 or start < 0:
        raise ValueError(
            f"rank {rank} of {world}, micro_batch {micro_batch}, start {start}; "
            "wanted 0 <= rank < world, micro_batch >= 1, start >= 0"
        )
    first = start + (rank - start) % world
    return list(range(first, first + micro_batch * world, world))
