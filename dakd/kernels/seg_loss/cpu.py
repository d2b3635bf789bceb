"""seg_loss in the compiled library: each pass reads the logits once, vector code over adjacent pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension
from dakd.kernels.contract import compute_dtype
from dakd.kernels.seg_loss.ops import Operands, Outputs, Upstream

REMEDY = extension.REMEDY
why_not = extension.why_not_cpu


def forward(operands: Operands, outputs: Outputs) -> None:
    *inputs, dice_form, dice_smooth = _inputs(operands)
    torch.ops.dakd_C.seg_loss_forward(*inputs, dice_form == "generalized", dice_smooth, *outputs)


def backward(operands: Operands, upstream: Upstream, dlogits: Tensor) -> None:
    *inputs, _dice_form, _dice_smooth = _inputs(operands)
    torch.ops.dakd_C.seg_loss_backward(*upstream, *inputs, dlogits)


def _inputs(operands: Operands) -> Operands:
    weights = operands.class_weights
    if weights is not None:
        weights = weights.to(compute_dtype(operands.logits.dtype)).contiguous()
    return operands._replace(class_weights=weights)
