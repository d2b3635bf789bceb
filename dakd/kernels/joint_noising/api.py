"""`joint_noising`, the public function: checks the arguments, then calls the op."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import contract
from dakd.kernels.joint_noising import ops

_OP = "joint_noising"


def joint_noising(
    image: Tensor,
    label: Tensor | None,
    positions: Tensor,
    tables: Tensor,
    *,
    b: float,
    num_classes: int,
    seed: int,
    t: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None, Tensor]:
    """x_t = a_t x_0 + s_t eps_x and y_t = a_t b y_0 + s_t eps_y, at one timestep t per sample (paper, Eq. 1 and 2).

    image: (B, 1, H, W) uint8 grey values; x_0 = image / 127.5 - 1.
    label: (B, H, W) uint8 or int64 class ids, or None (then y_t is None); y_0 = 2 onehot - 1, and 0 in all channels
    where the id is not in 0 .. num_classes - 1, such as the ignore index 255.
    positions: (B,) int64 global sample positions, below 2^60.  seed: 0 .. 2^64 - 1.
    tables: (T, 2) fp32 or fp64, columns a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar).  b: balancing factor.
    t: (B,) int64, or None to draw it uniformly by (seed, position).
    The noise is a function of (seed, t, position) and is not returned: x_0 prediction does not need it.
    Returns x_t (B, 1, H, W) and y_t (B, num_classes, H, W) in `out_dtype`, contiguous, and t (B,) int64. No gradient.
    Raises ValueError or TypeError for shapes, dtypes and devices that do not fit.
    """
    contract.check_rank(_OP, "image", image, "(B, 1, H, W)")
    batch, _, height, width = image.shape
    contract.check_shape(_OP, "image", image, (batch, 1, height, width), "(B, 1, H, W)")
    contract.check_dtype(_OP, "image", image, torch.uint8)
    if height * width == 0:
        raise ValueError(f"{_OP}: image has shape {tuple(image.shape)}; expected at least one pixel")
    if label is not None:
        contract.check_shape(_OP, "label", label, (batch, height, width), "(B, H, W)")
        contract.check_dtype(_OP, "label", label, torch.uint8, torch.int64)
    for name, tensor in (("positions", positions), ("t", t)):
        if tensor is not None:
            contract.check_shape(_OP, name, tensor, (batch,), "(B,)")
            contract.check_dtype(_OP, name, tensor, torch.int64)
    contract.check_rank(_OP, "tables", tables, "(T, 2)")
    contract.check_shape(_OP, "tables", tables, (tables.shape[0], 2), "(T, 2)")
    contract.check_dtype(_OP, "tables", tables, torch.float32, torch.float64)
    contract.check_same_device(_OP, image=image, label=label, positions=positions, tables=tables, t=t)
    seed = contract.seed_bits(_OP, seed)
    x_t, y_t, t = ops.joint_noising(image, label, positions, tables, b, num_classes, seed, t, out_dtype, backend)
    return x_t, None if label is None else y_t, t
