"""Sampling and training steps on this CPU in bf16 against fp32, with bars for CPUs with AMX.

    python benchmarks/models/bench_bf16_cpu.py [--threads 2] [--only NAME] [--csv FILE]

Nets are the demo's teacher, one of 15 million parameters a branch, and a SAROSS-Net of 33 million; the two sides take
turns. Exit status 1: a ratio is below its bar. On a CPU without AMX, which `precision: auto` leaves in fp32, the ratios
are only shown, or, where it would emulate bf16, nothing is measured.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.nets import B_FACTOR, NUM_CLASSES, batch, student_batch, student_config
from lib.race import Races
from lib.table import exit_status
from torch import nn

from dakd.config import EngineConfig, OptimizerConfig, StudentConfig, StudentLossConfig, UNetConfig
from dakd.data.batch import Batch
from dakd.diffusion.schedule import CosineSchedule
from dakd.models.jointnet import SARJointNet
from dakd.models.registry import build_student
from dakd.runtime import precision
from dakd.train.batch_loss import StudentLoss
from dakd.train.engine import Engine
from dakd.train.jointnet import JointLoss, Noising

Call = Callable[[], object]

DEMO = UNetConfig(channels=(16, 32, 48, 64), blocks_per_level=1, attention_levels=(3,), norm_groups=8)
WIDE = UNetConfig(channels=(64, 128, 192, 256), blocks_per_level=1, attention_levels=(3,))
STUDENT = StudentConfig(
    encoder="mamba_vision",
    encoder_options=dict(dim=80, in_dim=32, depths=[1, 3, 8, 4], num_heads=[2, 4, 8, 16], window_size=[8, 8, 8, 4],
                         drop_path=0.0),
    decoder_channels=(128, 96, 64, 32),
    caft_heads=(1, 1, 1),
)  # fmt: skip


class Comparison(NamedTuple):
    """make: the call in a precision.  low: the precision against fp32.  bar: the least ratio of fp32's time to its."""

    shape: str
    make: Callable[[str], Call]
    low: str
    bar: float


def main() -> int:
    options = _parse()
    found = precision.cpu_bf16()
    if found == "":
        print("this CPU has no instructions for bf16, and dakd refuses to emulate them: nothing is measured")
        return 0
    torch.set_num_threads(options.threads)
    races = Races("cpu", options.csv, options.seconds, is_tiny=options.tiny, limit_s=1800)
    has_bars = found == "AMX" and not options.tiny
    print(f"bf16    {precision.on_this_cpu()}{'' if has_bars else '; no bars'}")
    failures = []
    for name, compared in _comparisons(options.tiny).items():
        if options.only in name:
            failures += _run(name, compared, races, options.threads, has_bars)
    return exit_status(failures)


def _comparisons(is_tiny: bool) -> dict[str, Comparison]:
    size, side = (2, 16) if is_tiny else (16, 64)
    half, large = size // 2, 32 if is_tiny else 256
    wide, student = (DEMO, student_config(is_tiny=True)) if is_tiny else (WIDE, STUDENT)
    sampled, trained, seen = f"B {size}, {side}x{side}", f"B {half}, {side}x{side}", f"B 4, {large}x{large}"
    return {
        "sample demo": Comparison(sampled, lambda name: _sampling(DEMO, size, side, name), "bf16", 1.3),
        "sample wide": Comparison(sampled, lambda name: _sampling(wide, size, side, name), "bf16", 1.6),
        "train demo": Comparison(trained, lambda name: _teacher(DEMO, half, side, name), "bf16", 1.1),
        "train wide": Comparison(trained, lambda name: _teacher(wide, half, side, name), "bf16", 1.3),
        "train student": Comparison(seen, lambda name: _student(student, large, name), "autocast", 1.3),
    }


def _run(name: str, compared: Comparison, races: Races, threads: int, has_bars: bool) -> list[str]:
    calls = {side: [compared.make(side)] for side in ("fp32", compared.low)}
    torch.set_num_threads(threads)  # an engine takes all cores
    rows = races.race("bf16_cpu", f"{name}, {compared.shape}", compared.low, name, calls)
    if len(rows) < len(calls):  # the race has printed what failed
        return [f"{name}: one side was not measured"]
    times = rows[0].time_us / rows[1].time_us
    print(f"{name}: {times:.2f} x fp32 (bar {compared.bar:.2f})", flush=True)
    return [f"{name}: {times:.2f} x fp32; the bar is {compared.bar:.2f}"] if has_bars and times < compared.bar else []


def _net(cfg: UNetConfig) -> SARJointNet:
    """With weights in the bridges too, which start at zero."""
    torch.manual_seed(0)
    net = SARJointNet.from_config(cfg, NUM_CLASSES)
    for parameter in (*net.sar_bridge.parameters(), *net.label_bridge.parameters()):
        nn.init.normal_(parameter, std=0.02)
    return net


def _sampling(cfg: UNetConfig, size: int, side: int, name: str) -> Call:
    """One call of the net as the sampler makes it: timesteps embedded before, maps in channels_last."""
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    net = _net(cfg).eval().to(dtype=dtype, memory_format=torch.channels_last)
    x, y = (torch.randn(size, channels, side, side, dtype=dtype) for channels in (1, NUM_CLASSES))
    with torch.no_grad():
        shifts = net.embed_time(torch.full((size,), 500))
    return torch.no_grad()(lambda: net.denoise(x, y, shifts))


def _teacher(cfg: UNetConfig, size: int, side: int, name: str) -> Call:
    """A step of stage 3 with the engine: both passes, AdamW and the EMA."""
    noising = Noising(CosineSchedule(), B_FACTOR, NUM_CLASSES, seed=0)
    return _steps(JointLoss(_net(cfg), noising, 1.0, torch.channels_last), batch(size, side, "cpu"), name)


def _student(cfg: StudentConfig, side: int, name: str) -> Call:
    """A step of SAROSS-Net's training with two real and two synthetic samples."""
    torch.manual_seed(0)
    net = build_student(cfg, NUM_CLASSES)
    return _steps(StudentLoss(net, StudentLossConfig(), 0, torch.channels_last), student_batch(4, side, "cpu"), name)


def _steps(module: nn.Module, given: Batch, name: str) -> Call:
    size = len(given.keys)
    engine = Engine(module, OptimizerConfig(), EngineConfig(wandb="off"), global_batch=size, micro_batch=size,
                    precision=name, decays_vectors=False)  # fmt: skip
    batches = itertools.repeat(given._replace(positions=given.host_positions))
    return lambda: engine.train_step(batches, 1e-5)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="the comparisons whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: a rehearsal whose numbers mean nothing")
    parser.add_argument("--seconds", type=float, default=8.0, help="time spent on each side, about")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
