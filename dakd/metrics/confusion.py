"""Counts of (true class, predicted class) over all pixels of all images and ranks, exact in int64."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dakd.data.sample import IGNORE_INDEX, ClassTable
from dakd.metrics.scores import SegmentationScores, score


class ConfusionMatrix:
    """One matrix pooled over a whole test set, as the paper evaluates.

    counts: (K, K) int64 on `device`; rows are the true class, columns the predicted one.
    Pixels whose true class is `ignore_index` are not counted.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX, device: str | torch.device = "cpu") -> None:
        if num_classes < 2:
            raise ValueError(f"a confusion matrix of {num_classes} class is of no use; give at least 2 classes")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor) -> ConfusionMatrix:
        """Count the pixels of a batch.

        prediction, target: integer class ids of one shape, usually (B, H, W), on any device.
        Raises ValueError for different shapes, for numbers that are no integers, and for ids outside 0 .. K-1 other
        than the ignore index.
        """
        self.counts += count_pairs(prediction, target, self.num_classes, self.ignore_index).to(self.counts.device)
        return self

    def all_reduce(self) -> ConfusionMatrix:
        """Sum over the ranks of the default process group, exactly; without a process group nothing changes."""
        sum_over_ranks(self.counts)
        return self

    def scores(self, classes: ClassTable) -> SegmentationScores:
        """The scores of the counts; classes: names in the order of the ids."""
        return score(self.counts.cpu().numpy(), classes.names)


def count_pairs(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """(K, K) int64 counts of one batch on the prediction's device; arguments as in `ConfusionMatrix.update`."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; give ids of one shape"
        )
    check_are_integers(prediction=prediction, target=target)
    prediction, target = as_ids(prediction), as_ids(target)
    target = target.to(prediction.device)
    counted = target != ignore_index
    true_ids = target[counted].to(torch.int64)
    predicted_ids = prediction[counted].to(torch.int64)
    check_ids(true_ids, "target", num_classes)
    check_ids(predicted_ids, "prediction", num_classes)
    pairs = torch.bincount(true_ids * num_classes + predicted_ids, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def sum_over_ranks(counts: Tensor) -> Tensor:
    """Sum int64 counts over the ranks of the default process group, in place; without a group nothing changes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def check_are_integers(**ids: Tensor | np.ndarray) -> None:
    """ValueError for class ids, by what they are called, that are floats: 0.9 would count as class 0 or as none."""
    for what, array in ids.items():
        if any(kind in str(array.dtype) for kind in ("float", "complex")):
            raise ValueError(f"{what} is {array.dtype}; expected integer class ids: take the argmax of probabilities")


def as_ids(ids: Tensor | np.ndarray) -> Tensor:
    """Integers as a tensor of a dtype that torch computes with, and in which 255 is not -1, as it is in int8."""
    tensor = torch.as_tensor(ids)
    return tensor if tensor.dtype in (torch.uint8, torch.int16, torch.int32) else tensor.to(torch.int64)


def check_ids(ids: Tensor, what: str, num_classes: int) -> None:
    """ValueError for ids outside 0 .. K-1; ids: (N,) integers, without the ignored pixels.  what: names them."""
    if not ids.numel():
        return
    low, high = torch.stack(ids.aminmax()).tolist()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{what} has class ids from {low} to {high}; expected 0 to {num_classes - 1} or the ignore index; check "
            "the class table and the labels"
        )
