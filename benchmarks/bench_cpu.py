"""The ops on this CPU, in one thread: the default backends against plain torch and torch.compile, with bars.

    python benchmarks/bench_cpu.py [--csv FILE] [--only NAME]

Contestants take turns (lib/timing.py). Exit status 1: a ratio is below its bar. The launches of the GPU variants are
counted too, on meta tensors, without a GPU. The first run compiles for minutes; later ones take less than a minute.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Before torch is imported, so that what torch.compile generates is for one thread too.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rivals
import roofline
from lib.calls import compile_with, make_call
from lib.race import Races
from lib.table import COMPILED, EAGER, exit_status, make_rows
from lib.timing import ratio, time_in_turns
from lib.undispatched_ops import count_triton_launches

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


class Comparison(NamedTuple):
    """An op against its rivals.  bars: the least ratio of a rival's time to ours; without a bar it is only shown."""

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
    races = Races("cpu", options.csv, seconds=0.5)
    print(f"csrc    {extension.missing() or 'vector code for ' + extension.cpu_isa()}")
    print(f"{'':<44}{'what':<17}{'dakd ms':>9}  rival ms (ratio, bar)")
    failures = []
    for compared in comparisons():
        if options.only in compared.name:
            failures += _run(compared, races)
    failures += _count(options.only)
    return exit_status(failures)


def comparisons() -> Iterator[Comparison]:
    yield from _ddim_steps()
    sizes = _images(16, 5, 256)
    others = {EAGER: rivals.joint_noising, COMPILED: compile_with(rivals.joint_noising, "default")}
    inputs = operands("joint_noising", sizes)
    bars = {EAGER: 1.5}
    yield Comparison("joint_noising B16 K5", "joint_noising", sizes, joint_noising, inputs, FORWARD, others, bars)
    yield from _losses()
    yield from _scans()
    yield from _convolutions()
    yield from _attention()


def _ddim_steps() -> Iterator[Comparison]:
    op = "ddim_step"
    first, second = ({EAGER: 6.0, COMPILED: 1.8}, {COPY: 1 / 1.3}), ({EAGER: 6.0, COMPILED: 1.8}, {})
    for num_classes, order, (bars, least_of_copy) in ((5, 1, first), (2, 1, ({}, {})), (5, 2, second)):
        sizes = _images(16, num_classes, 256) | (dict(order=2) if order == 2 else {})
        inputs = operands(op, sizes) | dict(input_dtype=torch.bfloat16)
        predictions = ("x0_pred", "logits", "x0_before", "logits_before")
        inputs |= {name: inputs[name].bfloat16() for name in predictions if name in inputs}
        copy = {COPY: _copy_of(inputs)}
        others = {EAGER: rivals.ddim_step, COMPILED: compile_with(rivals.ddim_step, "default")} | copy
        name = f"C2 ddim_step B16 K{num_classes}" + (" second order" if order == 2 else "")
        yield Comparison(name, op, sizes, ddim_step, inputs, FORWARD, others, bars)
        given = _into_given_memory(inputs)
        yield Comparison(f"{name}, memory given", op, sizes, given, inputs, FORWARD, copy, least_of_copy)


def _losses() -> Iterator[Comparison]:
    for num_classes, bars in ((5, {EAGER: 6.0, COMPILED: 3.0}), (2, {})):
        sizes = _images(4, num_classes, 256, synthetic=2)
        inputs = operands("seg_loss", sizes)
        inputs["teacher"] = inputs["teacher"].half()
        others = {EAGER: rivals.seg_loss, COMPILED: compile_with(rivals.seg_loss, "default")}
        yield Comparison(f"C1 seg_loss B4 K{num_classes}", "seg_loss", sizes, seg_loss, inputs, BOTH, others, bars)


def _scans() -> Iterator[Comparison]:
    op, eager = "selective_scan", {EAGER: plain.selective_scan}
    for length in (196, 1024, 3136):
        sizes = dict(batch=4 if length == 196 else 1, channels=320, states=8, length=length)
        inputs = operands(op, sizes)
        for what in (FORWARD, BOTH):
            yield Comparison(f"C3 {op} L{length}", op, sizes, selective_scan, inputs, what, eager, {EAGER: 15.0})


def _convolutions() -> Iterator[Comparison]:
    op, sizes = "depthwise_conv1d", dict(batch=16, channels=256, length=196)
    # D innermost is the layout of a mixer's tokens: the bar applies to it.
    for innermost, bars in (("D", {EAGER: 1.0}), ("L", {})):
        inputs = operands(op, sizes)
        if innermost == "D":
            inputs["x"] = inputs["x"].mT.contiguous().mT
        others = {EAGER: plain.depthwise_conv1d, COMPILED: compile_with(plain.depthwise_conv1d, "default")}
        for what in (FORWARD, BOTH):
            yield Comparison(f"{op}, {innermost} innermost", op, sizes, depthwise_conv1d, inputs, what, others, bars)


