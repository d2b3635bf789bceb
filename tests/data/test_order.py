"""Data order is a pure function of (seed, position), the same for every world size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakd.data.order import permutation, rank_positions, record_at


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5))
def test_every_epoch_holds_each_record_once(num_records, seed, epoch):
    places = [record_at(num_records, seed, epoch * num_records + i) for i in range(num_records)]
    assert {place[0] for place in places} == {epoch}
    assert sorted(place[1] for place in places) == list(range(num_records))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8))
def test_ranks_share_out_a_global_batch_without_gap_or_overlap(start, micro_batch, world):
    shares = [rank_positions(start, micro_batch, rank, world) for rank in range(world)]
    assert all(position % world == rank for rank, share in enumerate(shares) for position in share)
    assert sorted(position for share in shares for position in share) == list(range(start, start + micro_batch * world))


def test_order_differs_by_seed_and_epoch_and_does_not_change_from_version_to_version():
    first = permutation(100, 7, 0)
    assert not np.array_equal(first, permutation(100, 7, 1)) and not np.array_equal(first, permutation(100, 8, 0))
    assert [record_at(10, 0, position)[1] for position in range(10)] == [5, 3, 9, 6, 8, 0, 1, 4, 7, 2]


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least one record"):
        record_at(0, 0, 0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        rank_positions(0, 1, 2, 2)
