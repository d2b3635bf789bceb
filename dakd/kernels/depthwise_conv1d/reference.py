"""The definition of depthwise_conv1d, in plain PyTorch.

Forward:   a_l = bias + w_0 x_{l-1} + w_1 x_l + w_2 x_{l+1},  y = a sigmoid(a)
Backward:  da = dy (s + a s (1 - s)) with s = sigmoid(a);  dx_l = w_2 da_{l-1} + w_1 da_l + w_0 da_{l+1};
           dw_k = sum over batch and l of da_l x_{l+k-1};  dbias = sum of da
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.kernels.contract import compute_dtype
from dakd.kernels.depthwise_conv1d.ops import Operands


def forward(operands: Operands, y: Tensor) -> None:
    x, weight, bias, activation = operands
    dtype = compute_dtype(x.dtype)
    a = _convolve(x.to(dtype), weight.to(dtype), bias)
    y.copy_(F.silu(a) if activation == "silu" else a)


def backward(operands: Operands, dy: Tensor, gradients: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, activation = operands
    dx, dweight, dbias = gradients
    dtype = compute_dtype(x.dtype)
    x, weight, da = x.to(dtype), weight.to(dtype), dy.to(dtype)
    if activation == "silu":
        a = _convolve(x, weight, bias)
        s = torch.sigmoid(a)
        da = da * (s + a * s * (1 - s))
    dx.copy_(_convolve(da, weight.flip(1), None))
    dweight.copy_(torch.stack([(da * shifted).sum((0, 2)) for shifted in _shifts(x)], dim=1))
    if bias is not None:
        dbias.copy_(da.sum((0, 2)))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    before, centre, after = _shifts(x)
    w_before, w_centre, w_after = (column[:, None] for column in weight.unbind(1))
    a = w_before * before + w_centre * centre + w_after * after
    return a if bias is None else a + bias.to(a.dtype)[:, None]


def _shifts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x_{l-1}, x_l, x_{l+1}, zeros beyond both ends."""
    padded = F.pad(x, (1, 1))
    return padded[..., :-2], x, padded[..., 2:]
