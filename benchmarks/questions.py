"""Four questions that decide where work pays, answered by a profile: what libraries and compilers do by themselves.

gram: which kernels torch.matmul takes for CAFT's Gram matrices, of few rows and very long inner products (does it split
them?).  loss: how many kernels torch.compile makes of the student's losses.  conv: which share of the matrix rate the
U-Net's widest convolutions reach, in both layouts.  bridges: what the joint net's zero convolutions cost of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import rivals
import roofline
import torch
import torch.nn.functional as F
from harness import compile_with, gpu_events, make_call
from section import Section, parse

from dakd.testing.inputs import DIFFERENTIABLE, operands

_DTYPE = torch.bfloat16


def kernels(section: Section, call: Callable[[], object]) -> dict:
    """Number and names of what a call runs: GPU kernels, or a CPU's operators in a rehearsal."""
    for _ in range(2):
        call()
    if section.is_gpu:
        events = gpu_events(call)
    else:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            call()
        events = [(event.name, event.cpu_time) for event in profiler.events()]
    for name, time_us in events:
        print(f"{'':<17}{time_us:>9.1f} us  {name[:130]}", flush=True)
    return dict(launches=len(events), note="; ".join(name[:60] for name, _ in events[:12]))


def gram(section: Section) -> None:
    for size, inner, pixels in ((1, 4, 64),) if section.is_tiny else ((16, 64, 16384), (1, 64, 53760), (16, 256, 1024)):
        q, k = (torch.randn(size, inner, pixels, device=section.device, dtype=_DTYPE) for _ in range(2))
        _one(section, "gram", f"[{size}, {inner}, {pixels}]", lambda: q @ k.transpose(1, 2),  # noqa: B023
             least_bytes=q.nbytes + k.nbytes, flop=2 * size * inner**2 * pixels)  # fmt: skip


def loss(section: Section) -> None:
    sizes = dict(batch=2, synthetic=1, num_classes=5, height=8, width=8) if section.is_tiny else dict(
        batch=16, synthetic=8, num_classes=5, height=512, width=512)  # fmt: skip
    inputs = operands("seg_loss", sizes, dtype=_DTYPE, device=section.device)
    compiled = compile_with(rivals.seg_loss, section.compile_mode())
    for what in ("forward", "forward+backward"):
        call = make_call(compiled, inputs, DIFFERENTIABLE["seg_loss"], what)
        least = roofline.least_bytes("seg_loss", sizes, what)
        shape = "{batch} x {num_classes} x {height} x {width}".format(**sizes)
        _one(section, "compiled loss", shape, call, what, least_bytes=least)


def conv(section: Section) -> None:
    shapes = ((2, 8, 8, 8),) if section.is_tiny else ((16, 128, 256, 256), (16, 256, 64, 64))
    for shape in shapes:
        x = torch.randn(shape, device=section.device, dtype=_DTYPE)
        weight = torch.randn(shape[1], shape[1], 3, 3, device=section.device, dtype=_DTYPE)
        for layout in (torch.contiguous_format, torch.channels_last):
            call = partial(F.conv2d, x.to(memory_format=layout), weight.to(memory_format=layout), padding=1)
            name = f"{shape} {str(layout).removeprefix('torch.')}"
            _one(section, "conv3x3", name, call, flop=roofline.conv3x3_flop(*shape))


def bridges(section: Section) -> None:
    # Nets come with dakd's configuration, whose packages the other questions do without.
    from paper_nets import joint_net, noisy_pair, teacher_side

    size, side = (2 if section.is_tiny else 16), teacher_side(section.is_tiny)
    net = joint_net(section.is_tiny, section.device, _DTYPE).to(memory_format=torch.channels_last).eval()
    x, y, t = noisy_pair(size, side, section.device, _DTYPE)
    with torch.no_grad():
        sar, label = (
            branch.encode(image, branch.embed_time(t))
            for branch, image in ((net.sar_net, x), (net.label_net, y))
        )

    @torch.no_grad()
    def exchange() -> object:
        heard = net.sar_bridge.hear_input(y), net.label_bridge.hear_input(x)
        to_label, to_sar = net.sar_bridge.send(*sar), net.label_bridge.send(*label)
        sums = [own + other for (_, own_skips), (_, skips) in ((sar, to_sar), (label, to_label))
                for own, other in zip(own_skips, skips)]  # fmt: skip
        return heard, to_label, to_sar, sums

    @torch.no_grad()
    def step() -> object:
        return net(x, y, t)

    calls = {"bridges": [exchange], "whole step": [step]}
    found = {"bridges": kernels(section, exchange)} if not section.is_tiny else {}
    rows = section.race("bridges", f"B {size}, {side}x{side}", "bf16", "forward", calls,
                        facts=lambda name, _timing: found.get(name, {}))  # fmt: skip
    times = {row.contestant: row.time_us for row in rows}
    if len(times) == 2:
        print(f"{'':<17}the bridges take {times['bridges'] / times['whole step']:.1%} of a step")


def _one(section: Section, op: str, shape: str, call: Callable, what: str = "forward", **counts) -> None:
    found = kernels(section, call)
    section.race(op, shape, "bf16", what, {"torch": [call]}, facts=lambda _name, _timing: found, **counts)


QUESTIONS = {"gram": gram, "loss": loss, "conv": conv, "bridges": bridges}


def main() -> None:
    options = parse(__doc__.splitlines()[0], choices=tuple(QUESTIONS))
    section = Section(options)
    for name in options.only or QUESTIONS:
        QUESTIONS[name](section)


if __name__ == "__main__":
    main()
