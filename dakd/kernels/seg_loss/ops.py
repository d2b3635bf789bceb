"""The contract with torch: schema, fake implementation, autograd. Variants fill the outputs allocated here."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import compute_dtype, implements

_OP = "seg_loss"


def _allocate(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """ce, kd, dice (B,) each, the scalar num_invalid, and what the backward pass needs of each sample's sums.

    That is coefficients (B, 1 + 2 K): 1 / sum w (0 where nothing is labelled), then Dice's offset and slope by class.
    """
    batch, num_classes = logits.shape[:2]
    dtype = compute_dtype(logits.dtype)
    losses = [logits.new_empty(batch, dtype=dtype) for _ in range(3)]
    coefficients = logits.new_empty(batch, 1 + 2 * num_classes, dtype=dtype)
    return *losses, logits.new_empty((), dtype=torch.int64), coefficients


def _load(logits: Tensor, backend: str) -> ModuleType:
    return backends.load(_OP, backend, logits.device.type, logits.dtype, logits.shape[1])


def _teacher_scale(teacher_range: float | None) -> float:
    """What a number of the teacher's is multiplied by: a code is so many steps below the largest logit."""
    return 1.0 if teacher_range is None else -teacher_range / 255


@torch.library.custom_op("dakd::seg_loss", mutates_args=())
@implements(_OP)
def seg_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor | None,
    class_weights: Tensor | None,
    teacher_range: float | None,
    temperature: float,
    ignore_index: int,
    dice_samples: str,
    dice_form: str,
    dice_smooth: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    outputs = _allocate(logits)
    variant = _load(logits, backend)
    settings = (_teacher_scale(teacher_range), temperature, ignore_index, dice_samples, dice_form, dice_smooth)
    variant.forward(logits, labels, teacher, teacher_row, class_weights, *settings, outputs=outputs)
    return outputs


@seg_loss.register_fake
def _(
    logits,
    labels,
    teacher,
    teacher_row,
    class_weights,
    teacher_range,
    temperature,
    ignore_index,
    dice_samples,
    dice_form,
    dice_smooth,
    backend,
):
    return _allocate(logits)


@torch.library.custom_op("dakd::seg_loss_backward", mutates_args=())
@implements(_OP)
def seg_loss_backward(
    dce: Tensor,
    dkd: Tensor,
    ddice: Tensor,
    coefficients: Tensor,
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor | None,
    class_weights: Tensor | None,
    teacher_range: float | None,
    temperature: float,
    ignore_index: int,
    dice_samples: str,
    dice_form: str,
    dice_smooth: float,
    backend: str,
) -> Tensor:
    dlogits = torch.empty_like(logits)
    variant = _load(logits, backend)
    settings = (_teacher_scale(teacher_range), temperature, ignore_index, dice_samples, dice_form, dice_smooth)
    inputs = (logits, labels, teacher, teacher_row, class_weights)
    variant.backward(dce, dkd, ddice, coefficients, *inputs, *settings, dlogits=dlogits)
    return dlogits


@seg_loss_backward.register_fake
def _(
    dce,
    dkd,
    ddice,
    coefficients,
    logits,
    labels,
    teacher,
    teacher_row,
    class_weights,
    teacher_range,
    temperature,
    ignore_index,
    dice_samples,
    dice_form,
    dice_smooth,
    backend,
):
    return torch.empty_like(logits)


def _setup_context(ctx, inputs, output):
    *_losses, num_invalid, coefficients = output
    ctx.save_for_backward(coefficients, *inputs[:5])
    ctx.settings = inputs[5:]
    ctx.mark_non_differentiable(num_invalid, coefficients)
    ctx.set_materialize_grads(False)


def _backward(ctx, dce, dkd, ddice, _dnum_invalid, _dcoefficients):
    coefficients = ctx.saved_tensors[0]
    upstream = (coefficients.new_zeros(len(coefficients)) if grad is None else grad for grad in (dce, dkd, ddice))
    dlogits = seg_loss_backward(*upstream, *ctx.saved_tensors, *ctx.settings)
    return dlogits, *[None] * 11


seg_loss.register_autograd(_backward, setup_context=_setup_context)
