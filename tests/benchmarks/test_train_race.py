"""Training against a plain DDP loop: both do the same work, and the exit status below the bar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lib import memory, nets, table
from lib.timing import Timing
from models import bench_train as bench
from torch_threads import torch_threads

from dakd.diffusion.schedule import CosineSchedule
from dakd.train.jointnet import JointLoss, Noising

SCRIPT = Path(bench.__file__)


def test_the_plain_loss_is_that_of_stage_3(monkeypatch):
    cfg, given = nets.unet_config(True), nets.batch(3, 16, "cpu")
    noising = Noising(CosineSchedule(), nets.B_FACTOR, nets.NUM_CLASSES, seed=0)
    ours = JointLoss(nets.joint_net_of(cfg, "cpu"), noising, 1.0, torch.channels_last)
    plain = bench.PlainLoss(ours.net, torch.channels_last, "cpu")
    # Both get the same noise, which the plain loop draws otherwise.
    drawn = noising(given.image, given.label, given.positions, torch.float32)
    monkeypatch.setattr(bench.rivals, "joint_noising", lambda *_, **__: drawn)
    torch.testing.assert_close(plain(given), ours(given)["loss"].mean(), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_rehearsal_times_the_loops_and_their_memory(tmp_path):
    path = tmp_path / "rows.csv"
    done = subprocess.run([sys.executable, SCRIPT, "--tiny", "--device", "cpu", "--csv", path], capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["contestant"]: row for row in table.read_rows(tmp_path)}
    assert set(rows) == {bench.OURS, bench.RIVAL, bench.BARE}
    assert all(float(row["images_per_s"]) > 0 and float(row["peak_gb"]) > 0 for row in rows.values())


def test_the_bare_loop_holds_one_copy_of_the_weights_less(monkeypatch):
    # Counted before a step is taken: the peak of a step depends on the layouts that a CPU's convolutions choose.
    monkeypatch.setattr(bench, "DistributedDataParallel", lambda module, **_: module)
    cfg, given = nets.unet_config(True), nets.batch(2, 16, "cpu")
    held = {is_bare: memory.peak_bytes(lambda is_bare=is_bare: bench.plain_loop(cfg, given, "cpu", is_bare=is_bare))
            for is_bare in (False, True)}  # fmt: skip
    weights = sum(parameter.nbytes for parameter in nets.joint_net_of(cfg, "cpu").parameters())
    assert held[False] - held[True] == pytest.approx(weights, rel=0.02)


@pytest.mark.parametrize(("ours_us", "status"), [(1e6 / 0.851, 0), (1e6 / 0.84, 1)])
def test_a_slower_step_ends_with_status_1(ours_us, status, monkeypatch, capsys):
    timings = {name: Timing(2 * us) for name, us in ((bench.OURS, ours_us), (bench.RIVAL, 1e6))}  # of two steps
    monkeypatch.setattr(bench, "least_of_rounds", lambda *_: (timings, {}))
    monkeypatch.setattr(bench, "LOOPS", {})
    monkeypatch.setattr(bench, "peaks_of", lambda *_: {bench.OURS: 1.0, bench.RIVAL: 1.0})
    monkeypatch.setattr(bench.distributed, "init_process_group", lambda: None)
    monkeypatch.setattr(sys, "argv", ["bench_train.py", "--device", "cpu", "--only", "small"])
    with torch_threads(1):
        assert bench.main() == status
    shown = capsys.readouterr().out
    assert ("small, B 8, 64x64: 0.84x the plain loop; the bar is 0.85x" in shown) == bool(status)


def test_peak_is_the_most_that_is_held_at_once():
    mib = 1 << 20

    def run():
        first = torch.empty(mib, dtype=torch.uint8)
        second = torch.empty(2 * mib, dtype=torch.uint8)
        del first
        return second, torch.empty(mib // 2, dtype=torch.uint8)

    assert memory.peak_bytes(run) == 3 * mib
