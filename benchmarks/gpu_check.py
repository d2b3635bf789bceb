"""`make gpu-check`: on a GPU host, in less than eight minutes: is it right, and how fast is each op at its main shape?

Steps: the compiled extension (built for this GPU alone where it is not there), the ceilings, the tests marked `gpu`,
one race a room against eager torch, autocast, torch.compile and the peers that can be imported, and compute-sanitizer
over small calls. Needs torch with CUDA and Triton; takes along what else it finds (nvcc, pytest, compute-sanitizer).
"""

from __future__ import annotations

import importlib.util
import shutil

from steps import BENCHMARKS, Step, parse, run_all

from dakd.kernels import backend

_TESTS_S, _ROOM_S = 180, 60


def steps(device: str, is_tiny: bool, folder: str) -> list[Step]:
    at = ["--device", device]
    ceilings = [str(BENCHMARKS / "machine.py"), *at, *(["--copy-mb", "16"] if is_tiny else [])]
    return [
        Step("extension", [str(BENCHMARKS / "build_extension.py"), *at], 150),
        Step("ceilings", ceilings, 40),
        _tests(is_tiny),
        *(_room(op, device, is_tiny, folder) for op in backend.OPS),
        *(_sanitizer(tool, device) for tool in ("memcheck", "racecheck")),
    ]


def _tests(is_tiny: bool) -> Step:
    has_workers = importlib.util.find_spec("xdist") is not None
    chosen = ["-m", "not slow", "tests/kernels/test_backend.py"] if is_tiny else ["-m", "gpu", "tests/kernels",
              "tests/diffusion/test_sampler.py"]  # fmt: skip
    workers = ["-n", "6"] if has_workers and not is_tiny else []
    return Step(
        "tests",
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *chosen],
        _TESTS_S,
        proves=True,
        skip=None if importlib.util.find_spec("pytest") else "pytest is not installed",
    )


def _room(op: str, device: str, is_tiny: bool, folder: str) -> Step:
    size = ["--shape", "main", "--seconds", "0.3", "--compile", "default"]
    if is_tiny:  # tracing takes seconds: one room with a gradient and one without stand for all
        traced = ["--compile", "aot_eager"] if op in ("ddim_step", "depthwise_conv1d") else []
        size = ["--shape", "tiny", "--seconds", "0.01", *traced]
    arguments = [str(BENCHMARKS / "kernels" / f"bench_{op}.py"), "--device", device, "--dtype", "bf16", *size]
    return Step(op, [*arguments, "--csv", f"{folder}/{op}.csv"], _ROOM_S, proves=True)


def _sanitizer(tool: str, device: str) -> Step:
    path = shutil.which("compute-sanitizer")
    absent = "compute-sanitizer watches GPUs" if device != "cuda" else "compute-sanitizer is not on PATH"
    return Step(
        tool,
        [str(BENCHMARKS / "small_calls.py"), "--device", device],
        60,
        proves=True,
        skip=None if path and device == "cuda" else absent,
        wrapper=[path or "", "--tool", tool, "--error-exitcode", "3", "--target-processes", "application-only"],
        # Every tensor in an allocation of its own, so that a read beyond it is seen.
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


def main() -> int:
    needs = "a CUDA device, a CUDA build of torch 2.11 or newer and Triton"
    options = parse("Checks and times every kernel on a GPU.", needs)
    return run_all(steps(options.device, options.tiny, str(options.folder)), options)


if __name__ == "__main__":
    raise SystemExit(main())
