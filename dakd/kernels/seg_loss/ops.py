"""seg_loss as an op of torch: operands, outputs, registration, autograd. Variants fill its outputs."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import compute_dtype, define_op

_OP = "seg_loss"


class Operands(NamedTuple):
    """The arguments of the op; shapes and meaning are those of api.py.

    teacher_scale: factor of the teacher's numbers: 1 for logits, -teacher_range / 255 for codes.
    """

    logits: Tensor
    labels: Tensor
    teacher: Tensor | None
    teacher_row: Tensor | None
    class_weights: Tensor | None
    teacher_scale: float
    temperature: float
    ignore_index: int
    dice_samples: str
    dice_form: str
    dice_smooth: float


class Outputs(NamedTuple):
    """The losses ce, kd, dice (B,), the scalar num_invalid, and the sums of each sample that the backward pass needs.

    That is coefficients (B, 1 + 2 K): 1 / sum w (0 where nothing is labelled), then Dice's offset and slope by class.
    """

    ce: Tensor
    kd: Tensor
    dice: Tensor
    num_invalid: Tensor
    coefficients: Tensor


class Upstream(NamedTuple):
    """The gradients of the losses (B,), and the coefficients that the forward pass left."""

    dce: Tensor
    dkd: Tensor
    ddice: Tensor
    coefficients: Tensor


def _variant(operands: Operands, backend: str) -> ModuleType:
    logits = operands.logits
    return backends.load(_OP, backend, logits.device.type, logits.dtype, logits.shape[1])


def _allocate(operands: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits = operands.logits
    batch, num_classes = logits.shape[:2]
    dtype = compute_dtype(logits.dtype)
    ce, kd, dice = (logits.new_empty(batch, dtype=dtype) for _ in range(3))
    coefficients = logits.new_empty(batch, 1 + 2 * num_classes, dtype=dtype)
    return Outputs(ce, kd, dice, logits.new_empty((), dtype=torch.int64), coefficients)


def _run(operands: Operands, backend: str, outputs: Outputs) -> None:
    _variant(operands, backend).forward(operands, outputs)


def _allocate_gradient(operands: Operands) -> Tensor:
    return torch.empty_like(operands.logits)


def _run_backward(operands: Operands, backend: str, dlogits: Tensor, *upstream: Tensor) -> None:
    _variant(operands, backend).backward(operands, Upstream(*upstream), dlogits)


seg_loss = define_op(_OP, Operands, _allocate, _run)
seg_loss_backward = define_op(
    f"{_OP}_backward", Operands, _allocate_gradient, _run_backward, upstream=Upstream._fields
)


def _setup_context(ctx, inputs, output):
    *_losses, num_invalid, coefficients = output
    ctx.save_for_backward(*inputs[:5], coefficients)
    ctx.settings = inputs[5:]
    ctx.mark_non_differentiable(num_invalid, coefficients)
    ctx.set_materialize_grads(False)


def _backward(ctx, dce, dkd, ddice, _dnum_invalid, _dcoefficients):
    *tensors, coefficients = ctx.saved_tensors
    upstream = (coefficients.new_zeros(len(coefficients)) if grad is None else grad for grad in (dce, dkd, ddice))
    dlogits = seg_loss_backward(*tensors, *ctx.settings, *upstream, coefficients)
    return dlogits, *[None] * 11


seg_loss.register_autograd(_backward, setup_context=_setup_context)
