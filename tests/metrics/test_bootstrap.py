"""Intervals over images against scipy's bootstrap, differences of pairs, and recentred intervals on Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dakd.metrics.bootstrap import (
    bootstrap,
    draw_weights,
    over_seeds,
    paired_bootstrap,
    recentred_interval,
    unequal_classes_notes,
)
from dakd.metrics.distances import frechet_distance
from dakd.metrics.scores import POOLED_SCORES, pooled_score, score

NAMES = ("sea", "oil", "ship")


def images(num: int = 40, seed: int = 0, errors: float = 0.1) -> np.ndarray:
    """(N, 3, 3) counts of images of about 1000 pixels; the same seed has the same truth, whatever the errors."""
    truth = np.random.default_rng(seed).multinomial(1000, (0.8, 0.17, 0.03), size=num)
    rng = np.random.default_rng((seed, round(1e6 * errors)))
    rates = np.clip(errors * rng.exponential(1, (num, 3)), 0, 0.9)
    counts = np.zeros((num, 3, 3), np.int64)
    for true in range(3):
        share = np.stack([rates[:, true] / 2] * 3, axis=1)
        share[:, true] = 1 - rates[:, true]
        counts[:, true] = rng.multinomial(truth[:, true], share)
    return counts


@pytest.mark.parametrize("name", POOLED_SCORES)
def test_pooled_scores_are_those_of_the_tables(name):
    matrices = np.random.default_rng(0).integers(0, 50, (7, 3, 3))
    matrices[1, 2], matrices[1, :, 2] = 0, 0  # absent
    matrices[2, 2] = 0  # predicted only
    matrices[3, :, 1] = 0  # never predicted
    values = pooled_score(matrices, name)
    assert values == pytest.approx([getattr(score(one, NAMES), name) for one in matrices], abs=1e-12)


def test_pooled_scores_of_one_class_and_of_an_absent_one():
    matrices = np.random.default_rng(0).integers(1, 50, (4, 3, 3))
    matrices[3, 1], matrices[3, :, 1] = 0, 0
    for field in ("iou", "f1", "accuracy", "recall", "precision"):
        values = pooled_score(matrices, f"{field}:oil", NAMES)
        expected = [getattr(score(one, NAMES).per_class["oil"], field) for one in matrices[:3]]
        assert values[:3] == pytest.approx(expected, abs=1e-12) and math.isnan(values[3])
    assert np.isnan(pooled_score(np.zeros((2, 3, 3)), "miou")).all()


@pytest.mark.parametrize("name", ["dice", "miou:oil", "iou"])
def test_an_unknown_score_is_refused(name):
    with pytest.raises(ValueError, match="no score is called"):
        pooled_score(images(), name, NAMES)
    with pytest.raises(ValueError, match="no class is called 'kelp'"):
        pooled_score(images(), "iou:kelp", NAMES)


def by_scipy(statistic, num_images: int):
    return stats.bootstrap(
        (np.arange(num_images),), statistic, vectorized=False, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval


def test_the_interval_is_that_of_scipy():
    counts = images()
    interval = bootstrap(counts, num_resamples=4000)
    expected = by_scipy(lambda chosen: score(counts[chosen].sum(axis=0), NAMES).miou, len(counts))
    width = expected.high - expected.low
    assert interval.value == score(counts.sum(axis=0), NAMES).miou
    assert interval.low == pytest.approx(expected.low, abs=0.06 * width)
    assert interval.high == pytest.approx(expected.high, abs=0.06 * width)
    assert (interval.num_images, interval.num_seeds, interval.incomplete) == (40, 1, 0)


@pytest.mark.parametrize("name", ["miou", "f1", "iou:oil"])
def test_the_difference_is_paired_as_scipy_pairs_it(name):
    counts, baseline = images(errors=0.08), images(errors=0.1)

    def gap(chosen):
        pooled = np.stack([counts[chosen].sum(axis=0), baseline[chosen].sum(axis=0)])
        return float(np.subtract(*pooled_score(pooled, name, NAMES)))

    difference = paired_bootstrap(counts, baseline, name, NAMES, num_resamples=4000)
    expected = by_scipy(gap, len(counts))
    width = expected.high - expected.low
    assert difference.value == pytest.approx(gap(np.arange(40)))
    assert difference.low == pytest.approx(expected.low, abs=0.06 * width)
    assert difference.high == pytest.approx(expected.high, abs=0.06 * width)


def test_pairing_narrows_the_interval_of_two_alike_students():
    baseline = images(errors=0.3)
    counts = baseline.copy()
    counts[:, 1, 1] += counts[:, 1, 0] // 10  # a tenth of the missed oil is found in every image
    counts[:, 1, 0] -= counts[:, 1, 0] // 10
    difference, alone = paired_bootstrap(counts, baseline), bootstrap(counts)
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
    assert difference.low > 0 and difference.p == pytest.approx(2 / 1001)


def test_equal_students_differ_by_nothing_with_p_one():
    difference = paired_bootstrap(images(), images())
    assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_p_is_symmetric_and_uniform_enough_where_nothing_differs():
    ps = []
    for seed in range(60):
        one, other = images(30, seed), images(30, seed, errors=0.1 + 1e-6)
        ps.append(paired_bootstrap(one, other, num_resamples=400).p)
        if seed < 3:
            assert paired_bootstrap(other, one, num_resamples=400).p == ps[-1]
    assert 0.0 <= np.mean(np.array(ps) < 0.05) < 0.17 and 0.35 < np.mean(ps) < 0.65


def test_the_draws_follow_the_seed():
    counts = images()
    assert bootstrap(counts, seed=3) == bootstrap(counts, seed=3) != bootstrap(counts, seed=4)


def test_seeds_are_averaged_within_each_resample():
    three = np.stack([images(errors=errors) for errors in (0.05, 0.1, 0.2)])
    two = np.stack([images(errors=errors) for errors in (0.15, 0.3)])
    interval, difference = bootstrap(three), paired_bootstrap(three, two)
    means = [np.mean([score(one.sum(axis=0), NAMES).miou for one in seeds]) for seeds in (three, two)]
    assert interval.value == pytest.approx(means[0]) and interval.num_seeds == 3
    assert difference.value == pytest.approx(means[0] - means[1])
    same = bootstrap(np.stack([images()] * 3))
    assert (same.low, same.high) == pytest.approx((bootstrap(images()).low, bootstrap(images()).high))


def test_resamples_without_a_rare_class_are_reported():
    counts = images(20)
    counts[:, 2], counts[:, :, 2] = 0, 0
    counts[0, 2, 2] = 5  # ships in one image of twenty
    interval = bootstrap(counts, num_resamples=4000)
    assert interval.incomplete == pytest.approx((1 - 1 / 20) ** 20, abs=0.03)
    ships = bootstrap(counts, "iou:ship", NAMES)  # the one image with ships says nothing about others
    assert (ships.value, ships.low, ships.high, ships.num_images) == (1.0, None, None, 1)
    absent = bootstrap(counts[1:], "iou:ship", NAMES)
    assert (absent.value, absent.low, absent.high) == (None, None, None)
    assert paired_bootstrap(counts[1:], counts[1:], "iou:ship", NAMES).p is None


@pytest.mark.parametrize("num", [1, 2, 9])
def test_few_images_have_neither_an_interval_nor_a_p(num):
    better, worse = images(num, errors=0.01), images(num, errors=0.4)
    alone, difference = bootstrap(better), paired_bootstrap(better, worse)
    assert alone.value > 0.8 and difference.value > 0.1
    assert (alone.low, alone.high, alone.num_images) == (None, None, num)
    assert (difference.low, difference.high, difference.p) == (None, None, None)
    assert paired_bootstrap(images(10, errors=0.01), images(10, errors=0.4)).p == pytest.approx(2 / 1001)


def test_images_without_a_counted_pixel_and_without_the_class_do_not_count():
    counts = images(20)
    counts[8:] = 0  # all unknown
    assert (bootstrap(counts).num_images, bootstrap(counts).low) == (8, None)
    guessed = images(20)
    guessed[:, 2], guessed[:, :, 2] = 0, 0
    guessed[:11, 0, 2] = 4  # ships are predicted in eleven images, and there are none
    assert bootstrap(guessed, "iou:ship", NAMES).num_images == 11


def test_resamples_of_which_none_lies_in_the_tails_make_no_interval():
    assert bootstrap(images(), num_resamples=39).low is None and bootstrap(images(), num_resamples=40).low is not None
    assert paired_bootstrap(images(errors=0.01), images(errors=0.4), num_resamples=39).p is None


def test_pairs_of_other_images_are_refused():
    with pytest.raises(ValueError, match="the same images and classes"):
        paired_bootstrap(images(4), images(5))
    with pytest.raises(ValueError, match="other images, or in another order"):
        paired_bootstrap(images(4), images(4)[::-1])
    with pytest.raises(ValueError, match=r"expected \(images, K, K\)"):
        bootstrap(np.zeros((3, 3)))


def test_the_spread_over_seeds():
    spread = over_seeds([0.7, 0.8, 0.75])
    assert (spread.mean, spread.sd, spread.n) == (pytest.approx(0.75), pytest.approx(stats.tstd([0.7, 0.8, 0.75])), 3)
    assert over_seeds([0.5]).sd is None
    with pytest.raises(ValueError, match="none of them NaN"):
        over_seeds([0.5, math.nan])


# --- distances of sets ------------------------------------------------------------------------------------------------


def test_weights_are_resamples():
    weights = draw_weights(500, 40, np.random.default_rng(0))
    assert weights.shape == (500, 40) and (weights.sum(axis=1) == 40).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.2)
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 40) ** 40, abs=0.02)


def test_an_interval_lies_about_the_estimate_and_has_the_bias():
    drawn = np.linspace(10, 20, 1001)
    found = recentred_interval(5.0, drawn, confidence=0.9, num_images=40)
    assert (found.low, found.high, found.bias) == pytest.approx((0.5, 9.5, 10))
    assert recentred_interval(5.0, drawn, lowest=2, highest=9, confidence=0.9, num_images=40).low == 2
    assert recentred_interval(math.nan, drawn, num_images=40) is None


def test_a_distance_of_few_images_or_few_resamples_has_no_interval():
    drawn = [float(number) for number in range(40)]
    assert recentred_interval(20.0, drawn, num_images=10) is not None
    assert recentred_interval(20.0, drawn, num_images=9) is recentred_interval(20.0, drawn[1:], num_images=10) is None
    assert recentred_interval(20.0, [math.nan, *drawn[1:]], num_images=10) is None


def test_intervals_of_a_frechet_distance_cover_its_expectation_at_n():
    """Percentiles as they are miss it nearly always: resamples lie above the estimate."""
    rng, size, dim, repeats, resamples = np.random.default_rng(0), 60, 12, 80, 60
    estimates, moved, plain = [], [], []
    for _ in range(repeats):
        x, y = (torch.as_tensor(rng.normal(shift, 1, (size, dim))) for shift in (0.0, 0.3))
        weights = [torch.as_tensor(draw_weights(resamples, size, rng), dtype=torch.float64) for _ in range(2)]
        drawn = [frechet_distance(x, y, *pair) for pair in zip(*weights)]
        one = torch.ones(size, dtype=torch.float64)
        estimates.append(frechet_distance(x, y, one, one))
        moved.append(recentred_interval(estimates[-1], drawn, lowest=0, num_images=size))
        plain.append(np.quantile(drawn, [0.025, 0.975]))
    wanted = np.mean(estimates)
    covered = np.mean([one.low <= wanted <= one.high for one in moved])
    assert 0.88 <= covered <= 1
    assert np.mean([low <= wanted <= high for low, high in plain]) < 0.5
    # The bias of a resample is near that of a finite N: the distance of the distributions is 0.3^2 * 12 = 1.08.
    assert np.mean([one.bias for one in moved]) == pytest.approx(wanted - 1.08, rel=0.5)


def test_a_difference_counts_the_classes_of_both_means():
    one = np.zeros((12, 4, 4), np.int64)
    one[:, 0, 0], one[:, 1, 1] = 90, 10
    other = one.copy()
    one[0, 0, 2], other[0, 0, 3] = 1, 1  # each predicts a class that does not occur
    one[0, 0, 0] = other[0, 0, 0] = 89
    assert paired_bootstrap(one, other).num_classes == [3, 3, 2]
    assert unequal_classes_notes([3, 3, 2]) and not unequal_classes_notes([2, 2, 2]) and not unequal_classes_notes([])
