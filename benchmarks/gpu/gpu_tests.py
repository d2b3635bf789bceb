"""Last phase: the tests that need a GPU, as many as the time allows, each result with its name in the log."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from lib.device import ROOT, seconds_given

from dakd.runtime.family import die_with_parent
from gpu.visit import LOG, Visit
from gpu.workers import Job, Phase, Wrong

PHASE = "tests"
_WORKERS = 12
_FILES = ("tests/kernels", "tests/diffusion/test_sampler.py")
# Our GPU variants: not the reference, which is plain torch, nor the variants of other packages.
_CHOICE = "(triton or cuda- or captured) and not reference-cuda and not mamba_ssm and not causal_conv1d"
_TINY = ("tests/kernels/test_backend.py",)


def phase(visit: Visit, limit_s: float) -> Phase:
    absent = None if importlib.util.find_spec("pytest") else "pytest is not installed"
    return Phase(PHASE, limit_s, [Job("gpu tests", lambda: run_tests(visit), limit_s, absent)])


def run_tests(visit: Visit, files: Sequence[str] = _FILES, choice: str = _CHOICE) -> str:
    """Runs pytest verbosely: if it is stopped, the log names every test that ended."""
    chosen = ["-m", "not slow", *_TINY] if visit.is_tiny else ["-m", "gpu", "-k", choice, *files]
    workers = ["-n", str(_WORKERS)] if importlib.util.find_spec("xdist") and not visit.is_tiny else []
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider",
               "--continue-on-collection-errors", *workers, *chosen]  # fmt: skip
    counts = {"PASSED": 0, "FAILED": 0, "ERROR": 0, "SKIPPED": 0}
    failed = []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               errors="replace", env=os.environ | {"PYTHONUNBUFFERED": "1"}, process_group=0,
                               preexec_fn=die_with_parent)  # fmt: skip
    # Stopped a little before the limit, so that the counts are kept. Its workers hold the pipe open: kill the group.
    timer = threading.Timer(max(1.0, seconds_given(600) - 2), os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    for line in process.stdout:
        print(line, end="", flush=True)
        # One worker writes "NAME PASSED", several "[gw3] [ 12%] PASSED NAME"; a summary's lines begin with the word.
        found = re.search(r"(?:^\[gw\d+\].*\] |\s)(PASSED|FAILED|ERROR|SKIPPED)\b", line)
        if found and "::" in line and not line.startswith(tuple(counts)):
            counts[found.group(1)] += 1
            if found.group(1) in ("FAILED", "ERROR"):
                failed.append(re.search(r"\S+::\S+", line).group())
    status = process.wait()
    was_stopped = not timer.is_alive()
    timer.cancel()
    for word, count in counts.items():
        visit.fact(PHASE, f"tests {word.lower()}", count, note="stopped for lack of time" if was_stopped else "")
    for name in failed:
        visit.fact(PHASE, "failed test", name, note=f"{LOG} says why")
    summary = ", ".join(f"{count} {word.lower()}" for word, count in counts.items() if count) or "none ran"
    if failed:
        raise Wrong(f"{summary}: {', '.join(failed[:3])}")
    if status and not was_stopped:
        raise RuntimeError(f"pytest left with status {status}: {summary}")
    return summary + (", the rest stopped for lack of time" if was_stopped else "")
