"""Whole models on this CPU: the ops by their references against the ops by default.

    python benchmarks/models/bench_whole_models.py [--threads 2] [--only NAME] [--csv FILE]

Sizes are real: SAROSS-Net with MambaVision-B at 512x512, SAR-JointNet at the paper's size, the sampler's step.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.nets import B_FACTOR, NUM_CLASSES, batch, student_batch
from lib.race import Races

from dakd.config import StudentConfig, StudentLossConfig, UNetConfig
from dakd.diffusion.sampler import PairSampler, start_noise
from dakd.diffusion.schedule import CosineSchedule
from dakd.kernels import backend as backends
from dakd.models.jointnet import SARJointNet
from dakd.models.registry import build_student
from dakd.train.batch_loss import StudentLoss
from dakd.train.jointnet import JointLoss, Noising

Call = Callable[[], object]


def student_forward() -> Call:
    """SAROSS-Net-B, one image of 512x512, no gradients."""
    net = build_student(StudentConfig(), NUM_CLASSES).eval()
    image = torch.randn(1, 3, 512, 512).contiguous(memory_format=torch.channels_last)
    return torch.no_grad()(lambda: net(image))


def student_step() -> Call:
    """Forward and backward pass of SAROSS-Net-B's training: a real and a synthetic sample of 256x256."""
    net = build_student(StudentConfig(), NUM_CLASSES)
    training = StudentLoss(net, StudentLossConfig(), 0, torch.channels_last)
    return _training_step(training, student_batch(2, 256, "cpu"))


def teacher_step() -> Call:
    """Forward and backward pass of stage 3 at the paper's size, one sample of 64x64."""
    net = SARJointNet.from_config(UNetConfig(), NUM_CLASSES)
    noising = Noising(CosineSchedule(), B_FACTOR, NUM_CLASSES, 0)
    return _training_step(JointLoss(net, noising, 1.0, torch.channels_last), batch(1, 64, "cpu"))


def sampler_loop() -> Call:
    """Five sampling steps of a narrow teacher, four pairs of 128x128: small nets, so that the DDIM step counts most."""
    net = SARJointNet.from_config(UNetConfig(channels=(32, 32, 64), attention_levels=()), NUM_CLASSES).eval()
    sampler = PairSampler(net, CosineSchedule(), 5, b=B_FACTOR)
    x, y = start_noise(0, range(4), (128, 128), NUM_CLASSES)
    return lambda: sampler(x, y)


def sampler_steps() -> Call:
    """Two hundred steps of the sampler alone, one pair of 256x256, with fixed predictions."""
    predictions = torch.randn(1, 1, 256, 256), torch.randn(1, NUM_CLASSES, 256, 256)
    sampler = PairSampler(lambda x, y, t: predictions, CosineSchedule(), 200, b=B_FACTOR)
    x, y = start_noise(0, range(1), (256, 256), NUM_CLASSES)
    return lambda: sampler(x, y)


_ALL = (student_forward, student_step, teacher_step, sampler_loop, sampler_steps)
BENCHES = {build.__name__: build for build in _ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=10.0, help="time spent on each side, about")
    parser.add_argument("--only", action="append", choices=BENCHES, help="repeatable; default: all")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    races = Races("cpu", options.csv, options.seconds)
    for name in options.only or BENCHES:
        torch.manual_seed(0)
        call = BENCHES[name]()
        calls = {side: [_with_backend(side, call)] for side in ("reference", "auto")}
        rows = races.race("model", name, "fp32", BENCHES[name].__doc__, calls)
        if len(rows) == len(calls):  # else the race has printed what failed
            references, default = rows
            print(f"{name}: {references.time_us / default.time_us:.2f} x the references")


def _training_step(training: torch.nn.Module, batch) -> Call:
    def call() -> None:
        training.zero_grad(set_to_none=True)
        training(batch)["loss"].mean().backward()

    return call


def _with_backend(name: str, call: Call) -> Call:
    def with_backend() -> object:
        os.environ["DAKD_BACKEND"] = name
        backends.load.cache_clear()
        return call()

    return with_backend


if __name__ == "__main__":
    main()
