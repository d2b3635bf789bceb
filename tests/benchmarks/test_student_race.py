"""Two students side by side against one after the other: what a round counts, and the exit status below the bar."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lib import table
from models import bench_students as bench


@pytest.mark.slow
def test_a_rehearsal_times_both(tmp_path):
    command = [sys.executable, bench.__file__, "--tiny", "--device", "cpu", "--csv", tmp_path / "rows.csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["contestant"]: row for row in table.read_rows(tmp_path)}
    assert set(rows) == {bench.OURS, bench.RIVAL} and all(float(row["images_per_s"]) > 0 for row in rows.values())


class Fake:
    """A process whose steps take a time: alone, or one of two."""

    def __init__(self, threads: int, steps: int) -> None:
        self.threads, self.steps = threads, steps

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(("together_s", "status"), [(3.0, 0), (3.2, 1)])
def test_a_gain_below_the_bar_ends_with_status_1(together_s, status, monkeypatch, capsys):
    monkeypatch.setattr(bench, "Process", Fake)
    monkeypatch.setattr(bench, "_time", lambda *processes: 2.0 if len(processes) == 1 else together_s)
    monkeypatch.setattr(bench.distributed, "num_cores", lambda: 2)
    monkeypatch.setattr(sys, "argv", ["bench_students.py", "--device", "cpu"])
    assert bench.main() == status
    shown = capsys.readouterr().out
    assert ("demo's student, B 8, 64x64: 1.25x one after the other; the bar is 1.30x" in shown) == bool(status)


def test_a_process_that_dies_is_no_measurement(monkeypatch):
    monkeypatch.setattr(bench.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with status 1"), bench.Process(1, 1):
        pass
