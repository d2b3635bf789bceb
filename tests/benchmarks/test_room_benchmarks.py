"""Every room's benchmark runs from the command line, names what it measured, and writes its rows."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from dakd.kernels import backend

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels"


@pytest.mark.slow
@pytest.mark.parametrize("op", backend.OPS)
def test_benchmark_prints_a_table_and_writes_its_rows(op, tmp_path):
    path = tmp_path / "rows.csv"
    command = [sys.executable, FOLDER / f"bench_{op}.py", "--shape", "tiny", "--seconds", "0.01", "--csv", path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in ("device", "torch", "commit", "shape tiny", "dtype fp32", "plain torch", "reference"):
        assert part in printed
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {"plain torch", "reference"} <= {row["contestant"] for row in rows}
    assert all(float(row["time_us"]) > 0 for row in rows)
