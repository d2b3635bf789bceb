"""`seg_loss`, the public function: checks the arguments, then calls the op."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels import contract
from dakd.kernels.seg_loss import ops

_OP = "seg_loss"


class SegLoss(NamedTuple):
    """Per-sample losses (B,), 0 where a sample has no such term, and the number of labels that name no class."""

    ce: Tensor
    kd: Tensor
    dice: Tensor
    num_invalid: Tensor


def seg_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None = None,
    teacher_row: Tensor | None = None,
    *,
    teacher_range: float | None = None,
    temperature: float = 2.0,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    dice_samples: str = "real",
    dice_form: str = "soft",
    dice_smooth: float = 1.0,
    backend: str = "auto",
) -> SegLoss:
    """Cross-entropy, distillation and Dice of each sample; weights, tau^2 and the batch's mean stay with the caller.

    logits: (B, K, H, W), any floating dtype.
    labels: (B, H, W) uint8 or int64 ids; those of synthetic samples are not read.
    teacher: (Bs, K, H, W), of the synthetic samples, or None: logits z of any floating dtype, or their uint8 codes
    round(255 (max_k z_k - z) / teacher_range), clipped to 0 .. 255.
    teacher_range: the nats that code 255 stands for; codes need it, floats refuse it.
    teacher_row: (B,) int64, a sample's row in `teacher`, or -1 for a real sample; None when all are real.

    ce: of real samples, sum w_y (-log softmax(s)_y) / sum w_y over labelled pixels, w = class_weights (K,) or 1.
    kd: of synthetic samples, mean over pixels of -sum_c softmax(z / tau)_c log softmax(s / tau)_c, tau = temperature.
    dice: with p = softmax(s), r the one-hot label (of a synthetic sample softmax(z)), and over labelled pixels
    I = sum r p, P = sum p, R = sum r: "soft" is the mean over classes of 1 - (2 I + smooth) / (P + R + smooth);
    "generalized" is 1 - 2 sum w I / sum w (P + R) with w = 1 / R^2, classes of less than one pixel left out.
    dice_samples: "real", "all" or "none".  A real sample without a labelled pixel has no loss and no gradient.
    num_invalid: int64 scalar, labels of real samples that are neither in 0 .. K - 1 nor ignore_index; they count as
    ignored.

    The losses are fp32 (fp64 for fp64 logits); only the logits have a gradient. The backward pass keeps the inputs
    and 1 + 2 K numbers a sample.  Raises ValueError or TypeError for shapes, dtypes and devices that do not fit.
    Source: paper, Eq. 8-10, here normalised per sample; generalized form: Sudre et al. 2017.
    """
    contract.check_rank(_OP, "logits", logits, "(B, K, H, W)")
    batch, num_classes, height, width = logits.shape
    contract.check_shape(_OP, "labels", labels, (batch, height, width), "(B, H, W)")
    contract.check_dtype(_OP, "labels", labels, torch.uint8, torch.int64)
    if teacher is not None:
        contract.check_rank(_OP, "teacher", teacher, "(Bs, K, H, W)")
        contract.check_shape(_OP, "teacher", teacher, (teacher.shape[0], num_classes, height, width), "(Bs, K, H, W)")
        if teacher_row is None:
            raise ValueError(
                f"{_OP}: teacher is given and teacher_row is None; give each sample's row, -1 for real ones"
            )
    if teacher_row is not None:
        contract.check_shape(_OP, "teacher_row", teacher_row, (batch,), "(B,)")
        contract.check_dtype(_OP, "teacher_row", teacher_row, torch.int64)
    if class_weights is not None:
        contract.check_shape(_OP, "class_weights", class_weights, (num_classes,), "(K,)")
    contract.check_floating(_OP, logits=logits, class_weights=class_weights)
    _check_teacher_codes(teacher, teacher_range)
    contract.check_same_device(
        _OP, logits=logits, labels=labels, teacher=teacher, teacher_row=teacher_row, class_weights=class_weights
    )
    contract.check_choice(_OP, "dice_samples", dice_samples, "real", "all", "none")
    contract.check_choice(_OP, "dice_form", dice_form, "soft", "generalized")
    if temperature <= 0:
        raise ValueError(f"{_OP}: temperature is {temperature}; expected a positive number")
    # A code counts the steps of teacher_range / 255 below the largest logit.
    teacher_scale = 1.0 if teacher_range is None else -teacher_range / 255
    settings = (teacher_scale, temperature, ignore_index, dice_samples, dice_form, dice_smooth, backend)
    *losses, _coefficients = ops.seg_loss(logits, labels, teacher, teacher_row, class_weights, *settings)
    return SegLoss(*losses)


def _check_teacher_codes(teacher: Tensor | None, teacher_range: float | None) -> None:
    """TypeError or ValueError unless uint8 codes come with a positive range, and floats with none."""
    if teacher_range is not None and teacher_range <= 0:
        raise ValueError(f"{_OP}: teacher_range is {teacher_range}; expected a positive number")
    if teacher is None:
        return
    if teacher.dtype != torch.uint8:
        contract.check_floating(_OP, teacher=teacher)
        if teacher_range is not None:
            raise ValueError(f"{_OP}: teacher_range is for uint8 codes; teacher has dtype {teacher.dtype}; give None")
    elif teacher_range is None:
        raise ValueError(f"{_OP}: teacher holds uint8 codes and teacher_range is None; give the range of their codec")
