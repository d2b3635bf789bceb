"""Distances between two weighted sets: of numbers (Wasserstein and others), of feature vectors (Frechet, kernel).

A weight says how often an image was drawn in a resample. The numbers of two whole sets of features come from
torch-fidelity, which knows no weights and would be too slow for hundreds of resamples; with all weights 1 both agree.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def wasserstein(values: np.ndarray, weights: np.ndarray, other_values: np.ndarray, other_weights: np.ndarray) -> float:
    """The first Wasserstein distance, in units of the values: the mean distance that mass has to move.

    values, weights: (n,) of each distribution, weights at least 0 of any sum. NaN where one of them weighs nothing.
    """
    if not (weights.sum() > 0 and other_weights.sum() > 0):
        return math.nan
    places = np.concatenate([values, other_values])
    masses = np.concatenate([weights / weights.sum(), -other_weights / other_weights.sum()])
    order = np.argsort(places, kind="stable")
    # W1 is the area between the cumulative distributions.
    gaps = np.abs(np.cumsum(masses[order])[:-1])
    return float((gaps * np.diff(places[order])).sum())


def histogram_wasserstein(counts: np.ndarray, other_counts: np.ndarray) -> float:
    """The same for histograms over 0, 1, 2, ...: (n,) counts each."""
    if not (counts.sum() > 0 and other_counts.sum() > 0):
        return math.nan
    difference = counts / counts.sum() - other_counts / other_counts.sum()
    return float(np.abs(np.cumsum(difference)).sum())


def total_variation(counts: np.ndarray, other_counts: np.ndarray) -> float:
    """Half the sum of the absolute differences of two distributions' shares, 0 .. 1: the mass that has to move."""
    if not (counts.sum() > 0 and other_counts.sum() > 0):
        return math.nan
    return float(np.abs(counts / counts.sum() - other_counts / other_counts.sum()).sum() / 2)


def spectral_distance_db(power: np.ndarray, other_power: np.ndarray) -> float:
    """Log-spectral distance: root mean square over the frequencies of 10 log10 of the ratio, dB."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = 10 * np.log10(power / other_power)
    return float(np.sqrt((ratios**2).mean())) if np.isfinite(ratios).all() else math.nan


# --- feature vectors --------------------------------------------------------------------------------------------------


def frechet_distance(x: Tensor, y: Tensor, x_weights: Tensor, y_weights: Tensor) -> float:
    """|mean - mean'|^2 + tr(S + S' - 2 (S S')^(1/2)) of two sets of features, S their unbiased covariances.

    x: (n, d), y: (m, d) float64.  x_weights, y_weights: how often each vector counts, (n,) and (m,), at least 2 in all.
    """
    x_mean, x_root = _mean_and_root(x, x_weights)
    y_mean, y_root = _mean_and_root(y, y_weights)
    # With S = A^T A and S' = B^T B, S S' has the eigenvalues of M^T M, M = A B^T. So tr (S S')^(1/2) is the sum of the
    # singular values of M, of which there are min(n, m, d) at most: a small problem where there are few images.
    product = x_root @ y_root.T
    product = product if product.shape[0] <= product.shape[1] else product.T
    singular = torch.linalg.eigvalsh(product @ product.T).clamp_min(0).sqrt()
    traces = (x_root**2).sum() + (y_root**2).sum()
    return float(((x_mean - y_mean) ** 2).sum() + traces - 2 * singular.sum())


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(n, m): (x y / d + 1)^3, the kernel of KID (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(xx: Tensor, yy: Tensor, xy: Tensor, x_weights: Tensor, y_weights: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy from the kernels (n, n), (m, m) and (n, m) of two sets.

    A vector that counts several times is not paired with itself: such pairs would make the distance larger.
    """
    within = _mean_of_pairs(xx, x_weights) + _mean_of_pairs(yy, y_weights)
    return float(within - 2 * (x_weights @ xy @ y_weights) / (x_weights.sum() * y_weights.sum()))


def precision_recall(
    xx: Tensor, yy: Tensor, xy: Tensor, x_weights: Tensor, y_weights: Tensor, neighbours: int = 3
) -> tuple[float, float]:
    """The share of x (generated) within the manifold of y (real), and that of y within the manifold of x.

    Kynkaanniemi et al. 2019.

    xx, yy, xy: distances (n, n), (m, m) and (n, m).  A manifold is the union of balls about its vectors, each
    reaching to the vector's k-th nearest other one, k = `neighbours`. Vectors of weight 0 are left out, and copies
    count once.
    """
    x_in, y_in = x_weights > 0, y_weights > 0
    xy, x_weights, y_weights = xy[x_in][:, y_in], x_weights[x_in], y_weights[y_in]
    x_radii = _radii(xx[x_in][:, x_in], neighbours)
    y_radii = _radii(yy[y_in][:, y_in], neighbours)
    precision = (xy <= y_radii).any(dim=1).to(x_weights.dtype) @ x_weights / x_weights.sum()
    recall = (x_radii >= xy.T).any(dim=1).to(y_weights.dtype) @ y_weights / y_weights.sum()
    return float(precision), float(recall)


def _mean_and_root(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,), and A with A^T A the covariance: at most d rows."""
    x, weights = x[weights > 0], weights[weights > 0]
    mean = weights @ x / weights.sum()
    root = (x - mean) * (weights / (weights.sum() - 1)).sqrt()[:, None]
    return mean, root if len(root) <= root.shape[1] else torch.linalg.qr(root, mode="r").R


def _mean_of_pairs(kernel: Tensor, weights: Tensor) -> Tensor:
    pairs = weights.sum() ** 2 - (weights**2).sum()
    return (weights @ kernel @ weights - (weights**2) @ kernel.diagonal()) / pairs


def _radii(distances: Tensor, neighbours: int) -> Tensor:
    """Distance of each vector to its k-th nearest other one, k = `neighbours`; its own distance of 0 is not counted."""
    return distances.kthvalue(min(neighbours + 1, len(distances)), dim=1).values
