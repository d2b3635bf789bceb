"""Distances of weighted numbers, against scipy and by hand; of weighted features, against torch-fidelity."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch

from dakd.metrics.distances import (
    frechet_distance,
    histogram_wasserstein,
    kernel_distance,
    polynomial_kernel,
    precision_recall,
    spectral_distance_db,
    total_variation,
    wasserstein,
)
from dakd.models.encoders import import_beside_torchvision

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


# --- feature vectors --------------------------------------------------------------------------------------------------

SHAPES = [(30, 50, 8), (20, 26, 40), (60, 24, 32)]  # more vectors than features, fewer, and both


def features(rows: int, columns: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    return torch.randn(rows, columns, generator=generator) @ mix + shift


def library(module: str) -> ModuleType:
    """A part of torch-fidelity, even where the compiled part of torchvision does not fit this torch."""
    return import_beside_torchvision(module, "this test", "eval")


def ones(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(x), dtype=torch.float64)


@pytest.mark.parametrize("n,m,d", SHAPES)
def test_frechet_distance_equals_torch_fidelitys_and_scipys(n, m, d):
    fid = library("torch_fidelity.metric_fid")
    linalg = pytest.importorskip("scipy.linalg")
    x, y = features(n, d, 0), features(m, d, 1, shift=0.3)
    found = frechet_distance(x.double(), y.double(), ones(x), ones(y))
    statistics = [fid.fid_features_to_statistics(one) for one in (x, y)]
    wanted = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    assert found == pytest.approx(wanted, rel=1e-4)
    if min(n, m) > d:
        root = linalg.sqrtm(statistics[0]["sigma"] @ statistics[1]["sigma"]).real
        mean = x.double().mean(0) - y.double().mean(0)
        traces = statistics[0]["sigma"].trace() + statistics[1]["sigma"].trace() - 2 * root.trace()
        assert found == pytest.approx(float(mean @ mean) + traces, rel=1e-8)


def test_frechet_distance_of_shifted_and_stretched_copies_by_hand():
    # Means differ by 3 in one of 4 features; all deviations double: tr(S + 4S - 2 * 2S) = tr S.
    x = features(40, 4, 0).double()
    assert frechet_distance(x, x, ones(x), ones(x)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + torch.tensor([3.0, 0, 0, 0]), ones(x), ones(x)) == pytest.approx(9)
    stretched = x.mean(0) + 2 * (x - x.mean(0))
    assert frechet_distance(x, stretched, ones(x), ones(x)) == pytest.approx(float(x.var(0).sum()))


@pytest.mark.parametrize("n,m,d", SHAPES)
def test_weights_count_as_copies(n, m, d):
    x, y = features(n, d, 0).double(), features(m, d, 1).double()
    generator = torch.Generator().manual_seed(2)
    wx, wy = (torch.randint(0, 3, (len(one),), generator=generator).double() for one in (x, y))
    copies = [one.repeat_interleave(weights.long(), 0) for one, weights in ((x, wx), (y, wy))]
    wanted = frechet_distance(*copies, ones(copies[0]), ones(copies[1]))
    assert frechet_distance(x, y, wx, wy) == pytest.approx(wanted, rel=1e-6)


def test_kernel_distance_equals_torch_fidelitys():
    kid = library("torch_fidelity.metric_kid")
    x, y = features(40, 12, 0), features(40, 12, 1, shift=0.2)
    result = kid.kid_features_to_metric(x.double(), y.double(), kid_subsets=1, kid_subset_size=40, verbose=False)
    found = kernel_distance(*_all_pairs(polynomial_kernel, x.double(), y.double()), ones(x), ones(y))
    assert found == pytest.approx(result[kid.KEY_METRIC_KID_MEAN], rel=1e-9)


def test_a_copy_is_not_paired_with_itself():
    # By hand: x has vectors a, a, b; of its 6 ordered pairs those of a with a are left out, and 4 of a with b remain.
    kernel = torch.tensor([[9.0, 2.0], [2.0, 7.0]], dtype=torch.float64)
    weights = torch.tensor([2.0, 1.0], dtype=torch.float64)
    single = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert kernel_distance(kernel, kernel, kernel, weights, single) == pytest.approx(2 + 2 - 2 * (22 + 9) / 6)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_precision_and_recall_equal_torch_fidelitys(shift):
    prc = library("torch_fidelity.metric_prc")
    x, y = features(40, 6, 0), features(50, 6, 1, shift=shift)
    wanted = prc.prc_features_to_metric(x, y, prc_neighborhood=3, verbose=False)
    found = precision_recall(*_all_pairs(torch.cdist, x, y), ones(x).float(), ones(y).float(), neighbours=3)
    assert found == pytest.approx((wanted[prc.KEY_METRIC_PRECISION], wanted[prc.KEY_METRIC_RECALL]))


def test_copies_neither_shrink_a_manifold_nor_are_vectors_that_were_not_drawn_in_it():
    # On a line: x at 0, 1, 2, 9 and y at 0.5, 5; one neighbour.
    x, y = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.tensor([[0.5], [5.0]])
    pairs = _all_pairs(torch.cdist, x, y)
    # y's balls reach 4.5: from 0.5 to all but 9, from 5 to 0.5 and beyond 9.
    assert precision_recall(*pairs, torch.ones(4), torch.ones(2), 1) == (1.0, 1.0)
    # 9 not drawn, 0 three times: the balls of x reach 1, so that y at 5 is outside.
    assert precision_recall(*pairs, torch.tensor([3.0, 1, 1, 0]), torch.ones(2), 1) == (1.0, 0.5)


def _all_pairs(function, x, y):
    return function(x, x), function(y, y), function(x, y)
