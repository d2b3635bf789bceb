"""Generation against diffusers: seconds per 64 pairs at an equal net, with as many network calls and at equal quality.

    python benchmarks/models/bench_generate.py [--only small] [--precision bf16] [--threads 2] [--csv FILE]

dakd samples as `generate` does. diffusers has two UNet2DModels, with the parameters of SAR-JointNet's branches, and a
scheduler for each: eager, eager with channels_last, compiled. Both sides take the paper's 200 DDIM steps, and 20 steps
of DPM-Solver++ (2M) on a grid in log-SNR. Which few-step setting equals 200 leading steps is the finding of `dakd
sample --convergence`, with a trained teacher; here the weights are random, and only time is measured. A few steps are
timed and extrapolated. Exit status 1: a ratio is below its bar.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lib import diffusers_pairs
from lib.calls import compile_with
from lib.nets import B_FACTOR, NUM_CLASSES, UNETS, joint_net_of, unet_config
from lib.race import Races, parse
from lib.rounds import least_of_rounds
from lib.table import Row, exit_status
from lib.timing import Call, Timing, ratio
from roofline import jointnet_flop
from torch import nn

from dakd.config import GenerateConfig, ScheduleConfig, UNetConfig
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.generate.teacher import PairMaker, Teacher
from dakd.models.jointnet import SARJointNet
from dakd.runtime.tensor_files import save_weights

PAIRS = 64
OURS, RIVAL = "dakd", "diffusers"
# The least ratios of the time of diffusers' eager loop of 200 steps to ours, by our setting.
BARS = {"ddim": 1.0, "dpmpp_2m": 10.0}
_ROUNDS, _COMPILE_LIMIT_S = 3, 1800


class Setting(NamedTuple):
    """A way to sample, on both sides.  spacing: of dakd's grid.  scheduler: diffusers'."""

    solver: str
    spacing: str
    steps: int
    scheduler: Callable

    @property
    def title(self) -> str:
        return f"{self.solver}/{self.spacing}/{self.steps}"


SETTINGS = (
    Setting("ddim", "leading", 200, diffusers_pairs.ddim),
    Setting("dpmpp_2m", "logsnr", 20, diffusers_pairs.dpmpp),
)


class Sizes(NamedTuple):
    """What a net is raced at.  timed_steps: of each loop; the others are extrapolated."""

    batch: int
    side: int
    timed_steps: int


def main() -> int:
    options = parse(__doc__.splitlines()[0], choices=tuple(UNETS), further=_add_options)
    torch.set_num_threads(options.threads)
    races, failures = Races.of(options), []
    if options.tiny:
        return exit_status(race_net(races, "tiny", unet_config(True), Sizes(2, 16, 1), options.precision))
    for name in options.only or ("small", "16M"):
        sizes = Sizes(options.batch, 256 if name == "paper" else 64, options.steps)
        failures += race_net(races, name, UNETS[name], sizes, options.precision)
    return exit_status(failures)


def race_net(races: Races, name: str, cfg: UNetConfig, sizes: Sizes, precision: str) -> list[str]:
    """Times both sides on one net, keeps the rows, and returns what was below its bar, in words."""
    shape = f"{name}, B {sizes.batch}, {sizes.side}x{sizes.side}"
    print(f"generate  {shape}  {precision}\n{work_of(cfg, sizes.side)}", flush=True)
    calls = {**_our_calls(cfg, sizes, races.device, precision), **_rival_calls(races, cfg, sizes, precision)}
    timings, reasons = least_of_rounds(calls, races.device, _ROUNDS, limit_s=_COMPILE_LIMIT_S)
    for (contestant, setting), why in reasons.items():
        print(f"{setting.title:<22}{contestant:<24}not measured: {why}", flush=True)
    rows = rows_of(timings, shape, precision, cfg, sizes)
    races.keep(rows, prints=False)
    for row in rows:
        print(f"{row.what:<22}{row.contestant:<24}{row.time_us / 1e6:>9.1f} s for {PAIRS} pairs{_times(row)}",
              flush=True)  # fmt: skip
    # The time of a toy net says nothing: a rehearsal fails only where a side does.
    return [*missing(rows), *([] if races.is_tiny else missed(rows, shape))]


def rows_of(
    timings: dict[tuple[str, Setting], Timing], shape: str, precision: str, cfg: UNetConfig, sizes: Sizes
) -> list[Row]:
    """Rows in seconds for 64 pairs, from the times of `timed_steps` steps of a batch."""
    whole = {
        key: timing.per(sizes.batch * sizes.timed_steps).per(1 / (PAIRS * key[1].steps))
        for key, timing in timings.items()
    }
    eager, compiled = (whole.get((name, SETTINGS[0])) for name in (RIVAL, f"{RIVAL} compile"))
    rows = []
    for (contestant, setting), timing in whole.items():
        row = Row("generate", shape, precision, setting.title, contestant, timing.best_us, timing.method,
                  timing.called_us, images_per_s=PAIRS / timing.best_us * 1e6)  # fmt: skip
        row.times_eager = None if eager is None else ratio(eager, timing)
        row.times_compile = None if compiled is None else ratio(compiled, timing)
        row.note = f"{work_of(cfg, sizes.side)}; {sizes.timed_steps} of {setting.steps} steps timed"
        rows.append(row)
    return rows


def missing(rows: list[Row]) -> list[str]:
    """What a race must have, and has not."""
    wanted = [*((OURS, setting.title) for setting in SETTINGS), (RIVAL, SETTINGS[0].title)]
    found = {(row.contestant, row.what) for row in rows}
    return [f"{what} of {name} was not measured" for name, what in wanted if (name, what) not in found]


def missed(rows: list[Row], shape: str) -> list[str]:
    """The bars that our rows do not reach."""
    failures = []
    for row in rows:
        bar = BARS[row.what.partition("/")[0]]
        if row.contestant == OURS and row.times_eager is not None and row.times_eager < bar:
            failures.append(f"{shape}, {row.what}: {row.times_eager:.2f}x diffusers' eager loop of {SETTINGS[0].steps} "
                            f"steps; the bar is {bar:.2f}x")  # fmt: skip
    return failures


@cache
def work_of(cfg: UNetConfig, side: int) -> str:
    """Parameters and FLOP of both sides' nets, and their ratios, in words; they differ by the bridges alone."""
    with torch.device("meta"):
        ours = SARJointNet.from_config(cfg, NUM_CLASSES)
        branches = count_parameters(ours.sar_net, ours.label_net)
        theirs = [diffusers_pairs.unet2d(cfg, channels) for channels in (1, NUM_CLASSES)]
    if (found := count_parameters(*theirs)) != branches:
        raise RuntimeError(f"diffusers' nets have {found} parameters; expected {branches}, those of the two branches")
    flop, rival_flop = jointnet_flop(cfg, NUM_CLASSES, (side, side)), diffusers_pairs.flop(theirs, side)
    return (
        f"{count_parameters(ours) / 1e6:.2f} M parameters and {flop / 1e9:.2f} GFLOP a pair and step, "
        f"{count_parameters(ours) / found:.3f} and {flop / rival_flop:.3f} times those of diffusers' two nets"
    )


