"""The contract with torch: schema and fake implementation; no gradient. Variants fill the outputs allocated here.

`seed` is the int64 with the seed's bits (contract.seed_bits).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import implements

_OP = "joint_noising"


def _allocate(
    image: Tensor, label: Tensor | None, positions: Tensor, num_classes: int, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, y_t (empty without a label) and t."""
    batch, _, height, width = image.shape
    y_shape = (0,) if label is None else (batch, num_classes, height, width)
    x_t, y_t = image.new_empty(image.shape, dtype=out_dtype), image.new_empty(y_shape, dtype=out_dtype)
    return x_t, y_t, positions.new_empty(batch)


@torch.library.custom_op("dakd::joint_noising", mutates_args=())
@implements(_OP)
def joint_noising(
    image: Tensor,
    label: Tensor | None,
    positions: Tensor,
    tables: Tensor,
    b: float,
    num_classes: int,
    seed: int,
    t: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    x_t, y_t, t_out = _allocate(image, label, positions, num_classes, out_dtype)
    variant = backends.load(_OP, backend, image.device.type, out_dtype)
    variant.forward(image, label, positions, tables, b, seed, t, x_t=x_t, y_t=y_t, t_out=t_out)
    return x_t, y_t, t_out


@joint_noising.register_fake
def _(image, label, positions, tables, b, num_classes, seed, t, out_dtype, backend):
    return _allocate(image, label, positions, num_classes, out_dtype)
