"""depthwise_conv1d as an op of torch: operands, outputs, registration, autograd. Variants fill its outputs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import define_op, empty_sequence_like

_OP = "depthwise_conv1d"


class Operands(NamedTuple):
    """The arguments of the op; shapes and meaning are those of api.py."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    activation: str | None


def _allocate(operands: Operands) -> Tensor:
    return empty_sequence_like(operands.x)


def _run(operands: Operands, backend: str, y: Tensor) -> None:
    x = operands.x
    backends.load(_OP, backend, x.device.type, x.dtype).forward(operands, y)


def _allocate_gradients(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, _ = operands
    dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return empty_sequence_like(x), weight.new_empty(weight.shape), dbias


def _run_backward(operands: Operands, backend: str, gradients: tuple[Tensor, Tensor, Tensor], dy: Tensor) -> None:
    x = operands.x
    backends.load(_OP, backend, x.device.type, x.dtype).backward(operands, dy, gradients)


depthwise_conv1d = define_op(_OP, Operands, _allocate, _run)
depthwise_conv1d_backward = define_op(
    f"{_OP}_backward", Operands, _allocate_gradients, _run_backward, upstream=("dy",)
)


def _setup_context(ctx, inputs, output):
    x, weight, bias, activation, backend = inputs
    ctx.settings = (activation, backend)
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, dy):
    _x, _weight, bias = ctx.saved_tensors
    dx, dweight, dbias = depthwise_conv1d_backward(*ctx.saved_tensors, *ctx.settings, dy)
    return dx, dweight, None if bias is None else dbias, None, None


depthwise_conv1d.register_autograd(_backward, setup_context=_setup_context)
