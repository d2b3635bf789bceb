"""`dakd doctor`: the installed software, the backend of each operation, and the commands that install what is missing.

In a checkout, commands with `pip install -e` are for its folder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import torch

from dakd.kernels import extension, triton_runtime
from dakd.kernels.backend import report
from dakd.runtime.precision import on_this_cpu
from dakd.shipped import extra_remedy, is_installed

# (distribution, module, purpose, the command that installs it)
PACKAGES = (
    ("deepspeed", "deepspeed", "training", extra_remedy("train")),
    ("wandb", "wandb", "logging to Weights & Biases", extra_remedy("train")),
    ("timm", "timm", "encoders timm:<name>", extra_remedy("encoders")),
    ("torchvision", "torchvision", "for timm", extra_remedy("encoders")),
    ("triton", "triton", "GPU kernels", "pip install triton"),
    (
        "mamba-ssm",
        "mamba_ssm",
        "CUDA selective scan",
        "MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation mamba-ssm",
    ),
    (
        "causal-conv1d",
        "causal_conv1d",
        "CUDA depthwise conv1d",
        "CAUSAL_CONV1D_FORCE_BUILD=TRUE pip install --no-build-isolation causal-conv1d",
    ),
)
_NVCC_REMEDY = "install NVIDIA's CUDA toolkit, or pip install nvidia-cuda-nvcc and set CUDA_HOME"


def diagnose() -> str:
    """The report as text."""
    return "\n".join([*_host_lines(), "", *_package_lines(), "", *_compiled_lines(), "", *_backend_lines()])


def _host_lines() -> list[str]:
    lines = [f"python         {platform.python_version()}", f"torch          {torch.__version__}"]
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        lines.append(f"CUDA           {torch.version.cuda}, {names}")
    elif torch.version.cuda:
        lines.append(f"CUDA           torch was built with {torch.version.cuda}, but it finds no GPU")
    elif shutil.which("nvidia-smi"):
        remedy = "pip install --force-reinstall torch" if is_installed() else "remove .venv and run: make venv"
        lines.append(f"CUDA           an NVIDIA driver is installed, but torch is a CPU build; {remedy}")
    else:
        lines.append("CUDA           none (no NVIDIA driver); everything runs on the CPU")
    return [*lines, f"CPU's bf16     {on_this_cpu()}"]


def _package_lines() -> list[str]:
    lines = []
    for distribution, module, purpose, remedy in PACKAGES:
        lines.append(f"{distribution:<15}{_state_of(distribution, module, purpose, remedy)}")
    return lines


def _compiled_lines() -> list[str]:
    """The compiled library, and the compilers that build it."""
    cxx, cuda_home = os.environ.get("CXX", "g++"), os.environ.get("CUDA_HOME")
    nvcc = str(Path(cuda_home) / "bin" / "nvcc") if cuda_home else "nvcc"
    return [
        f"{'extension':<15}{_extension_state()}",
        f"{'C++ compiler':<15}{shutil.which(cxx) or f'no {cxx} (to build the extension); apt-get install g++'}",
        f"{'nvcc':<15}{shutil.which(nvcc) or f'no {nvcc} (to build CUDA operations); {_NVCC_REMEDY}'}",
    ]


def _extension_state() -> str:
    missing = extension.missing()
    if missing:
        return f"{missing.removeprefix('the extension ')}; {extension.REMEDY}"
    cpu = f"built; CPU operations run with {extension.cpu_isa()}"
    if extension.has_cuda():
        return f"{cpu}; with CUDA operations"
    return f"{cpu}; without CUDA operations: {extension.CUDA_REMEDY}"


def _state_of(distribution: str, module: str, purpose: str, remedy: str) -> str:
    if importlib.util.find_spec(module) is None:
        return f"not installed ({purpose}); {remedy}"
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # a build under another name, such as a nightly one
        version = "installed, version unknown"
    why_not = triton_runtime.why_not(_device()) if module == "triton" else None
    return f"{version}; not used here: {why_not}" if why_not else version


def _backend_lines() -> list[str]:
    device = _device()
    lines = [f"backend of each operation on a {device.upper()} device:"]
    for entry in report(device):
        lines.append(f"  {entry.op:<22}{entry.chosen:<12}{entry.better(device) or 'the first choice'}")
        if entry.remedy:
            lines.append(f"  {'':<22}{entry.remedy}")
    return lines


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
