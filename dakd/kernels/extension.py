"""The compiled library dakd/_C.so: found and loaded when a variant first asks for it.

Its CPU operations run with the best instruction set of the processor; DAKD_CPU_ISA=portable, avx2 or avx512 asks for
less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from dakd.shipped import extension_remedy

REMEDY = extension_remedy("a C++ compiler, such as Debian's g++")
CUDA_REMEDY = extension_remedy("nvcc, such as pip install nvidia-cuda-nvcc", "DAKD_CUDA=1 ")
_LIBRARY = Path(__file__).resolve().parents[1] / "_C.so"
# Next to the package in a source tree; an installed package has no sources.
_BINDINGS = Path(__file__).resolve().parents[2] / "csrc" / "bindings.cpp"


def why_not_cpu(device_type: str) -> str | None:
    """The reason why the library's CPU operations cannot run on this kind of device; None when they can."""
    if device_type != "cpu":
        return "the C++ operations run only on CPUs"
    reason = missing()
    if reason is None:
        # Raises here for a wrong DAKD_CPU_ISA: an error inside a parallel loop would not reach the user.
        cpu_isa()
    return reason


def why_not_cuda(device_type: str) -> str | None:
    """The reason why the library's CUDA operations cannot run on this kind of device; None when they can."""
    if device_type != "cuda":
        return "the CUDA operations run only on CUDA devices"
    return missing() or (None if has_cuda() else "the extension was built without CUDA")


@cache
def missing() -> str | None:
    """Why there is no library; None when it is loaded."""
    if not _LIBRARY.exists():
        return "the extension is not built"
    try:
        torch.ops.load_library(_LIBRARY)
    # The loader's message becomes the reason that the user reads.
    except OSError as error:
        return f"the extension does not load ({error}); build it again"
    if _BINDINGS.exists() and _built_from() != hashlib.sha256(_BINDINGS.read_bytes()).hexdigest():
        return "the extension was built from other sources; build it again"
    return None


def _built_from() -> str:
    """The hash of the bindings that the loaded library was built from; empty if the library does not report it."""
    return torch.ops.dakd_C.bindings() if hasattr(torch.ops.dakd_C, "bindings") else ""


def has_cuda() -> bool:
    """Whether the library holds CUDA operations."""
    return missing() is None and torch.ops.dakd_C.has_cuda()


def cpu_isa() -> str:
    """The instruction set that the CPU operations run with: "portable", "avx2" or "avx512"."""
    return torch.ops.dakd_C.isa()


def has_cpu_isa(name: str) -> bool:
    """Whether the processor has an instruction set: "portable", "avx2" or "avx512"."""
    try:
        with using_cpu_isa(name):
            return True
    except RuntimeError:
        return False


@contextmanager
def using_cpu_isa(name: str) -> Iterator[None]:
    """Runs the CPU operations with an instruction set; RuntimeError when the processor does not have it."""
    before = cpu_isa()
    torch.ops.dakd_C.set_isa(name)
    try:
        yield
    finally:
        torch.ops.dakd_C.set_isa(before)
