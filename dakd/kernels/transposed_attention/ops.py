"""The contract with torch: schema, fake implementation, autograd. Variants fill the outputs allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import implements

_OP = "transposed_attention"


def _allocate(residual: Tensor) -> Tensor:
    return torch.empty_like(residual)


def _allocate_gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in inputs)


@torch.library.custom_op("dakd::transposed_attention", mutates_args=())
@implements(_OP)
def transposed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    out_weight: Tensor,
    residual: Tensor,
    num_heads: int,
    backend: str,
) -> Tensor:
    y = _allocate(residual)
    variant = backends.load(_OP, backend, q.device.type, q.dtype)
    variant.forward(q, k, v, temperature, out_weight, residual, num_heads, y=y)
    return y


@transposed_attention.register_fake
def _(q, k, v, temperature, out_weight, residual, num_heads, backend):
    return _allocate(residual)


@torch.library.custom_op("dakd::transposed_attention_backward", mutates_args=())
@implements(_OP)
def transposed_attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    out_weight: Tensor,
    num_heads: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _allocate_gradients(q, k, v, temperature, out_weight)
    variant = backends.load(_OP, backend, q.device.type, q.dtype)
    variant.backward(dy, q, k, v, temperature, out_weight, num_heads, gradients=gradients)
    return gradients


@transposed_attention_backward.register_fake
def _(dy, q, k, v, temperature, out_weight, num_heads, backend):
    return _allocate_gradients(q, k, v, temperature, out_weight)


def _setup_context(ctx, inputs, output):
    *tensors, _residual, ctx.num_heads, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):
    gradients = transposed_attention_backward(dy, *ctx.saved_tensors, ctx.num_heads, ctx.backend)
    # The residual's gradient is dy itself.
    return *gradients, dy, None, None


transposed_attention.register_autograd(_backward, setup_context=_setup_context)
