"""The variants of an op that a test can try, as parameters of a test."""

from __future__ import annotations

import pytest
import torch

from dakd.kernels import backend


def variants(op: str, *, without: tuple[str, ...] = (), dtype: torch.dtype = torch.float32) -> list:
    """For `parametrize(("backend", "device"), variants(op))`: every variant on every device that it is made for.

    Triton's kernels run in the interpreter on the CPU, or compiled on a GPU. What this host lacks is skipped with the
    reason; what a device will never run, or what has no `dtype`, is left out. Those on CUDA carry the mark `gpu`.
    """
    parameters = []
    for name in backend.variants(op):
        if name in without:
            continue
        for device in _devices(name):
            reason = _reason(op, name, device, dtype)
            marks = [pytest.mark.gpu] if device == "cuda" else []
            if reason is not None and "it has no" in reason:
                continue
            if reason is not None:
                marks.append(pytest.mark.skip(reason=reason))
            parameters.append(pytest.param(name, device, marks=marks, id=f"{name}-{device}"))
    return parameters


def _devices(name: str) -> tuple[str, ...]:
    if name in ("cuda", "mamba_ssm", "causal_conv1d"):
        return ("cuda",)
    if name == "cpu":
        return ("cpu",)
    if name == "triton":
        return ("cuda",) if torch.cuda.is_available() else ("cpu",)
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _reason(op: str, name: str, device: str, dtype: torch.dtype) -> str | None:
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    return backend.why_not(op, name, device, dtype)
