"""Differences between two ways of training, over seeds and images at once: what other data and trainings would change.

A unit is a seed: one choice of labelled images, with one teacher, set of pairs and student or with the mean of several.
A resample draws the images with replacement, as `bootstrap` does, and S - 1 of the S seeds: the variance of a mean of
S - 1 draws is the unbiased one of a mean of S (Rao and Wu 1988). Both students of a seed stay together, and all seeds
meet the same images. Repeats within a seed are not drawn: their mean varies between seeds already.

The interval by t looks at the seeds alone, with the images fixed: mean +- t s / sqrt(S). With few seeds percentiles are
too narrow, and t is the one to believe; `p` is its own. Comparisons made at once share one error rate: see `holm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dakd.metrics.bootstrap import CONFIDENCE, MIN_IMAGES, draw_weights
from dakd.metrics.scores import pooled_score

MIN_SEEDS = 3  # below, there is no interval
_CHUNK = 256  # resamples at a time
_BISECTIONS = 60


@dataclass(frozen=True)
class SeedsAndImages:
    """A mean over seeds of differences of scores.

    by_seed: the difference of each seed, a mean over its repeats.  low, high: over seeds and images.  t_low, t_high, p:
    over the seeds alone.  None below MIN_SEEDS or MIN_IMAGES.
    """

    value: float
    by_seed: tuple[float, ...]
    low: float | None
    high: float | None
    t_low: float | None
    t_high: float | None
    p: float | None
    num_images: int
    num_repeats: int

    def to_dict(self) -> dict:
        return asdict(self)


def difference_over_seeds(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    score: str = "miou",
    *,
    num_resamples: int = 2000,
    level: float = CONFIDENCE,
    seed: int = 0,
) -> SeedsAndImages:
    """The score of `ours` minus that of `theirs`, seed by seed.

    ours, theirs: by seed the counts (R, N, K, K) of R repeats on the same N images; R may differ between the two.
    Raises ValueError where the seeds or the images differ.
    """
    _check(ours, theirs)
    num_seeds, num_images = len(ours), ours[0].shape[1]
    by_seed = np.array([_gap(one, two, None, score) for one, two in zip(ours, theirs)])
    low = high = t_low = t_high = p = None
    if num_seeds >= MIN_SEEDS and num_images >= MIN_IMAGES:
        rng = np.random.default_rng(seed)
        draws = _draw(ours, theirs, score, num_resamples, rng)
        tail = 100 * (1 - level) / 2
        low, high = (float(end) for end in np.nanpercentile(draws, [tail, 100 - tail]))
        t_low, t_high, p = _by_t(by_seed, level)
    repeats, values = max(len(one) for one in (*ours, *theirs)), tuple(by_seed.tolist())
    return SeedsAndImages(float(by_seed.mean()), values, low, high, t_low, t_high, p, num_images, repeats)


def mean_score(counts: np.ndarray, times: np.ndarray | None = None, score: str = "miou") -> np.ndarray:
    """The mean over repeats of the score of pooled counts (R, N, K, K): (), or (B,) of resamples.

    times: (B, N) draws of the images; None takes each once.
    """
    repeats, num_images, num_classes = counts.shape[:3]
    if times is None:
        return pooled_score(counts.sum(axis=1), score, None).mean()
    pooled = times @ counts.reshape(repeats, num_images, -1).astype(np.float64)
    return pooled_score(pooled.reshape(repeats, len(times), num_classes, num_classes), score, None).mean(axis=0)


def over_drawn_seeds(by_seed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B,) means over S - 1 draws of the S seeds, others for each resample; by_seed: (S, B)."""
    num_seeds, size = by_seed.shape
    chosen = rng.multinomial(num_seeds - 1, np.full(num_seeds, 1 / num_seeds), size=size)
    return (by_seed * chosen.T).sum(axis=0) / (num_seeds - 1)


def holm(p_values: Mapping[str, float], count: int | None = None) -> dict[str, float]:
    """Holm's adjusted p of several comparisons: those below 0.05 hold together at that rate (Holm 1979).

    count: of the comparisons, where some have no p yet; these are taken to have larger ones.
    """
    ordered, adjusted, largest = sorted(p_values.items(), key=lambda item: item[1]), {}, 0.0
    count = max(count or 0, len(ordered))
    for rank, (name, p) in enumerate(ordered):
        largest = max(largest, min(1.0, (count - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def _check(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    if not ours or len(ours) != len(theirs):
        found = f"counts of {len(ours)} and {len(theirs)} seeds"
        raise ValueError(f"{found}; expected the same seeds of both, at least one")
    shapes = {one.shape[1:] for one in (*ours, *theirs)}
    if len(shapes) > 1 or any(one.ndim != 4 or not len(one) for one in (*ours, *theirs)):
        found = f"counts have the shapes {sorted(shapes)}"
        raise ValueError(f"{found}; expected (repeats, images, K, K) of the same images")
    true_pixels = np.concatenate([*ours, *theirs]).sum(axis=3)
    if (true_pixels != true_pixels[0]).any():
        raise ValueError(
            f"students of {len(ours)} seeds were counted on other images, or in another order; compare by their keys"
        )


def _gap(one: np.ndarray, other: np.ndarray, times: np.ndarray | None, score: str) -> np.ndarray:
    return mean_score(one, times, score) - mean_score(other, times, score)


def _draw(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], score: str, num_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """(num_resamples,) differences."""
    draws = []
    for start in range(0, num_resamples, _CHUNK):
        size = min(_CHUNK, num_resamples - start)
        times = draw_weights(size, ours[0].shape[1], rng).astype(np.float64)
        gaps = np.stack([_gap(one, two, times, score) for one, two in zip(ours, theirs)])
        draws.append(over_drawn_seeds(gaps, rng))
    return np.concatenate(draws)


def _by_t(values: np.ndarray, level: float) -> tuple[float, float, float]:
    """Ends of the interval of the mean, and the two-sided p of a mean of 0, by Student's t."""
    freedom, mean, error = len(values) - 1, float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = t_quantile((1 + level) / 2, freedom) * error
    p = 1.0 if error == 0 and mean == 0 else 0.0 if error == 0 else 2 * t_tail(abs(mean) / error, freedom)
    return mean - half, mean + half, p


def t_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t for t >= 0, by finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2:
        term, total = cosine, 0.0
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= cosine**2 * 2 * k / (2 * k + 1)
        inside = 2 / math.pi * (angle + sine * total)
    else:
        term, total = 1.0, 0.0
        for k in range(freedom // 2):
            total += term
            term *= cosine**2 * (2 * k + 1) / (2 * k + 2)
        inside = sine * total
    return (1 - inside) / 2


def t_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability, 0.5 < probability < 1."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - probability:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - probability else (low, middle)
    return (low + high) / 2
