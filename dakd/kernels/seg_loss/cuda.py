"""seg_loss in the compiled library: one CUDA kernel forward, one backward, for 2 to 5 classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dakd.kernels import arrival_counters, extension
from dakd.kernels.seg_loss.ops import Operands, Outputs, Upstream

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NUM_CLASSES = range(2, 6)
REMEDY = extension.CUDA_REMEDY
why_not = extension.why_not_cuda

# Pixels that a block takes at a time, at most, and blocks that keep a multiprocessor busy.
_TILE = 1024
_BLOCKS_PER_MULTIPROCESSOR = 16


def forward(operands: Operands, outputs: Outputs) -> None:
    logits = operands.logits
    batch, num_classes, height, width = logits.shape
    if batch == 0:
        outputs.num_invalid.zero_()
        return
    # Only as many blocks as keep the GPU busy: each leaves a row of partial sums to add.
    num_blocks = min(max(1, math.ceil(height * width / _TILE)), max(1, _num_blocks(logits.device) // batch))
    partials = logits.new_empty(batch, num_blocks, 2 + 3 * num_classes, dtype=torch.float32)
    counters = arrival_counters.zeros(logits.device, batch + 2)
    *inputs, dice_form, dice_smooth = _inputs(operands)
    torch.ops.dakd_C.seg_loss_forward_blocks(
        *inputs, dice_form == "generalized", dice_smooth, *outputs, partials, counters
    )


def backward(operands: Operands, upstream: Upstream, dlogits: Tensor) -> None:
    *inputs, _dice_form, _dice_smooth = _inputs(operands)
    torch.ops.dakd_C.seg_loss_backward(*upstream, *inputs, dlogits)


def _num_blocks(device: torch.device) -> int:
    """Blocks of a launch, for all samples together."""
    return _BLOCKS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _inputs(operands: Operands) -> Operands:
    """The operands in the formats that the kernels read."""
    _, _, teacher, teacher_row, class_weights, *_ = operands
    return operands._replace(
        teacher=teacher.float() if teacher is not None and teacher.dtype == torch.float64 else teacher,
        teacher_row=None if teacher_row is None else teacher_row.contiguous(),
        class_weights=None if class_weights is None else class_weights.float().contiguous(),
    )
