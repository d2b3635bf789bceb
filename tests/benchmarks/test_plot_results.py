"""The picture of a folder of results: which rows are in it, and where the floor stands."""

from __future__ import annotations

import plot_results
import pytest
from lib import device, table
from lib.timing import Timing


def keep(folder, shape, least_mb, times_us):
    """Appends rows of a race on a machine that copies 10 GB/s."""
    ceilings = device.Ceilings(10.0, None)
    file = table.RowFile(folder / "ddim_step.csv", "cpu", ceilings)
    timings = {name: Timing(time_us) for name, time_us in times_us.items()}
    made = table.make_rows("ddim_step", shape, "fp32", "forward", timings, ceilings, least_bytes=int(least_mb * 1e6))
    for row in made:
        file.add(row)


def test_largest_shape_is_shown_with_the_newest_row_of_each_contestant(tmp_path):
    keep(tmp_path, "small", 1.0, {"eager": 900.0})
    keep(tmp_path, "batch=16,height=256", 20.0, {"eager": 9000.0, "cpu": 3000.0})
    keep(tmp_path, "batch=16,height=256", 20.0, {"cpu": 2500.0})
    groups = plot_results.newest(table.read_rows(tmp_path))
    (shown,) = groups.values()
    assert [(row["contestant"], float(row["time_us"])) for row in shown] == [("eager", 9000.0), ("cpu", 2500.0)]
    assert plot_results.floor_us(shown[0]) == pytest.approx(2000.0)  # 20 MB at 10 GB/s
    assert plot_results._shape(shown[0]) == "16 x 256, fp32"


def keep_pairs(folder, shape, times_us):
    """Appends rows of generation, which have no floor, each in a layout of its own."""
    file = table.RowFile(folder / "bench_generate.csv", "cpu", device.Ceilings(10.0, None))
    for name, time_us in times_us.items():
        file.add(table.Row("generate", shape, "fp32", "ddim/leading/200", name, time_us, "CPU time", time_us,
                           layout=name))  # fmt: skip


def test_generation_is_shown_at_the_largest_net_without_a_floor(tmp_path):
    pytest.importorskip("matplotlib")
    keep_pairs(tmp_path, "small, B 16, 64x64", {"diffusers": 3e8, "dakd": 2.9e8})
    keep_pairs(tmp_path, "16M, B 16, 64x64", {"diffusers": 9e8, "dakd": 8e8})
    groups = plot_results.newest(table.read_rows(tmp_path))
    assert list(groups) == [("generate", "ddim/leading/200")]
    assert [(row["contestant"], float(row["time_us"])) for row in groups["generate", "ddim/leading/200"]] == [
        ("diffusers", 9e8), ("dakd", 8e8),
    ]  # fmt: skip
    assert plot_results._shape(groups["generate", "ddim/leading/200"][0]) == "16M, B 16, 64x64, fp32"
    path = tmp_path / "pictures" / "host.png"
    plot_results.draw(groups, path)
    assert path.stat().st_size > 5000


def test_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    keep(tmp_path, "main", 20.0, {"eager": 9000.0, "cpu": 2500.0})
    path = tmp_path / "pictures" / "host.png"
    plot_results.draw(plot_results.newest(table.read_rows(tmp_path)), path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_folder_without_rows_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["plot_results.py", str(tmp_path)])
    assert plot_results.main() == 2
    assert "measure first" in capsys.readouterr().err
