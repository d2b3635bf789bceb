"""The convolution of the installed package causal-conv1d, on CUDA; its backward pass runs on a recomputed forward pass.

The package's convolution is causal: it sees a step and those before it. So a zero is appended to the sequence, and the
result is read one step later: y_l = causal(x, 0)_{l+1}. That costs a padded copy of x and a shifted copy of the result,
which the other variants do not need.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dakd.kernels.depthwise_conv1d.ops import Operands

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REMEDY = "CAUSAL_CONV1D_FORCE_BUILD=TRUE pip install --no-build-isolation causal-conv1d (needs nvcc)"


@cache
def why_not(device_type: str) -> str | None:
    """The reason why the package cannot serve this kind of device; None when a first small call succeeds."""
    if device_type != "cuda":
        return "causal-conv1d runs only on CUDA"
    try:
        x = torch.ones(1, 8, 8, device=device_type)
        _convolution()(x, torch.ones(8, 3, device=device_type), None, activation="silu")
    # Any error of the package, on import or in the call, becomes the reason that the user reads.
    except Exception as error:
        return f"causal-conv1d is not usable ({type(error).__name__}: {error})"
    return None


def forward(operands: Operands, y: Tensor) -> None:
    x, weight, bias, activation = operands
    if x.numel() == 0:
        return
    bias = None if bias is None else bias.float()
    y.copy_(_convolution()(_padded(x, after=1), weight.float(), bias, activation=activation)[..., 1:])


def backward(operands: Operands, dy: Tensor, gradients: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, activation = operands
    dx, dweight, dbias = gradients
    if x.numel() == 0:
        dweight.zero_(), dbias.zero_()
        return
    # Cast before they become leaves: below autograd's dispatch only the package's own function records a graph.
    tensors = (_padded(x, after=1), weight.float(), None if bias is None else bias.float())
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        y = _convolution()(*leaves, activation=activation)
    present = [leaf for leaf in leaves if leaf is not None]
    # The package expects dy in x's memory order. The zero is the gradient of the result that forward drops.
    dx_padded, *others = torch.autograd.grad(y, present, _padded(dy, before=1, like=x))
    dx.copy_(dx_padded[..., :-1])
    for output, gradient in zip((dweight, dbias), others):
        output.copy_(gradient)


def _padded(x: Tensor, *, before: int = 0, after: int = 0, like: Tensor | None = None) -> Tensor:
    """x with zeros before or after its steps; channels innermost where they are in `like` and the package allows it."""
    like = x if like is None else like
    batch, channels, length = x.shape
    steps = before + length + after
    # With channels innermost, the package takes only multiples of 8.
    if like.stride(1) == 1 and channels % 8 == 0:
        padded = x.new_zeros(batch, steps, channels).transpose(1, 2)
    else:
        padded = x.new_zeros(batch, channels, steps)
    padded[..., before : before + length] = x
    return padded


def _convolution() -> Callable[..., Tensor]:
    # Its atomic sums of dweight depend on their order; newer versions can avoid them.
    os.environ.setdefault("CAUSAL_CONV1D_DETERMINISTIC", "1")
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn
