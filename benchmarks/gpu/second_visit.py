"""The second visit: takes up what the first one left open; counters, memory errors, the pipeline, constants."""

from __future__ import annotations

import csv
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lib.device import RESULTS, ROOT, device_slug, seconds_given
from lib.table import read_rows

from dakd.kernels import backend
from gpu import cases, correctness, gpu_tests, races
from gpu.visit import Visit
from gpu.workers import Job, Phase, Wrong

_BENCHMARKS = ROOT / "benchmarks"
# Errors of a kernel; compute-sanitizer has others, such as for hosts that let no tool at the device.
_MEMORY_ERRORS = r"Invalid __\w+__ (?:read|write)|Misaligned|out of bounds|Race reported"
_ROOM_BYTES = 24 << 30  # for the checkpoints of three stages
_NUM_COUNTED = 3
# Without rows of a first visit: the ops farthest from their floors, judging by their machine code.
_LIKELY = ("selective_scan", "transposed_attention", "joint_noising")
# Patterns for an op's own kernels in any variant; torch's kernels are not counted.
_KERNELS = {
    "transposed_attention": "gram|fold|apply|dattention|dqk",
    "ddim_step": "ddim",
    "joint_noising": "joint_noising",
    "seg_loss": "seg_loss|forward_kernel|backward_kernel|loss",
    "selective_scan": "forward_kernel|backward_kernel|sum_kernel|chunk_kernel|carry_kernel",
    "depthwise_conv1d": "conv",
}


class Constant(NamedTuple):
    """A tuning constant of a Triton variant; `values` names the constant with the values to try."""

    op: str
    name: str
    values: str

    @property
    def module(self):
        return importlib.import_module(f"dakd.kernels.{self.op}.triton")


CONSTANTS = (
    Constant("selective_scan", "_CHECKPOINT_TILES", "CHECKPOINT_TILES"),
    Constant("transposed_attention", "_APPLY_PIXELS", "APPLY_PIXELS"),
    Constant("transposed_attention", "_APPLY_TILES", "APPLY_TILES"),
)


def recheck_phase(visit: Visit, words: tuple[str, ...]) -> Phase:
    """The jobs of the first visit's check that did not end well, or those whose names have one of `words`."""
    words = words or (("depthwise_conv1d",) if visit.is_tiny else unsettled_jobs(_first_results(visit)))
    jobs = correctness.phase(visit, words).jobs if words else []
    if files := failed_test_files(_first_results(visit)):
        jobs.append(Job("gpu tests", lambda: gpu_tests.run_tests(visit, files), 40))
    if not jobs:
        return Phase("recheck", 10, [Job("recheck", lambda: None, 10, "the first visit left nothing to check again")])
    return Phase("recheck", 35 if visit.is_gpu else 120, jobs, workers=4)


def failed_test_files(folder: Path) -> tuple[str, ...]:
    """The files of the tests that failed in the first visit."""
    path = folder / "facts.csv"
    if not path.exists():
        return ()
    with path.open() as file:
        names = [row["value"] for row in csv.DictReader(file) if row["name"] == "failed test"]
    return tuple(dict.fromkeys(name.partition("::")[0] for name in names))


def races_phase(visit: Visit) -> Phase:
    """The ops' races that the first visit did not end, or whose training passes were timed by Python's launches."""
    done = _captured_races(_first_results(visit))
    chosen = [case for case in cases.raced(visit.is_tiny) if visit.is_tiny or _race_key(case) not in done]
    jobs = [Job(f"race {case.op} {case.shape} {case.layout} {' '.join(case.options)}".strip(),
                partial(races.race, visit, case), 20) for case in chosen]  # fmt: skip
    return Phase("races", 50 if visit.is_gpu else 120, jobs)


def _race_key(case: cases.Case) -> tuple[str, str, str]:
    named = case.words[case.words.index("--shape") + 1]
    return case.op, named, case.layout + (" eta=1" if "--stochastic" in case.options else "")


