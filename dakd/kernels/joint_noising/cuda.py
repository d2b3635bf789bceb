"""Calls into the compiled library: one CUDA kernel, a thread for four neighbouring pixels in all channels."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import extension

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REMEDY = extension.CUDA_REMEDY
why_not = extension.why_not_cuda


def forward(
    image: Tensor,
    label: Tensor | None,
    positions: Tensor,
    tables: Tensor,
    b: float,
    seed: int,
    t: Tensor | None,
    *,
    x_t: Tensor,
    y_t: Tensor,
    t_out: Tensor,
) -> None:
    torch.ops.dakd_C.joint_noising_forward(image, label, positions, tables, b, seed, t, x_t, y_t, t_out)
