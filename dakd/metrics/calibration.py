"""Calibration of a student's confidence: expected calibration error and its reliability table (Guo et al. 2017).

A pixel's confidence is the probability of its predicted class. Over bins of equal width,

    ECE = sum_bins n_bin / n |accuracy_bin - confidence_bin|
"""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.data.sample import IGNORE_INDEX
from dakd.metrics.confusion import as_ids, check_are_integers, check_ids, sum_over_ranks

# Confidences are summed as integers in this unit: integer sums do not depend on the order of images and ranks.
_UNIT = 2**24
_MAX_OFF_ONE = 0.02  # of a sum of probabilities; those in bfloat16 are off by 0.004


NUM_BINS = 15  # as in the paper


class CalibrationCounts:
    """counts: (bins, 3) int64 over all counted pixels of a test set: pixels, correct ones, confidence in 2^-24."""

    def __init__(
        self, num_bins: int = NUM_BINS, ignore_index: int = IGNORE_INDEX, device: str | torch.device = "cpu"
    ) -> None:
        if num_bins < 1:
            raise ValueError(f"num_bins is {num_bins}; expected at least 1")
        self.num_bins, self.ignore_index = num_bins, ignore_index
        self.counts = torch.zeros(num_bins, 3, dtype=torch.int64, device=device)

    def update(self, probabilities: Tensor, target: Tensor) -> CalibrationCounts:
        """Count a batch; probabilities: (B, K, H, W), floating, sums of 1 over K.  target: (B, H, W) integer ids.

        Raises ValueError for other shapes, for numbers that are no probabilities, and for a target of floats or with
        ids beyond the classes.
        """
        if probabilities.ndim != 4 or probabilities[:, 0].shape != target.shape:
            raise ValueError(
                f"probabilities are {tuple(probabilities.shape)}, target {tuple(target.shape)}; "
                "expected (B, K, H, W) and (B, H, W)"
            )
        check_are_integers(target=target)
        probabilities = torch.as_tensor(probabilities)
        _check_are_probabilities(probabilities)
        target = as_ids(target).to(probabilities.device)
        confidence, predicted = probabilities.max(dim=1)
        counted = target != self.ignore_index
        confidence, predicted, target = confidence[counted].double(), predicted[counted], target[counted]
        check_ids(target, "target", probabilities.shape[1])
        bins = (confidence * self.num_bins).long().clamp(max=self.num_bins - 1)
        facts = torch.stack(
            [torch.ones_like(bins), (predicted == target).long(), (confidence * _UNIT).round().long()], dim=1
        )
        self.counts.index_add_(0, bins.to(self.counts.device), facts.to(self.counts.device))
        return self

    def all_reduce(self) -> CalibrationCounts:
        """Sum over the ranks of the default process group, exactly."""
        sum_over_ranks(self.counts)
        return self

    def to_dict(self) -> dict:
        """ece: a fraction; bins: low, high, pixels, accuracy and confidence, the last two None in an empty bin.

        JSON-serialisable. Raises ValueError where no pixel was counted.
        """
        counts = self.counts.cpu().tolist()
        num_pixels = sum(pixels for pixels, _, _ in counts)
        if not num_pixels:
            raise ValueError("no pixel was counted; give images with labels other than unknown (255)")
        bins = [
            {
                "low": place / self.num_bins,
                "high": (place + 1) / self.num_bins,
                "pixels": pixels,
                "accuracy": correct / pixels if pixels else None,
                "confidence": confidence / _UNIT / pixels if pixels else None,
            }
            for place, (pixels, correct, confidence) in enumerate(counts)
        ]
        gaps = sum(abs(correct - confidence / _UNIT) for _, correct, confidence in counts)
        return {"ece": gaps / num_pixels, "num_pixels": num_pixels, "bins": bins}


def _check_are_probabilities(values: Tensor) -> None:
    """ValueError for logits, percent, bytes and NaN; values: (B, K, ...)."""
    if not values.numel():
        return
    least, furthest = values.min().item(), (values.sum(dim=1, dtype=torch.float64) - 1).abs().max().item()
    if not (values.is_floating_point() and least >= 0 and furthest <= _MAX_OFF_ONE):
        raise ValueError(
            f"probabilities are {values.dtype} from {least:g} to {values.max().item():g}, whose sums over the classes "
            f"differ from 1 by up to {furthest:g}; expected numbers from 0 to 1 with the sum 1: take the softmax of "
            "logits, and divide percent by 100"
        )
