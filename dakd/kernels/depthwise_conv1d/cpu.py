"""depthwise_conv1d in the compiled library: vector code over channels, or over time where time is contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension
from dakd.kernels.contract import compute_dtype
from dakd.kernels.depthwise_conv1d.ops import Operands

REMEDY = extension.REMEDY
why_not = extension.why_not_cpu


def forward(operands: Operands, y: Tensor) -> None:
    x, _, _, activation = operands
    torch.ops.dakd_C.depthwise_conv1d_forward(x, *_parameters(operands), activation == "silu", y)


def backward(operands: Operands, dy: Tensor, gradients: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, bias, activation = operands
    dx, dweight, dbias = gradients
    batch, channels, _ = x.shape
    sums = x.new_zeros(batch, 4, channels, dtype=compute_dtype(x.dtype))
    torch.ops.dakd_C.depthwise_conv1d_backward(dy, x, *_parameters(operands), activation == "silu", dx, sums)
    # Over the batch in its order: the same bits for any number of threads.
    totals = sums.sum(0)
    dweight.copy_(totals[:3].T)
    if bias is not None:
        dbias.copy_(totals[3])


def _parameters(operands: Operands) -> tuple[Tensor, Tensor | None]:
    x, weight, bias, _ = operands
    dtype = compute_dtype(x.dtype)
    return weight.to(dtype).contiguous(), None if bias is None else bias.to(dtype).contiguous()
