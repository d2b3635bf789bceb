"""The definition of seg_loss, in plain PyTorch; the formulas of the losses stand in api.py.

With p = softmax(s), and per sample the upstream gradients gce, gkd, gdice:

CE:    ds += gce w_y / (sum w_y) (p - onehot(y))                      on labelled pixels
KD:    ds += gkd / (H W tau) (softmax(s / tau) - softmax(z / tau))
Dice:  ds += gdice p (e - sum_c p_c e_c),  e_c = offset_c + slope_c r_c,  on labelled pixels, where
       soft:         offset = (2 I + smooth) / (K U^2),  slope = -2 / (K U),  U = P + R + smooth
       generalized:  offset = 2 w N / V^2,  slope = -2 w / V,  N = sum w I,  V = sum w (P + R)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.kernels.contract import compute_dtype
from dakd.kernels.seg_loss.ops import Operands, Outputs, Upstream


class _Targets(NamedTuple):
    """The labels and the teacher, by sample.

    is_real: (B,).  label: (B, H, W) int64, 0 where there is none.  labelled: (B, H, W), False on synthetic samples.
    num_invalid: int64 scalar.  teacher: (B, K, H, W) logits by sample, arbitrary for real ones; None without a teacher.
    """

    is_real: Tensor
    label: Tensor
    labelled: Tensor
    num_invalid: Tensor
    teacher: Tensor | None


class _DiceTerms(NamedTuple):
    """The sums I, P, R (B, K)."""

    overlap: Tensor
    predicted: Tensor
    actual: Tensor


def forward(operands: Operands, outputs: Outputs) -> None:
    ce, kd, dice, num_invalid, coefficients = outputs
    temperature, dice_samples = operands.temperature, operands.dice_samples
    inverse_weight, offset, slope = _split(coefficients)
    logits = operands.logits.to(compute_dtype(operands.logits.dtype))
    targets = _read_targets(operands, logits.dtype)
    num_invalid.copy_(targets.num_invalid)
    weight = _pixel_weights(targets, operands.class_weights, logits.dtype)
    total = weight.sum((1, 2))
    inverse_weight.copy_(torch.where(total > 0, total.reciprocal(), 0))
    nll = F.nll_loss(logits.log_softmax(1), targets.label, reduction="none")
    ce.copy_(torch.where(weight > 0, weight * nll, 0).sum((1, 2)) * inverse_weight)
    kd.zero_()
    if targets.teacher is not None:
        soft_label = (targets.teacher / temperature).softmax(1)
        per_pixel = -(soft_label * (logits / temperature).log_softmax(1)).sum(1)
        kd.copy_(torch.where(targets.is_real, 0, per_pixel.mean((1, 2))))
    for part in (dice, offset, slope):
        part.zero_()
    if dice_samples != "none":
        terms = _dice_terms(logits.softmax(1), targets, dice_samples)
        dice.copy_(_dice(terms, operands.dice_form, operands.dice_smooth))
        for part, value in zip((offset, slope), _dice_slopes(terms, operands.dice_form, operands.dice_smooth)):
            part.copy_(value)


def backward(operands: Operands, upstream: Upstream, dlogits: Tensor) -> None:
    dce, dkd, ddice, coefficients = upstream
    temperature, dice_samples = operands.temperature, operands.dice_samples
    logits = operands.logits.to(compute_dtype(operands.logits.dtype))
    targets = _read_targets(operands, logits.dtype)
    p = logits.softmax(1)
    inverse_weight, offset, slope = _split(coefficients)
    weight = (dce * inverse_weight)[:, None, None] * _pixel_weights(targets, operands.class_weights, logits.dtype)
    gradient = weight.unsqueeze(1) * (p - _onehot(targets.label, p))
    if targets.teacher is not None:
        scale = torch.where(targets.is_real, 0, dkd) / (temperature * logits[0, 0].numel())
        gap = (logits / temperature).softmax(1) - (targets.teacher / temperature).softmax(1)
        gradient += scale[:, None, None, None] * gap
    if dice_samples != "none":
        target, mask = _dice_target(p, targets, dice_samples)
        e = offset[:, :, None, None] + slope[:, :, None, None] * target
        e = torch.where(mask, ddice[:, None, None, None] * e, 0)
        gradient += p * (e - (p * e).sum(1, keepdim=True))
    dlogits.copy_(gradient)


def _split(coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 / sum w (B,), and Dice's offset and slope (B, K): views of the coefficients."""
    num_classes = coefficients.shape[1] // 2
    return coefficients[:, 0], coefficients[:, 1 : 1 + num_classes], coefficients[:, 1 + num_classes :]


