"""A run of many steps on a machine that is lent for minutes: each a process with a time limit, none stops the rest.

What is measured lies in the folder as soon as it is measured. A short table comes last; the exit status is 1 if a step
that proves correctness failed or was stopped, 2 if the machine lacks what the run needs.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

try:
    import torch
except ImportError:
    print(f"{sys.argv[0]} needs torch, which {sys.executable} does not have; make venv installs it", file=sys.stderr)
    raise SystemExit(2) from None
from machine import RESULTS, ROOT, TIME_VARIABLE, commit, device_name, device_slug, version
from rows import RIVALS, read_rows

BENCHMARKS = ROOT / "benchmarks"
_SUMMARY_COLUMNS = ("device", "torch", "triton", "commit", "date", "step", "status", "seconds", "note")
_GRACE_S = 5.0


@dataclass(frozen=True)
class Step:
    """arguments: of this Python.  proves: a failure means that numbers may be wrong.  skip: why not to run it."""

    name: str
    arguments: Sequence[str]
    limit_s: float
    proves: bool = False
    skip: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    wrapper: Sequence[str] = ()


@dataclass(frozen=True)
class Outcome:
    step: Step
    status: str  # ok, FAILED, timed out, no time left, skipped
    seconds: float
    note: str

    @property
    def is_bad(self) -> bool:
        return self.step.proves and self.status in ("FAILED", "timed out")


def parse(description: str, needs: str) -> argparse.Namespace:
    """The options that such runs share; SystemExit 2 where there is no GPU and none was renounced."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", help="cuda, or cpu to rehearse with --tiny; default: cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes: a rehearsal whose numbers mean nothing")
    parser.add_argument("--out", type=Path, help="folder of the CSV files; default: benchmarks/results/<device>, for "
                        "--tiny a new one in the temporary folder; the variable OUT goes before both")  # fmt: skip
    parser.add_argument("--only", action="append", help="run this step only; repeatable")
    parser.add_argument("--total-s", type=float, default=470.0, help="seconds for all steps together")
    parser.add_argument("--rehearse-failure", action="store_true", help="add a step that fails and one that hangs")
    options = parser.parse_args()
    if options.device is None and not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else (
            f"torch {torch.__version__} is a CPU build")  # fmt: skip
        print(f"{parser.prog} needs {needs}; no CUDA device is found here ({built}). "
              "To rehearse without one: --device cpu --tiny", file=sys.stderr)  # fmt: skip
        raise SystemExit(2)
    options.device = options.device or "cuda"
    if options.device == "cpu" and not options.tiny:
        parser.error("on a CPU this is a rehearsal: add --tiny")
    options.folder = _folder(options)
    return options


def _folder(options: argparse.Namespace) -> Path:
    if os.environ.get("OUT"):
        return Path(os.environ["OUT"])
    if options.out is not None:
        return options.out
    if options.tiny:  # no rehearsal among the results
        return Path(tempfile.mkdtemp(prefix="dakd-rehearsal-"))
    return RESULTS / device_slug(options.device)


def run_all(steps: list[Step], options: argparse.Namespace) -> int:
    """Runs the steps in order, prints the tables and returns the exit status."""
    if options.only:
        unknown = set(options.only) - {step.name for step in steps}
        if unknown:
            print(f"no step is called {', '.join(unknown)}; there are {', '.join(step.name for step in steps)}",
                  file=sys.stderr)  # fmt: skip
            return 2
        steps = [step for step in steps if step.name in options.only]
    if options.rehearse_failure:
        steps = [*_failures(), *steps]
    options.folder.mkdir(parents=True, exist_ok=True)
    began = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    until = time.monotonic() + options.total_s
    print(f"{device_name(options.device)}, torch {torch.__version__}, commit {commit()}; rows go to {options.folder}")
    outcomes = []
    for step in steps:
        outcomes.append(_run(step, until - time.monotonic()))
        _append_summary(options, outcomes[-1])
    _print_best(read_rows(options.folder), began, options.tiny)
    return _print_outcomes(outcomes)


def _failures() -> list[Step]:
    return [
        Step("failing step", ["-c", "raise SystemExit('this step fails on purpose')"], 60, proves=True),
        Step("hanging step", ["-c", "import time; print('hangs on purpose', flush=True); time.sleep(600)"], 2),
    ]


