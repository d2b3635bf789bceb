"""Boundary IoU (Cheng et al. 2021): the IoU of the bands along the contours, which large areas cannot drown.

The band of a mask is its pixels within d pixels (in a square of 2d+1) of a pixel outside it; d is a share of the
image's diagonal. As in that paper and its code, all that lies beyond the image is outside: where the frame cuts off a
slick or the sea, the pixels along it are in the band. A student finds those easily, so the number is higher than that
of `frame=False`, the inner boundary IoU, whose contours end at the frame, where there is no outline to find. Not from
the paper, whose masks have no unknown pixels: the rim of an unknown area is no contour, and its pixels are not counted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dakd.data.sample import IGNORE_INDEX
from dakd.metrics.confusion import as_ids, check_are_integers, check_ids, sum_over_ranks

WIDTH = 0.02  # of a band, as a share of the image's diagonal, as in the paper


class BoundaryCounts:
    """counts: (K, 2) int64, pooled over a test set: pixels in both bands, and in at least one.

    width: d as a share of the image's diagonal (at least one pixel).
    frame: whether the image's frame is part of the contours, as in the paper; False is the inner boundary IoU.
    """

    def __init__(
        self,
        num_classes: int,
        width: float = WIDTH,
        ignore_index: int = IGNORE_INDEX,
        device: str | torch.device = "cpu",
        frame: bool = True,
    ) -> None:
        if not 0 < width < 1:
            raise ValueError(f"the boundary's width is {width}; expected a share of the diagonal between 0 and 1")
        self.num_classes, self.width, self.ignore_index, self.frame = num_classes, width, ignore_index, frame
        self.counts = torch.zeros(num_classes, 2, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor) -> BoundaryCounts:
        """Count a batch; prediction, target: (B, H, W) integer class ids, ignored pixels in the target.

        Raises ValueError for other shapes, for numbers that are no integers, and for ids beyond the classes.
        """
        if prediction.shape != target.shape or prediction.ndim != 3:
            found = f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}"
            raise ValueError(f"{found}; expected (B, H, W) for both")
        distance = max(1, round(self.width * math.hypot(*prediction.shape[1:])))
        check_are_integers(prediction=prediction, target=target)
        prediction, target = as_ids(prediction), as_ids(target)
        unknown = target == self.ignore_index
        for what, ids in (("prediction", prediction), ("target", target)):
            check_ids(torch.where(unknown, 0, ids), what, self.num_classes)
        for class_id in range(self.num_classes):
            truth = band(target == class_id, distance, unknown, self.frame)
            guess = band((prediction == class_id) & ~unknown, distance, unknown, self.frame)
            counts = torch.stack([(truth & guess).sum(), (truth | guess).sum()])
            self.counts[class_id] += counts.to(self.counts.device)
        return self

    def all_reduce(self) -> BoundaryCounts:
        """Sum over the ranks of the default process group, exactly."""
        sum_over_ranks(self.counts)
        return self

    def to_dict(self, class_names: tuple[str, ...]) -> dict:
        """The boundary IoU of each class that has a contour in truth or prediction, and their mean; JSON-serialisable.

        mean: None where no class has a contour; absent: the classes without one.
        """
        per_class = {
            name: common / either for name, (common, either) in zip(class_names, self.counts.tolist()) if either
        }
        return {
            "width": self.width,
            "mean": sum(per_class.values()) / len(per_class) if per_class else None,
            "per_class": per_class,
            "absent": [name for name in class_names if name not in per_class],
        }


def band(mask: Tensor, distance: int, unknown: Tensor | None = None, frame: bool = True) -> Tensor:
    """(B, H, W) bool: the pixels of `mask` within `distance` of one outside it.

    unknown: pixels that are not outside.  frame: whether all beyond the image is.
    """
    outside = ~mask if unknown is None else ~(mask | unknown)
    near = _any_within(_any_within(outside, distance, 1), distance, 2)
    if frame:
        near[:, :distance] = near[:, -distance:] = True
        near[..., :distance] = near[..., -distance:] = True
    return mask & near


def _any_within(mask: Tensor, distance: int, dim: int) -> Tensor:
    """Whether a pixel at most `distance` away along `dim` is set, by running sums: equally fast at any distance."""
    length = mask.shape[dim]
    sums = torch.nn.functional.pad(mask.transpose(dim, -1).cumsum(-1, dtype=torch.int32), (1, 0))
    places = torch.arange(length, device=mask.device)
    after, before = (places + distance + 1).clamp(max=length), (places - distance).clamp(min=0)
    return (sums[..., after] > sums[..., before]).transpose(dim, -1)
