"""Phase 1: the host's equipment, the ceilings of this run, and whether the kit's extension and cache are used."""

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
from lib.device import ROOT, clocks, graph_launch_us, measure_ceilings, version

from dakd.kernels import extension
from gpu import cases
from gpu.visit import Visit
from gpu.workers import Job, Phase

PHASE = "facts"
_TOOLS = ("gcc", "g++", "nvcc", "ninja", "make", "ncu", "compute-sanitizer", "nvidia-smi")
# Needed besides torch and Triton; the kit brings what the host lacks.
_PACKAGES = ("numpy", "pydantic", "webdataset", "zstandard", "deepspeed", "safetensors", "timm", "pytest",
             "pytest-xdist", "mamba-ssm", "causal-conv1d", "diffusers")  # fmt: skip
_BUILD_S = 90  # only if the kit's library does not load
_CACHED = ("transposed_attention", "selective_scan", "ddim_step")


def phase(visit: Visit, limit_s: float = 25) -> Phase:
    jobs = [
        Job("ceilings", lambda: _ceilings(visit), 20),
        Job("host", lambda: _host(visit), 10),
        Job("triton cache", lambda: _cache(visit), 12, None if visit.is_gpu else "a CPU compiles no Triton kernel"),
    ]
    if visit.is_gpu:
        jobs.append(Job("extension", lambda: _extension(visit), _BUILD_S))
    return Phase(PHASE, limit_s + _BUILD_S if visit.is_gpu else 120, jobs)


def measured_ceilings(visit: Visit, since: str) -> str | None:
    """The ceilings in the run's table, in the form that jobs are given; None if they were not measured.

    since: the date of the run's start; the table may have lines of earlier runs.
    """
    with visit.path("facts").open() as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == PHASE and row["date"] >= since]
    found = {row["name"]: row["value"] for row in rows}
    wanted = ["copy", "bf16 matmul"] if visit.is_gpu else ["copy"]
    return ",".join(found[name] for name in wanted) if all(name in found for name in wanted) else None


def _ceilings(visit: Visit) -> str:
    found = measure_ceilings(visit.device, 1 << 24 if visit.is_tiny else None)
    visit.fact(PHASE, "copy", f"{found.copy_gb_s:.6g}", "GB/s", "read + written, 8.6 GB" if visit.is_gpu else "")
    if visit.is_gpu:
        visit.fact(PHASE, "bf16 matmul", f"{found.matmul_tflop_s:.6g}", "TFLOP/s", "8192 x 8192 x 8192, random numbers")
        visit.fact(PHASE, "graph launch", f"{graph_launch_us(visit.device):.3g}", "us", "of one small kernel")
    return f"copy {found.copy_gb_s:.0f} GB/s" + (f", bf16 {found.matmul_tflop_s:.0f} TFLOP/s" if visit.is_gpu else "")


def _host(visit: Visit) -> str:
    visit.fact(PHASE, "python", platform.python_version(), note=sys.executable)
    visit.fact(PHASE, "torch", torch.__version__, note=f"CUDA {torch.version.cuda}")
    visit.fact(PHASE, "cores", os.cpu_count())
    visit.fact(PHASE, "clocks", clocks(visit.device))
    if visit.is_gpu:
        properties = torch.cuda.get_device_properties(0)
        visit.fact(PHASE, "memory", f"{properties.total_memory / 1e9:.1f}", "GB")
        visit.fact(PHASE, "multiprocessors", properties.multi_processor_count)
        visit.fact(PHASE, "L2 cache", f"{properties.L2_cache_size / 1e6:.0f}", "MB")
        visit.fact(PHASE, "cuDNN", torch.backends.cudnn.version())
        visit.fact(PHASE, "driver", _smi("driver_version"))
    for tool in _TOOLS:
        visit.fact(PHASE, f"tool {tool}", shutil.which(tool) or "absent")
    for package in _PACKAGES:
        visit.fact(PHASE, f"package {package}", version(package) or "absent")
    built = extension.missing() or ("has CUDA operations" if extension.has_cuda() else "loads, without CUDA operations")
    visit.fact(PHASE, "dakd/_C.so", built)
    return built


def _smi(field: str) -> str:
    done = subprocess.run(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"],
                          capture_output=True, text=True, timeout=20)  # fmt: skip
    return done.stdout.strip() or f"unknown ({done.stderr.strip()[:100]})"


def _cache(visit: Visit) -> str:
    """Launches a few ops and counts which of their kernels were in the cache."""
    import triton

    hits, misses = [], []

    def listen(*, src, cache_hit, **_) -> None:
        (hits if cache_hit else misses).append(src.name)

    triton.knobs.compilation.listener = listen
    start = time.perf_counter()
    for op in _CACHED:
        case = cases.checked(op, "bf16")[1]
        race = visit.op_race(case)
        race.function(**race.operands(case.sizes, 0), backend="triton")
    torch.cuda.synchronize()
    folder = os.environ.get("TRITON_CACHE_DIR", "")
    visit.fact(PHASE, "triton cache hits", len(hits), note=folder)
    visit.fact(PHASE, "triton cache misses", len(misses), note=", ".join(misses))
    visit.fact(PHASE, "time of their first calls", f"{time.perf_counter() - start:.2f}", "s")
    return f"{len(hits)} hits, {len(misses)} misses"


def _extension(visit: Visit) -> str:
    """If the kit's library does not load, one is built for this GPU alone."""
    missing = extension.missing() or (None if extension.has_cuda() else "it has no CUDA operations")
    if missing is None:
        return "loads"
    if importlib.util.find_spec("setuptools") is None:
        raise RuntimeError(f"dakd/_C.so: {missing}; setuptools, which would build it, is not installed")
    major, minor = torch.cuda.get_device_capability()
    environment = os.environ | {"DAKD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    start = time.monotonic()
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)
    visit.fact(PHASE, "build of dakd/_C.so", f"{time.monotonic() - start:.0f}", "s", f"because {missing}")
    # In another process: this one remembers that there is none.
    probe = "from dakd.kernels import extension; raise SystemExit(extension.missing() or not extension.has_cuda())"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)
    return f"built for sm_{major}{minor}"
