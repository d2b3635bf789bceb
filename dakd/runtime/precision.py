"""The number format of a computation: what `precision: auto` takes on a device, and which CPUs compute in bf16.

On a CPU the choice follows from its instructions and the size of the net, not from a measurement: the workers of one
set, and a training that resumes, must choose alike, whatever else their hosts do meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

# By the words of /proc/cpuinfo. Linux leaves out what it does not allow programs to use.
_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm's BF16"}
# The instructions by which bf16 pays. On a Xeon whose AMX was switched off (ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16), bf16
# took 1.05 to 1.3 of the time of fp32, in sampling and in training.
_FAST = ("AMX",)
_LOW = ("bf16", "autocast")
# Measured with AMX, one thread, 64 x 64 pixels (benchmarks/models/bench_bf16_cpu.py): with U-Nets of 64 channels at
# most, sampling is 1.8 times as fast as in fp32, and a training step 1.3 times; with 32 at most, neither gains. The
# gain grows with the width.
_LEAST_CHANNELS = 64
# A student's step with 1.6 million parameters takes 1.1 of the time of fp32, since casts of its weights cost more than
# its products gain; with 33 million parameters and 256 x 256 pixels it is 1.8 times as fast.
_LEAST_PARAMETERS = 10_000_000


class Precision(NamedTuple):
    """name: fp32, bf16 or autocast.  reason: why `auto` took it; empty where nothing is to be said."""

    name: str
    reason: str = ""


def cpu_bf16() -> str | None:
    """The instructions by which this CPU computes in bf16; "" where it has none, None where the system does not say."""
    facts = Path("/proc/cpuinfo")
    if not facts.is_file():
        return None
    words = set(facts.read_text().split())
    return next((name for word, name in _INSTRUCTIONS.items() if word in words), "")


def on_this_cpu() -> str:
    """What the CPU makes of bf16 and of `precision: auto`, for `dakd doctor`."""
    found = cpu_bf16()
    if found is None:
        return "unknown (no /proc/cpuinfo); precision auto takes fp32"
    if found in _FAST:
        return f"{found}; precision auto takes it for wide nets"
    return f"{found or 'none'}; precision auto takes fp32"


def pays_in_unet(channels: Sequence[int]) -> bool:
    """Whether bf16 is worth it on a CPU, for sampling and training with U-Nets of these widths."""
    return max(channels) >= _LEAST_CHANNELS


def pays_in_student(num_parameters: int) -> bool:
    """Whether bf16 is worth it on a CPU, for the training of a student of so many parameters."""
    return num_parameters >= _LEAST_PARAMETERS


def choose(setting: str, key: str, low: str, device: torch.device, pays: bool) -> Precision:
    """The precision that a setting means.

    setting: auto or a precision.  key: its name, such as `generate.precision`.  low: what auto takes on a GPU, and on a
    CPU with AMX where `pays`.
    Raises ValueError where the setting asks for bf16 and the CPU would emulate it.
    """
    if setting != "auto":
        refuse_emulated(setting, key, device)
        return Precision(setting)
    if device.type == "cuda":
        return Precision(low)
    found = cpu_bf16() if device.type == "cpu" else ""
    if pays and found in _FAST:
        return Precision(low, f"this CPU has {found}; fp32 by {key}=fp32")
    return Precision("fp32")


def keep(began: str, setting: str, key: str, low: str, device: torch.device, pays: bool) -> Precision:
    """The same for work that was begun: on a CPU auto keeps the precision that it began in, `began`.

    A training that began in bf16 goes on in fp32 where the CPU would emulate it.
    """
    if setting != "auto" or device.type != "cpu":
        return choose(setting, key, low, device, pays)
    if began in _LOW and cpu_bf16() == "":
        return Precision("fp32", f"begun in {began}, which this CPU would emulate")
    fresh = choose(setting, key, low, device, pays)
    return fresh if fresh.name == began else Precision(began, f"as it was begun; another by {key}")


def refuse_emulated(precision: str, key: str, device: torch.device) -> None:
    """ValueError where the CPU would emulate the precision: that takes about ten times as long as fp32."""
    if precision in _LOW and device.type == "cpu" and cpu_bf16() == "":
        raise ValueError(
            f"{key} is {precision}, and this CPU has no instructions for bf16: it would emulate them, about ten times "
            f"slower than fp32; expected a CPU with AMX or AVX512-BF16, or a GPU; set {key} to fp32 or auto"
        )
