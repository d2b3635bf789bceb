"""The contract with torch: schema and fake implementation; no gradient. Variants fill the outputs allocated here.

`seed` is the int64 with the seed's bits (contract.seed_bits).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.kernels.contract import implements

_OP = "ddim_step"


def _allocate(x: Tensor, y: Tensor, input_dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x', y', and the network's inputs, which are empty where no other dtype is wanted."""
    states = torch.empty_like(x), torch.empty_like(y)
    if input_dtype is None:
        return *states, x.new_empty(0), y.new_empty(0)
    return *states, torch.empty_like(x, dtype=input_dtype), torch.empty_like(y, dtype=input_dtype)


@torch.library.custom_op("dakd::ddim_step", mutates_args=())
@implements(_OP)
def ddim_step(
    x: Tensor,
    y: Tensor,
    x0_pred: Tensor,
    logits: Tensor,
    coefficients: Tensor,
    step: Tensor,
    noise_ids: Tensor | None,
    b: float,
    clip: float,
    label_update: str,
    seed: int,
    input_dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _allocate(x, y, input_dtype)
    variant = backends.load(_OP, backend, x.device.type, x.dtype)
    variant.forward(
        x, y, x0_pred, logits, coefficients, step, noise_ids, b, clip, label_update, seed, input_dtype, outputs=outputs
    )
    return outputs


@ddim_step.register_fake
def _(x, y, x0_pred, logits, coefficients, step, noise_ids, b, clip, label_update, seed, input_dtype, backend):
    return _allocate(x, y, input_dtype)
