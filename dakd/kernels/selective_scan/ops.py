"""selective_scan as an op of torch: operands, outputs, registration, autograd. Variants fill its outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import define_op, empty_sequence_like

_OP = "selective_scan"


class Operands(NamedTuple):
    """The arguments of the op; shapes and meaning are those of api.py."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool


class Gradients(NamedTuple):
    """One gradient per tensor; an empty one for a tensor that is not there."""

    du: Tensor
    ddelta: Tensor
    dA: Tensor
    dB: Tensor
    dC: Tensor
    dD: Tensor
    ddelta_bias: Tensor


def _allocate(operands: Operands) -> Tensor:
    return empty_sequence_like(operands.u)


def _run(operands: Operands, backend: str, y: Tensor) -> None:
    u = operands.u
    backends.load(_OP, backend, u.device.type, u.dtype).forward(operands, y)


def _allocate_gradients(operands: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    u, delta, A, B, C, D, delta_bias, _ = operands
    dD, ddelta_bias = (u.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in (D, delta_bias))
    du, ddelta, dB, dC = (empty_sequence_like(tensor) for tensor in (u, delta, B, C))
    return Gradients(du, ddelta, A.new_empty(A.shape), dB, dC, dD, ddelta_bias)


def _run_backward(operands: Operands, backend: str, gradients: Gradients, dy: Tensor) -> None:
    u = operands.u
    backends.load(_OP, backend, u.device.type, u.dtype).backward(operands, dy, gradients)


selective_scan = define_op(_OP, Operands, _allocate, _run)
selective_scan_backward = define_op(f"{_OP}_backward", Operands, _allocate_gradients, _run_backward, upstream=("dy",))


def _setup_context(ctx, inputs, output):
    *tensors, delta_softplus, backend = inputs
    ctx.settings = (delta_softplus, backend)
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):
    tensors = ctx.saved_tensors
    gradients = selective_scan_backward(*tensors, *ctx.settings, dy)
    present = (None if tensor is None else gradient for tensor, gradient in zip(tensors, gradients, strict=True))
    return *present, None, None


selective_scan.register_autograd(_backward, setup_context=_setup_context)
