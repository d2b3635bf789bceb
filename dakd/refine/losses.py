"""The loss of a student at each pixel of pairs: its means by class and by pair, and the pixels above a limit."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dakd.data.good_records import good_samples
from dakd.data.ordered_records import OnBadRecord
from dakd.data.records import hard_label
from dakd.data.sample import IGNORE_INDEX, ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.data.transforms import to_student
from dakd.runtime.runlog import progress
from dakd.weights import load_student_of


class PairLosses:
    """A student from its weights file, whose loss on pairs is measured.

    Raises ValueError where its classes are not those of the pairs.
    """

    def __init__(self, path: str | Path, classes: ClassTable, device: torch.device) -> None:
        self.device, remedy = device, "give a student of the same dataset"
        self._net = load_student_of(path, classes, device, "pairs", remedy)[0]

    @torch.inference_mode()
    def of(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """The hard label (H, W) uint8 of a pair, and the losses (H, W) float64: -log softmax(s)_y, 0 at ignored pixels.

        The hard label is the stored one, else the likeliest class. The image is alone in its batch, so that a loss
        depends on no other pair.
        """
        label = hard_label(sample)
        logits = self._net(to_student(torch.tensor(sample.sar, device=self.device)[None, None]))[0].double()
        y = torch.tensor(label, device=self.device, dtype=torch.int64)
        is_known = y != IGNORE_INDEX
        nll = -logits.log_softmax(0).gather(0, (y * is_known)[None])[0]
        return label, torch.where(is_known, nll, 0).cpu().numpy()


class Hardness(NamedTuple):
    """Of a set of N pairs and K classes.

    class_pixels: (K,) int64, pixels of each class.  class_losses: (K,) float64, their mean loss, 0 where there is none.
    pair_losses: (N,) float64, the mean loss of each pair's pixels that are not ignored, 0 where all are.
    """

    class_pixels: np.ndarray
    class_losses: np.ndarray
    pair_losses: np.ndarray

    @property
    def ranks(self) -> np.ndarray:
        """(N,) from 1 for the pair of the smallest loss to N; of equal ones the first in the set is the easier."""
        ranks = np.empty(len(self.pair_losses), np.int64)
        ranks[np.argsort(self.pair_losses, kind="stable")] = np.arange(1, len(ranks) + 1)
        return ranks


def measure_set(
    pairs: ShardSet, student: PairLosses, on_bad_record: OnBadRecord | None = None
) -> tuple[list[int], Hardness]:
    """One pass over the set: the places of the pairs that can be read, and their hardness; sums in float64.

    Damaged pairs raise BadRecord or are left out, see `good_samples`.
    """
    pixels, sums, means, places = np.zeros(256, np.int64), np.zeros(256), [], []
    good = good_samples(pairs, range(len(pairs)), on_bad_record, "refine")
    for place, sample in progress(good, len(pairs), "refine: losses"):
        places.append(place)
        label, losses = student.of(sample)
        pixels += np.bincount(label.ravel(), minlength=256)
        sums += np.bincount(label.ravel(), losses.ravel(), minlength=256)
        means.append(losses.sum() / max(1, np.count_nonzero(label != IGNORE_INDEX)))
    known = slice(pairs.classes.num_classes)
    return places, Hardness(pixels[known], sums[known] / np.maximum(1, pixels[known]), np.array(means))


def gated(label: np.ndarray, losses: np.ndarray, class_losses: np.ndarray, factor: float) -> np.ndarray:
    """(H, W): the label, IGNORE_INDEX where a loss is larger than `factor` times the mean of its class (K,)."""
    limits = np.full(256, np.inf)
    limits[: len(class_losses)] = factor * class_losses
    return np.where(losses > limits[label], np.uint8(IGNORE_INDEX), label)
