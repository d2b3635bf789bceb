"""How far one set of pairs is from another that was made from the same start noise: images, labels, and whole sets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dakd.data.sample import ClassTable, Sample
from dakd.data.soft_labels import likeliest_class
from dakd.diffusion.sampler import to_grey
from dakd.evaluate.physics import SetMeasures, Summary, list_measures, measure_image, summarise
from dakd.metrics.confusion import count_pairs
from dakd.metrics.scores import pooled_score


@dataclass(frozen=True)
class Pairs:
    """N pairs as the sampler makes them.  image: (N, H, W) fp32 in [-1, 1].  logits: (N, K, H, W) fp32."""

    image: np.ndarray
    logits: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N, H, W) uint8, the likeliest class."""
        return np.stack([likeliest_class(one) for one in self.logits])

    def samples(self) -> list[Sample]:
        """The pairs as a set holds them, with 8-bit images."""
        grey = to_grey(torch.from_numpy(self.image)).numpy()
        return [Sample(f"{i}", sar, soft_label=self.logits[i]) for i, sar in enumerate(grey)]


def compare(pairs: Pairs, other: Pairs) -> dict[str, float]:
    """Distances of pairs to those of the same start noise.

    rms: root mean square of the images' difference, in [-1, 1].  agreement: share of the pixels with the same likeliest
    class.  miou: of the class maps, a mean over the classes that occur.  kl: mean over the pixels of KL(other || pairs)
    of the soft labels at temperature 1, in nats.
    """
    counts = count_pairs(torch.from_numpy(pairs.labels), torch.from_numpy(other.labels), pairs.logits.shape[1])
    return {
        "rms": float(np.sqrt(np.mean((pairs.image.astype(np.float64) - other.image) ** 2))),
        "agreement": float((pairs.labels == other.labels).mean()),
        "miou": float(pooled_score(counts.numpy(), "miou")),
        "kl": float(np.mean([_divergence(*both) for both in zip(other.logits, pairs.logits)])),
    }


def _divergence(true: np.ndarray, other: np.ndarray) -> float:
    """Mean over the pixels of KL(true || other); logits (K, H, W)."""
    true, other = (torch.from_numpy(one).double().log_softmax(dim=0) for one in (true, other))
    return float((true.exp() * (true - other)).sum(dim=0).mean())


def measure_pairs(pairs: Pairs, classes: ClassTable) -> SetMeasures:
    """The physics of each pair (see `evaluate.physics`)."""
    each = [measure_image(one, classes) for one in pairs.samples()]
    return SetMeasures(**{name: np.array([one[name] for one in each]) for name in each[0]})


def whole(measures: SetMeasures) -> Summary:
    """The physics of a set, each image counted once."""
    return summarise(measures, np.ones((1, len(measures))))[0]


def physics_distances(one: Summary, other: Summary, classes: ClassTable) -> dict[str, float | None]:
    """The distance of two sets in each measure; None in one that either set lacks."""
    distances = {key: measure.distance(one, other) for key, measure in list_measures(classes).items()}
    return {key: float(value) if math.isfinite(value) else None for key, value in distances.items()}
