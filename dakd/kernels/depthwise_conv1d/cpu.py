"""Calls into the compiled library: vector code over channels, or over time where time is contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension
from dakd.kernels.contract import compute_dtype

REMEDY = extension.REMEDY
why_not = extension.why_not_cpu


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, *, y: Tensor) -> None:
    torch.ops.dakd_C.depthwise_conv1d_forward(x, *_parameters(x, weight, bias), activation == "silu", y)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    *,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor,
) -> None:
    batch, channels, _ = x.shape
    sums = x.new_zeros(batch, 4, channels, dtype=compute_dtype(x.dtype))
    parameters = _parameters(x, weight, bias)
    torch.ops.dakd_C.depthwise_conv1d_backward(dy, x, *parameters, activation == "silu", dx, sums)
    # Over the batch in its order: the same bits whatever the number of threads.
    totals = sums.sum(0)
    dweight.copy_(totals[:3].T)
    if bias is not None:
        dbias.copy_(totals[3])


def _parameters(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    dtype = compute_dtype(x.dtype)
    return weight.to(dtype).contiguous(), None if bias is None else bias.to(dtype).contiguous()
