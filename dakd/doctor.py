"""`dakd doctor`: what was found, which backend each operation will take, and the line that would get the faster one.

Lines with `pip install -e` are meant for the folder of this repository.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil

import torch

from dakd.kernels.backend import report

# (distribution, module, what it is for, the line that brings it)
PACKAGES = (
    ("deepspeed", "deepspeed", "training", "pip install -e '.[train]'"),
    ("wandb", "wandb", "logging to Weights & Biases", "pip install -e '.[train]'"),
    ("timm", "timm", "encoders timm:<name>", "pip install -e '.[encoders]'"),
    ("torchvision", "torchvision", "needed by timm", "pip install -e '.[encoders]'"),
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


def diagnose() -> str:
    """The whole report as text."""
    return "\n".join([*_host_lines(), "", *_package_lines(), "", *_backend_lines()])


def _host_lines() -> list[str]:
    lines = [f"python         {platform.python_version()}", f"torch          {torch.__version__}"]
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        lines.append(f"CUDA           {torch.version.cuda}, {names}")
    elif torch.version.cuda:
        lines.append(f"CUDA           torch was built with {torch.version.cuda}, but no GPU answers")
    elif shutil.which("nvidia-smi"):
        lines.append("CUDA           NVIDIA driver found, but torch is a CPU build; remove .venv and run: make venv")
    else:
        lines.append("CUDA           none (no NVIDIA driver); everything runs on the CPU")
    return lines


def _package_lines() -> list[str]:
    lines = []
    for distribution, module, purpose, remedy in PACKAGES:
        lines.append(f"{distribution:<15}{_state_of(distribution, module, purpose, remedy)}")
    extension = "built" if importlib.util.find_spec("dakd._C") else "not built: this version has no compiled operations"
    return [*lines, f"{'extension':<15}{extension}"]


def _state_of(distribution: str, module: str, purpose: str, remedy: str) -> str:
    if importlib.util.find_spec(module) is None:
        return f"not installed ({purpose}); {remedy}"
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # a build under another name, such as a nightly one
        return "installed, version unknown"


def _backend_lines() -> list[str]:
    lines = ["backend of each operation:"]
    for entry in report():
        why = "; ".join(f"not {name}: {reason}" for name, reason in entry.reasons.items())
        lines.append(f"  {entry.op:<22}{entry.chosen:<12}{why or 'the best variant there is'}")
        if entry.remedy:
            lines.append(f"  {'':<22}{entry.remedy}")
    return lines