def _captured_races(folder: Path) -> set[tuple[str, str, str]]:
    """The races of which every row was replayed from a graph, by op, shape and layout."""
    by_race: dict[tuple[str, str, str], bool] = {}
    for row in read_rows(folder):
        if row["op"] in backend.OPS:
            key = (row["op"], row["shape"], row["layout"] + (" eta=1" if row["what"].endswith("eta=1") else ""))
            by_race[key] = by_race.get(key, True) and row["method"] == "graph"
    return {key for key, is_captured in by_race.items() if is_captured}


def unsettled_jobs(folder: Path) -> tuple[str, ...]:
    """The names of the check jobs that did not end well the last time: wrong, failed, killed or not run."""
    path = folder / "facts.csv"
    if not path.exists():
        return ()
    with path.open() as file:
        newest = {row["name"].removeprefix("job "): row["value"] for row in csv.DictReader(file)
                  if row["phase"] in (correctness.PHASE, "recheck") and row["name"].startswith("job ")}  # fmt: skip
    return tuple(name for name, status in newest.items() if status not in ("ok", "skipped"))


def counters_phase(visit: Visit) -> Phase:
    """ncu's basic counters of the ops farthest from their floors."""
    tool = shutil.which("ncu")
    absent = None if tool and visit.is_gpu else "ncu counts on GPUs" if not visit.is_gpu else "ncu is not on PATH"
    ops = farthest(_first_results(visit))
    return Phase("counters", 30, [Job(f"counters {op}", _count_job(visit, op), 20, absent) for op in ops])


def farthest(folder: Path) -> list[str]:
    """The ops whose fastest variant of ours reached the least share of the copy bandwidth at the main shape."""
    shares: dict[str, float] = {}
    for row in read_rows(folder):
        is_ours = row["op"] in backend.OPS and row["contestant"] in cases.GPU_BACKENDS
        if is_ours and row["shape"] == "main" and row["copy_share"]:
            shares[row["op"]] = max(shares.get(row["op"], 0.0), float(row["copy_share"]))
    return sorted(shares, key=shares.get)[:_NUM_COUNTED] or list(_LIKELY)


def _count_job(visit: Visit, op: str):
    def job() -> str:
        counted = ["--kernel-name", f"regex:{_KERNELS[op]}", "--launch-count", "8"]
        chosen = ["--op", op, "--shape", "main", "--dtype", "bf16"]
        program = [sys.executable, str(_BENCHMARKS / "gpu/call_ops.py"), *chosen]
        # ncu leaves the clocks alone: the card is shared.
        command = ["ncu", "--clock-control", "none", "--set", "basic", "--csv", *counted, *program]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds_given(60))
        lines = counters(done.stdout)
        for kernel, metric, unit, value in lines:
            visit.add("counters", op=op, kernel=kernel, metric=metric, unit=unit, value=value)
        if not lines:
            raise RuntimeError(f"ncu left no counters: {_last_line(done.stderr or done.stdout)}")
        return f"{len({line[0] for line in lines})} kernels"

    return job


def counters(text: str) -> list[tuple[str, str, str, str]]:
    """Kernel, metric, unit and value of every line of ncu's CSV, which follows the program's own output."""
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if '"Kernel Name"' in line), None)
    if start is None:
        return []
    table = csv.DictReader(lines[start:])
    return [(row["Kernel Name"][:120], row["Metric Name"], row["Metric Unit"] or "", row["Metric Value"])
            for row in table if row.get("Metric Name")]  # fmt: skip


def memcheck_phase(visit: Visit) -> Phase:
    """compute-sanitizer over the kernels with arrival counters, at sizes that no block divides."""
    tool = shutil.which("compute-sanitizer")
    absent = None if tool and visit.is_gpu else "compute-sanitizer watches GPUs" if not visit.is_gpu else (
        "compute-sanitizer is not on PATH")  # fmt: skip
    jobs = [Job(f"memcheck {op}", _memcheck_job(op), 25, absent) for op in ("seg_loss", "transposed_attention")]
    return Phase("memcheck", 25, jobs, workers=2)


