"""Class shares and grey values of a labelled set: do synthetic labels have the right shares, and their classes the
right greys?

Nearly everything follows exactly from one table per set, the histogram of grey values by class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from dakd.data.sample import IGNORE_INDEX, ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.evaluate.students import labels_of
from dakd.metrics.confusion import sum_over_ranks
from dakd.runtime.runlog import progress

NUM_GREYS = 256
# Titles of the contrasts between sea and oil, and their fields in `set_statistics`.
CONTRASTS = {
    "sea minus oil, grey values": "contrast_grey",
    "sea over oil, dB of the mean greys": "contrast_db",
    "sea minus oil within an image": "contrast_in_image",
}


@dataclass(frozen=True)
class SetCounts:
    """Counts over a set. histogram: (K, 256) int64 pixels by class and grey value.

    contrasts: (N,) by image, mean grey of its sea minus that of its oil; NaN where an image lacks one of them.
    """

    histogram: np.ndarray
    contrasts: np.ndarray


def count_set(
    shard_set: ShardSet, rank: int = 0, world: int = 1, device: str | torch.device = "cpu", label: str = "statistics"
) -> SetCounts:
    """Counts of a labelled set, pooled over the ranks; soft labels count by their argmax.

    Rank r of `world` reads samples i with i % world == r; device: where the ranks' sums take place.
    """
    classes = shard_set.classes
    histogram = np.zeros((classes.num_classes, NUM_GREYS), np.int64)
    contrasts = np.zeros(len(shard_set))
    indices = range(rank, len(shard_set), world)
    for index in progress(indices, len(indices), label):
        one = image_histogram(shard_set.read(index), classes.num_classes)
        histogram += one
        contrasts[index] = _contrast(_mean_greys(one), classes)
    histogram = sum_over_ranks(torch.as_tensor(histogram, device=device)).cpu().numpy()
    # Every image belongs to one rank and is 0 on the others, so that the sum is exact and NaN stays NaN.
    contrasts = sum_over_ranks(torch.as_tensor(contrasts, device=device)).cpu().numpy()
    return SetCounts(histogram, contrasts)


def image_histogram(sample: Sample, num_classes: int) -> np.ndarray:
    """(K, 256) int64 pixels of one image by class and grey value, ignored pixels apart."""
    labels = labels_of(sample)
    counted = labels != IGNORE_INDEX
    pairs = labels[counted].astype(np.int64) * NUM_GREYS + sample.sar[counted]
    return np.bincount(pairs, minlength=num_classes * NUM_GREYS).reshape(num_classes, NUM_GREYS)


def set_statistics(counts: SetCounts, classes: ClassTable) -> dict:
    """Statistics of a set (JSON-serialisable; None where a class has no pixel).

    shares: fraction of the labelled pixels.  mean_grey, std_grey: grey values 0 .. 255, over all pixels of a class.
    contrast_grey: mean grey of all sea minus that of all oil.  contrast_db: 10 log10 of their ratio.
    contrast_in_image: mean over the `images_with_both` of their own sea minus oil: free of the images' brightness.
    """
    pixels = counts.histogram.sum(axis=1)
    means = _mean_greys(counts.histogram)
    squares = counts.histogram @ np.arange(NUM_GREYS, dtype=np.float64) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        spreads = np.sqrt(np.maximum(squares / pixels - means**2, 0))
        shares = pixels / pixels.sum()
    both = counts.contrasts[~np.isnan(counts.contrasts)]
    return {
        "num_images": len(counts.contrasts),
        "num_pixels": int(pixels.sum()),
        "shares": _named(shares, classes),
        "mean_grey": _named(means, classes),
        "std_grey": _named(spreads, classes),
        "contrast_grey": _finite(_contrast(means, classes)),
        "contrast_db": _finite(_ratio_db(means, classes)),
        "contrast_in_image": float(both.mean()) if len(both) else None,
        "images_with_both": len(both),
        "grey_histogram": counts.histogram.tolist(),
    }


def _mean_greys(histogram: np.ndarray) -> np.ndarray:
    """(K,) mean grey value by class; NaN where a class has no pixel."""
    with np.errstate(invalid="ignore"):
        return histogram @ np.arange(NUM_GREYS) / histogram.sum(axis=1)


def _sea_and_oil(means: np.ndarray, classes: ClassTable) -> tuple[float, float]:
    greys = dict(zip(classes.names, means.tolist()))
    return greys.get("sea", math.nan), greys.get("oil", math.nan)


def _contrast(means: np.ndarray, classes: ClassTable) -> float:
    sea, oil = _sea_and_oil(means, classes)
    return sea - oil


def _ratio_db(means: np.ndarray, classes: ClassTable) -> float:
    sea, oil = _sea_and_oil(means, classes)
    return 10 * math.log10(sea / oil) if sea > 0 and oil > 0 else math.nan


def _named(values: np.ndarray, classes: ClassTable) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in zip(classes.names, values.tolist())}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
