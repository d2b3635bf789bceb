"""Distances between weighted distributions, against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dakd.metrics.distances import histogram_wasserstein, spectral_distance_db, total_variation, wasserstein

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("seed", range(5))
def test_wasserstein_equals_scipys_with_weights_and_ties(seed):
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, 9, 40).astype(float), rng.normal(3, 4, 25)
    weights, other_weights = rng.integers(0, 4, 40), rng.random(25)
    wanted = stats.wasserstein_distance(one, other, weights, other_weights)
    assert wasserstein(one, weights, other, other_weights) == pytest.approx(wanted, rel=1e-12)


def test_wasserstein_of_histograms_equals_scipys_and_a_shift_is_its_distance():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 50, (2, 256))
    wanted = stats.wasserstein_distance(np.arange(256), np.arange(256), one, other)
    assert histogram_wasserstein(one, other) == pytest.approx(wanted, rel=1e-12)
    assert histogram_wasserstein(np.array([3, 1, 0, 0]), np.array([0, 0, 6, 2])) == 2


def test_shares_are_as_far_apart_as_the_mass_that_has_to_move():
    assert total_variation(np.array([90, 10, 0]), np.array([5, 3, 2])) == pytest.approx(0.4)
    assert total_variation(np.array([1, 0]), np.array([0, 9])) == 1


def test_a_power_ten_times_larger_at_half_of_the_frequencies_is_ten_over_root_two_db():
    assert spectral_distance_db(np.array([1.0, 5.0]), np.array([10.0, 5.0])) == pytest.approx(10 / math.sqrt(2))


def test_without_mass_or_power_there_is_no_distance():
    none, some = np.zeros(3), np.ones(3)
    assert math.isnan(wasserstein(some, none, some, some)) and math.isnan(histogram_wasserstein(none, some))
    assert math.isnan(total_variation(some, none)) and math.isnan(spectral_distance_db(none, some))
