"""selective_scan in the compiled library: vector code over channels, sequential in time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dakd.kernels import extension
from dakd.kernels.contract import compute_dtype
from dakd.kernels.selective_scan.ops import Gradients, Operands

REMEDY = extension.REMEDY
why_not = extension.why_not_cpu
# Channels whose gradients of B and C are summed at once: kScanBackwardChannels of csrc/selective_scan/selective_scan.h.
_BLOCK_CHANNELS = 64


def forward(operands: Operands, y: Tensor) -> None:
    u, delta, A, B, C, D, delta_bias, delta_softplus = operands
    A, D, delta_bias = _parameters(operands)
    torch.ops.dakd_C.selective_scan_forward(u, delta, A, B, C, D, delta_bias, delta_softplus, y)


def backward(operands: Operands, dy: Tensor, gradients: Gradients) -> None:
    u, delta, A, B, C, D, delta_bias, delta_softplus = operands
    du, ddelta, dA, dB, dC, dD, ddelta_bias = gradients
    (batch, channels, length), num_states = u.shape, A.shape[1]
    blocks = math.ceil(channels / _BLOCK_CHANNELS)
    # First-stage sums: over the steps of a sample, and over the channels of a block. Their order is fixed.
    step_sums, channel_sums, totals = (
        u.new_empty(shape, dtype=compute_dtype(u.dtype))
        for shape in (
            (batch, num_states + 2, channels),
            (batch, blocks, length, 2 * num_states),
            (num_states + 2, channels),
        )
    )
    A, *vectors = _parameters(operands)
    torch.ops.dakd_C.selective_scan_backward(
        dy, u, delta, A, B, C, *vectors, delta_softplus, du, ddelta, dB, dC,
        step_sums, channel_sums, totals,
    )  # fmt: skip
    dA.copy_(totals[:num_states].T)
    if D is not None:
        dD.copy_(totals[num_states])
    if delta_bias is not None:
        ddelta_bias.copy_(totals[num_states + 1])


def _parameters(operands: Operands) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A as (N, D), D, delta_bias: contiguous and in the compute dtype."""
    dtype = compute_dtype(operands.u.dtype)
    vectors = (operands.D, operands.delta_bias)
    D, delta_bias = (None if tensor is None else tensor.to(dtype).contiguous() for tensor in vectors)
    return operands.A.to(dtype).T.contiguous(), D, delta_bias
