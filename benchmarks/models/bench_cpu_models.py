"""What the fast variants of the ops are worth to whole models on this CPU: the references against the default.

    python benchmarks/bench_models.py [--threads 2] [--only NAME] [--csv FILE]

Both sides run in one process and take turns, call by call; a time is the median of the rounds. Real sizes: SAROSS-Net
with MambaVision-B at 512x512, SAR-JointNet at the paper's size, the sampler's step. Nothing is compiled.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.device import measure_ceilings, print_machine
from lib.table import Row, RowFile

from dakd.config import StudentConfig, StudentLossConfig, UNetConfig
from dakd.data.batch import Batch
from dakd.diffusion.sampler import PairSampler, start_noise
from dakd.diffusion.schedule import CosineSchedule
from dakd.kernels import backend as backends
from dakd.models.jointnet import SARJointNet
from dakd.models.registry import build_student
from dakd.train.jointnet import JointLoss, Noising
from dakd.train.saross import StudentLoss

NUM_CLASSES = 5
SIDES = ("reference", "auto")


def student_forward() -> Callable[[], None]:
    """SAROSS-Net-B, one image of 512x512, no gradients."""
    net = build_student(StudentConfig(), NUM_CLASSES).eval()
    image = torch.randn(1, 3, 512, 512).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def call() -> None:
        net(image)

    return call


def student_step() -> Callable[[], None]:
    """Forward and backward pass of SAROSS-Net-B's training: a real and a synthetic sample of 256x256."""
    training = StudentLoss(build_student(StudentConfig(), NUM_CLASSES), StudentLossConfig(), 0, torch.channels_last)
    batch = _batch(2, 256)._replace(
        teacher=torch.randn(1, NUM_CLASSES, 256, 256).half(), teacher_row=torch.tensor([-1, 0])
    )
    return _training_step(training, batch)


def teacher_step() -> Callable[[], None]:
    """Forward and backward pass of stage 3 at the paper's size, one sample of 64x64."""
    net = SARJointNet.from_config(UNetConfig(), NUM_CLASSES)
    noising = Noising(CosineSchedule(1000, 0.999), 0.528, NUM_CLASSES, 0)
    return _training_step(JointLoss(net, noising, 1.0, torch.channels_last), _batch(1, 64))


def sampler_loop() -> Callable[[], None]:
    """Five sampling steps of a narrow teacher, four pairs of 128x128: where the step weighs most beside the network."""
    net = SARJointNet.from_config(UNetConfig(channels=(32, 32, 64), attention_levels=()), NUM_CLASSES).eval()
    sampler = PairSampler(net, CosineSchedule(1000, 0.999), 5, b=0.528)
    x, y = start_noise(0, range(4), (128, 128), NUM_CLASSES)
    return lambda: sampler(x, y)


def sampler_steps() -> Callable[[], None]:
    """Two hundred steps of the sampler alone, one pair of 256x256, the networks' answers given."""
    answers = torch.randn(1, 1, 256, 256), torch.randn(1, NUM_CLASSES, 256, 256)
    sampler = PairSampler(lambda x, y, t: answers, CosineSchedule(1000, 0.999), 200, b=0.528)
    x, y = start_noise(0, range(1), (256, 256), NUM_CLASSES)
    return lambda: sampler(x, y)


BENCHES = (student_forward, student_step, teacher_step, sampler_loop, sampler_steps)


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    ceilings = measure_ceilings("cpu")
    print_machine("cpu", ceilings)
    file = RowFile(options.csv, "cpu", ceilings)
    for build in BENCHES:
        if options.only not in build.__name__:
            continue
        torch.manual_seed(0)
        times = _time(build(), options.rounds)
        ratio = times["reference"] / times["auto"]
        print(f"{build.__name__:<18}references {times['reference']:8.3f} s   default {times['auto']:8.3f} s   "
              f"{ratio:5.2f}x   {build.__doc__}", flush=True)  # fmt: skip
        for side, time_s in times.items():
            file.add(Row("model", build.__name__, "fp32", build.__doc__, side, time_s * 1e6, "wall clock",
                         time_s * 1e6, note=f"{options.threads} threads, {ratio:.2f}x"))  # fmt: skip


def _batch(size: int, side: int) -> Batch:
    return Batch(
        image=torch.randint(0, 256, (size, 1, side, side), dtype=torch.uint8),
        label=torch.randint(0, NUM_CLASSES, (size, side, side), dtype=torch.uint8),
        positions=torch.arange(size),
        host_positions=torch.arange(size),
    )


def _training_step(training: torch.nn.Module, batch: Batch) -> Callable[[], None]:
    def call() -> None:
        training.zero_grad(set_to_none=True)
        training(batch)["loss"].mean().backward()

    return call


def _time(call: Callable[[], None], num_rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(num_rounds + 1):
        for side in SIDES:
            os.environ["DAKD_BACKEND"] = side
            backends.load.cache_clear()
            started = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[side].append(time.perf_counter() - started)
    return {side: statistics.median(measured) for side, measured in times.items()}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="the benchmarks whose name contains this")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
