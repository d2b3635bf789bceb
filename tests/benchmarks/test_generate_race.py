"""Generation against diffusers: what is raced, how it is extrapolated, and the exit status below a bar."""

from __future__ import annotations

import sys

import pytest
import torch
from lib import device, diffusers_pairs, nets, race, rounds, table
from lib.timing import Timing
from models import bench_generate as bench
from torch_threads import torch_threads

from dakd.diffusion.sampler import PairSampler, to_grey
from dakd.diffusion.schedule import CosineSchedule

EAGER = bench.RIVAL, bench.SETTINGS[0]


@pytest.fixture(autouse=True)
def small_copy(monkeypatch):
    monkeypatch.setattr(race, "measure_ceilings", lambda name, _: device.measure_ceilings(name, 1 << 20))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the bench with options; returns its exit status and its rows."""

    def run(*options):
        path = tmp_path / "rows.csv"
        monkeypatch.setattr(sys, "argv", ["bench_generate.py", "--device", "cpu", *options, "--csv", str(path)])
        return bench.main(), table.read_rows(tmp_path)

    with torch_threads(torch.get_num_threads()):  # the bench sets its own
        yield run


def times_of(monkeypatch, **seconds_a_step):
    """Replaces all measurements by given seconds of a step of 16 pairs: `ddim` and `few` of ours, `rival` of theirs."""
    few, (ddim, dpmpp) = seconds_a_step["few"], bench.SETTINGS
    given = {(bench.OURS, ddim): seconds_a_step["ddim"], (bench.OURS, dpmpp): few, EAGER: seconds_a_step["rival"]}
    timings = {key: Timing(5e6 * seconds) for key, seconds in given.items()}  # five steps are timed
    monkeypatch.setattr(bench, "least_of_rounds", lambda *_, **__: (timings, {}))
    for side in ("_our_calls", "_rival_calls"):
        monkeypatch.setattr(bench, side, lambda *_: {})


@pytest.mark.slow
def test_a_rehearsal_races_both_sides_at_both_settings(run):
    status, rows = run("--tiny")
    assert status == 0
    found = {(row["contestant"], row["what"]) for row in rows}
    both = {"ddim/leading/200", "dpmpp_2m/logsnr/20"}
    assert found == {(name, what) for name in ("dakd", "diffusers") for what in both} | {
        (f"diffusers {form}", "ddim/leading/200") for form in ("channels_last", "compile")
    }
    assert all(float(row["time_us"]) > 0 and row["device"] and row["commit"] for row in rows)
    assert all("1.022 and 1.027 times those of diffusers' two nets; 1 of 2" in row["note"] for row in rows)


def test_steps_are_extrapolated_to_64_pairs(run, monkeypatch):
    times_of(monkeypatch, ddim=0.5, few=0.5, rival=1.0)
    status, rows = run("--only", "small")
    assert status == 0
    seconds = {(row["contestant"], row["what"]): float(row["time_us"]) / 1e6 for row in rows}
    assert seconds == {("dakd", "ddim/leading/200"): 400, ("dakd", "dpmpp_2m/logsnr/20"): 40,
                       ("diffusers", "ddim/leading/200"): 800}  # fmt: skip
    assert [float(row["times_eager"]) for row in rows] == [2, 20, 1]
    assert [float(row["images_per_s"]) for row in rows] == [0.16, 1.6, 0.08]


@pytest.mark.parametrize(
    ("times", "fault"),
    [
        (dict(ddim=1.02, few=1.0, rival=1.0), "ddim/leading/200: 0.98x diffusers' eager loop of 200 steps; the bar is"),
        (dict(ddim=1.0, few=1.02, rival=1.0), "logsnr/20: 9.80x diffusers' eager loop of 200 steps; the bar is 10.00x"),
    ],
)
def test_a_ratio_below_its_bar_ends_with_status_1(times, fault, run, monkeypatch, capsys):
    times_of(monkeypatch, **times)
    status, _ = run("--only", "small")
    printed = capsys.readouterr().out
    assert status == 1 and printed.count("BELOW THE BAR") == 1 and fault in printed


def test_ratios_at_their_bars_end_with_status_0(run, monkeypatch):
    times_of(monkeypatch, ddim=1.0, few=1.0, rival=1.0)
    assert run("--only", "small")[0] == 0


def test_a_side_that_fails_ends_with_status_1(run, monkeypatch, capsys):
    times_of(monkeypatch, ddim=1.0, few=1.0, rival=1.0)
    found = {EAGER: Timing(5e6)}
    failures = {(bench.OURS, setting): "RuntimeError: no memory" for setting in bench.SETTINGS}
    monkeypatch.setattr(bench, "least_of_rounds", lambda *_, **__: (found, failures))
    status, rows = run("--only", "small")
    printed = capsys.readouterr().out
    assert status == 1 and "not measured: RuntimeError: no memory" in printed
    assert "ddim/leading/200 of dakd was not measured" in printed
    assert [row["contestant"] for row in rows] == ["diffusers"]


def test_both_sides_sample_the_same_with_the_papers_sampler():
    def image_net(x, t, return_dict):
        return ((1.5 + t.float() / 1000) * torch.tanh(x),)

    def label_net(y, t, return_dict):
        return (3 * y,)

    def both(x, y, t):
        return image_net(x, t[0], False)[0], label_net(y, t[0], False)[0]

    loop = diffusers_pairs.PairLoop((image_net, label_net), diffusers_pairs.ddim, steps=50, timed_steps=50, b=0.5,
                                    shape=(2, 5, 8, 8), device="cpu", dtype=torch.float32)  # fmt: skip
    torch.manual_seed(0)
    grey, logits = loop()
    torch.manual_seed(0)
    x, y = torch.randn(2, 1, 8, 8), torch.randn(2, 5, 8, 8)
    image, wanted = PairSampler(both, CosineSchedule(), 50, b=0.5)(x, y)
    assert int((grey.int() - to_grey(image).int()).abs().max()) <= 1
    torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-3)


def test_the_small_net_is_that_of_real_small():
    from dakd.config import load_config

    config = load_config("real_small", ["prepare.root=/nowhere"])
    assert nets.UNETS["small"] == config.train_jointnet.unet


def test_rounds_take_the_least_time_and_name_what_failed(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(rounds, "clock_of", lambda _: (lambda: next(clock), "a clock"))

    def fail():
        raise ValueError("no")

    timings, reasons = rounds.least_of_rounds({"good": lambda: None, "bad": fail}, "cpu", 3)
    assert timings == {"good": Timing(1e6, method="a clock")} and reasons == {"bad": "ValueError: no"}