def _attention() -> Iterator[Comparison]:
    op, features = "transposed_attention", ("q", "k", "v", "residual")
    for batch, height, width, least in ((1, 160, 312, 1.5), (4, 64, 64, 1.3)):
        sizes = dict(batch=batch, inner=64, channels=128, height=height, width=width, num_heads=1)
        # The student is trained in channels_last: the bars apply to it.
        for layout, memory_format in (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format)):
            inputs = operands(op, sizes)
            inputs |= {name: inputs[name].contiguous(memory_format=memory_format) for name in features}
            others = {EAGER: plain.transposed_attention, COMPILED: compile_with(plain.transposed_attention, "default")}
            name = f"C4 {op} {batch}x128x{height}x{width} {layout}"
            for what, bar in ((FORWARD, 1.3), (BOTH, least)):
                bars = {EAGER: bar} if layout == "NHWC" else {}
                yield Comparison(name, op, sizes, transposed_attention, inputs, what, others, bars)


# C7: the most launches of the Triton variant's forward and backward pass.
LAUNCHES = {"ddim_step": (1, 0), "joint_noising": (1, 0), "seg_loss": (1, 1), "transposed_attention": (3, 3)}


def _run(compared: Comparison, races: Races) -> list[str]:
    contestants = {OURS: compared.function} | compared.rivals
    calls = {name: [make_call(function, compared.inputs, DIFFERENTIABLE[compared.op], compared.what)]
             for name, function in contestants.items()}  # fmt: skip
    timings, reasons = time_in_turns(calls, "cpu", seconds=0.5, limit_s=240)
    failures = [f"{compared.name} {compared.what}: {name} failed: {why}" for name, why in reasons.items()]
    if OURS not in timings:
        return failures
    shown = []
    for name in compared.rivals:
        if name not in timings:
            continue
        times, bar = ratio(timings[name], timings[OURS]), compared.bars.get(name)
        shown.append(f"{name} {timings[name].best_us / 1e3:.2f} ({times:.2f}x{'' if bar is None else f', {bar:.2f}'})")
        if bar is not None and times < bar:
            failures.append(f"{compared.name} {compared.what}: {times:.2f}x {name}; the bar is {bar:.2f}x")
    print(f"{compared.name:<44}{compared.what:<17}{timings[OURS].best_us / 1e3:>9.2f}  {'  '.join(shown)}", flush=True)
    timings[backends.choose(compared.op, "cpu").chosen] = timings.pop(OURS)
    least_bytes = roofline.least_bytes(compared.op, compared.sizes, compared.what, feature_bytes=4)
    shape = ",".join(f"{name}={number}" for name, number in compared.sizes.items())
    rows = make_rows(compared.op, shape, "fp32", compared.what, timings, races.ceilings, least_bytes=least_bytes,
                     shared=dict(note=compared.name))  # fmt: skip
    races.keep(rows, prints=False)
    return failures


def _count(only: str) -> list[str]:
    failures = []
    for op, (forward, backward) in LAUNCHES.items():
        if only not in f"C7 {op}":
            continue
        with torch.device("meta"):
            inputs = operands(op, "main", device="meta")
        counts = {what: len(names) for what, names in count_triton_launches(op, inputs).items()}
        print(f"{'C7 ' + op:<44}{'launches':<17}{counts['forward']} forward (at most {forward}), "
              f"{counts['backward']} backward (at most {backward})")  # fmt: skip
        if counts["forward"] > forward or counts["backward"] > backward:
            failures.append(f"C7 {op}: launches {counts}; the bar is {forward} and {backward}")
    return failures


def _images(batch: int, num_classes: int, size: int, **more: int) -> dict[str, int]:
    return dict(batch=batch, num_classes=num_classes, height=size, width=size, **more)


def _into_given_memory(inputs: dict) -> Callable:
    """The step's variant alone, writing into given memory as the copy does: no fresh pages are touched."""
    variant, outputs = backends.load("ddim_step", "auto", "cpu"), tuple(ddim_step(**inputs))
    options = (None, inputs["b"], 1.0, "softmax", 0, torch.bfloat16)

    def call(
        *, x, y, x0_pred, logits, coefficients, step, x0_before=None, logits_before=None, **_options
    ) -> tuple[Tensor, ...]:
        predictions = (x0_pred, logits, x0_before, logits_before)
        variant.forward(Operands(x, y, *predictions, coefficients, step, *options), outputs)
        return outputs

    return call


def _copy_of(inputs: dict) -> Callable:
    """A copy that moves as many bytes as the step: state and predictions read, state and next input written."""
    moved = sum(2 * inputs[name].nbytes for name in ("x", "y", "x0_pred", "logits"))
    moved += sum(inputs[name].nbytes for name in ("x0_before", "logits_before") if name in inputs)
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
