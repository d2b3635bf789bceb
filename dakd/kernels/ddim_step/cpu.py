"""ddim_step in the compiled library: vector code over runs of pixels, both modalities in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension
from dakd.kernels.ddim_step.ops import Operands

DTYPES = (torch.float32,)
REMEDY = extension.REMEDY
why_not = extension.why_not_cpu


def forward(operands: Operands, outputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, *predictions = operands[:6]
    coefficients, step, noise_ids, b, clip, label_update, seed, input_dtype = operands[6:]
    dtypes = {pred.dtype for pred in predictions if pred is not None}
    if len(dtypes) > 1 or torch.float64 in dtypes:
        predictions = [None if pred is None else pred.float() for pred in predictions]
    x_next, y_next, x_input, y_input = outputs
    is_fused = input_dtype in (torch.bfloat16, torch.float16)
    inputs = (x_input, y_input) if is_fused else (None, None)
    tensors = (x, y, *predictions, coefficients, step, noise_ids)
    options = (b, clip, label_update == "softmax", seed)
    torch.ops.dakd_C.ddim_step_forward(*tensors, *options, x_next, y_next, *inputs)
    if input_dtype is not None and not is_fused:
        x_input.copy_(x_next)
        y_input.copy_(y_next)
