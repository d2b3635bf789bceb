"""Every op's benchmark runs by its script, prints what it measured, and writes its rows."""

from __future__ import annotations

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from dakd.kernels import backend

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels"
CONTESTANTS = {"eager", "autocast", "diffusers", "aot_eager", *backend.BACKENDS}


@pytest.mark.slow
def test_a_benchmark_finds_its_modules_as_a_script(tmp_path):
    script = FOLDER / "bench_depthwise_conv1d.py"
    done = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--shape" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("op", backend.OPS)
def test_benchmark_prints_a_table_and_writes_its_rows(op, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.csv"
    options = ["--shape", "tiny", "--seconds", "0.01", "--device", "cpu", "--dtype", "bf16", "--compile", "aot_eager"]
    script = str(FOLDER / f"bench_{op}.py")
    monkeypatch.setattr(sys, "argv", [script, *options, "--csv", str(path)])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    for part in ("device", "torch", "commit", f"check   {op}", "within the error budget", "eager", "reference"):
        assert part in printed
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {"eager", "autocast", "reference"} <= {row["contestant"] for row in rows} <= CONTESTANTS
    assert all(float(row["time_us"]) > 0 and float(row["copy_share"]) > 0 for row in rows)
    assert all(row[name] for row in rows for name in ("device", "torch", "commit", "date", "copy_gb_s"))
