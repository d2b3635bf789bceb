"""The definition of selective_scan, in plain PyTorch: the recurrence over L, one update of all (B, D, N) states a step.

With a_l = exp(delta_l A) and b_l = delta_l u_l B_l:

Forward:   h_l = a_l h_{l-1} + b_l,  y_l = sum_n C_ln h_ln + D u_l
Backward:  g_l = dy_l C_l + a_{l+1} g_{l+1}  (the gradient of h_l);  z_l = g_l a_l h_{l-1};
           d(delta u)_l = sum_n g_l B_l;  ddelta_l = d(delta u)_l u_l + sum_n z_l A;
           du_l = d(delta u)_l delta_l + D dy_l;  dB_l = sum_d g_l delta_l u_l;  dC_l = sum_d dy_l h_l;
           dA = sum_{b,l} z_l delta_l;  dD = sum_{b,l} dy_l u_l

On a CPU the batch is cut into groups and time into chunks, so that the work stays in the cache for all sizes:
everything that does not recur is computed for a whole chunk, and a step of the recurrence is one multiply-add. On a
GPU, where a small operation costs as much as a large one, the batch stays whole and chunks are longer. The backward
pass keeps the states at chunk starts, recomputes a chunk and walks it back, so its memory grows with the root of L.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.kernels.contract import compute_dtype
from dakd.kernels.selective_scan.ops import Gradients, Operands

# Elements of (chunk, B, D, N) computed at once: a MiB of fp32, which fits in a CPU's cache.
_CHUNK_ELEMENTS = 1 << 18
# On other devices 64 MiB: enough to fill a GPU, and little next to the memory of a training.
_DEVICE_CHUNK_ELEMENTS = 1 << 24


class _Sequence(NamedTuple):
    """Operands with time first, in the compute dtype: u, delta (L, B, D); B, C (L, B, N); A (D, N)."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


def forward(operands: Operands, y: Tensor) -> None:
    u, A, D = operands.u, operands.A, operands.D
    for rows in _groups(u, A):
        sequence = _prepare(operands, rows)
        state = _initial_state(sequence)
        for steps in _chunks(sequence):
            _, states = _run_chunk(sequence, steps, state)
            state = states[-1]
            output = _contract_states(states, sequence.C[steps])
            if D is not None:
                output += D.to(output.dtype) * sequence.u[steps]
            y[rows, :, steps] = output.permute(1, 2, 0)


def backward(operands: Operands, dy: Tensor, gradients: Gradients) -> None:
    u, A, D = operands.u, operands.A, operands.D
    du, ddelta, dA, dB, dC, dD, ddelta_bias = gradients
    dtype = compute_dtype(u.dtype)
    sums = [A.new_zeros(shape, dtype=dtype) for shape in (A.shape, A.shape[:1], A.shape[:1])]
    for rows in _groups(u, A):
        sequence = _prepare(operands, rows)
        dy_rows = dy[rows].permute(2, 0, 1).to(dtype).contiguous()
        outputs = (du[rows], ddelta[rows], dB[rows], dC[rows])
        _backward_group(sequence, dy_rows, D, operands.delta_softplus, outputs, sums)
    dA.copy_(sums[0])
    if D is not None:
        dD.copy_(sums[1])
    if operands.delta_bias is not None:
        ddelta_bias.copy_(sums[2])


def _backward_group(
    sequence: _Sequence,
    dy: Tensor,
    D: Tensor | None,
    delta_softplus: bool,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    sums: list[Tensor],
) -> None:
    """Fills `outputs` (du, ddelta, dB, dC of the group) and adds to `sums` (dA, dD, ddelta_bias); dy: (L, B, D)."""
    du, ddelta, dB, dC = outputs
    skip = 0 if D is None else D.to(dy.dtype)
    chunks = list(_chunks(sequence))
    starts = _chunk_starts(sequence, chunks)
    carry = torch.zeros_like(starts[0])
    for steps, start in reversed(list(zip(chunks, starts))):
        step_sizes, inputs, dy_steps = sequence.delta[steps], sequence.u[steps], dy[steps]
        decay, states = _run_chunk(sequence, steps, start)
        dC[:, :, steps] = _contract_channels(states, dy_steps)
        dstates = _walk_back(decay, dy_steps, sequence.C[steps], carry)
        carry = decay[0] * dstates[0]
        dB[:, :, steps] = _contract_channels(dstates, step_sizes * inputs)
        dproduct = _contract_states(dstates, sequence.B[steps])
        du[:, :, steps] = (dproduct * step_sizes + skip * dy_steps).permute(1, 2, 0)
        z = dstates.mul_(decay)
        z[1:] *= states[:-1]
        z[0] *= start
        dstep_sizes = dproduct * inputs + (z * sequence.A).sum(-1)
        sums[0] += z.mul_(step_sizes.unsqueeze(-1)).sum((0, 1))
        if delta_softplus:
            # softplus' = sigmoid of its argument = 1 - exp(-softplus).
            dstep_sizes *= -torch.expm1(-step_sizes)
        ddelta[:, :, steps] = dstep_sizes.permute(1, 2, 0)
        sums[2] += dstep_sizes.sum((0, 1))
    sums[1] += (dy * sequence.u).sum((0, 1))