def _run(step: Step, left_s: float) -> Outcome:
    if step.skip is not None:
        print(f"\n== {step.name}: skipped: {step.skip}", flush=True)
        return Outcome(step, "skipped", 0.0, step.skip)
    limit_s = min(step.limit_s, left_s)
    if limit_s < 5 and limit_s < step.limit_s:
        print(f"\n== {step.name}: no time left", flush=True)
        return Outcome(step, "no time left", 0.0, "")
    print(f"\n== {step.name} (at most {limit_s:.0f} s)", flush=True)
    start = time.monotonic()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", TIME_VARIABLE: f"{limit_s - 5:.0f}"}
    process = subprocess.Popen(
        [*step.wrapper, sys.executable, *step.arguments],
        cwd=ROOT,
        env=environment | step.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_print_through, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        process.wait(timeout=limit_s)
        status = "ok" if process.returncode == 0 else "FAILED"
    except subprocess.TimeoutExpired:
        status = "timed out"
    finally:
        _end(process)
    reader.join(timeout=_GRACE_S)
    notes = [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]
    note = notes[-1] if notes else next((line for line in reversed(lines) if line), "")
    return Outcome(step, status, time.monotonic() - start, note[:200])


def _print_through(stream, lines: list[str]) -> None:
    for line in stream:
        print(line, end="", flush=True)
        lines.append(line.strip())


def _end(process: subprocess.Popen) -> None:
    """Ends the step's process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _append_summary(options: argparse.Namespace, outcome: Outcome) -> None:
    path = options.folder / "summary.csv"
    is_new = not path.exists()
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    machine = [device_name(options.device), torch.__version__, version("triton"), commit(), now]
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(_SUMMARY_COLUMNS)
        writer.writerow([*machine, outcome.step.name, outcome.status, f"{outcome.seconds:.1f}", outcome.note])


def _print_best(rows: list[dict[str, str]], since: str, is_tiny: bool) -> None:
    """One line per op, shape and direction of this run: the fastest that is not plain torch, and its ratios."""
    rows = [row for row in rows if row["date"] >= since]
    groups: dict[tuple, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["op"], row["shape"], row["dtype"], row["what"]), []).append(row)
    if not groups:
        return
    print("\n== results" + (" of a rehearsal: the numbers mean nothing" if is_tiny else ""))
    print(f"{'op':<22}{'shape':<30}{'what':<18}{'best':<15}{'us':>10}{'x eager':>9}{'x compile':>10}{'% copy':>8}"
          f"{'% matmul':>9}{'img/s':>8}")  # fmt: skip
    for (op, shape, _dtype, what), group in groups.items():
        ours = [row for row in group if row["contestant"] not in RIVALS] or group
        best = min(ours, key=lambda row: float(row["time_us"]))
        shown = best["contestant"] if best["contestant"] not in RIVALS else f"({best['contestant']})"
        print(f"{op:<22}{shape[:29]:<30}{what:<18}{shown:<15}{float(best['time_us']):>10.1f}"
              f"{_cell(best['times_eager'], 9, 2)}{_cell(best['times_compile'], 10, 2)}"
              f"{_cell(best['copy_share'], 8, 1, 100)}{_cell(best['flop_share'], 9, 1, 100)}"
              f"{_cell(best['images_per_s'], 8, 2)}")  # fmt: skip


def _cell(text: str, width: int, digits: int, factor: float = 1.0) -> str:
    return f"{'-':>{width}}" if not text else f"{float(text) * factor:>{width}.{digits}f}"


def _print_outcomes(outcomes: list[Outcome]) -> int:
    print("\n== steps")
    for outcome in outcomes:
        print(f"{outcome.step.name:<24}{outcome.status:<14}{outcome.seconds:>7.1f} s  {outcome.note[:110]}")
    bad = [outcome.step.name for outcome in outcomes if outcome.is_bad]
    late = [outcome.step.name for outcome in outcomes if outcome.status == "no time left"]
    if late:
        print(f"not run for lack of time: {', '.join(late)}")
    passed = "every step that ran and proves correctness passed"
    print(f"not proven correct: {', '.join(bad)}" if bad else passed, flush=True)
    return 1 if bad else 0
