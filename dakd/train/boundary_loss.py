"""A differentiable F1 of class boundaries: CBD-Net's boundary term, for any student.

    b(v) = v - erosion_3x3(v)                  inner boundary of a class map v in [0, 1]
    P    = (sum b(p) dilation_5x5(b(y)) + 1) / (sum b(p) + 1)
    R    = (sum b(y) dilation_5x5(b(p)) + 1) / (sum b(y) + 1)
    loss = mean over classes of 1 - 2 P R / (P + R)

with p = softmax(logits) and y the one-hot mask. The form and the windows are those of CBD-Net's public code, after
Bokhovkin and Burnaev 2019. Inferred here: the term is added, with a weight, to the other losses (there it multiplies
them); it is one of each sample; and each sum counts one pixel more, so that a class that is absent from both has no
loss, and one that is predicted where there is none has some.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.kernels.contract import compute_dtype

_BOUNDARY, _TOLERANCE = 3, 5  # sides of the windows, pixels


def boundary_loss(logits: Tensor, labels: Tensor, teacher_row: Tensor | None = None) -> Tensor:
    """(B,) losses from 0 to 1, fp32 (fp64 for fp64 logits).

    A sample without a labelled pixel, or with soft labels, has loss 0 and no gradient.

    logits: (B, K, H, W).  labels: (B, H, W) class ids; any other number marks a pixel without a label.
    teacher_row: (B,) int64, -1 for samples with labels of their own; None when all are such.

    A pixel that has none but labelled pixels around it is compared; so an unlabelled one has no gradient.
    """
    num_classes = logits.shape[1]
    label = labels.to(torch.int64)
    is_labelled = (label >= 0) & (label < num_classes)
    if teacher_row is not None:
        is_labelled &= (teacher_row < 0)[:, None, None]
    p = logits.to(compute_dtype(logits.dtype)).softmax(dim=1)
    y = torch.zeros_like(p).scatter_(1, (label * is_labelled).unsqueeze(1), 1)
    counts = _eroded(is_labelled.unsqueeze(1).to(p.dtype), _BOUNDARY)
    predicted, actual = ((v - _eroded(v, _BOUNDARY)) * counts for v in (p, y))
    precision = _share(predicted, _dilated(actual, _TOLERANCE))
    recall = _share(actual, _dilated(predicted, _TOLERANCE))
    return (1 - 2 * precision * recall / (precision + recall)).mean(dim=1)


def _share(boundary: Tensor, near: Tensor) -> Tensor:
    """(B, K): how much of a boundary lies where `near` is."""
    return ((boundary * near).sum(dim=(2, 3)) + 1) / (boundary.sum(dim=(2, 3)) + 1)


def _dilated(v: Tensor, window: int) -> Tensor:
    """The largest of the window's pixels that lie in the image."""
    return F.max_pool2d(v, window, stride=1, padding=window // 2)


def _eroded(v: Tensor, window: int) -> Tensor:
    return -_dilated(-v, window)
