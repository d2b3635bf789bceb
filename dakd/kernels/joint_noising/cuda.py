"""joint_noising in the compiled library: one CUDA kernel, a thread for four neighbouring pixels in all channels."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension
from dakd.kernels.joint_noising.ops import Operands

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REMEDY = extension.CUDA_REMEDY
why_not = extension.why_not_cuda


def forward(operands: Operands, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    image, label, positions, tables, b, _num_classes, seed, t, _out_dtype = operands
    torch.ops.dakd_C.joint_noising_forward(image, label, positions, tables, b, seed, t, *outputs)
