"""A training step of the teacher's stage 3 against a plain PyTorch DDP loop: the same net, batch and optimizer.

    python benchmarks/models/bench_train.py [--only small] [--threads 2] [--csv FILE]

dakd: the loss module of stage 3 in the engine (DeepSpeed, ZeRO-1, clipping, the average of the weights, the check that
all numbers are finite). `ddp`: q_sample and losses in plain torch, DistributedDataParallel in a world of one, AdamW,
clipping and the average, with channels_last as in dakd. `ddp, bare`: the same without clipping, average and
channels_last. All in fp32; the batch is in memory already. Exit status 1: the ratio to `ddp` is below its bar.

The bar is below 1: ZeRO-1 copies every gradient into its buffer, its share and back, parameter by parameter, which in a
world of one buys nothing. That is a fixed cost of a step (40 to 55 ms for 456 tensors in one thread, of 620), and the
larger the batch, the smaller its share.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rivals
import torch
import torch.nn.functional as F
from lib.memory import peak_bytes
from lib.nets import B_FACTOR, NUM_CLASSES, UNETS, batch, joint_net_of, unet_config
from lib.race import Races, parse
from lib.rounds import least_of_rounds
from lib.table import Row, exit_status
from lib.timing import Call, ratio
from roofline import jointnet_flop
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dakd.config import EngineConfig, OptimizerConfig, UNetConfig
from dakd.data.batch import Batch
from dakd.diffusion.schedule import CosineSchedule
from dakd.runtime import distributed
from dakd.train.engine import Engine
from dakd.train.jointnet import JointLoss, Noising, freeze_for_stage

OURS, RIVAL, BARE = "dakd", "ddp", "ddp, bare"
BAR = 0.85  # the least ratio of the plain loop's time to ours
_ROUNDS, _STEPS_A_ROUND, _RATE = 5, 2, 1e-5


def main() -> int:
    options = parse(__doc__.splitlines()[0], choices=tuple(UNETS), further=_add_options)
    torch.set_num_threads(options.threads)
    distributed.init_process_group()
    races, failures = Races.of(options), []
    if options.tiny:
        return exit_status(race_net(races, "tiny", unet_config(True), 2, 16))
    for name in options.only or ("small", "16M"):
        failures += race_net(races, name, UNETS[name], options.batch, 256 if name == "paper" else 64)
    return exit_status(failures)


def race_net(races: Races, name: str, cfg: UNetConfig, size: int, side: int) -> list[str]:
    """Times all loops on one net, keeps their rows, and returns what was below the bar, in words."""
    shape = f"{name}, B {size}, {side}x{side}"
    print(f"train  {shape}  fp32", flush=True)
    peaks = peaks_of(races, cfg, size, side)
    steps = {contestant: make(cfg, batch(size, side, races.device), races.device) for contestant, make in LOOPS.items()}
    calls = {contestant: _repeat(step) for contestant, step in steps.items()}
    timings, reasons = least_of_rounds(calls, races.device, _ROUNDS)
    timings = {contestant: timing.per(_STEPS_A_ROUND) for contestant, timing in timings.items()}
    rows = []
    for contestant, timing in timings.items():
        row = Row("train", shape, "fp32", "stage 3", contestant, timing.best_us, timing.method, timing.called_us,
                  images_per_s=size / timing.best_us * 1e6, peak_gb=peaks[contestant])  # fmt: skip
        row.times_eager = ratio(timings[RIVAL], timing) if RIVAL in timings else None
        row.layout = "contiguous" if contestant == BARE else "channels_last"
        row.note = f"{jointnet_flop(cfg, NUM_CLASSES, (side, side), stage=3) / 1e9:.2f} GFLOP a sample and step"
        rows.append(row)
    races.keep(rows)
    failures = [f"{shape}: {contestant} was not measured: {why}" for contestant, why in reasons.items()]
    return [*failures, *([] if races.is_tiny else missed(rows))]


def missed(rows: list[Row]) -> list[str]:
    """The bar, if our row does not reach it."""
    return [
        f"{row.shape}: {row.times_eager:.2f}x the plain loop; the bar is {BAR:.2f}x"
        for row in rows
        if row.contestant == OURS and row.times_eager is not None and row.times_eager < BAR
    ]


def peaks_of(races: Races, cfg: UNetConfig, size: int, side: int) -> dict[str, float]:
    """The most memory of each loop's tensors, GB: from the net on, over two steps."""
    peaks = {}
    for contestant, make in LOOPS.items():

        def run(make=make) -> None:
            step = make(cfg, batch(size, side, races.device), races.device)
            step()
            step()

        gc.collect()  # reference cycles hold the tensors of the loop before until then
        if races.is_gpu:
            before = torch.cuda.memory_allocated()
            peaks[contestant] = races.peak_gb(run) - before / 1e9
        else:
            peaks[contestant] = peak_bytes(run) / 1e9
    return peaks


def engine_loop(cfg: UNetConfig, given: Batch, device: str) -> Call:
    """The step of stage 3 as the step `train_jointnet` takes it."""
    net, size = joint_net_of(cfg, device), len(given.keys)
    freeze_for_stage(net, 3)
    noising = Noising(CosineSchedule(), B_FACTOR, NUM_CLASSES, seed=0)
    engine = Engine(JointLoss(net, noising, 1.0, torch.channels_last), OptimizerConfig(), EngineConfig(wandb="off"),
                    global_batch=size, micro_batch=size, precision="fp32", decays_vectors=False)  # fmt: skip
    batches = itertools.repeat(given._replace(positions=given.host_positions))
    return lambda: engine.train_step(batches, _RATE)


class PlainLoss(nn.Module):
    """L_x + L_y of a net on freshly noised images and labels, as one would write it."""

    def __init__(self, net: nn.Module, memory_format: torch.memory_format, device: str):
        super().__init__()
        self.net, self.memory_format, self.tables = net, memory_format, CosineSchedule().noising_table(device)

    def forward(self, given: Batch) -> Tensor:
        x_t, y_t, t = rivals.joint_noising(given.image, given.label, given.positions, self.tables, b=B_FACTOR,
                                           num_classes=NUM_CLASSES, seed=0)  # fmt: skip
        x_hat, logits = self.net(*(state.to(memory_format=self.memory_format) for state in (x_t, y_t)), t)
        return F.mse_loss(x_hat, given.image / 127.5 - 1) + F.cross_entropy(logits, given.label.long())


def plain_loop(cfg: UNetConfig, given: Batch, device: str, *, is_bare: bool = False) -> Call:
    """The same step without dakd's training code.  is_bare: without clipping, average and channels_last."""
    memory_format = torch.contiguous_format if is_bare else torch.channels_last
    net = joint_net_of(cfg, device).to(memory_format=memory_format)
    module = DistributedDataParallel(PlainLoss(net, memory_format, device), gradient_as_bucket_view=True)
    parameters = list(module.parameters())
    averages = [] if is_bare else [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=OptimizerConfig().weight_decay)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        module(given).backward()
        if not is_bare:
            nn.utils.clip_grad_norm_(parameters, OptimizerConfig().grad_clip)
        optimizer.step()
        if not is_bare:
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - OptimizerConfig().ema_decay)

    return step


LOOPS: dict[str, Callable[..., Call]] = {
    OURS: engine_loop,
    RIVAL: plain_loop,
    BARE: lambda *given: plain_loop(*given, is_bare=True),
}


def _repeat(step: Call) -> Call:
    def steps() -> None:
        for _ in range(_STEPS_A_ROUND):
            step()

    return steps


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; with one, its CPU time counts")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step")


if __name__ == "__main__":
    sys.exit(main())
