"""Distances between two distributions of numbers, with weights, as resamples of images have them."""

from __future__ import annotations

import math

import numpy as np


def wasserstein(
    values: np.ndarray, weights: np.ndarray, other_values: np.ndarray, other_weights: np.ndarray
) -> float:
    """The first Wasserstein distance, in units of the values: how far mass has to move in the mean.

    values, weights: (n,) of each distribution, weights at least 0 of any sum. NaN where one of them weighs nothing.
    """
    if not (weights.sum() > 0 and other_weights.sum() > 0):
        return math.nan
    places = np.concatenate([values, other_values])
    masses = np.concatenate([weights / weights.sum(), -other_weights / other_weights.sum()])
    order = np.argsort(places, kind="stable")
    # W1 is the area between the cumulative distributions
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
