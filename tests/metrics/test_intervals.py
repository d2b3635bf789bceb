"""Bootstrap intervals hold what they say: coverage on Gaussians, where the expected distance at N is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dakd.metrics.features import frechet_distance
from dakd.metrics.intervals import draw_weights, recentred_interval


def test_weights_are_resamples():
    weights = draw_weights(500, 40, np.random.default_rng(0))
    assert weights.shape == (500, 40) and (weights.sum(axis=1) == 40).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.2)
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 40) ** 40, abs=0.02)


def test_an_interval_lies_about_the_estimate_and_tells_the_bias():
    drawn = np.linspace(10, 20, 1001)
    found = recentred_interval(5.0, drawn, confidence=0.9)
    assert (found.low, found.high, found.bias) == pytest.approx((0.5, 9.5, 10))
    assert recentred_interval(5.0, drawn, lowest=2, highest=9, confidence=0.9).low == 2
    assert recentred_interval(5.0, [math.nan, 4.0]) is None and recentred_interval(math.nan, drawn) is None


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
        moved.append(recentred_interval(estimates[-1], drawn, lowest=0))
        plain.append(np.quantile(drawn, [0.025, 0.975]))
    wanted = np.mean(estimates)
    covered = np.mean([one.low <= wanted <= one.high for one in moved])
    assert 0.88 <= covered <= 1
    assert np.mean([low <= wanted <= high for low, high in plain]) < 0.5
    # The bias of a resample is near that of a finite N: the distance of the distributions is 0.3^2 * 12 = 1.08.
    assert np.mean([one.bias for one in moved]) == pytest.approx(wanted - 1.08, rel=0.5)
