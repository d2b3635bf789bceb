"""The choice of an op's implementation: the named one or an error, or with "auto" the best that can run, logged once.

A variant of op OP called NAME is the module dakd/kernels/OP/NAME.py. All but the reference offer
`why_not(device_type) -> str | None`, the reason why they cannot run there, and REMEDY, the command that would change
it. A variant lists its dtypes in DTYPES and its numbers of classes in NUM_CLASSES, if it does not take all. For Triton,
which must not be imported where it is not installed, `triton_runtime` answers for all rooms.
Ops call `load` inside their implementation, never in traced code: a log call or an import probe breaks a full graph.
The environment variable DAKD_BACKEND names the variant that "auto" takes in every room that has it; there it runs, or
the call is an error, as if the caller had named it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch

from dakd.kernels import triton_runtime

logger = logging.getLogger("dakd.kernels")

OPS = (
    "transposed_attention",
    "ddim_step",
    "joint_noising",
    "seg_loss",
    "selective_scan",
    "depthwise_conv1d",
)
# Best first; "auto" takes the first that can run.
BACKENDS = ("mamba_ssm", "causal_conv1d", "cuda", "triton", "cpu", "reference")
# Tried before those, in some rooms. On an H200 Triton took 42 us for the loss and 15 for the noising where CUDA took 56
# and 20. The package causal-conv1d needs a padded copy of x, a shifted copy of y and another forward pass in the
# backward one; Triton reads and writes each element once (reasoned: no GPU has timed the package yet).
FIRST = {"depthwise_conv1d": ("triton",), "joint_noising": ("triton",), "seg_loss": ("triton",)}
# The kind of device that each is made for; on another kind nothing can be installed to make it run.
MADE_FOR = dict(mamba_ssm="cuda", causal_conv1d="cuda", cuda="cuda", triton="cuda", cpu="cpu")


class BackendChoice(NamedTuple):
    """The variant that "auto" takes for one op.

    `reasons` says why each better variant cannot run, `remedy` how to get the best of those made for the device.
    """

    op: str
    chosen: str
    reasons: dict[str, str]
    remedy: str

    def better(self, device_type: str) -> str:
        """Why better variants that are made for this kind of device cannot run, in a line; empty if there are none."""
        own = {name: why for name, why in self.reasons.items() if MADE_FOR.get(name, device_type) == device_type}
        return "; ".join(f"not {name}: {why}" for name, why in own.items())


# Cached: the choice is made, and logged, once for each op, device and dtype.
@cache
def load(
    op: str, requested: str, device_type: str, dtype: torch.dtype = torch.float32, num_classes: int | None = None
) -> ModuleType:
    """The module that implements `op` for features of `dtype` on this kind of device.

    requested: "auto" or one of BACKENDS.  device_type: such as "cpu" or "cuda".  num_classes: where the op has classes.
    RuntimeError when the requested one cannot run there.
    """
    if requested == "auto":
        choice = choose(op, device_type, dtype, num_classes)
        where = f"{device_type} in {str(dtype).removeprefix('torch.')}"
        logger.info("%s: %s on %s (%s)", op, choice.chosen, where, choice.better(device_type) or "the first choice")
        requested = choice.chosen
    reason = why_not(op, requested, device_type, dtype, num_classes)
    if reason is not None:
        usable = _usable(op, device_type, dtype, num_classes)
        raise RuntimeError(
            f"{op}: backend {requested!r} cannot run on {device_type}: {reason}; choose one of auto, {usable}"
        )
    return importlib.import_module(f"dakd.kernels.{op}.{requested}")


def choose(
    op: str, device_type: str, dtype: torch.dtype = torch.float32, num_classes: int | None = None
) -> BackendChoice:
    """The variant that "auto" takes for `op` on this kind of device, and why none better.

    RuntimeError where DAKD_BACKEND names a variant of the op that cannot run there.
    """
    named = _named_by_environment()
    if named in variants(op):
        if reason := why_not(op, named, device_type, dtype, num_classes):
            raise RuntimeError(
                f"DAKD_BACKEND is {named!r}, which cannot run {op} on {device_type}: {reason}; "
                f"unset DAKD_BACKEND, or set it to one of auto, {_usable(op, device_type, dtype, num_classes)}"
            )
        return BackendChoice(op, named, {"others": f"DAKD_BACKEND={named}"}, "")
    reasons, remedy = {}, ""
    for name in variants(op):
        reason = why_not(op, name, device_type, dtype, num_classes)
        if reason is None and name == "triton" and triton_runtime.is_interpreted():
            reason = "Triton's interpreter is for tests"
        if reason is None:
            return BackendChoice(op, name, reasons, remedy)
        reasons[name] = reason
        if MADE_FOR[name] == device_type:
            remedy = remedy or _remedy(op, name)
    raise RuntimeError(f"{op} has no variant at all for {device_type}; the package is incomplete, install it again")


def why_not(
    op: str, name: str, device_type: str, dtype: torch.dtype = torch.float32, num_classes: int | None = None
) -> str | None:
    """The reason why variant `name` of `op` cannot run on this kind of device; None when it can."""
    if name not in BACKENDS:
        return f"no backend is called that (there are auto, {', '.join(BACKENDS)})"
    if name not in variants(op):
        return f"{op} has no such variant"
    if name == "reference":
        return None
    reason = triton_runtime.why_not(device_type) if name == "triton" else _module(op, name).why_not(device_type)
    if reason is not None:
        return reason
    if dtype not in getattr(_module(op, name), "DTYPES", (dtype,)):
        return f"it has no {str(dtype).removeprefix('torch.')}"
    made_for = getattr(_module(op, name), "NUM_CLASSES", None)
    if made_for is not None and num_classes is not None and num_classes not in made_for:
        return f"it is made for {made_for[0]} to {made_for[-1]} classes, not for {num_classes}"
    return None


def report(device_type: str | None = None, num_classes: int | None = None) -> list[BackendChoice]:
    """One BackendChoice per op, for the device that a run would take: CUDA where there is one, else the CPU."""
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    return [choose(op, device_type, num_classes=num_classes) for op in OPS]


def variants(op: str) -> list[str]:
    """The variants whose file exists, best first."""
    if op not in OPS:
        raise RuntimeError(f"no op is called {op!r}; there are {', '.join(OPS)}")
    order = dict.fromkeys((*FIRST.get(op, ()), *BACKENDS))
    return [name for name in order if importlib.util.find_spec(f"dakd.kernels.{op}.{name}")]


def _usable(op: str, device_type: str, dtype: torch.dtype, num_classes: int | None) -> str:
    return ", ".join(name for name in variants(op) if why_not(op, name, device_type, dtype, num_classes) is None)


def _remedy(op: str, name: str) -> str:
    return triton_runtime.REMEDY if name == "triton" else _module(op, name).REMEDY


def _named_by_environment() -> str | None:
    """The backend in DAKD_BACKEND; None for "auto"."""
    named = os.environ.get("DAKD_BACKEND") or "auto"
    if named not in ("auto", *BACKENDS):
        raise RuntimeError(f"DAKD_BACKEND is {named!r}; expected one of auto, {', '.join(BACKENDS)}")
    return None if named == "auto" else named


def _module(op: str, name: str) -> ModuleType:
    return importlib.import_module(f"dakd.kernels.{op}.{name}")