def _read_targets(operands: Operands, dtype: torch.dtype) -> _Targets:
    labels, teacher, row = operands.labels, operands.teacher, operands.teacher_row
    batch, num_classes = operands.logits.shape[:2]
    if row is None:
        row = labels.new_full((batch,), -1, dtype=torch.int64)
    is_real, label = row < 0, labels.to(torch.int64)
    given = (label != operands.ignore_index) & is_real[:, None, None]
    in_table = (label >= 0) & (label < num_classes)
    if teacher is not None:
        teacher = operands.teacher_scale * teacher[row.clamp_min(0)].to(dtype) if len(teacher) else None
    labelled = given & in_table
    return _Targets(is_real, label * labelled, labelled, (given & ~in_table).sum(), teacher)


def _pixel_weights(targets: _Targets, class_weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(B, H, W) weights of the pixels in a cross-entropy, 0 where there is no label."""
    weight = targets.labelled.to(dtype)
    return weight if class_weights is None else weight * class_weights.to(dtype)[targets.label]


def _onehot(label: Tensor, like: Tensor) -> Tensor:
    """(B, H, W) ids -> (B, K, H, W) in the dtype of `like`."""
    return torch.zeros_like(like).scatter_(1, label.unsqueeze(1), 1)


def _dice_target(p: Tensor, targets: _Targets, dice_samples: str) -> tuple[Tensor, Tensor]:
    """The target r (B, K, H, W), 0 at pixels that do not count, and which pixels count (B, 1, H, W)."""
    mask = targets.labelled.unsqueeze(1)
    target = _onehot(targets.label, p)
    if dice_samples == "all" and targets.teacher is not None:
        is_synthetic = ~targets.is_real[:, None, None, None]
        target = torch.where(is_synthetic, targets.teacher.softmax(1), target)
        mask = mask | is_synthetic
    return target * mask, mask


def _dice_terms(p: Tensor, targets: _Targets, dice_samples: str) -> _DiceTerms:
    target, mask = _dice_target(p, targets, dice_samples)
    return _DiceTerms(*((part * mask).sum((2, 3)) for part in (target * p, p, target)))


def _dice(terms: _DiceTerms, form: str, smooth: float) -> Tensor:
    """(B,) Dice losses; 0 for a sample that is compared with nothing."""
    if form == "soft":
        union = terms.predicted + terms.actual + smooth
        return torch.where(union > 0, 1 - (2 * terms.overlap + smooth) / union, 0).mean(1)
    _, numerator, denominator = _generalized_parts(terms)
    return torch.where(denominator > 0, 1 - 2 * numerator / denominator, 0).squeeze(1)


def _dice_slopes(terms: _DiceTerms, form: str, smooth: float) -> tuple[Tensor, Tensor]:
    """offset and slope (B, K): the loss's derivative by p at a labelled pixel is offset + slope r."""
    if form == "soft":
        union = terms.predicted + terms.actual + smooth
        num_classes = union.shape[1]
        offset, slope = (2 * terms.overlap + smooth) / (num_classes * union.square()), -2 / (num_classes * union)
        return torch.where(union > 0, offset, 0), torch.where(union > 0, slope, 0)
    weight, numerator, denominator = _generalized_parts(terms)
    offset, slope = 2 * weight * numerator / denominator.square(), -2 * weight / denominator
    return torch.where(denominator > 0, offset, 0), torch.where(denominator > 0, slope, 0)


def _generalized_parts(terms: _DiceTerms) -> tuple[Tensor, Tensor, Tensor]:
    """w (B, K), N and V (B, 1)."""
    # A class of less than one pixel has no weight: 1 / R^2 would drown all others.
    weight = torch.where(terms.actual >= 1, terms.actual.square().reciprocal(), 0)
    numerator = (weight * terms.overlap).sum(1, keepdim=True)
    return weight, numerator, (weight * (terms.predicted + terms.actual)).sum(1, keepdim=True)
