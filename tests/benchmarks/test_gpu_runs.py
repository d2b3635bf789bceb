"""The runs for a GPU host, rehearsed: a step that fails or hangs stops nothing; a missing GPU is told in one line."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import gpu_e2e
import harness
import pytest
import steps
import torch

from dakd.kernels import backend

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
RUNS = ["gpu_check.py", "gpu_e2e.py"]


def run(script, *arguments, **environment):
    command = [sys.executable, FOLDER / script, *arguments]
    kept = {name: value for name, value in os.environ.items() if name not in ("OUT", "PYTHONPATH")}
    return subprocess.run(command, capture_output=True, text=True, env=kept | environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", RUNS)
def test_missing_gpu_is_an_error_that_names_what_is_needed(script, tmp_path):
    done = run(script, OUT=str(tmp_path))
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr and "--device cpu --tiny" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "add --tiny" in run(script, "--device", "cpu").stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", RUNS)
def test_rehearsal_goes_on_after_steps_that_fail_and_hang(script, tmp_path):
    done = run(script, "--device", "cpu", "--tiny", "--rehearse-failure", OUT=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("not proven correct: failing step")
    with (tmp_path / "summary.csv").open() as file:
        outcomes = {row["step"]: row["status"] for row in csv.DictReader(file)}
    assert outcomes.pop("failing step") == "FAILED" and outcomes.pop("hanging step") == "timed out"
    assert set(outcomes.values()) <= {"ok", "skipped"} and list(outcomes.values()).count("ok") >= 5, outcomes
    rows = [row for path in tmp_path.glob("*.csv") if path.name != "summary.csv" for row in csv.DictReader(path.open())]
    assert rows and all(float(row["time_us"]) > 0 and row["device"] and row["date"] for row in rows)


def test_steps_of_a_real_run_name_scripts_and_shapes_that_are_there():
    """What a rehearsal leaves out: it runs toy shapes."""
    rooms = set()
    for step in gpu_check.steps("cuda", False, "OUT") + gpu_e2e.steps("cuda", False, "OUT"):
        script = Path(step.arguments[0])
        if script.parent.name == "kernels":
            op = script.stem.removeprefix("bench_")
            parsed = harness.parse(op, step.arguments[1:])
            assert str(parsed.csv) == f"OUT/{op}.csv" and parsed.dtype == "bf16" and parsed.shapes
            rooms.add(op)
        assert script.exists() or step.arguments[0] == "-m", step.name
    assert rooms == set(backend.OPS)


def test_every_step_of_a_real_run_has_a_limit_within_the_total():
    for run in (gpu_check, gpu_e2e):
        names = [step.name for step in run.steps("cuda", False, "OUT")]
        assert len(names) == len(set(names))
        assert all(0 < step.limit_s <= 180 for step in run.steps("cuda", False, "OUT"))


def options(folder, **changes):
    settings = dict(device="cpu", tiny=True, only=None, rehearse_failure=False, folder=folder, total_s=60.0)
    return type("Options", (), settings | changes)()


def test_children_of_a_hanging_step_end_with_it(tmp_path):
    code = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print('note:', p.pid); time.sleep(60)"
    outcome = steps._run(steps.Step("hanging", ["-c", code], 8), 60)
    assert outcome.status == "timed out" and outcome.seconds < 30
    until = time.monotonic() + 10  # a busy machine takes a moment to end what was killed
    while is_alive(int(outcome.note)):
        assert time.monotonic() < until
        time.sleep(0.1)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_steps_that_find_no_time_are_told(tmp_path, capsys):
    never = steps.Step("late", ["-c", "print('ran')"], 60, proves=True)
    assert steps.run_all([never], options(tmp_path, total_s=1.0)) == 0
    assert "not run for lack of time: late" in capsys.readouterr().out


def test_only_failures_of_proofs_fail_the_run(tmp_path):
    failing = ["-c", "raise SystemExit(5)"]
    assert steps.run_all([steps.Step("timing", failing, 20)], options(tmp_path)) == 0
    assert steps.run_all([steps.Step("proof", failing, 20, proves=True)], options(tmp_path)) == 1
    assert steps.run_all([steps.Step("proof", failing, 20, proves=True, skip="absent")], options(tmp_path)) == 0
    assert steps.run_all([], options(tmp_path, only=["other"])) == 2