def count_parameters(*nets: nn.Module) -> int:
    return sum(parameter.numel() for net in nets for parameter in net.parameters())


def make_teacher(cfg: UNetConfig, side: int, device: str, precision: str) -> Teacher:
    """A teacher with random weights, by way of its file, which is where `generate` finds one."""
    facts = {
        "kind": "jointnet",
        "unet": cfg.model_dump(mode="json"),
        "num_classes": NUM_CLASSES,
        "schedule": ScheduleConfig().model_dump(mode="json"),
        "b": B_FACTOR,
        "classes": OSD_CLASSES.to_dict(),
        "crop": [side, side],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights_ema.safetensors"
        save_weights(path, joint_net_of(cfg, device).state_dict(), facts)
        return Teacher(path, device, precision)


def _our_calls(cfg: UNetConfig, sizes: Sizes, device: str, precision: str) -> dict[tuple[str, Setting], Call]:
    teacher, calls = make_teacher(cfg, sizes.side, device, precision), {}
    for setting in SETTINGS:
        settings = GenerateConfig(size=(sizes.side, sizes.side), sampling_steps=sizes.timed_steps, seed=0,
                                  micro_batch=sizes.batch, solver=setting.solver, spacing=setting.spacing)  # fmt: skip
        maker = PairMaker(teacher, settings, temperature=1.0)
        calls[OURS, setting] = partial(_make, maker, sizes.batch)
    return calls


def _make(maker: PairMaker, num_pairs: int) -> list[Sample]:
    return list(maker.pairs(range(num_pairs)))


def _rival_calls(races: Races, cfg: UNetConfig, sizes: Sizes, precision: str) -> dict[tuple[str, Setting], Call]:
    nets = tuple(diffusers_pairs.unet2d(cfg, channels).to(races.device) for channels in (1, NUM_CLASSES))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    nets = tuple(net.bfloat16() if precision == "bf16" else net for net in nets)
    reordered = tuple(copy.deepcopy(net).to(memory_format=torch.channels_last) for net in nets)
    compiled = tuple(compile_with(net, races.compile_mode()) for net in reordered)
    by_name = {RIVAL: nets, f"{RIVAL} channels_last": reordered, f"{RIVAL} compile": compiled}
    raced = [(name, SETTINGS[0]) for name in by_name] + [(RIVAL, setting) for setting in SETTINGS[1:]]
    shape = (sizes.batch, NUM_CLASSES, sizes.side, sizes.side)
    return {
        (name, setting): diffusers_pairs.PairLoop(
            by_name[name], setting.scheduler, steps=setting.steps, timed_steps=sizes.timed_steps, shape=shape,
            b=B_FACTOR, device=races.device, dtype=dtype,
        )
        for name, setting in raced
    }  # fmt: skip


def _times(row: Row) -> str:
    shown = [f"{times:.2f} x {name}" for name, times in (("eager", row.times_eager), ("compile", row.times_compile))
             if times is not None]  # fmt: skip
    return "".join(f"  {text}" for text in shown)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both sides' nets")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; with one, its CPU time counts")
    parser.add_argument("--batch", type=int, default=16, help="pairs that are sampled together")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed, of 200 and of 20")


if __name__ == "__main__":
    sys.exit(main())