def _prepare(operands: Operands, rows: slice) -> _Sequence:
    u, delta, A, B, C, _, delta_bias, delta_softplus = operands
    dtype = compute_dtype(u.dtype)
    u, delta, B, C = (tensor[rows].permute(2, 0, 1).to(dtype).contiguous() for tensor in (u, delta, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    return _Sequence(u, F.softplus(delta) if delta_softplus else delta, A.to(dtype), B, C)


def _initial_state(sequence: _Sequence) -> Tensor:
    """(B, D, N) zeros."""
    return sequence.u.new_zeros(*sequence.u.shape[1:], sequence.A.shape[1])


def _groups(u: Tensor, A: Tensor) -> Iterator[slice]:
    """Slices of the batch: as many sequences as keep a chunk of root-L steps within the cache; off the CPU, all."""
    batch, _, length = u.shape
    if u.device.type != "cpu":
        return iter([slice(0, batch)] if batch else [])
    size = max(1, _CHUNK_ELEMENTS // max(1, A.numel() * math.isqrt(length)))
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


def _chunks(sequence: _Sequence) -> Iterator[slice]:
    """Slices of time: short enough for the cache, but not so short that the starts outweigh a chunk."""
    length = sequence.u.shape[0]
    per_step = max(1, sequence.u[:1].numel() * sequence.A.shape[1])
    elements = _CHUNK_ELEMENTS if sequence.u.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
    size = max(1, math.isqrt(length), elements // per_step)
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _run_chunk(sequence: _Sequence, steps: slice, start: Tensor) -> tuple[Tensor, Tensor]:
    """a_l and h_l of the chunk's steps, (l, B, D, N) each, from the state before its first step."""
    delta = sequence.delta[steps]
    decay = torch.exp_(delta.unsqueeze(-1) * sequence.A)
    states = (delta * sequence.u[steps]).unsqueeze(-1) * sequence.B[steps].unsqueeze(-2)
    state = start
    for index in range(states.shape[0]):
        state = states[index].addcmul_(decay[index], state)
    return decay, states


def _chunk_starts(sequence: _Sequence, chunks: list[slice]) -> list[Tensor]:
    """The state before each chunk's first step."""
    starts = [_initial_state(sequence)]
    for steps in chunks[:-1]:
        starts.append(_run_chunk(sequence, steps, starts[-1])[1][-1].clone())
    return starts


def _walk_back(decay: Tensor, dy: Tensor, C: Tensor, carry: Tensor) -> Tensor:
    """g_l of the chunk's steps, (l, B, D, N); carry: a g of the step after the chunk."""
    dstates = dy.unsqueeze(-1) * C.unsqueeze(-2)
    dstates[-1] += carry
    for index in range(dstates.shape[0] - 2, -1, -1):
        dstates[index].addcmul_(decay[index + 1], dstates[index + 1])
    return dstates


def _contract_states(states: Tensor, weights: Tensor) -> Tensor:
    """sum_n states (l, B, D, N) weights (l, B, N) -> (l, B, D)."""
    return torch.matmul(states, weights.unsqueeze(-1)).squeeze(-1)


def _contract_channels(states: Tensor, weights: Tensor) -> Tensor:
    """sum_d states (l, B, D, N) weights (l, B, D) -> (B, N, l)."""
    return torch.matmul(weights.unsqueeze(-2), states).squeeze(-2).permute(1, 2, 0)
