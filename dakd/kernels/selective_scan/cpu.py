"""Calls into the compiled library: vector code over channels, sequential in time."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension
from dakd.kernels.contract import compute_dtype

REMEDY = extension.REMEDY
why_not = extension.why_not_cpu
# Channels whose gradients of B and C are summed at once: kScanBackwardChannels of csrc/selective_scan/selective_scan.h.
_BLOCK_CHANNELS = 64


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    *,
    y: Tensor,
) -> None:
    A, D, delta_bias = _parameters(u.dtype, A, D, delta_bias)
    torch.ops.dakd_C.selective_scan_forward(u, delta, A, B, C, D, delta_bias, delta_softplus, y)


def backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    *,
    gradients: tuple[Tensor, ...],
) -> None:
    du, ddelta, dA, dB, dC, dD, ddelta_bias = gradients
    (batch, channels, length), num_states = u.shape, A.shape[1]
    blocks = -(-channels // _BLOCK_CHANNELS)
    # First-stage sums: over the steps of a sample, and over the channels of a block. Their order is fixed.
    step_sums, channel_sums, totals = (
        u.new_empty(shape, dtype=compute_dtype(u.dtype))
        for shape in (
            (batch, num_states + 2, channels),
            (batch, blocks, length, 2 * num_states),
            (num_states + 2, channels),
        )
    )
    parameters = _parameters(u.dtype, A, D, delta_bias)
    torch.ops.dakd_C.selective_scan_backward(
        dy, u, delta, parameters[0], B, C, *parameters[1:], delta_softplus, du, ddelta, dB, dC,
        step_sums, channel_sums, totals,
    )  # fmt: skip
    dA.copy_(totals[:num_states].T)
    if D is not None:
        dD.copy_(totals[num_states])
    if delta_bias is not None:
        ddelta_bias.copy_(totals[num_states + 1])


def _parameters(
    dtype: torch.dtype, A: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A as (N, D), D, delta_bias: contiguous and in the compute dtype."""
    dtype = compute_dtype(dtype)
    D, delta_bias = (None if tensor is None else tensor.to(dtype).contiguous() for tensor in (D, delta_bias))
    return A.to(dtype).T.contiguous(), D, delta_bias
