"""The contract with torch: schema, fake implementation, autograd. Variants fill the outputs allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import empty_sequence_like, implements

_OP = "selective_scan"


def _allocate_gradients(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> tuple[Tensor, ...]:
    """One gradient per input; an empty one for an input that is not there."""
    dD, ddelta_bias = (u.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in (D, delta_bias))
    du, ddelta, dB, dC = (empty_sequence_like(tensor) for tensor in (u, delta, B, C))
    return du, ddelta, A.new_empty(A.shape), dB, dC, dD, ddelta_bias


@torch.library.custom_op("dakd::selective_scan", mutates_args=())
@implements(_OP)
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> Tensor:
    y = empty_sequence_like(u)
    variant = backends.load(_OP, backend, u.device.type, u.dtype)
    variant.forward(u, delta, A, B, C, D, delta_bias, delta_softplus, y=y)
    return y


@selective_scan.register_fake
def _(u, delta, A, B, C, D, delta_bias, delta_softplus, backend):
    return empty_sequence_like(u)


@torch.library.custom_op("dakd::selective_scan_backward", mutates_args=())
@implements(_OP)
def selective_scan_backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _allocate_gradients(u, delta, A, B, C, D, delta_bias)
    variant = backends.load(_OP, backend, u.device.type, u.dtype)
    variant.backward(dy, u, delta, A, B, C, D, delta_bias, delta_softplus, gradients=gradients)
    return gradients


@selective_scan_backward.register_fake
def _(dy, u, delta, A, B, C, D, delta_bias, delta_softplus, backend):
    return _allocate_gradients(u, delta, A, B, C, D, delta_bias)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):
    tensors = ctx.saved_tensors
    gradients = selective_scan_backward(dy, *tensors, ctx.delta_softplus, ctx.backend)
    present = (None if tensor is None else gradient for tensor, gradient in zip(tensors, gradients, strict=True))
    return *present, None, None


selective_scan.register_autograd(_backward, setup_context=_setup_context)
