"""The bars of the CPU: every op's default against plain torch and torch.compile, one thread, all sides in one run.

    python benchmarks/bench_cpu.py [--csv FILE] [--only NAME]

Contestants take turns (timing.py); a ratio below its bar ends the run with exit status 1. The launches of the GPU
variants are counted as well, on meta tensors, without a GPU. The first run compiles (minutes); torch keeps what it
compiled, so later ones take less than a minute.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Before torch is imported, so that what torch.compile generates is for one thread too.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rivals
import roofline
from below_dispatch import count_launches
from harness import compile_with, make_call
from machine import measure_ceilings, print_machine
from rows import COMPILED, EAGER, RowFile, make_rows
from timing import race, ratio

from dakd.kernels import backend as backends
from dakd.kernels import extension
from dakd.kernels.ddim_step import ddim_step
from dakd.kernels.ddim_step.ops import Operands
from dakd.kernels.depthwise_conv1d import depthwise_conv1d
from dakd.kernels.joint_noising import joint_noising
from dakd.kernels.seg_loss import seg_loss
from dakd.kernels.selective_scan import selective_scan
from dakd.kernels.transposed_attention import transposed_attention
from dakd.testing import plain
from dakd.testing.inputs import DIFFERENTIABLE, operands

OURS, COPY = "dakd", "copy"
FORWARD, BOTH = "forward", "forward+backward"


class Bench(NamedTuple):
    """One comparison. bars: rival -> the least ratio of its time to ours; a rival without one is shown alone."""

    name: str
    op: str
    sizes: dict[str, int]
    function: Callable
    inputs: dict
    what: str
    rivals: dict[str, Callable]
    bars: dict[str, float]


def main() -> int:
    options = _parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ceilings = measure_ceilings("cpu")
    print_machine("cpu", ceilings)
    print(f"csrc    {extension.missing() or 'vector code for ' + extension.cpu_isa()}")
    print(f"{'':<44}{'what':<17}{'dakd ms':>9}  rival ms (ratio, bar)")
    file = RowFile(options.csv, "cpu", ceilings)
    failures = []
    for bench in benches():
        if options.only in bench.name:
            failures += _run(bench, file, ceilings)
    failures += _count(options.only)
    for failure in failures:
        print(f"BELOW THE BAR  {failure}")
    return 1 if failures else 0


def benches() -> list[Bench]:
    return [*_ddim(), *_noising(), *_losses(), *_scans(), *_convolutions(), *_attention()]


def _ddim() -> list[Bench]:
    listed = []
    for num_classes, bars, least_of_copy in ((5, {EAGER: 6.0, COMPILED: 1.8}, {COPY: 1 / 1.3}), (2, {}, {})):
        sizes = _images(16, num_classes, 256)
        inputs = operands("ddim_step", sizes) | dict(input_dtype=torch.bfloat16)
        inputs |= {name: inputs[name].bfloat16() for name in ("x0_pred", "logits")}
        others = {EAGER: rivals.ddim_step, COMPILED: compile_with(rivals.ddim_step, "default"), COPY: _copy_of(inputs)}
        name = f"C2 ddim_step B16 K{num_classes}"
        listed.append(Bench(name, "ddim_step", sizes, ddim_step, inputs, FORWARD, others, bars))
        listed.append(Bench(f"{name}, memory given", "ddim_step", sizes, _into_given_memory(inputs), inputs, FORWARD,
                            {COPY: _copy_of(inputs)}, least_of_copy))  # fmt: skip
    return listed


def _noising() -> list[Bench]:
    sizes = _images(16, 5, 256)
    others = {EAGER: rivals.joint_noising, COMPILED: compile_with(rivals.joint_noising, "default")}
    inputs = operands("joint_noising", sizes)
    return [Bench("joint_noising B16 K5", "joint_noising", sizes, joint_noising, inputs, FORWARD, others, {EAGER: 1.5})]


def _losses() -> list[Bench]:
    listed = []
    for num_classes, bars in ((5, {EAGER: 6.0, COMPILED: 3.0}), (2, {})):
        sizes = _images(4, num_classes, 256, synthetic=2)
        inputs = operands("seg_loss", sizes)
        inputs["teacher"] = inputs["teacher"].half()
        others = {EAGER: rivals.seg_loss, COMPILED: compile_with(rivals.seg_loss, "default")}
        listed.append(Bench(f"C1 seg_loss B4 K{num_classes}", "seg_loss", sizes, seg_loss, inputs, BOTH, others, bars))
    return listed


def _scans() -> list[Bench]:
    listed = []
    for length in (196, 1024, 3136):
        sizes = dict(batch=4 if length == 196 else 1, channels=320, states=8, length=length)
        inputs = operands("selective_scan", sizes)
        for what in (FORWARD, BOTH):
            listed.append(Bench(f"C3 selective_scan L{length}", "selective_scan", sizes, selective_scan, inputs, what,
                                {EAGER: plain.selective_scan}, {EAGER: 15.0}))  # fmt: skip
    return listed


def _convolutions() -> list[Bench]:
    listed = []
    sizes = dict(batch=16, channels=256, length=196)
    # D innermost is how a mixer's tokens lie in memory: the bar is for it.
    for innermost, bars in (("D", {EAGER: 1.0}), ("L", {})):
        inputs = operands("depthwise_conv1d", sizes)
        if innermost == "D":
            inputs["x"] = inputs["x"].mT.contiguous().mT
        others = {EAGER: plain.depthwise_conv1d, COMPILED: compile_with(plain.depthwise_conv1d, "default")}
        for what in (FORWARD, BOTH):
            listed.append(Bench(f"depthwise_conv1d, {innermost} innermost", "depthwise_conv1d", sizes, depthwise_conv1d,
                                inputs, what, others, bars))  # fmt: skip
    return listed


def _attention() -> list[Bench]:
    listed = []
    for batch, height, width, least in ((1, 160, 312, 1.5), (4, 64, 64, 1.3)):
        sizes = dict(batch=batch, inner=64, channels=128, height=height, width=width, num_heads=1)
        # channels_last is how the student is trained: the bars are for it.
        for layout, memory_format in (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format)):
            inputs = operands("transposed_attention", sizes)
            features = ("q", "k", "v", "residual")
            inputs |= {name: inputs[name].contiguous(memory_format=memory_format) for name in features}
            others = {EAGER: plain.transposed_attention, COMPILED: compile_with(plain.transposed_attention, "default")}
            for what, bar in ((FORWARD, 1.3), (BOTH, least)):
                name = f"C4 transposed_attention {batch}x128x{height}x{width} {layout}"
                listed.append(Bench(name, "transposed_attention", sizes, transposed_attention, inputs, what, others,
                                    {EAGER: bar} if layout == "NHWC" else {}))  # fmt: skip
    return listed


# C7: launches of the Triton variant's forward and backward pass, at most; the sampler's counter is one more.
LAUNCHES = {"ddim_step": (1, 0), "joint_noising": (1, 0), "seg_loss": (1, 1), "transposed_attention": (3, 3)}


def _run(bench: Bench, file: RowFile, ceilings) -> list[str]:
    contestants = {OURS: bench.function} | bench.rivals
    calls = {name: [make_call(function, bench.inputs, DIFFERENTIABLE[bench.op], bench.what)]
             for name, function in contestants.items()}  # fmt: skip
    timings, reasons = race(calls, "cpu", seconds=0.5, limit_s=240)
    failures = [f"{bench.name} {bench.what}: {name} failed: {why}" for name, why in reasons.items()]
    if OURS not in timings:
        return failures
    shown = []
    for name in bench.rivals:
        if name not in timings:
            continue
        times, bar = ratio(timings[name], timings[OURS]), bench.bars.get(name)
        shown.append(f"{name} {timings[name].best_us / 1e3:.2f} ({times:.2f}x{'' if bar is None else f', {bar:.2f}'})")
        if bar is not None and times < bar:
            failures.append(f"{bench.name} {bench.what}: {times:.2f}x {name}; the bar is {bar:.2f}x")
    print(f"{bench.name:<44}{bench.what:<17}{timings[OURS].best_us / 1e3:>9.2f}  {'  '.join(shown)}", flush=True)
    timings[backends.choose(bench.op, "cpu").chosen] = timings.pop(OURS)
    least_bytes = roofline.least_bytes(bench.op, bench.sizes, bench.what, feature_bytes=4)
    shape = ",".join(f"{name}={number}" for name, number in bench.sizes.items())
    for row in make_rows(bench.op, shape, "fp32", bench.what, timings, ceilings, least_bytes=least_bytes,
                         shared=dict(note=bench.name)):  # fmt: skip
        file.add(row)
    return failures


def _count(only: str) -> list[str]:
    failures = []
    for op, (forward, backward) in LAUNCHES.items():
        if only not in f"C7 {op}":
            continue
        with torch.device("meta"):
            inputs = operands(op, "main", device="meta")
        counts = {what: len(names) for what, names in count_launches(op, inputs, "triton").items()}
        print(f"{'C7 ' + op:<44}{'launches':<17}{counts['forward']} forward (at most {forward}), "
              f"{counts['backward']} backward (at most {backward})")  # fmt: skip
        if counts["forward"] > forward or counts["backward"] > backward:
            failures.append(f"C7 {op}: launches {counts}; the bar is {forward} and {backward}")
    return failures


def _images(batch: int, num_classes: int, size: int, **more: int) -> dict[str, int]:
    return dict(batch=batch, num_classes=num_classes, height=size, width=size, **more)


def _into_given_memory(inputs: dict) -> Callable:
    """The step's variant alone, which writes where the copy writes too: into memory whose pages are there already."""
    variant, outputs = backends.load("ddim_step", "auto", "cpu"), tuple(ddim_step(**inputs))
    options = (None, inputs["b"], 1.0, "softmax", 0, torch.bfloat16)

    def call(*, x, y, x0_pred, logits, coefficients, step, **_options) -> tuple[Tensor, ...]:
        variant.forward(Operands(x, y, x0_pred, logits, coefficients, step, *options), outputs)
        return outputs

    return call


def _copy_of(inputs: dict) -> Callable:
    """A copy that moves as many bytes as the step: state and predictions read, state and next input written."""
    moved = sum(2 * inputs[name].nbytes for name in ("x", "y", "x0_pred", "logits"))
    source = torch.ones(moved // 8)
    target = torch.empty_like(source)
    return lambda **_inputs: target.copy_(source)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="the benchmarks whose name contains this")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
