"""Phase 1: what the host has, the ceilings of this run, and whether what was brought is taken: extension and cache."""

from __future__ import annotations

import csv
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time

import torch
from machine import ROOT, clocks, graph_launch_us, measure_ceilings, version

from dakd.kernels import extension
from gpu import calls
from gpu.context import Run
from gpu.workers import Job, Phase

PHASE = "facts"
_TOOLS = ("gcc", "g++", "nvcc", "ninja", "make", "ncu", "compute-sanitizer", "nvidia-smi")
# What the phases need beyond torch and Triton; brought where the host lacks it.
_PACKAGES = ("numpy", "pydantic", "webdataset", "zstandard", "deepspeed", "safetensors", "timm", "pytest",
             "pytest-xdist", "mamba-ssm", "causal-conv1d", "diffusers")  # fmt: skip
_BUILD_S = 90  # only where the library that was brought does not load
_CACHED = ("transposed_attention", "selective_scan", "ddim_step")


def phase(run: Run, limit_s: float = 25) -> Phase:
    jobs = [
        Job("ceilings", lambda: _ceilings(run), 20),
        Job("host", lambda: _host(run), 10),
        Job("triton cache", lambda: _cache(run), 12, None if run.is_gpu else "a CPU compiles no Triton kernel"),
    ]
    if run.is_gpu:
        jobs.append(Job("extension", lambda: _extension(run), _BUILD_S))
    return Phase(PHASE, limit_s + _BUILD_S if run.is_gpu else 120, jobs)


def measured_ceilings(run: Run, since: str) -> str | None:
    """The ceilings in the run's table, in the form that jobs are given; None where they were not measured.

    since: the date of the run's start, for the table may have lines of runs before.
    """
    with run.path("facts").open() as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == PHASE and row["date"] >= since]
    found = {row["name"]: row["value"] for row in rows}
    wanted = ["copy", "bf16 matmul"] if run.is_gpu else ["copy"]
    return ",".join(found[name] for name in wanted) if all(name in found for name in wanted) else None


def _ceilings(run: Run) -> str:
    found = measure_ceilings(run.device, 1 << 24 if run.is_tiny else None)
    run.fact(PHASE, "copy", f"{found.copy_gb_s:.6g}", "GB/s", "read + written, 8.6 GB" if run.is_gpu else "")
    if run.is_gpu:
        run.fact(PHASE, "bf16 matmul", f"{found.matmul_tflop_s:.6g}", "TFLOP/s", "8192 x 8192 x 8192, random numbers")
        run.fact(PHASE, "graph launch", f"{graph_launch_us(run.device):.3g}", "us", "of one small kernel")
    return f"copy {found.copy_gb_s:.0f} GB/s" + (f", bf16 {found.matmul_tflop_s:.0f} TFLOP/s" if run.is_gpu else "")


def _host(run: Run) -> str:
    run.fact(PHASE, "python", platform.python_version(), note=sys.executable)
    run.fact(PHASE, "torch", torch.__version__, note=f"CUDA {torch.version.cuda}")
    run.fact(PHASE, "cores", os.cpu_count())
    run.fact(PHASE, "clocks", clocks(run.device))
    if run.is_gpu:
        properties = torch.cuda.get_device_properties(0)
        run.fact(PHASE, "memory", f"{properties.total_memory / 1e9:.1f}", "GB")
        run.fact(PHASE, "multiprocessors", properties.multi_processor_count)
        run.fact(PHASE, "L2 cache", f"{properties.L2_cache_size / 1e6:.0f}", "MB")
        run.fact(PHASE, "cuDNN", torch.backends.cudnn.version())
        run.fact(PHASE, "driver", _smi("driver_version"))
    for tool in _TOOLS:
        run.fact(PHASE, f"tool {tool}", shutil.which(tool) or "absent")
    for package in _PACKAGES:
        run.fact(PHASE, f"package {package}", version(package) or "absent")
    built = extension.missing() or ("has CUDA operations" if extension.has_cuda() else "loads, without CUDA operations")
    run.fact(PHASE, "dakd/_C.so", built)
    return built


def _smi(field: str) -> str:
    done = subprocess.run(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"],
                          capture_output=True, text=True, timeout=20)  # fmt: skip
    return done.stdout.strip() or f"unknown ({done.stderr.strip()[:100]})"


def _cache(run: Run) -> str:
    """Launches a few ops and counts which of their kernels were in the cache."""
    import triton

    hits, misses = [], []

    def listen(*, src, cache_hit, **_) -> None:
        (hits if cache_hit else misses).append(src.name)

    triton.knobs.compilation.listener = listen
    start = time.perf_counter()
    for op in _CACHED:
        call = calls.checked(op, "bf16")[1]
        bench = calls.bench(call, run.bench_arguments())
        bench.function(**bench.operands(call.sizes, 0), backend="triton")
    torch.cuda.synchronize()
    folder = os.environ.get("TRITON_CACHE_DIR", "")
    run.fact(PHASE, "triton cache hits", len(hits), note=folder)
    run.fact(PHASE, "triton cache misses", len(misses), note=", ".join(misses))
    run.fact(PHASE, "time of their first calls", f"{time.perf_counter() - start:.2f}", "s")
    return f"{len(hits)} hits, {len(misses)} misses"


def _extension(run: Run) -> str:
    """Where the library that was brought does not load, one is built for this GPU alone."""
    missing = extension.missing() or (None if extension.has_cuda() else "it has no CUDA operations")
    if missing is None:
        return "loads"
    if importlib.util.find_spec("setuptools") is None:
        raise RuntimeError(f"dakd/_C.so: {missing}; setuptools, which would build it, is not installed")
    major, minor = torch.cuda.get_device_capability()
    environment = os.environ | {"DAKD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    start = time.monotonic()
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)
    run.fact(PHASE, "build of dakd/_C.so", f"{time.monotonic() - start:.0f}", "s", f"because {missing}")
    # A process of its own: this one has decided already that there is none.
    probe = "from dakd.kernels import extension; raise SystemExit(extension.missing() or not extension.has_cuda())"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)
    return f"built for sm_{major}{minor}"
