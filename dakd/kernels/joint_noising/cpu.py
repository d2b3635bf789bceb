"""joint_noising in the compiled library: noise drawn in vector registers, and used where it is drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension
from dakd.kernels.joint_noising.ops import Operands

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REMEDY = extension.REMEDY
why_not = extension.why_not_cpu


def forward(operands: Operands, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    image, label, positions, tables, b, _num_classes, seed, t, _out_dtype = operands
    torch.ops.dakd_C.joint_noising_forward(image, label, positions, tables, b, seed, t, *outputs)
