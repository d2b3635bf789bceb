"""Bootstrap over images: how far a number of a set of images would move with other images of the same origin.

A resample draws as many images as there are, with replacement; it is held as how often each image was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """low, high: ends of the interval.  bias: how far the resamples lie above the estimate in the mean."""

    low: float
    high: float
    bias: float


def draw_weights(num_resamples: int, num_images: int, rng: np.random.Generator) -> np.ndarray:
    """(num_resamples, num_images) int64: how often each resample has each image; rows sum to num_images."""
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=num_resamples)


def recentred_interval(
    estimate: float,
    resampled: Sequence[float],
    lowest: float = -math.inf,
    highest: float = math.inf,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """The percentiles of the resamples, moved by their bias so that they lie about the estimate.

    A distance between sets grows when images repeat: resamples of FID lie above it by about as much as FID at N images
    lies above FID at infinitely many. Moved, the interval tells how the number at this N varies. It does not take the
    bias of a finite N away, which sets of equal N share.

    resampled: NaN where a resample has no such number; None with fewer than two others.  lowest, highest: what the
    number cannot leave; the interval is cut there.
    """
    known = np.asarray(resampled, dtype=np.float64)
    known = known[np.isfinite(known)]
    if len(known) < 2 or not math.isfinite(estimate):
        return None
    bias = float(known.mean()) - estimate
    ends = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2]) - bias
    low, high = np.clip(ends, lowest, highest).tolist()
    return Interval(low, high, bias)
