"""The scan of the installed package mamba-ssm, on CUDA; its own backward pass runs on a recomputed forward pass.

The package adds up some gradients with atomics, so two runs may differ in their last bits; DAKD_BACKEND=triton selects
the variant that gives the same bits each time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dakd.kernels.selective_scan.ops import Gradients, Operands

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REMEDY = (
    "MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation mamba-ssm causal-conv1d"
    " (needs nvcc)"
)


@cache
def why_not(device_type: str) -> str | None:
    """The reason why the package cannot serve this kind of device; None when a first small call succeeds."""
    if device_type != "cuda":
        return "mamba-ssm runs only on CUDA"
    try:
        x = torch.ones(1, 8, 8, device=device_type)
        state_input = torch.ones(1, 1, 8, device=device_type)
        _scan()(x, x, -torch.ones(8, 1, device=device_type), state_input, state_input)
    # Any error of the package, on import or in the call, becomes the reason that the user reads.
    except Exception as error:
        return f"mamba-ssm is not usable ({type(error).__name__}: {error})"
    return None


def forward(operands: Operands, y: Tensor) -> None:
    # The package would launch an empty grid, which is an error.
    if y.numel():
        y.copy_(_call(_with_float_parameters(operands)))


def backward(operands: Operands, dy: Tensor, gradients: Gradients) -> None:
    if not operands.u.numel():
        for gradient in gradients:
            gradient.zero_()
        return
    # Cast before they become leaves: below autograd's dispatch only the package's own function records a graph.
    *tensors, delta_softplus = _with_float_parameters(operands)
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        y = _call(Operands(*leaves, delta_softplus))
    present = [leaf for leaf in leaves if leaf is not None]
    outputs = [gradient for gradient, leaf in zip(gradients, leaves) if leaf is not None]
    for output, gradient in zip(outputs, torch.autograd.grad(y, present, dy.contiguous())):
        output.copy_(gradient)


def _with_float_parameters(operands: Operands) -> Operands:
    parameters = {name: getattr(operands, name) for name in ("A", "D", "delta_bias")}
    return operands._replace(**{name: None if value is None else value.float() for name, value in parameters.items()})


def _call(operands: Operands) -> Tensor:
    u, delta, A, B, C, D, delta_bias, delta_softplus = operands
    return _scan()(u, delta, A, B, C, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus)


def _scan() -> Callable[..., Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn
