"""`ddim_step`, the public function: checks the arguments, then calls the op."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels import contract
from dakd.kernels.ddim_step import ops

_OP = "ddim_step"


class DdimStep(NamedTuple):
    """The new state of both modalities, and the same in the dtype of the network's input."""

    x: Tensor
    y: Tensor
    x_input: Tensor
    y_input: Tensor


def ddim_step(
    x: Tensor,
    y: Tensor,
    x0_pred: Tensor,
    logits: Tensor,
    coefficients: Tensor,
    step: Tensor,
    *,
    b: float,
    x0_before: Tensor | None = None,
    logits_before: Tensor | None = None,
    clip: float = 1.0,
    label_update: str = "softmax",
    stochastic: bool = False,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    input_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> DdimStep:
    """x' = A x + B x_0 + C x_0_before + sigma z_x;  y' = A y + B y_0 + C y_0_before + sigma z_y.

    x_0 = clamp(x0_pred, -clip, clip),  y_0 = b (2 softmax(logits) - 1).

    x: (B, 1, H, W) and y: (B, K, H, W), the fp32 state (fp64 welcome).
    x0_pred, logits: the networks' outputs, of the same shapes, any floating dtype.
    coefficients: (S, 4) table of A, B, C, sigma, fp32 or fp64.  step: int64 tensor of one element, the table's row; it
    is read on the device, and the caller advances it.
    x0_before, logits_before: the networks' outputs of the step before, for solvers of second order; both or neither.
    Without them C is not used, and with them they must be finite even where C is 0.
    label_update: "softmax" (paper, Eq. 21), or "identity": logits clamped to [-b, b] are the label's x_0 (for a label
    branch trained with L2).
    stochastic: add sigma z, a function of (seed, step, sample id); needs sample_ids (B,) int64, below 2^60.
    seed: 0 .. 2^64 - 1.
    input_dtype: dtype of x_input and y_input; where it is None or the state's, they are the new state itself.
    No gradient.  Raises ValueError or TypeError for shapes, dtypes and devices that do not fit.
    Source: the paper's inference listing and Eq. 21; DDIM (Song et al. 2021) with two scalars a step, and
    DPM-Solver++(2M) (Lu et al. 2022) with three; dakd/diffusion/solvers.py makes the tables.
    """
    _check(x, y, x0_pred, logits, coefficients, step)
    _check_before(x, y, x0_before, logits_before)
    contract.check_choice(_OP, "label_update", label_update, "softmax", "identity")
    if stochastic and sample_ids is None:
        raise ValueError(f"{_OP}: stochastic is on and sample_ids is None; give the (B,) ids that key the noise")
    if sample_ids is not None:
        contract.check_shape(_OP, "sample_ids", sample_ids, (x.shape[0],), "(B,)")
        contract.check_dtype(_OP, "sample_ids", sample_ids, torch.int64)
    contract.check_same_device(
        _OP, x=x, y=y, x0_pred=x0_pred, logits=logits, x0_before=x0_before, logits_before=logits_before,
        coefficients=coefficients, step=step, sample_ids=sample_ids,
    )  # fmt: skip
    noise_ids = sample_ids if stochastic else None
    cast = None if input_dtype == x.dtype else input_dtype
    seed = contract.seed_bits(_OP, seed)
    x_next, y_next, x_input, y_input = ops.ddim_step(
        x, y, x0_pred, logits, x0_before, logits_before, coefficients, step, noise_ids, b, clip, label_update, seed,
        cast, backend,
    )  # fmt: skip
    return DdimStep(x_next, y_next, x_next, y_next) if cast is None else DdimStep(x_next, y_next, x_input, y_input)


def _check(x: Tensor, y: Tensor, x0_pred: Tensor, logits: Tensor, coefficients: Tensor, step: Tensor) -> None:
    contract.check_rank(_OP, "x", x, "(B, 1, H, W)")
    contract.check_rank(_OP, "y", y, "(B, K, H, W)")
    batch, _, height, width = x.shape
    contract.check_shape(_OP, "x", x, (batch, 1, height, width), "(B, 1, H, W)")
    contract.check_shape(_OP, "y", y, (batch, y.shape[1], height, width), "(B, K, H, W)")
    contract.check_shape(_OP, "x0_pred", x0_pred, tuple(x.shape), "x's shape (B, 1, H, W)")
    contract.check_shape(_OP, "logits", logits, tuple(y.shape), "y's shape (B, K, H, W)")
    contract.check_rank(_OP, "coefficients", coefficients, "(S, 4)")
    contract.check_shape(_OP, "coefficients", coefficients, (coefficients.shape[0], 4), "(S, 4)")
    contract.check_dtype(_OP, "x", x, torch.float32, torch.float64)
    contract.check_same_dtype(_OP, x=x, y=y)
    contract.check_floating(_OP, x0_pred=x0_pred, logits=logits)
    contract.check_dtype(_OP, "coefficients", coefficients, torch.float32, torch.float64)
    contract.check_dtype(_OP, "step", step, torch.int64)
    if step.numel() != 1:
        raise ValueError(f"{_OP}: step has shape {tuple(step.shape)}; expected one element")


def _check_before(x: Tensor, y: Tensor, x0_before: Tensor | None, logits_before: Tensor | None) -> None:
    if (x0_before is None) != (logits_before is None):
        absent, given = ("x0_before", "logits_before") if x0_before is None else ("logits_before", "x0_before")
        raise ValueError(f"{_OP}: {given} is given and {absent} is None; give both, or neither")
    if x0_before is not None:
        contract.check_shape(_OP, "x0_before", x0_before, tuple(x.shape), "x's shape (B, 1, H, W)")
        contract.check_shape(_OP, "logits_before", logits_before, tuple(y.shape), "y's shape (B, K, H, W)")
        contract.check_floating(_OP, x0_before=x0_before, logits_before=logits_before)
