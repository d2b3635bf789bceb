"""ddim_step as an op of torch: operands, outputs, registration; no gradient. Variants fill its outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import define_op

_OP = "ddim_step"


class Operands(NamedTuple):
    """The arguments of the op; shapes and meaning are those of api.py.

    x0_before, logits_before: both or neither.  noise_ids: (B,) int64, or None to add no noise.
    seed: the int64 with the seed's bits (contract.seed_bits).
    input_dtype: dtype of the networks' inputs; None where they are not wanted.
    """

    x: Tensor
    y: Tensor
    x0_pred: Tensor
    logits: Tensor
    x0_before: Tensor | None
    logits_before: Tensor | None
    coefficients: Tensor
    step: Tensor
    noise_ids: Tensor | None
    b: float
    clip: float
    label_update: str
    seed: int
    input_dtype: torch.dtype | None


def _allocate(operands: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x', y', and the network's inputs, which are empty where no other dtype is wanted."""
    x, y, dtype = operands.x, operands.y, operands.input_dtype
    states = torch.empty_like(x), torch.empty_like(y)
    if dtype is None:
        return *states, x.new_empty(0), y.new_empty(0)
    return *states, torch.empty_like(x, dtype=dtype), torch.empty_like(y, dtype=dtype)


def _run(operands: Operands, backend: str, outputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x = operands.x
    backends.load(_OP, backend, x.device.type, x.dtype).forward(operands, outputs)


ddim_step = define_op(_OP, Operands, _allocate, _run)
