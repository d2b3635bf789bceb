"""The contract with torch: schema, fake implementation, autograd. Variants fill the outputs allocated here.

The op returns two auxiliary tensors beside y. They spare the backward pass the sums over all pixels of q and k, and let
it write dv where it first reads dy:
products: (B, heads, d + 2, d) in the compute dtype; rows i < d of a head hold <q_i, k_j>, then |q_j|^2, then |k_j|^2.
folded: (B, C, R) in q's dtype; out_weight times the attention of each head, so that y = residual + folded v.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import compute_dtype, implements

_OP = "transposed_attention"


def _allocate(q: Tensor, residual: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, inner = q.shape[:2]
    width = inner // num_heads
    y = _empty_like(residual)
    products = q.new_empty((batch, num_heads, width + 2, width), dtype=compute_dtype(q.dtype))
    return y, products, q.new_empty((batch, residual.shape[1], inner))


def _allocate_gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(_empty_like(tensor) for tensor in inputs)


def _empty_like(x: Tensor) -> Tensor:
    """NCHW, channels_last or any other order in which x lies, if H and W then merge into one axis; else NCHW."""
    empty = torch.empty_like(x)
    if x.dim() < 4 or 1 in x.shape[2:] or empty.stride(2) == x.shape[3] * empty.stride(3):
        return empty
    return torch.empty_like(x, memory_format=torch.contiguous_format)


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
) -> tuple[Tensor, Tensor, Tensor]:
    y, products, folded = _allocate(q, residual, num_heads)
    variant = backends.load(_OP, backend, q.device.type, q.dtype)
    variant.forward(q, k, v, temperature, out_weight, residual, num_heads, y=y, products=products, folded=folded)
    return y, products, folded


@transposed_attention.register_fake
def _(q, k, v, temperature, out_weight, residual, num_heads, backend):
    return _allocate(q, residual, num_heads)


@torch.library.custom_op("dakd::transposed_attention_backward", mutates_args=())
@implements(_OP)
def transposed_attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    out_weight: Tensor,
    products: Tensor,
    folded: Tensor,
    num_heads: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _allocate_gradients(q, k, v, temperature, out_weight)
    variant = backends.load(_OP, backend, q.device.type, q.dtype)
    variant.backward(dy, q, k, v, temperature, out_weight, products, folded, num_heads, gradients=gradients)
    return gradients


@transposed_attention_backward.register_fake
def _(dy, q, k, v, temperature, out_weight, products, folded, num_heads, backend):
    return _allocate_gradients(q, k, v, temperature, out_weight)


def _setup_context(ctx, inputs, output):
    *tensors, _residual, ctx.num_heads, ctx.backend = inputs
    _y, products, folded = output
    ctx.mark_non_differentiable(products, folded)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, products, folded)


def _backward(ctx, dy, _dproducts, _dfolded):
    if dy is None:
        return (None,) * 8
    gradients = transposed_attention_backward(dy, *ctx.saved_tensors, ctx.num_heads, ctx.backend)
    # The residual's gradient is dy itself.
    return *gradients, dy, None, None


transposed_attention.register_autograd(_backward, setup_context=_setup_context)
