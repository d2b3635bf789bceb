"""The device of a measurement: its name, clocks, versions, and the ceilings it reaches (copies, matrix products)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Set by a run of many jobs: the time.monotonic() at which this job ends,
UNTIL_VARIABLE = "DAKD_BENCHMARK_UNTIL"
# the ceilings, once measured: "GB/s" or "GB/s,TFLOP/s",
CEILINGS_VARIABLE = "DAKD_BENCHMARK_CEILINGS"
# and the device's name, for processes that must not touch CUDA to learn it.
DEVICE_VARIABLE = "DAKD_BENCHMARK_DEVICE"
_ROUNDS = 10


class Ceilings(NamedTuple):
    """Of one run: copy bandwidth (read + written) and, on a GPU, the rate of a large bf16 matrix product."""

    copy_gb_s: float
    matmul_tflop_s: float | None


def seconds_given(default: float) -> float:
    """Seconds that this process may still take, by the run that started it."""
    until = os.environ.get(UNTIL_VARIABLE)
    return default if until is None else max(0.0, float(until) - time.monotonic())


def synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def measure_ceilings(device: str, copy_bytes: int | None = None) -> Ceilings:
    """Copies `copy_bytes` (4.3 GB on a GPU, so that 8.6 GB move; 0.13 GB on a CPU); on a GPU also multiplies.

    A run of many jobs measures them once and passes them on.
    """
    if os.environ.get(CEILINGS_VARIABLE):
        copy_gb_s, *rates = map(float, os.environ[CEILINGS_VARIABLE].split(","))
        return Ceilings(copy_gb_s, rates[0] if rates else None)
    is_cuda = torch.device(device).type == "cuda"
    copy_gb_s = _copy_gb_s(device, copy_bytes or (1 << 32 if is_cuda else 1 << 27))
    return Ceilings(copy_gb_s, _matmul_tflop_s(device) if is_cuda else None)


def _copy_gb_s(device: str, num_bytes: int) -> float:
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_s(lambda: target.copy_(source), device) / 1e9


def _matmul_tflop_s(device: str, side: int = 8192) -> float:
    # Random numbers: zeros would draw less power and run faster than any real work.
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / _median_s(lambda: left @ right, device) / 1e12


def _median_s(call, device: str) -> float:
    for _ in range(3):
        call()
    once = _once_on_gpu_s if torch.device(device).type == "cuda" else _once_s
    return statistics.median(once(call) for _ in range(_ROUNDS))


def _once_s(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _once_on_gpu_s(call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        if os.environ.get(DEVICE_VARIABLE):
            return os.environ[DEVICE_VARIABLE]
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def device_slug(device: str) -> str:
    """The name of the device's folder of results, such as nvidia-h200."""
    name = re.sub(r"\(r\)|\(tm\)|, \d+ threads$", "", device_name(device).lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def clocks(device: str) -> str:
    """The GPU's clocks as they are now, or why they are unknown."""
    if torch.device(device).type != "cuda":
        return "not read on a CPU"
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__} from nvidia-smi)"
    return f"SM, memory, power, temperature: {done.stdout.splitlines()[torch.device(device).index or 0]}"


def version(package: str) -> str:
    """Its version, or an empty string if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@cache
def commit() -> str:
    """The short hash of the source tree's commit, or "unknown". DAKD_COMMIT overrides it for copies without history."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = ""
    return os.environ.get("DAKD_COMMIT") or found or "unknown"


def format_ceilings(ceilings: Ceilings) -> str:
    """The value of CEILINGS_VARIABLE."""
    return ",".join(f"{value:.6g}" for value in ceilings if value is not None)


def print_machine(device: str, ceilings: Ceilings) -> None:
    matmul = "" if ceilings.matmul_tflop_s is None else f", bf16 matmul {ceilings.matmul_tflop_s:.0f} TFLOP/s"
    print(f"device  {device_name(device)}  (copy {ceilings.copy_gb_s:.1f} GB/s{matmul})")
    if not os.environ.get(CEILINGS_VARIABLE):  # else the run has recorded them in its facts
        print(f"clocks  {clocks(device)}")
    print(f"torch   {torch.__version__}   triton {version('triton') or 'none'}   commit {commit()}", flush=True)


def graph_launch_us(device: str) -> float:
    """Microseconds to replay a graph of one small kernel: the GPU's cost of any launch."""
    number = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        number.add_(1)
    return _median_s(graph.replay, device) * 1e6
