"""transposed_attention as an op of torch: operands, outputs, registration, autograd. Variants fill its outputs.

The op returns two auxiliary tensors besides y. They spare the backward pass the sums over all pixels of q and k, and
let it write dv where it first reads dy:
products: (B, heads, d + 2, d) in the compute dtype; rows i < d of a head hold <q_i, k_j>, then |q_j|^2, then |k_j|^2.
folded: (B, C, R) in q's dtype; out_weight times the attention of each head, so that y = residual + folded v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import compute_dtype, define_op

_OP = "transposed_attention"


class Operands(NamedTuple):
    """The arguments of the op; shapes and meaning are those of api.py. The backward pass needs no residual: None."""

    q: Tensor
    k: Tensor
    v: Tensor
    temperature: Tensor
    out_weight: Tensor
    residual: Tensor | None
    num_heads: int


class Outputs(NamedTuple):
    """y, and the results of the forward pass that the backward pass needs; see the module's docstring."""

    y: Tensor
    products: Tensor
    folded: Tensor


def _allocate(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    q, num_heads = operands.q, operands.num_heads
    batch, inner = q.shape[:2]
    width = inner // num_heads
    products = q.new_empty((batch, num_heads, width + 2, width), dtype=compute_dtype(q.dtype))
    folded = q.new_empty((batch, operands.out_weight.shape[0], inner))
    return Outputs(_empty_like(operands.residual), products, folded)


def _run(operands: Operands, backend: str, outputs: Outputs) -> None:
    q = operands.q
    backends.load(_OP, backend, q.device.type, q.dtype).forward(operands, outputs)


def _allocate_gradients(operands: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Those of q, k, v, temperature and out_weight."""
    q, k, v, temperature, out_weight, *_ = operands
    return _empty_like(q), _empty_like(k), _empty_like(v), _empty_like(temperature), _empty_like(out_weight)


def _run_backward(
    operands: Operands, backend: str, gradients: tuple[Tensor, ...], dy: Tensor, products: Tensor, folded: Tensor
) -> None:
    q = operands.q
    backends.load(_OP, backend, q.device.type, q.dtype).backward(operands, products, folded, dy, gradients)


def _empty_like(x: Tensor) -> Tensor:
    """NCHW, channels_last or any other order in which x lies, if H and W then merge into one axis; else NCHW."""
    empty = torch.empty_like(x)
    if x.dim() < 4 or 1 in x.shape[2:] or empty.stride(2) == x.shape[3] * empty.stride(3):
        return empty
    return torch.empty_like(x, memory_format=torch.contiguous_format)


transposed_attention = define_op(_OP, Operands, _allocate, _run)
transposed_attention_backward = define_op(
    f"{_OP}_backward", Operands, _allocate_gradients, _run_backward, upstream=("dy", "products", "folded")
)


def _setup_context(ctx, inputs, output):
    *tensors, _residual, num_heads, backend = inputs
    _y, products, folded = output
    ctx.settings = (None, num_heads, backend)
    ctx.mark_non_differentiable(products, folded)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, products, folded)


def _backward(ctx, dy, _dproducts, _dfolded):
    if dy is None:
        return (None,) * 8
    *tensors, products, folded = ctx.saved_tensors
    gradients = transposed_attention_backward(*tensors, *ctx.settings, dy, products, folded)
    # The residual's gradient is dy itself.
    return *gradients, dy, None, None


transposed_attention.register_autograd(_backward, setup_context=_setup_context)
