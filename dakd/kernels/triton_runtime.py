"""Helpers of all Triton variants: whether they can run, the size of a program, and the launch of a kernel.

On a CPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1, set before triton is first imported). It is slow
and for tests only, so "auto" never takes it.
"""

from __future__ import annotations

import importlib.util
import math
import os
from contextlib import nullcontext

import torch

REMEDY = "pip install triton"
_HOPPER_MULTIPROCESSORS = 132
_WARP = 32
_MAX_WARPS = 4


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(device_type: str) -> str | None:
    """The reason why Triton kernels cannot run on this kind of device; None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cpu" and not is_interpreted():
        return "triton compiles for GPUs; its interpreter, for tests, needs TRITON_INTERPRET=1"
    if device_type not in ("cpu", "cuda"):
        return f"dakd's Triton kernels are made for CUDA devices, not for {device_type!r}"
    if device_type == "cuda" and is_interpreted():
        return "TRITON_INTERPRET=1 is set; unset it to compile kernels"
    return None


def launch(kernel, grid: tuple[int, ...], *arguments, num_warps: int = 4, num_stages: int = 2, **constants) -> None:
    """kernel[grid](*arguments, **constants) on the device of the first tensor; nothing where the grid is empty.

    constants: the kernel's constexpr parameters.
    """
    # Nothing to do, and the kernel need not be compiled for it.
    if 0 in grid:
        return
    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)


def pixel_block(batch: int, num_pixels: int, per_thread: int, device: torch.device) -> tuple[int, int]:
    """Pixels and warps of a program that gives each thread so many pixels: as many warps as leave work for all."""
    # Smaller programs where there are few pixels: at least four for each multiprocessor.
    num_warps, wanted = _MAX_WARPS, 4 * num_multiprocessors(device)
    while num_warps > 1 and batch * math.ceil(num_pixels / (per_thread * _WARP * num_warps)) < wanted:
        num_warps //= 2
    return per_thread * _WARP * num_warps, num_warps


def num_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; those of an H100 or H200 for every other kind."""
    if device.type != "cuda":
        return _HOPPER_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
