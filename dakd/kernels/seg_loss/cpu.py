"""Calls into the compiled library: each pass reads the logits once, vector code over adjacent pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension
from dakd.kernels.contract import compute_dtype

REMEDY = extension.REMEDY
why_not = extension.why_not_cpu


def forward(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor | None,
    class_weights: Tensor | None,
    teacher_scale: float,
    temperature: float,
    ignore_index: int,
    dice_samples: str,
    dice_form: str,
    dice_smooth: float,
    *,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    torch.ops.dakd_C.seg_loss_forward(
        logits,
        labels,
        teacher,
        teacher_row,
        _weights(class_weights, logits),
        teacher_scale,
        temperature,
        ignore_index,
        dice_samples,
        dice_form == "generalized",
        dice_smooth,
        *outputs,
    )


def backward(
    dce: Tensor,
    dkd: Tensor,
    ddice: Tensor,
    coefficients: Tensor,
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor | None,
    class_weights: Tensor | None,
    teacher_scale: float,
    temperature: float,
    ignore_index: int,
    dice_samples: str,
    dice_form: str,
    dice_smooth: float,
    *,
    dlogits: Tensor,
) -> None:
    torch.ops.dakd_C.seg_loss_backward(
        dce,
        dkd,
        ddice,
        coefficients,
        logits,
        labels,
        teacher,
        teacher_row,
        _weights(class_weights, logits),
        teacher_scale,
        temperature,
        ignore_index,
        dice_samples,
        dlogits,
    )


def _weights(class_weights: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if class_weights is None else class_weights.to(compute_dtype(logits.dtype)).contiguous()
