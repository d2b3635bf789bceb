"""Training steps at the paper's sizes: the teacher's stages 3 and 2, and the student; 16 samples, 8 steps each.

The project's engine, if DeepSpeed can be imported, against a plain loop with torch's AdamW: with fp32 masters for the
teacher's bf16 weights and autocast for the student, like the engine.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lib.device import synchronise
from lib.nets import (
    B_FACTOR,
    NUM_CLASSES,
    batch,
    joint_net,
    student_batch,
    student_config,
    teacher_side,
    unet_config,
)
from lib.race import Races, parse
from lib.table import EAGER, Row
from lib.timing import reason
from roofline import jointnet_flop
from torch import nn

from dakd.config import EngineConfig, OptimizerConfig, StudentLossConfig
from dakd.data.batch import Batch
from dakd.diffusion.schedule import CosineSchedule
from dakd.models.registry import build_student
from dakd.train.batch_loss import StudentLoss
from dakd.train.dry_run import measure
from dakd.train.jointnet import JointLoss, Noising, freeze_for_stage

_STEPS, _RATE = 8, 1e-5


def main() -> None:
    options = parse(__doc__.splitlines()[0], choices=("stage3", "stage2", "student"))
    races = Races.of(options)
    for name in options.only or ("stage3", "stage2", "student"):
        measure_training(races, name)


def measure_training(
    races: Races, name: str, steps: int = _STEPS, contestants: Sequence[str] = (EAGER, "dakd")
) -> list[Row]:
    """Times `steps` steps of stage2, stage3 or the student by each contestant, and keeps their rows."""
    given, precision, side = _given(races, name)
    size = len(given.keys)
    if name == "student":
        flop = _student_flop(races, side)
    else:
        flop = jointnet_flop(unet_config(races.is_tiny), NUM_CLASSES, (side, side), stage=int(name[-1]))
    rows = []
    for contestant in contestants:
        make = _plain_steps if contestant == EAGER else _engine_steps
        if races.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            step = make(_module(name, races), given, precision, races.device)
            times_s = [_timed(step, races.device) for _ in range(steps)]
        # Without DeepSpeed, or without memory for one of them, the other is still measured.
        except (RuntimeError, ImportError) as error:
            print(f"{name:<17}{contestant:<16} not measured: {reason(error)}", flush=True)
            continue
        time_s = statistics.median(times_s[2:])
        row = Row("train_step", f"{name}, B {size}, {side}x{side}", precision, "step", contestant, time_s * 1e6,
                  "wall clock", time_s * 1e6, images_per_s=size / time_s)  # fmt: skip
        row.note = "torch AdamW loop" if contestant == EAGER else "DeepSpeed engine with EMA"
        if races.is_gpu:
            row.flop_share = flop * size / time_s / 1e12 / races.ceilings.matmul_tflop_s
            row.peak_gb = torch.cuda.max_memory_allocated() / 1e9
        rows.append(row)
        rows[-1].times_eager = rows[0].time_us / row.time_us if rows[0].contestant == EAGER else None
        races.keep(rows[-1:])
        del step
    return rows


def engine_step(
    races: Races, name: str, memory_format: torch.memory_format = torch.channels_last
) -> tuple[Callable[[], None], str]:
    """The engine's step of stage2, stage3 or the student, and its shape in words."""
    given, precision, side = _given(races, name)
    step = _engine_steps(_module(name, races, memory_format), given, precision, races.device)
    return step, f"B {len(given.keys)}, {side}x{side}"


def _given(races: Races, name: str) -> tuple[Batch, str, int]:
    """A training's batch, its precision and the side of its images."""
    size = 2 if races.is_tiny else 16
    if name == "student":
        side = 32 if races.is_tiny else 512
        return student_batch(size, side, races.device), "autocast", side
    side = teacher_side(races.is_tiny)
    return batch(size, side, races.device), "bf16", side


def _student_flop(races: Races, side: int) -> float:
    """Three times a forward pass; scans and attention cores are not counted."""
    with torch.device("meta"):
        net, image = build_student(student_config(races.is_tiny), NUM_CLASSES), torch.empty(1, 3, side, side)
    return 3 * 2 * measure(net.eval(), (image,)).macs


def _module(name: str, races: Races, memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    if name == "student":
        with torch.device(races.device):
            net = build_student(student_config(races.is_tiny), NUM_CLASSES)
        return StudentLoss(net, StudentLossConfig(), 0, memory_format).to(races.device)
    net = joint_net(races.is_tiny, races.device)
    freeze_for_stage(net, int(name[-1]))
    noising = Noising(CosineSchedule(), B_FACTOR, NUM_CLASSES, seed=0)
    return JointLoss(net, noising, 1.0, memory_format)


def _timed(step: Callable[[], None], device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - start


def _plain_steps(module: nn.Module, given: Batch, precision: str, device: str) -> Callable[[], None]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    masters = [parameter.detach().clone().requires_grad_() for parameter in trained]
    if precision == "bf16":
        module.to(torch.bfloat16)
    else:
        masters = trained
    optimizer = torch.optim.AdamW(masters, lr=_RATE, fused=torch.device(device).type == "cuda")
    module.train()

    def step() -> None:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "autocast"):
            loss = module(given)["loss"].mean()
        loss.backward()
        if masters is not trained:
            for master, parameter in zip(masters, trained):
                master.grad = parameter.grad.float()
                parameter.grad = None
        nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if masters is not trained:
            with torch.no_grad():
                torch._foreach_copy_(trained, masters)

    return step


def _engine_steps(module: nn.Module, given: Batch, precision: str, device: str) -> Callable[[], None]:
    from dakd.train.engine import Engine

    size = len(given.keys)
    precision = precision if torch.device(device).type == "cuda" else "fp32"
    engine = Engine(module, OptimizerConfig(), EngineConfig(wandb="off"), global_batch=size, micro_batch=size,
                    precision=precision, decays_vectors=False)  # fmt: skip
    batches = itertools.repeat(given._replace(positions=given.host_positions))
    return lambda: engine.train_step(batches, _RATE)


if __name__ == "__main__":
    main()