def _memcheck_job(op: str):
    def job() -> str:
        watch = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "3", "--report-api-errors", "no",
                 "--target-processes", "application-only"]  # fmt: skip
        command = [*watch, sys.executable, str(_BENCHMARKS / "gpu/call_ops.py"), "--op", op, "--shape", "odd"]
        # One allocation per tensor, so that reads beyond it are seen.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds_given(60), capture_output=True,
                              text=True, errors="replace")  # fmt: skip
        print(done.stdout + done.stderr, flush=True)
        found = [line for line in done.stdout.splitlines() if re.search(_MEMORY_ERRORS, line)]
        if found:
            raise Wrong(f"compute-sanitizer in {op}: {found[0].strip('= ')}")
        if done.returncode:
            raise RuntimeError(f"compute-sanitizer left with status {done.returncode}: {_last_line(done.stdout)}")
        return "no error"

    return job


def pipeline_phase(visit: Visit) -> Phase:
    """Train the teacher, generate pairs and verify the shards, through the command line."""
    limit_s = 95 if visit.is_gpu else 300
    return Phase("pipeline", limit_s, [Job("pipeline", lambda: _pipeline(visit), limit_s)])


def _pipeline(visit: Visit) -> str:
    config = ROOT / "configs" / ("smoke.yaml" if visit.is_tiny else "gpu_visit.yaml")
    parts = []
    with tempfile.TemporaryDirectory(prefix="dakd-visit-", dir=_fast_folder()) as folder:
        for words in (["prepare"], ["train_jointnet"], ["generate"], ["generate", "--verify"]):
            start = time.monotonic()
            command = [sys.executable, "-m", "dakd", *words, "--config", str(config), f"run_dir={folder}/run"]
            done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": _python_path()})
            seconds = time.monotonic() - start
            visit.fact("pipeline", f"dakd {' '.join(words)}", f"{seconds:.1f}", "s", f"exit status {done.returncode}")
            if done.returncode:
                raise RuntimeError(f"dakd {' '.join(words)} left with status {done.returncode}; the log says why")
            parts.append(f"{' '.join(words)} {seconds:.0f} s")
    return ", ".join(parts)


def _fast_folder() -> str | None:
    """/dev/shm if it has room for the checkpoints: writing them to a disk would take most of a minute's run."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > _ROOM_BYTES else None


def _last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def variants_phase(visit: Visit, names: tuple[str, ...]) -> Phase:
    """Every value of the tuning constants, held to float64 and then raced.  names: only these constants; empty: all."""
    absent = None if visit.is_gpu else "a CPU compiles no Triton kernel"
    jobs = [
        Job(f"{constant.op} {constant.name}={value}", _variant_job(visit, constant, value), 20, absent)
        for constant in CONSTANTS
        if not names or constant.name in names
        for value in offered(constant)
    ]
    return Phase("variants", 25, jobs)


def offered(constant: Constant) -> tuple[int, ...]:
    """The values of a constant; none without Triton, whose kernels it tunes."""
    try:
        return getattr(constant.module, constant.values)
    except ImportError:
        return ()


def _variant_job(visit: Visit, constant: Constant, value: int):
    def job() -> str:
        setattr(constant.module, constant.name, value)
        note = f"{constant.name}={value}"
        case = cases.repeated(constant.op, visit.is_tiny)
        small = next(found for found in cases.checked(constant.op, case.dtype) if found.layout == case.layout)
        for tensor, error in visit.op_race(small).errors("triton", small.sizes, 0).items():
            visit.add("correct", op=constant.op, backend="triton", dtype=case.dtype, layout=case.layout,
                    shape=small.shape, tensor=tensor, error=error.error, budget=error.budget, ratio=error.ratio,
                    verdict="ok" if error.ratio <= 1 else "over", note=note)  # fmt: skip
        return races.race(visit, case, "--only", "triton", "--note", note)

    return job


def _first_results(visit: Visit) -> Path:
    """The folder with the first visit's rows, as committed."""
    return RESULTS / device_slug(visit.device)
