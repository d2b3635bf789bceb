"""joint_noising as an op of torch: operands, outputs, registration; no gradient. Variants fill its outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import define_op

_OP = "joint_noising"


class Operands(NamedTuple):
    """The arguments of the op; shapes and meaning are those of api.py.

    seed: the int64 with the seed's bits (contract.seed_bits).
    """

    image: Tensor
    label: Tensor | None
    positions: Tensor
    tables: Tensor
    b: float
    num_classes: int
    seed: int
    t: Tensor | None
    out_dtype: torch.dtype


def _allocate(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, y_t (empty without a label) and t."""
    image, dtype = operands.image, operands.out_dtype
    batch, _, height, width = image.shape
    y_shape = (0,) if operands.label is None else (batch, operands.num_classes, height, width)
    x_t, y_t = image.new_empty(image.shape, dtype=dtype), image.new_empty(y_shape, dtype=dtype)
    return x_t, y_t, operands.positions.new_empty(batch)


def _run(operands: Operands, backend: str, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    backends.load(_OP, backend, operands.image.device.type, operands.out_dtype).forward(operands, outputs)


joint_noising = define_op(_OP, Operands, _allocate, _run)
