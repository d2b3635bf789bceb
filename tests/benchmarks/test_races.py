"""How a race is run: wrong backends do not race, failures do not stop the others, rows name the device."""

from __future__ import annotations

import csv
import time

import pytest
import rivals
import torch
from lib import device, op_race, race, table, timing

from dakd.kernels.depthwise_conv1d import depthwise_conv1d
from dakd.testing import plain
from dakd.testing.inputs import operands

TINY = ["--device", "cpu", "--shape", "tiny", "--seconds", "0.001"]


@pytest.fixture(autouse=True)
def small_copy(monkeypatch):
    monkeypatch.setattr(race, "measure_ceilings", lambda name, _: device.measure_ceilings(name, 1 << 20))


def test_rows_hold_the_machine_and_the_ratios(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    op_race.run_benchmark("depthwise_conv1d", depthwise_conv1d, [*TINY, "--csv", str(path)])
    with path.open() as file:
        kept = list(csv.DictReader(file))
    assert {"device", "torch", "triton", "commit", "date"} <= set(kept[0])
    eager, *_ = (row for row in kept if row["contestant"] == "eager" and row["what"] == "forward")
    assert float(eager["times_eager"]) == 1.0 and eager["times_compile"] == ""
    assert float(eager["least_mb"]) == 2 * 2 * 3 * 5 * 4 / 1e6
    assert float(eager["gb_s"]) == pytest.approx(float(eager["least_mb"]) / float(eager["time_us"]) * 1e3, rel=1e-4)
    reference, *_ = (
        row for row in kept if row["contestant"] == "reference" and row["what"] == "forward+backward"
    )
    assert float(reference["saved_mb"]) == 0  # the inputs alone
    assert "one version measured twice" in capsys.readouterr().out


def scaled(factor):
    def wrong(*, backend, **inputs):
        return depthwise_conv1d(**inputs, backend=backend) * factor

    return wrong


def test_backend_with_wrong_numbers_is_not_timed_and_the_run_fails(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    with pytest.raises(SystemExit) as stopped:
        op_race.run_benchmark("depthwise_conv1d", scaled(1.01), [*TINY, "--csv", str(path)])
    assert stopped.value.code == 1
    assert "OVER    depthwise_conv1d reference at tiny in fp32: " in capsys.readouterr().out
    assert {row["contestant"] for row in table.read_rows(tmp_path)} == {"eager"}


def test_backend_a_little_over_its_budget_fails_the_run_but_is_timed(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    with pytest.raises(SystemExit):
        op_race.run_benchmark("depthwise_conv1d", scaled(1 + 3e-6), [*TINY, "--csv", str(path)])
    assert "OVER    depthwise_conv1d reference" in capsys.readouterr().out
    assert "reference" in {row["contestant"] for row in table.read_rows(tmp_path)}


@pytest.mark.parametrize("layout", ["contiguous", "tokens"])
def test_operands_lie_as_asked_and_the_row_says_so(layout, tmp_path):
    path = tmp_path / "rows.csv"
    options = [*TINY, "--layout", layout, "--csv", str(path)]
    racing = op_race.OpRace("depthwise_conv1d", depthwise_conv1d, op_race.parse("depthwise_conv1d", options))
    assert racing.operands("tiny", 0)["x"].is_contiguous() == (layout == "contiguous")
    op_race.run_benchmark("depthwise_conv1d", depthwise_conv1d, options)
    assert {row["layout"] for row in table.read_rows(tmp_path)} == {layout}


def test_only_the_contestant_asked_for_races_beside_eager(tmp_path):
    path = tmp_path / "rows.csv"
    options = [*TINY, "--only", "cpu", "--csv", str(path)]
    op_race.run_benchmark("depthwise_conv1d", depthwise_conv1d, options)
    assert {row["contestant"] for row in table.read_rows(tmp_path)} == {"eager", "cpu"}


def test_backend_that_leaves_memory_unwritten_is_wrong():
    def unwritten(*, backend, **inputs):
        y = depthwise_conv1d(**inputs, backend=backend)
        return torch.cat([y[:-1], torch.empty_like(y[-1:]) + 0 * y[-1:]])

    racing = op_race.OpRace("depthwise_conv1d", unwritten, op_race.parse("depthwise_conv1d", TINY))
    assert "reference" in racing.check() and racing.backends == []


def test_contestant_that_fails_or_takes_too_long_leaves_the_others():
    def failing():
        raise RuntimeError("no such operator\nat all")

    contestants = {"good": [lambda: None], "bad": [failing], "slow": [lambda: time.sleep(5)]}
    timings, failures = timing.time_in_turns(contestants, "cpu", 0.001, limit_s=0.2)
    assert set(timings) == {"good"}
    assert failures == {"bad": "RuntimeError: no such operator ... at all", "slow": "OutOfTime: not ready within 0 s"}


def test_ratio_compares_one_method_with_itself():
    replayed, called = timing.Timing(100.0, 10.0, "graph"), timing.Timing(300.0)
    assert timing.ratio(called, replayed) == 3.0
    assert timing.ratio(timing.Timing(50.0, 40.0, "graph"), replayed) == 4.0


def test_ceilings_of_the_run_are_taken_from_its_environment(monkeypatch):
    found = device.Ceilings(4300.5, 788.0)
    monkeypatch.setenv(device.CEILINGS_VARIABLE, device.format_ceilings(found))
    assert device.measure_ceilings("cpu") == found
    monkeypatch.setenv(device.CEILINGS_VARIABLE, device.format_ceilings(device.Ceilings(12.5, None)))
    assert device.measure_ceilings("cpu") == device.Ceilings(12.5, None)


def test_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("op,time\n")
    with pytest.raises(ValueError, match="other columns"):
        table.RowFile(path, "cpu", device.Ceilings(1.0, None))


def test_shape_may_be_written_as_numbers():
    assert op_race.shape_sizes("depthwise_conv1d", "batch=2,channels=3,length=4") == dict(batch=2, channels=3, length=4)
    with pytest.raises(SystemExit, match="expected batch, channels, length"):
        op_race.shape_sizes("depthwise_conv1d", "batch=2")
    numbers = "batch=2,num_classes=3,height=4,width=5"
    assert op_race.shape_sizes("ddim_step", f"{numbers},order=2")["order"] == 2
    with pytest.raises(SystemExit, match="odd"):
        op_race.shape_sizes("ddim_step", f"{numbers},odd=2")


@pytest.mark.parametrize("op", ["ddim_step", "seg_loss", "joint_noising"])
def test_rivals_compute_what_plain_torch_does(op):
    inputs = operands(op, "small" if op == "seg_loss" else "odd", dtype=torch.float64)
    if op == "joint_noising":  # no noise, for it is drawn otherwise
        inputs["tables"] = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(10, 1)
        inputs["out_dtype"] = torch.float64
    got, wanted = rivals.EAGER[op](**inputs), getattr(plain, op)(**inputs)
    for ours, theirs in list(zip(got, wanted))[: 2 if op == "joint_noising" else 3]:
        torch.testing.assert_close(ours, theirs)


def test_associative_rival_is_the_scan():
    pytest.importorskip("torch._higher_order_ops.associative_scan")
    if not torch.cuda.is_available():
        pytest.skip("torch's pointwise associative_scan needs CUDA")
    inputs = operands("selective_scan", "tiny", device="cuda")
    got = torch.compile(rivals.associative_selective_scan)(**inputs)
    torch.testing.assert_close(got, plain.selective_scan(**inputs), rtol=1e-4, atol=1e-4)
