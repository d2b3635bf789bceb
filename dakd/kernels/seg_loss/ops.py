"""The contract with torch: schema, fake implementation, autograd. Variants fill the outputs allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import compute_dtype, implements

_OP = "seg_loss"


def _allocate(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ce, kd, dice (B,) each, and the scalar num_invalid."""
    losses = [logits.new_empty(logits.shape[0], dtype=compute_dtype(logits.dtype)) for _ in range(3)]
    return *losses, logits.new_empty((), dtype=torch.int64)


@torch.library.custom_op("dakd::seg_loss", mutates_args=())
@implements(_OP)
def seg_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor | None,
    class_weights: Tensor | None,
    temperature: float,
    ignore_index: int,
    dice_samples: str,
    dice_form: str,
    dice_smooth: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _allocate(logits)
    variant = backends.load(_OP, backend, logits.device.type, logits.dtype)
    settings = (temperature, ignore_index, dice_samples, dice_form, dice_smooth)
    variant.forward(logits, labels, teacher, teacher_row, class_weights, *settings, outputs=outputs)
    return outputs


@seg_loss.register_fake
def _(
    logits,
    labels,
    teacher,
    teacher_row,
    class_weights,
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
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor | None,
    class_weights: Tensor | None,
    temperature: float,
    ignore_index: int,
    dice_samples: str,
    dice_form: str,
    dice_smooth: float,
    backend: str,
) -> Tensor:
    dlogits = torch.empty_like(logits)
    variant = backends.load(_OP, backend, logits.device.type, logits.dtype)
    settings = (temperature, ignore_index, dice_samples, dice_form, dice_smooth)
    inputs = (logits, labels, teacher, teacher_row, class_weights)
    variant.backward(dce, dkd, ddice, *inputs, *settings, dlogits=dlogits)
    return dlogits


@seg_loss_backward.register_fake
def _(
    dce,
    dkd,
    ddice,
    logits,
    labels,
    teacher,
    teacher_row,
    class_weights,
    temperature,
    ignore_index,
    dice_samples,
    dice_form,
    dice_smooth,
    backend,
):
    return torch.empty_like(logits)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]
    ctx.mark_non_differentiable(output[3])


def _backward(ctx, dce, dkd, ddice, _dnum_invalid):
    dlogits = seg_loss_backward(dce, dkd, ddice, *ctx.saved_tensors, *ctx.settings)
    return dlogits, *[None] * 10


seg_loss.register_autograd(_backward, setup_context=_setup_context)
