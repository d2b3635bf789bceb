"""Temperature scaling (Guo et al. 2017): one number T > 0 by which logits are divided, fitted to labelled pixels.

The mean cross-entropy of softmax(z / T) is convex in beta = 1/T, with the derivatives

    f = mean(logsumexp(beta z) - beta z_y)    f' = mean(E_p[z] - z_y)    f'' = mean(Var_p[z])    p = softmax(beta z)

so that Newton's steps, kept within a bracket of the root of f', find its minimum in a few passes over the pixels. The
division changes no class: the order of the logits stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from dakd.data.sample import IGNORE_INDEX

LOWEST, HIGHEST = 0.05, 20.0  # temperatures; where every pixel is right, the best one would be 0
TOLERANCE = 1e-6  # of T, relative: of the last step of Newton's method
_MAX_PASSES = 60  # a guard: fits take 5 to 10


class Terms(NamedTuple):
    """f, f' and f'' at one beta: sums over pixels, or means."""

    loss: float
    slope: float
    curvature: float


class Fit(NamedTuple):
    """A temperature, and the mean cross-entropy (nats) without it and with it.

    is_at_bound: whether a temperature beyond LOWEST or HIGHEST would be better.
    """

    temperature: float
    loss_before: float
    loss: float
    is_at_bound: bool


def sums_over_pixels(logits: Tensor, label: Tensor, beta: float) -> tuple[Terms, int]:
    """The sums of the three terms over the labelled pixels of an image, in float64, and the number of these pixels.

    logits: (K, H, W), floating.  label: (H, W) class ids; 255 is not counted.  beta: 1 / T.
    """
    counted = label != IGNORE_INDEX
    z = logits[:, counted].double()
    # Distances from the true class's logit: where it is the largest, no rounding makes the slope positive.
    d = z - z.gather(0, label[counted].long()[None])
    p = (beta * d).softmax(0)
    mean = (p * d).sum(0)
    terms = ((beta * d).logsumexp(0), mean, (p * (d - mean).square()).sum(0))
    sums = [term.sum().item() for term in terms]
    return Terms(*sums), int(mean.numel())


def fit_temperature(means_at: Callable[[float], Terms]) -> Fit:
    """The temperature from LOWEST to HIGHEST with the smallest mean cross-entropy, to TOLERANCE.

    means_at: the three terms, averaged over all pixels, at a beta; one pass over the pixels a call.
    Raises ValueError where the logits are not finite.
    """
    first = terms = means_at(1.0)
    if not math.isfinite(first.loss):
        raise ValueError(
            f"the mean cross-entropy is {first.loss}; expected a finite number to fit a temperature to: the logits are "
            "NaN or infinite; train at a lower rate"
        )
    beta, low, high = 1.0, 1 / HIGHEST, 1 / LOWEST
    seen_low = seen_high = False  # whether f' was found below and above 0: else the bracket's end is the bound
    for _ in range(_MAX_PASSES):
        # Where f is flat, as where every pixel is right with certainty, more confidence costs nothing.
        if terms.slope > 0:
            high, seen_high = beta, True
        else:
            low, seen_low = beta, True
        if low == high:  # the bound itself was tried, and beyond it f would fall further
            return Fit(1 / beta, first.loss, terms.loss, True)
        newton = _newton(beta, terms)
        if abs(newton - beta) <= TOLERANCE * beta:
            break
        beta = _inside(newton, low, high, seen_low, seen_high)
        terms = means_at(beta)
    return Fit(1 / beta, first.loss, terms.loss, False)


def _newton(beta: float, terms: Terms) -> float:
    """Where Newton's step from beta leads; where f has no curvature, infinitely far down its slope."""
    if terms.curvature > 0:
        return beta - terms.slope / terms.curvature
    return -math.inf if terms.slope > 0 else math.inf


def _inside(beta: float, low: float, high: float, seen_low: bool, seen_high: bool) -> float:
    """beta, or, where it lies outside the bracket, its end that was not tried yet, or else its middle."""
    if low < beta < high:
        return beta
    if beta >= high and not seen_high:
        return high
    if beta <= low and not seen_low:
        return low
    return math.sqrt(low * high)
