"""Differences over seeds and images: against scipy, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dakd.metrics.scores import mean_iou
from dakd.metrics.two_level import difference_over_seeds, holm, t_quantile, t_tail


def counts_of(accuracy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(R, N, 2, 2): students that label so many of the 100 pixels of each class right; accuracy: (R, N)."""
    right = rng.binomial(100, np.clip(accuracy, 0, 1)[..., None], size=(*accuracy.shape, 2))
    counts = np.zeros((*accuracy.shape, 2, 2), np.int64)
    for true in (0, 1):
        counts[..., true, true], counts[..., true, 1 - true] = right[..., true], 100 - right[..., true]
    return counts


def world(seed: int, gain: float, num_seeds: int = 5, repeats: int = 2, num_images: int = 60, spread: float = 0.02):
    """Two arms whose gain varies between seeds by `spread`; images of unequal difficulty."""
    rng = np.random.default_rng(seed)
    ease = rng.uniform(0.6, 0.95, num_images)
    ours, theirs = [], []
    for own_gain in rng.normal(gain, spread, num_seeds):
        ours.append(counts_of(np.tile(ease + own_gain, (repeats, 1)), rng))
        theirs.append(counts_of(np.tile(ease, (repeats, 1)), rng))
    return ours, theirs


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30])
def test_students_t_equals_scipys(freedom):
    for t in (0.0, 0.3, 1.0, 2.776, 7.5):
        assert t_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), abs=1e-12)
    assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-10)


def test_the_value_is_the_mean_over_seeds_of_the_differences_of_pooled_scores():
    ours, theirs = world(0, 0.03)
    found = difference_over_seeds(ours, theirs, num_resamples=200)
    by_seed = [np.mean([mean_iou(one.sum(axis=0)) for one in a]) - np.mean([mean_iou(one.sum(axis=0)) for one in b])
               for a, b in zip(ours, theirs)]  # fmt: skip
    assert found.by_seed == pytest.approx(by_seed, abs=1e-12) and found.value == pytest.approx(np.mean(by_seed))
    test = stats.ttest_1samp(by_seed, 0.0)
    assert found.p == pytest.approx(test.pvalue, rel=1e-9)
    assert (found.t_low, found.t_high) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9)
    assert found.low < found.value < found.high and found.num_images == 60 and found.num_repeats == 2


def test_the_spread_of_the_resamples_is_that_of_a_plain_loop_over_seeds_and_images():
    ours, theirs = world(1, 0.02, num_seeds=4, repeats=1, num_images=30)
    found = difference_over_seeds(ours, theirs, num_resamples=4000)
    rng, plain = np.random.default_rng(9), []
    for _ in range(2000):
        images, seeds = rng.integers(0, 30, 30), rng.integers(0, 4, 3)
        gaps = [mean_iou(ours[s][0][images].sum(0)) - mean_iou(theirs[s][0][images].sum(0)) for s in seeds]
        plain.append(np.mean(gaps))
    low, high = np.percentile(plain, [2.5, 97.5])
    width = high - low
    assert abs(found.low - low) < 0.08 * width and abs(found.high - high) < 0.08 * width


def test_the_interval_by_t_holds_the_true_gain_in_95_percent_of_the_worlds_and_images_alone_would_not():
    """With a spread between seeds the interval over images alone is far too narrow: what the pilot's tables had."""
    from dakd.metrics.bootstrap import paired_bootstrap

    inside = of_images = 0
    for seed in range(120):
        ours, theirs = world(seed, 0.03, repeats=1, spread=0.04)
        truth_ours, truth_theirs = world(10_000, 0.03, num_seeds=1, repeats=1, num_images=4000, spread=0.0)
        truth = difference_over_seeds(truth_ours, truth_theirs).value
        found = difference_over_seeds(ours, theirs, num_resamples=40)
        inside += found.t_low <= truth <= found.t_high
        alone = paired_bootstrap(np.concatenate(ours), np.concatenate(theirs), num_resamples=100)
        of_images += alone.low <= truth <= alone.high
    assert inside >= 0.9 * 120 and of_images < 0.6 * 120


def test_few_seeds_and_images_have_a_value_and_no_interval():
    ours, theirs = world(2, 0.02, num_seeds=2)
    found = difference_over_seeds(ours, theirs)
    assert found.low is None and found.p is None and found.value == pytest.approx(np.mean(found.by_seed))
    ours, theirs = world(2, 0.02, num_images=5)
    assert difference_over_seeds(ours, theirs).t_low is None


def test_equal_arms_differ_by_nothing():
    ours, _ = world(3, 0.0)
    found = difference_over_seeds(ours, ours)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_other_images_and_other_seeds_are_refused():
    ours, theirs = world(4, 0.0)
    with pytest.raises(ValueError, match="of 5 and 4 seeds"):
        difference_over_seeds(ours, theirs[:4])
    with pytest.raises(ValueError, match=r"expected \(repeats, images, K, K\) of the same images"):
        difference_over_seeds(ours, [one[:, :50] for one in theirs])
    with pytest.raises(ValueError, match="other images"):
        difference_over_seeds(ours, [np.concatenate([one[:, 1:], 2 * one[:, :1]], axis=1) for one in theirs])


def test_holms_p_values_are_those_of_its_paper():
    """Sorted p times n, n - 1, ..., never below the one before."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"only": 0.2}) == {"only": 0.2} and holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
