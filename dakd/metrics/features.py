"""Frechet distance, kernel distance, precision and recall of two sets of feature vectors, with weights.

Weights serve resamples of images: a set's numbers themselves come from torch-fidelity, which knows no weights and is
too slow to be asked hundreds of times. With weights of one both agree.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(x: Tensor, y: Tensor, x_weights: Tensor, y_weights: Tensor) -> float:
    """|mean - mean'|^2 + tr(S + S' - 2 (S S')^(1/2)) of two sets of features, S their unbiased covariances.

    x: (n, d), y: (m, d) float64.  x_weights, y_weights: how often each vector counts, (n,) and (m,), at least 2 in all.
    """
    x_mean, x_root = _mean_and_root(x, x_weights)
    y_mean, y_root = _mean_and_root(y, y_weights)
    # With S = A^T A and S' = B^T B, S S' has the eigenvalues of M^T M, M = A B^T: tr (S S')^(1/2) is the sum of M's
    # singular values, min(n, m, d) at most
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
    """Share of x (generated) within y's (real) manifold, and of y within x's (Kynkaanniemi et al. 2019).

    xx, yy, xy: distances (n, n), (m, m) and (n, m).  A manifold is the balls about its vectors that reach to the
    nearest of `neighbours` others; vectors of weight 0 are not there, and copies of one are one.
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
    """Distance of each vector to the nearest but `neighbours` - 1; itself, at 0, is not counted."""
    return distances.kthvalue(min(neighbours + 1, len(distances)), dim=1).values
