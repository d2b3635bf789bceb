"""The contract with torch: schema, fake implementation, autograd. Variants fill the outputs allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import empty_sequence_like, implements

_OP = "depthwise_conv1d"


def _allocate_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return empty_sequence_like(x), weight.new_empty(weight.shape), dbias


@torch.library.custom_op("dakd::depthwise_conv1d", mutates_args=())
@implements(_OP)
def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, backend: str) -> Tensor:
    y = empty_sequence_like(x)
    backends.load(_OP, backend, x.device.type, x.dtype).forward(x, weight, bias, activation, y=y)
    return y


@depthwise_conv1d.register_fake
def _(x, weight, bias, activation, backend):
    return empty_sequence_like(x)


@torch.library.custom_op("dakd::depthwise_conv1d_backward", mutates_args=())
@implements(_OP)
def depthwise_conv1d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _allocate_gradients(x, weight, bias)
    variant = backends.load(_OP, backend, x.device.type, x.dtype)
    variant.backward(dy, x, weight, bias, activation, dx=dx, dweight=dweight, dbias=dbias)
    return dx, dweight, dbias


@depthwise_conv1d_backward.register_fake
def _(dy, x, weight, bias, activation, backend):
    return _allocate_gradients(x, weight, bias)


def _setup_context(ctx, inputs, output):
    x, weight, bias, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, dy):
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = depthwise_conv1d_backward(dy, x, weight, bias, ctx.activation, ctx.backend)
    return dx, dweight, None if bias is None else dbias, None, None


depthwise_conv1d.register_autograd(_backward, setup_context=_setup_context)
