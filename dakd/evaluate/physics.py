"""Properties that Inception cannot see: speckle, spectrum, greys, contrast, class shares and edges of two sets.

Each measure is a distance between the real and the synthetic set, with a bootstrap interval over the images of both
(`recentred_interval`) and a yardstick: the same distance between two halves of the real set, the mean over random
halvings. A distance near the yardstick is due to chance.

Of larger real images a random window of the generated size is measured. Measures of the sea need a class called `sea`,
the contrast one called `oil` too; a measure that a class table or the images do not allow is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.evaluate.set_statistics import NUM_GREYS, image_histogram
from dakd.evaluate.students import labels_of
from dakd.evaluate.windows import choose_windows, cut_windows
from dakd.metrics.bootstrap import CONFIDENCE, draw_weights, recentred_interval
from dakd.metrics.confusion import sum_over_ranks
from dakd.metrics.distances import histogram_wasserstein, spectral_distance_db, total_variation, wasserstein
from dakd.metrics.speckle import (
    LAGS,
    LOOKS_MIN_WINDOWS,
    LOOKS_WINDOW,
    equivalent_looks,
    speckle_autocorrelation,
)
from dakd.metrics.texture import edge_agreement, radial_frequencies, radial_spectrum
from dakd.runtime.seeding import Stream, numpy_rng

NUM_RESAMPLES = 200
NUM_HALVINGS = 100
LAG_WINDOW, LAG_MIN_WINDOWS = 16, 2  # pixels: four times the largest lag
EDGE_MIN_PIXELS = 16
FINE = 0.25  # cycles a pixel: higher frequencies are grain rather than shape
_DIGITS = 6  # significant digits of the numbers that are written


@dataclass(frozen=True)
class SetMeasures:
    """Measures of each image of a set, N of them; NaN where an image has no such measure.

    histogram: (N, K, 256) pixels by class and grey.  spectrum: (N, F) grey values^2.  autocorrelation: (N, 8) at LAGS.
    looks_db: (N,) 10 log10 ENL of the sea.  contrast: (N,) median grey of the sea less that of the oil.
    edges: (N,) gradient on the label's boundaries over that elsewhere.
    """

    histogram: np.ndarray
    spectrum: np.ndarray
    autocorrelation: np.ndarray
    looks_db: np.ndarray
    contrast: np.ndarray
    edges: np.ndarray

    def __len__(self) -> int:
        return len(self.histogram)


@dataclass(frozen=True)
class Summary:
    """Measures of a set with its images weighted: pooled where they add up, else by image.

    histogram: (K, 256).  spectrum: (F,), autocorrelation: (8,): means.  by_image: values and weights, by measure.
    """

    histogram: np.ndarray
    spectrum: np.ndarray
    autocorrelation: np.ndarray
    by_image: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Measure:
    """value: the number of one set, or None.  distance: between two sets; NaN where one has no such measure.

    has_it: (N,) bool, the images that have it.  highest: the largest distance there can be.
    is_share: whether images that do not have it bear on it too, as those without oil do on the share of oil.
    """

    title: str
    unit: str
    value: Callable[[Summary], float] | None
    distance: Callable[[Summary, Summary], float]
    has_it: Callable[[SetMeasures], np.ndarray]
    highest: float = math.inf
    is_share: bool = False


# --- one image, one set -----------------------------------------------------------------------------------------------


def measure_set(
    shard_set: ShardSet,
    size: tuple[int, int],
    seed: int,
    rank: int = 0,
    world: int = 1,
    device: str | torch.device = "cpu",
    label: str = "physics",
) -> SetMeasures:
    """Measures of a window of each image of a labelled set, pooled over the ranks; soft labels count by their argmax.

    size: (height, width) of the windows.  Rank r of `world` reads samples i with i % world == r; device: where the
    ranks' sums take place.
    """
    classes, count = shard_set.classes, len(shard_set)
    rings = len(radial_frequencies(size))
    pooled = SetMeasures(
        np.zeros((count, classes.num_classes, NUM_GREYS)),
        np.zeros((count, rings)),
        np.zeros((count, len(LAGS))),
        *(np.zeros(count) for _ in range(3)),
    )
    windows = choose_windows(shard_set, size, count, seed)
    for index, window in cut_windows(shard_set, windows, size, seed, rank, world, label):
        for name, value in measure_image(window, classes).items():
            getattr(pooled, name)[index] = value
    # Every image belongs to one rank and is 0 on the others, so that the sums are exact and NaN stays NaN.
    sums = (sum_over_ranks(torch.as_tensor(array, device=device)) for array in vars(pooled).values())
    return SetMeasures(*(one.cpu().numpy() for one in sums))


def measure_image(sample: Sample, classes: ClassTable) -> dict[str, np.ndarray | float]:
    """The fields of `SetMeasures` for one image."""
    labels = labels_of(sample)
    sea = labels == classes.id_of("sea") if "sea" in classes.names else np.zeros(labels.shape, bool)
    looks = equivalent_looks(sample.sar, sea, LOOKS_WINDOW, LOOKS_MIN_WINDOWS)
    correlation = speckle_autocorrelation(sample.sar, sea, LAG_WINDOW, LAG_MIN_WINDOWS)
    edges = edge_agreement(sample.sar, labels, EDGE_MIN_PIXELS)
    histogram = image_histogram(sample, classes.num_classes)
    return {
        "histogram": histogram,
        "spectrum": radial_spectrum(sample.sar),
        "autocorrelation": np.full(len(LAGS), np.nan) if correlation is None else correlation,
        "looks_db": 10 * math.log10(looks) if looks else math.nan,
        "contrast": _contrast(histogram, classes),
        "edges": math.nan if edges is None else edges,
    }


def summarise(measures: SetMeasures, weights: np.ndarray) -> list[Summary]:
    """One summary for each row of weights (B, N)."""
    weights = weights.astype(np.float64)
    histograms = weights @ measures.histogram.reshape(len(measures), -1)
    spectra = weights @ measures.spectrum / weights.sum(axis=1, keepdims=True)
    has_lags = ~np.isnan(measures.autocorrelation[:, 0])
    lag_weights = weights[:, has_lags]
    with np.errstate(invalid="ignore"):
        correlations = lag_weights @ measures.autocorrelation[has_lags] / lag_weights.sum(axis=1, keepdims=True)
    kept = {name: ~np.isnan(getattr(measures, name)) for name in ("looks_db", "contrast", "edges")}
    values = {name: getattr(measures, name)[keep] for name, keep in kept.items()}
    return [
        Summary(
            histograms[row].reshape(measures.histogram.shape[1:]),
            spectra[row],
            correlations[row],
            {name: (values[name], weights[row, keep]) for name, keep in kept.items()},
        )
        for row in range(len(weights))
    ]


# --- the comparison ---------------------------------------------------------------------------------------------------


def compare_physics(
    real: SetMeasures,
    synthetic: SetMeasures,
    classes: ClassTable,
    size: tuple[int, int],
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> dict:
    """All measures of two sets (JSON-serialisable), each with real, synthetic, distance, low, high and yardstick.

    Of each, num_images: those of both sets that have it; num_bearing: those that its interval rests on.

    A number that a set does not have is None. `curves` holds the spectra and autocorrelations of both sets.
    """
    measures = list_measures(classes)
    sets = (real, synthetic)
    wholes = [summarise(one, np.ones((1, len(one))))[0] for one in sets]
    resampled = [
        summarise(one, draw_weights(num_resamples, len(one), numpy_rng(seed, place, stream=Stream.RESAMPLE)))
        for place, one in enumerate(sets)
    ]
    halves = _halve(real, numpy_rng(seed, len(sets), stream=Stream.RESAMPLE))
    table = {}
    for key, measure in measures.items():
        distance = measure.distance(*wholes)
        drawn = [measure.distance(*pair) for pair in zip(*resampled)]
        num_images = [int(measure.has_it(one).sum()) for one in sets]
        bearing = min(num_images)
        if measure.is_share:
            bearing = min(sum(num_images), *map(len, sets))
        interval = recentred_interval(distance, drawn, 0, measure.highest, num_images=bearing)
        values = [measure.value(one) if measure.value else math.nan for one in wholes]
        table[key] = {
            "title": measure.title,
            "unit": measure.unit,
            "real": _rounded(values[0]),
            "synthetic": _rounded(values[1]),
            "distance": _rounded(distance),
            "low": _rounded(interval.low if interval else math.nan),
            "high": _rounded(interval.high if interval else math.nan),
            "yardstick": _rounded(_mean(measure.distance(*pair) for pair in halves)),
            "num_images": num_images,
            "num_bearing": bearing,
        }
    return {
        "num_images": {"real": len(real), "synthetic": len(synthetic)},
        "size": list(size),
        "resamples": num_resamples,
        "confidence": CONFIDENCE,
        "measures": table,
        "curves": _curves(*wholes, size),
    }


def list_measures(classes: ClassTable) -> dict[str, Measure]:
    """The measures by their key, in the order of the tables."""
    measures = {
        "looks": _by_image("looks_db", "equivalent looks of the sea", "dB"),
        "autocorrelation": Measure(
            "autocorrelation of the sea's speckle, lags 1 to 4",
            "",
            lambda one: float(one.autocorrelation[0]),
            lambda one, other: float(np.sqrt(((one.autocorrelation - other.autocorrelation) ** 2).mean())),
            lambda one: ~np.isnan(one.autocorrelation[:, 0]),
        ),
        "spectrum": Measure(
            "radial power spectrum (sets: power of the grain)",
            "dB",
            _fine_power_db,
            lambda one, other: spectral_distance_db(one.spectrum, other.spectrum),
            _all_images,
        ),
        "contrast": _by_image("contrast", "contrast within an image, sea minus oil", "greys"),
        "edges": _by_image("edges", "image gradient on the label's edges over that elsewhere", ""),
        "greys": _greys("grey histogram", slice(None)),
    }
    for number, name in enumerate(classes.names):
        measures[f"greys_{name}"] = _greys(f"grey histogram of {name}", slice(number, number + 1))
    measures["shares"] = Measure(
        "class shares (total variation)",
        "%",
        None,
        lambda one, other: 100 * total_variation(one.histogram.sum(axis=1), other.histogram.sum(axis=1)),
        _all_images,
        highest=100,
    )
    for number, name in enumerate(classes.names):
        measures[f"share_{name}"] = _share(name, number)
    return measures


def _by_image(field: str, title: str, unit: str) -> Measure:
    """A set's value is the median over its images; the distance is Wasserstein's between their distributions."""
    return Measure(
        title,
        unit,
        lambda one: _weighted_median(*one.by_image[field]),
        lambda one, other: wasserstein(*one.by_image[field], *other.by_image[field]),
        lambda measures: ~np.isnan(getattr(measures, field)),
    )


def _greys(title: str, rows: slice) -> Measure:
    """A set's value is the mean; the distance is Wasserstein's between the pooled histograms."""
    return Measure(
        title,
        "greys",
        lambda one: _mean_grey(one.histogram[rows].sum(axis=0)),
        lambda one, other: histogram_wasserstein(one.histogram[rows].sum(axis=0), other.histogram[rows].sum(axis=0)),
        lambda measures: measures.histogram[:, rows].any(axis=(1, 2)),
        highest=NUM_GREYS - 1,
    )


def _share(name: str, number: int) -> Measure:
    def percent(one: Summary) -> float:
        total = one.histogram.sum()
        return float(100 * one.histogram[number].sum() / total) if total else math.nan

    return Measure(
        f"share of {name}",
        "%",
        percent,
        lambda one, other: abs(percent(one) - percent(other)),
        lambda measures: measures.histogram[:, number].any(axis=1),
        highest=100,
        is_share=True,
    )


def _fine_power_db(one: Summary) -> float:
    """Mean level of the frequencies above `FINE`, dB of grey values^2."""
    places = np.arange(1, len(one.spectrum) + 1) / (2 * len(one.spectrum))
    power = one.spectrum[places >= FINE]
    return float(np.mean(10 * np.log10(power))) if len(power) and (power > 0).all() else math.nan


def _all_images(measures: SetMeasures) -> np.ndarray:
    return np.ones(len(measures), bool)


def _halve(measures: SetMeasures, rng: np.random.Generator) -> list[tuple[Summary, Summary]]:
    """Summaries of the two halves of random halvings; none where there are fewer than four images."""
    half = len(measures) // 2
    if half < 2:
        return []
    orders = np.stack([rng.permutation(len(measures)) for _ in range(NUM_HALVINGS)])
    first, second = orders < half, (orders >= half) & (orders < 2 * half)
    return list(zip(summarise(measures, first), summarise(measures, second)))


def _contrast(histogram: np.ndarray, classes: ClassTable) -> float:
    if not {"sea", "oil"} <= set(classes.names):
        return math.nan
    sea, oil = (histogram[classes.id_of(name)] for name in ("sea", "oil"))
    greys = np.arange(NUM_GREYS)
    return _weighted_median(greys, sea) - _weighted_median(greys, oil)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The median of values that occur as often as their whole weights say; NaN without any."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    if not len(below) or below[-1] <= 0:
        return math.nan
    # The middle one, or the mean of the two in the middle.
    middle = [np.searchsorted(below, below[-1] / 2, side=side) for side in ("left", "right")]
    return float(np.mean(values[order][np.minimum(middle, len(below) - 1)]))


def _mean_grey(counts: np.ndarray) -> float:
    return float(counts @ np.arange(NUM_GREYS) / counts.sum()) if counts.sum() else math.nan


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _curves(real: Summary, synthetic: Summary, size: tuple[int, int]) -> dict:
    def both(field: str) -> dict[str, list[float | None]]:
        return {
            name: [_rounded(value) for value in getattr(one, field).tolist()]
            for name, one in (("real", real), ("synthetic", synthetic))
        }

    frequencies = [_rounded(value) for value in radial_frequencies(size).tolist()]
    return {
        "spectrum": {"cycles_per_pixel": frequencies, **both("spectrum")},
        "autocorrelation": {"lags": [list(lag) for lag in LAGS], **both("autocorrelation")},
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
