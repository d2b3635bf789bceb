"""Data order is a pure function of (seed, epoch, position), the same for every world size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakd.data.order import MIX_BLOCK, ShardOrder, interleave, rank_positions

counts_of_shards = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


@settings(max_examples=60, deadline=None)
@given(counts_of_shards, st.integers(0, 2**31), st.integers(0, 5), st.integers(1, 15))
def test_every_epoch_holds_each_record_once(counts, seed, epoch, window):
    order = ShardOrder(counts, seed, window)
    found = [order.at(epoch, place) for place in range(order.num_records)]
    assert sorted(found) == [(shard, record) for shard, count in enumerate(counts) for record in range(count)]


@settings(max_examples=60, deadline=None)
@given(counts_of_shards, st.integers(0, 2**31), st.integers(1, 5))
def test_a_window_bounds_the_number_of_open_shards(counts, seed, window):
    order = ShardOrder(counts, seed, window)
    shards = [order.at(0, place)[0] for place in range(order.num_records)]
    start = 0
    for number in range(-(-len(counts) // window)):
        allowed = order.shards_of_window(0, number)
        stop = start + sum(counts[shard] for shard in allowed)
        assert len(allowed) <= window and set(shards[start:stop]) <= set(allowed)
        start = stop
    assert start == order.num_records


@settings(max_examples=40, deadline=None)
@given(counts_of_shards, st.integers(0, 2**31), st.integers(1, 5), st.data())
def test_the_answer_does_not_depend_on_what_was_asked_before(counts, seed, window, data):
    order = ShardOrder(counts, seed, window)
    asked = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, order.num_records - 1)), max_size=12))
    for epoch, place in asked:
        assert order.at(epoch, place) == ShardOrder(counts, seed, window).at(epoch, place)


def test_a_window_of_all_shards_mixes_the_whole_set_and_a_small_one_does_not():
    counts = [10] * 8
    assert len({ShardOrder(counts, 1, 8).at(0, place)[0] for place in range(20)}) > 4
    assert len({ShardOrder(counts, 1, 2).at(0, place)[0] for place in range(20)}) == 2


def test_ten_million_records_are_looked_up_without_a_table_of_them():
    order = ShardOrder([256] * 39_063, 3, 64)
    assert order.num_records > 10_000_000
    shards = {order.at(5, 9_000_000 + place)[0] for place in range(1000)}
    assert len(shards) <= 128
    assert max(window.order.size for window in order._windows.values()) <= 64 * 256


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8))
def test_ranks_share_out_a_global_batch_without_gap_or_overlap(start, micro_batch, world):
    shares = [rank_positions(start, micro_batch, rank, world) for rank in range(world)]
    assert all(position % world == rank for rank, share in enumerate(shares) for position in share)
    assert sorted(position for share in shares for position in share) == list(range(start, start + micro_batch * world))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**31), st.integers(0, 5))
def test_two_kinds_are_mixed_without_loss_and_in_ratio(num_first, num_second, seed, epoch):
    length = num_first + num_second
    found = [interleave(num_first, num_second, seed, epoch, place) for place in range(length)]
    assert [number for is_second, number in found if not is_second] == list(range(num_first))
    assert [number for is_second, number in found if is_second] == list(range(num_second))
    for start in range(0, length - MIX_BLOCK, MIX_BLOCK):
        seconds = sum(is_second for is_second, _ in found[start : start + MIX_BLOCK])
        assert abs(seconds - MIX_BLOCK * num_second / length) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_no_rank_and_no_batch_meets_one_kind_alone(world):
    """Unshuffled, the kinds of a block would stand side by side; in turns, each rank of two would have its own."""
    kinds = np.array([interleave(512, 512, 0, 0, place)[0] for place in range(1024)])
    for rank in range(world):
        mine = kinds[rank::world]
        assert 0.35 < mine.mean() < 0.65
        # Of fair coins half the neighbours differ; of unshuffled blocks one in 32 / world.
        assert 0.35 < np.mean(mine[1:] != mine[:-1]) < 0.65


def test_order_differs_by_seed_and_epoch_and_does_not_change_from_version_to_version():
    def places(seed, epoch):
        return [ShardOrder([4, 3, 3], seed, 2).at(epoch, place) for place in range(10)]

    assert places(7, 0) != places(7, 1) and places(7, 0) != places(8, 0)
    assert places(0, 0) == [
        (0, 0), (0, 2), (1, 0), (1, 1), (0, 1), (1, 2), (0, 3), (2, 0), (2, 2), (2, 1),
    ]  # fmt: skip
    assert "".join("rs"[interleave(5, 5, 0, 0, place)[0]] for place in range(10)) == "srrsrrrsss"


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least one record"):
        ShardOrder([0, 0], 0, 1)
    with pytest.raises(ValueError, match="window of at least one"):
        ShardOrder([3], 0, 0)
    with pytest.raises(ValueError, match="place 3 of epoch 0"):
        ShardOrder([3], 0, 1).at(0, 3)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        rank_positions(0, 1, 2, 2)
    with pytest.raises(ValueError, match="place 5"):
        interleave(3, 2, 0, 0, 5)
