"""Schedules of real and synthetic samples: shares by position, even use of each set, resuming, ranks, and budgets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dakd.data.datasets import StudentDataset
from dakd.data.mix import MixSettings
from dakd.data.order import MIX_BLOCK, interleave, rank_positions

SHARES = [(0.8, 0.2), (0.1, 0.9), (1.0, 0.0), (0.0, 1.0), (0.3, 0.3)]


def kinds_of(mixing: MixSettings, num_positions: int, more: int = 0) -> np.ndarray:
    """(num_positions + more,) bool: which samples of a training, and of those after its end, are synthetic."""
    mix = mixing.over(num_positions)
    return np.array([mix.at(position)[0] for position in range(num_positions + more)])


def student(real, synthetic, num_positions=None, **options) -> StudentDataset:
    own = {"mosaic": False, "flip": True, "seed": 5, "num_positions": num_positions, **options}
    return StudentDataset(real, synthetic, (8, 8), **own)


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("length", [64, 1000])
def test_a_share_goes_linearly_from_the_first_to_the_second_number(share, seed, length):
    first, last = share
    kinds = kinds_of(MixSettings(13, 10, "mixed", share, seed), length)
    assert abs(kinds.sum() - length * (first + last) / 2) < 1
    for start in range(0, length, MIX_BLOCK):
        part = kinds[start : start + MIX_BLOCK]
        at_middle = first + (last - first) * (start + len(part) / 2) / length
        assert abs(part.sum() - len(part) * at_middle) < 1
    order = kinds_of(MixSettings(13, 10, "mixed", share, seed + 1), length)
    assert not np.array_equal(kinds, order)


def test_a_share_stays_at_its_last_number_where_readers_look_beyond_the_end():
    kinds = kinds_of(MixSettings(13, 10, "mixed", (0.8, 0.25), 0), 150, 10 * MIX_BLOCK)
    assert [kinds[start : start + MIX_BLOCK].sum() for start in range(150, len(kinds), MIX_BLOCK)] == [16] * 10


def test_the_kinds_within_a_block_stand_in_random_order_that_no_version_changes():
    kinds = kinds_of(MixSettings(13, 10, "mixed", (0.5, 0.5), 0), 64)
    assert "".join("rs"[int(kind)] for kind in kinds[:16]) == "ssrssrrrsrrrrrrr"
    assert 0.35 < np.mean(kinds[1:] != kinds[:-1]) < 0.65


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.9, None])
@pytest.mark.parametrize("length", [1, 64, 1000])
def test_synthetic_samples_come_first_and_then_only_real_ones(share, length):
    kinds = kinds_of(MixSettings(13, 10, "synthetic_then_real", share, 3), length, 100)
    count = round(length * (10 / 23 if share is None else share))
    assert kinds[:count].all() and not kinds[count:].any()


@pytest.mark.parametrize("share", [None, 0.3])
def test_even_mixes_are_those_of_an_epoch_after_the_other(share):
    mixing = MixSettings(13, 10, "mixed", share, 4)
    own = 10 if share is None else 6  # 6 / (13 + 6) is nearest to 0.3
    mix = mixing.over(12345)
    assert mixing.epoch_length == 13 + own
    for position in range(100):
        epoch, place = divmod(position, 13 + own)
        is_synthetic, number = interleave(13, own, 4, epoch, place)
        assert mix.at(position) == (is_synthetic, number + epoch * (own if is_synthetic else 13))


@pytest.mark.parametrize("schedule, share", [("mixed", (0.8, 0.2)), ("synthetic_then_real", 0.4), ("mixed", None)])
def test_one_kind_alone_has_no_schedule(schedule, share):
    for num_real, num_synthetic in ((13, 0), (0, 10)):
        mixing, plain = (MixSettings(num_real, num_synthetic, *one, 2) for one in ((schedule, share), ("mixed", None)))
        assert mixing.over(500) == plain.over(500) and mixing.epoch_length == plain.epoch_length
        assert not mixing.follows_length and mixing.steps_of_real_views(7, 4) == 7


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(0, 99), st.integers(1, 500), st.integers(0, 600),
    st.sampled_from([("mixed", None), ("mixed", 0.3), ("synthetic_then_real", None), ("synthetic_then_real", 0.7),
                     *(("mixed", share) for share in SHARES)]),
)  # fmt: skip
def test_samples_of_each_kind_are_numbered_without_gap(num_real, num_synthetic, seed, length, up_to, settings):
    mix = MixSettings(num_real, num_synthetic, *settings, seed).over(length)
    found = [mix.at(position) for position in range(up_to)]
    for kind in (False, True):
        numbers = [number for is_synthetic, number in found if is_synthetic == kind]
        assert numbers == list(range(len(numbers)))
    assert mix.synthetic_before(up_to) == sum(is_synthetic for is_synthetic, _ in found)


OPTIONS = [
    {"synthetic_share": (0.9, 0.2)},
    {"synthetic_share": (0.0, 0.7)},
    {"schedule": "synthetic_then_real"},
    {"schedule": "synthetic_then_real", "synthetic_share": 0.35},
    {"synthetic_share": 0.35},
    {},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_sample_is_drawn_equally_often_and_the_views_are_counted(real_set, synthetic_set, options):
    dataset = student(real_set, synthetic_set, 330, **options)
    batch = dataset.batch(list(range(330)))
    counts = Counter(batch.keys)
    for one, size in ((real_set, 13), (synthetic_set, 10)):
        own = [counts[one.key(i)] for i in range(size)]
        assert max(own) - min(own) <= 1 and min(own) > 0
    synthetic = int(batch.is_synthetic.sum())
    assert dataset.views(330) == {"real": 330 - synthetic, "synthetic": synthetic}


def test_a_mosaic_is_one_view(real_set, synthetic_set):
    dataset = student(real_set, synthetic_set, 200, mosaic=True, synthetic_share=(0.2, 0.6))
    batch = dataset.batch(list(range(200)))
    assert dataset.views(200) == {"real": 120, "synthetic": 80} and int(batch.is_synthetic.sum()) == 80


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 180), st.sampled_from([1, 2, 3, 4]), st.sampled_from(OPTIONS))
def test_any_position_and_any_number_of_ranks_give_the_samples_of_the_whole(
    real_set, synthetic_set, start, world, options
):
    whole = student(real_set, synthetic_set, 200, **options).batch(list(range(200)))
    resumed = [
        student(real_set, synthetic_set, 200, **options).batch(rank_positions(start, 12 // world, rank, world))
        for rank in range(world)
    ]
    seen = [int(position) for part in resumed for position in part.positions]
    assert sorted(seen) == list(range(start, start + 12))
    for part in resumed:
        for row, position in enumerate(part.positions.tolist()):
            assert part.keys[row] == whole.keys[position]
            assert torch.equal(part.image[row], whole.image[position])
            assert torch.equal(part.is_synthetic[row], whole.is_synthetic[position])


@pytest.mark.parametrize("schedule, share", [
    ("mixed", None), ("mixed", 0.5), ("mixed", 0.9), ("mixed", (0.9, 0.1)), ("mixed", (0.5, 1.0)),
    ("synthetic_then_real", None), ("synthetic_then_real", 0.75),
])  # fmt: skip
@pytest.mark.parametrize("steps, batch", [(1, 1), (7, 3), (20, 16)])
def test_a_budget_of_real_views_takes_the_fewest_steps_that_draw_them(schedule, share, steps, batch):
    mixing = MixSettings(13, 10, schedule, share, 1)
    found = mixing.steps_of_real_views(steps, batch)
    drawn = {number: number * batch - kinds_of(mixing, number * batch).sum() for number in (found, found - 1)}
    assert drawn[found - 1] < steps * batch <= drawn[found]


def test_shares_that_leave_one_kind_out_or_that_a_schedule_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"\[0\.0, 0\.0\], which leaves no synthetic samples; .* training set real"):
        MixSettings(13, 10, "mixed", (0.0, 0.0), 0)
    with pytest.raises(ValueError, match=r"\[1\.0, 1\.0\], which leaves no real samples; .* training set synthetic"):
        MixSettings(13, 10, "mixed", (1.0, 1.0), 0)
    with pytest.raises(ValueError, match=r"synthetic_then_real; expected a number or null"):
        MixSettings(13, 10, "synthetic_then_real", (0.8, 0.2), 0)
    with pytest.raises(ValueError, match=r"1\.5; expected a number between 0 and 1"):
        MixSettings(13, 10, "synthetic_then_real", 1.5, 0)
