"""Calls into the compiled library: one CUDA kernel forward, one backward, for 2 to 5 classes."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension, tickets

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NUM_CLASSES = range(2, 6)
REMEDY = extension.CUDA_REMEDY
why_not = extension.why_not_cuda

# Pixels that a block takes at a time, at most, and blocks that keep a multiprocessor busy.
_TILE = 1024
_BLOCKS_PER_MULTIPROCESSOR = 16


def forward(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor | None,
    class_weights: Tensor | None,
    teacher_scale: float,
    temperature: float,
    ignore_index: int,
    dice_samples: str,
    dice_form: str,
    dice_smooth: float,
    *,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    batch, num_classes, height, width = logits.shape
    if batch == 0:
        outputs[3].zero_()
        return
    num_blocks = min(max(1, -(-height * width // _TILE)), max(1, _num_blocks(logits.device) // batch))
    partials = logits.new_empty(batch, num_blocks, 2 + 3 * num_classes, dtype=torch.float32)
    torch.ops.dakd_C.seg_loss_forward_blocks(
        logits,
        labels,
        _teacher(teacher),
        None if teacher_row is None else teacher_row.contiguous(),
        _weights(class_weights),
        teacher_scale,
        temperature,
        ignore_index,
        dice_samples,
        dice_form == "generalized",
        dice_smooth,
        *outputs,
        partials,
        tickets.zeros(logits.device, batch + 2),
    )


def backward(
    dce: Tensor,
    dkd: Tensor,
    ddice: Tensor,
    coefficients: Tensor,
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    teacher_row: Tensor | None,
    class_weights: Tensor | None,
    teacher_scale: float,
    temperature: float,
    ignore_index: int,
    dice_samples: str,
    dice_form: str,
    dice_smooth: float,
    *,
    dlogits: Tensor,
) -> None:
    torch.ops.dakd_C.seg_loss_backward(
        dce,
        dkd,
        ddice,
        coefficients,
        logits,
        labels,
        _teacher(teacher),
        None if teacher_row is None else teacher_row.contiguous(),
        _weights(class_weights),
        teacher_scale,
        temperature,
        ignore_index,
        dice_samples,
        dlogits,
    )


def _num_blocks(device: torch.device) -> int:
    """Blocks of a launch, for all samples together."""
    return _BLOCKS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _teacher(teacher: Tensor | None) -> Tensor | None:
    """The teacher in a format that the kernels read."""
    return teacher.float() if teacher is not None and teacher.dtype == torch.float64 else teacher


def _weights(class_weights: Tensor | None) -> Tensor | None:
    return None if class_weights is None else class_weights.float().contiguous()
