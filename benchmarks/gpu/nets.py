"""Phases of nets: a sampling step of the teacher and its kernels, the sampling loop, training steps, and candidates."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial

import roofline
import torch
import torch.nn.functional as F
from lib.calls import gpu_events
from lib.device import synchronise
from lib.nets import NUM_CLASSES, joint_net, noisy_pair, teacher_side, unet_config
from lib.table import Row

from dakd.kernels import triton_runtime
from gpu.visit import Visit
from gpu.workers import Job, Phase, Wrong

_BF16 = torch.bfloat16
_TOP_KERNELS = 30
# A kernel's family by its name: the first pattern that matches. CPU rehearsals see torch's operators instead.
_FAMILIES = (
    ("layout", r"nchwToNhwc|nhwcToNchw|transpose|permute"),
    ("conv", r"conv|fprop|dgrad|wgrad|implicit|winograd|cudnn_.*_generated"),
    ("attention", r"flash|fmha|attention|sdpa|softmax"),
    ("group norm", r"group_?norm|RowwiseMoments|ComputeFusedParams|native_group_norm"),
    ("silu", r"silu"),
    ("matmul", r"gemm|nvjet|cublas|matmul|linear|addmm|splitK|::mm"),
    ("cat", r"CatArray|::cat"),
    ("upsample", r"upsample|interpolate"),
    ("copy", r"copy|memcpy|clone|memset|fill"),
    ("add and other pointwise", r"elementwise|add|mul|pointwise"),
)


def unet_phase(visit: Visit) -> Phase:
    jobs = [
        Job("unet step", lambda: _step(visit, is_tuned=False), 45),
        Job("unet families", lambda: _profile(visit), 40),
        Job("convolutions", lambda: _convolutions(visit), 25),
        Job("encoder", lambda: _encoder(visit), 25),
        # Last: cuDNN first tries all algorithms at every shape.
        Job("unet step, cudnn.benchmark", lambda: _step(visit, is_tuned=True), 45),
    ]
    return Phase("unet", 65 if visit.is_gpu else 150, jobs)


def loop_phase(visit: Visit) -> Phase:
    sizes = ((2, 0.0, 3),) if visit.is_tiny else ((16, 0.0, 20), (1, 0.0, 20), (64, 0.0, 6), (1, 1.0, 10))
    jobs = [Job(f"loop B {size} eta {eta:g}", _loop_job(visit, size, eta, steps), 30) for size, eta, steps in sizes]
    return Phase("loop", 45 if visit.is_gpu else 60, jobs)


def train_phase(visit: Visit) -> Phase:
    limit_s = 50 if visit.is_gpu else 150  # a rehearsal shares its cores with other tests
    jobs = [Job(f"train {name}", _train_job(visit, name), limit_s) for name in ("stage3", "student", "stage2")]
    return Phase("train", 60 if visit.is_gpu else 150, jobs)


def candidates_phase(visit: Visit) -> Phase:
    """What a faster U-Net could gain: GroupNorm + SiLU and the biases by kernels of our own (blocks/fused_norm.py)."""
    absent = triton_runtime.why_not(visit.device)
    jobs = [
        Job("fused norms in a step", lambda: _fused_step(visit), 50, absent),
        Job("fused norm alone", lambda: _fused_norm(visit), 20, absent),
    ]
    return Phase("candidates", 70 if visit.is_gpu else 120, jobs)


def training_families_phase(visit: Visit) -> Phase:
    trainings = ("stage3", "channels_last"), ("stage3", "contiguous"), ("student", "channels_last")
    limit_s = 30 if visit.is_gpu else 120
    jobs = [Job(f"families of {name} {layout}", partial(_training_families, visit, name, layout), limit_s)
            for name, layout in trainings]  # fmt: skip
    return Phase("families", 45 if visit.is_gpu else 120, jobs)


def compiled_step_phase(visit: Visit, limit_s: float) -> Phase:
    """Last: how long the compiler takes is not known."""
    return Phase("compile", limit_s, [Job("a step with compiled blocks", lambda: _compiled_step(visit), limit_s)])


def _fused_step(visit: Visit) -> str:
    """The step with candidates' kernels: held to the net in fp32, then raced, each net as one captured graph."""
    from blocks.bench_blocks import captured
    from blocks.fused_norm import fuse

    plain, fast = _nets(visit)
    fused = fuse(joint_net(visit.is_tiny, visit.device, _BF16).eval())
    size, side = _size(visit)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # of the net in fp32
    given = noisy_pair(2, side, visit.device, torch.float32)
    with torch.no_grad():
        exact = joint_net(visit.is_tiny, visit.device).eval()(*given)
        half = tuple(value.to(_BF16) if value.is_floating_point() else value for value in given)
        errors = [max(float((a.float() - b).norm() / b.norm()) for a, b in zip(net(*half), exact))
                  for net in (plain, fused)]  # fmt: skip
    visit.fact("candidates", "relative error of a step in bf16, plain", f"{errors[0]:.3g}")
    visit.fact("candidates", "relative error of a step in bf16, fused norms", f"{errors[1]:.3g}")
    if not errors[1] <= 1.5 * errors[0]:
        raise Wrong(f"fused norms are off by {errors[1]:.3g}, the plain net in bf16 by {errors[0]:.3g}")
    parts = []
    for batch in (size, 1):
        x, y, t = noisy_pair(batch, side, visit.device, _BF16)

        def step_of(net, x=x, y=y, t=t):
            @torch.no_grad()
            def step() -> object:
                return net(x, y, t)

            return captured(step) if visit.is_gpu else step

        steps = {"eager": plain, "channels_last": fast, "fused norms": fused}
        flop = batch * roofline.jointnet_flop(unet_config(visit.is_tiny), NUM_CLASSES, (side, side))

        def facts(name: str, timing, batch=batch) -> dict:
            return dict(layout="contiguous" if name == "eager" else "channels_last", note="one captured graph",
                        images_per_s=batch / (timing.best_us * 1e-6 * 200))  # fmt: skip

        rows = visit.races("nets").race("unet_step", f"B {batch}, {side}x{side}", "bf16", "forward",
                                        {name: [step_of(net)] for name, net in steps.items()}, flop=flop, facts=facts)
        parts.append(in_words(rows))
    x, y, t = noisy_pair(size, side, visit.device, _BF16)
    with torch.no_grad():
        parts.append(_add_families(visit, "teacher's step, fused norms", f"B {size}, {side}x{side}", "channels_last",
                                   lambda: fused(x, y, t)))  # fmt: skip
    return "; ".join(parts)


def _fused_norm(visit: Visit) -> str:
    from blocks.bench_blocks import gn_silu_candidate

    return in_words(gn_silu_candidate(visit.races("races", seconds=0.2)))


def _training_families(visit: Visit, name: str, layout: str) -> str:
    """Where a training step's time goes on the GPU, and how much of the step the GPU works."""
    from models.bench_training_step import engine_step

    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    step, shape = engine_step(visit.races("nets"), name, memory_format)
    times_s = [_timed(visit, step) for _ in range(5)]
    found = _add_families(visit, f"training step, {name}", shape, layout, step)
    visit.fact("families", f"a step of {name}, {layout}, without the profiler", f"{1e3 * min(times_s):.1f}", "ms")
    return f"{1e3 * min(times_s):.0f} ms a step, of which the GPU works {found}"


def _timed(visit: Visit, step: Callable[[], object]) -> float:
    synchronise(visit.device)
    start = time.perf_counter()
    step()
    synchronise(visit.device)
    return time.perf_counter() - start


def _compiled_step(visit: Visit) -> str:
    """The step whose residual blocks torch.compile has compiled one by one, in both layouts, as captured graphs."""
    from blocks.bench_blocks import captured

    from dakd.models.unet import ResBlock

    torch._dynamo.config.recompile_limit = 256
    size, side = _size(visit)
    x, y, t = noisy_pair(size, side, visit.device, _BF16)
    calls, parts = {}, []
    for layout in ("channels_last", "contiguous"):
        net = joint_net(visit.is_tiny, visit.device, _BF16).eval()
        net = net.to(memory_format=torch.channels_last) if layout == "channels_last" else net
        for module in net.modules():
            if isinstance(module, ResBlock):
                module.compile(dynamic=False, backend="aot_eager" if visit.is_tiny else "inductor")

        @torch.no_grad()
        def step(net=net) -> object:
            return net(x, y, t)

        start = time.perf_counter()
        step()
        synchronise(visit.device)
        parts.append(f"{layout} compiled in {time.perf_counter() - start:.0f} s")
        calls = {f"compile, {layout}": [captured(step) if visit.is_gpu else step]}
        flop = size * roofline.jointnet_flop(unet_config(visit.is_tiny), NUM_CLASSES, (side, side))
        rows = visit.races("nets").race("unet_step", f"B {size}, {side}x{side}", "bf16", "forward", calls, flop=flop,
                                        facts=lambda *_, layout=layout: dict(
                                            layout=layout, note="compiled blocks, one captured graph"))  # fmt: skip
        parts.append(in_words(rows))
    return ", ".join(parts)


def _nets(visit: Visit) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The teacher as NCHW and as channels_last, with the same weights."""
    plain = joint_net(visit.is_tiny, visit.device, _BF16).eval()
    return plain, joint_net(visit.is_tiny, visit.device, _BF16).to(memory_format=torch.channels_last).eval()


def _size(visit: Visit) -> tuple[int, int]:
    return (2 if visit.is_tiny else 16), teacher_side(visit.is_tiny)


def _step(visit: Visit, is_tuned: bool) -> str:
    from models.bench_sampling_step import race_step

    torch.backends.cudnn.benchmark = is_tuned
    plain, fast = _nets(visit)
    size, side = _size(visit)
    flop = roofline.jointnet_flop(unet_config(visit.is_tiny), NUM_CLASSES, (side, side))
    note = "cudnn.benchmark" if is_tuned else ""
    rows = race_step(visit.races("nets"), plain, fast, size, side, flop, with_launches=False, note=note)
    return in_words(rows)


def in_words(rows: list[Row]) -> str:
    """Contestants and their milliseconds; RuntimeError if none was measured."""
    if not rows:
        raise RuntimeError("nothing was measured; the log says why")
    return ", ".join(f"{row.contestant} {row.time_us / 1e3:.3g} ms" for row in rows)


def _profile(visit: Visit) -> str:
    """Every kernel of one step in both layouts, summed by name and by family."""
    size, side = _size(visit)
    parts = []
    for layout, net in zip(("contiguous", "channels_last"), _nets(visit)):
        x, y, t = noisy_pair(size, side, visit.device, _BF16)

        @torch.no_grad()
        def step(net=net, x=x, y=y, t=t) -> object:
            return net(x, y, t)

        for _ in range(2):
            step()
        parts.append(_add_families(visit, "teacher's step", f"B {size}, {side}x{side}", layout, step))
    return "; ".join(parts)


def _add_families(visit: Visit, net: str, shape: str, layout: str, step: Callable[[], object]) -> str:
    """Keeps the kernels of one step, summed by family, and the longest ones; in words, their time and first family."""
    sums = _sums_by_kernel(_events(visit, step))
    if not sums:
        raise RuntimeError("the profiler has seen no kernel")
    total_us = sum(time_us for _, time_us in sums.values())
    cells = dict(net=net, shape=shape, layout=layout)
    by_family: dict[str, list] = {}
    for kernel, (launches, time_us) in sums.items():
        family = by_family.setdefault(family_of(kernel), [0, 0.0])
        family[0] += launches
        family[1] += time_us
    for family, (launches, time_us) in sorted(by_family.items(), key=lambda item: -item[1][1]):
        visit.add("families", **cells, family=family, kernel="all", launches=launches, time_us=time_us,
                  share=time_us / total_us)  # fmt: skip
        print(f"{layout:<15}{family:<26}{launches:>5} launches{time_us:>11.1f} us{time_us / total_us:>8.1%}")
    for kernel, (launches, time_us) in sorted(sums.items(), key=lambda item: -item[1][1])[:_TOP_KERNELS]:
        visit.add("families", **cells, family=family_of(kernel), kernel=kernel[:200], launches=launches,
                  time_us=time_us, share=time_us / total_us)  # fmt: skip
    first, (_, most_us) = max(by_family.items(), key=lambda item: item[1][1])
    return f"{layout} {total_us / 1e3:.2f} ms, {first} {most_us / total_us:.0%}"


def family_of(kernel: str) -> str:
    return next((family for family, pattern in _FAMILIES if re.search(pattern, kernel, re.I)), "other")


def _events(visit: Visit, call: Callable[[], object]) -> list[tuple[str, float]]:
    if visit.is_gpu:
        return gpu_events(call)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    return [(event.name, event.self_cpu_time_total) for event in profiler.events()]


def _sums_by_kernel(events: list[tuple[str, float]]) -> dict[str, tuple[int, float]]:
    sums: dict[str, tuple[int, float]] = {}
    for name, time_us in events:
        launches, total = sums.get(name, (0, 0.0))
        sums[name] = launches + 1, total + time_us
    return sums


def _convolutions(visit: Visit) -> str:
    """The share of the matrix rate that the U-Net's 3x3 convolutions reach, in both layouts, tuned by cuDNN and not."""
    races, rows = visit.races("nets"), []
    shapes = ((2, 8, 8, 8),) if visit.is_tiny else ((16, 128, 256, 256), (16, 256, 64, 64))
    for is_tuned in (False, True):
        torch.backends.cudnn.benchmark = is_tuned
        for shape in shapes:
            x = torch.randn(shape, device=visit.device, dtype=_BF16)
            weight = torch.randn(shape[1], shape[1], 3, 3, device=visit.device, dtype=_BF16)
            for layout in (torch.contiguous_format, torch.channels_last):
                given = x.to(memory_format=layout), weight.to(memory_format=layout)
                facts = dict(layout="contiguous" if layout == torch.contiguous_format else "channels_last",
                             note="cudnn.benchmark" if is_tuned else "")  # fmt: skip
                contestants = {"torch": [lambda given=given: F.conv2d(*given, padding=1)]}
                rows += races.race("conv3x3", str(shape), "bf16", "forward", contestants,
                                     flop=roofline.conv3x3_flop(*shape),
                                     facts=lambda *_, facts=facts: facts)  # fmt: skip
    return in_words(rows)


def _encoder(visit: Visit) -> str:
    from blocks.bench_blocks import encoder

    return in_words(encoder(visit.races("nets")))


def _loop_job(visit: Visit, size: int, eta: float, steps: int):
    def job() -> str:
        from models.bench_sampling_loop import measure_loops

        net = joint_net(visit.is_tiny, visit.device, _BF16).to(memory_format=torch.channels_last).eval()
        faults = measure_loops(visit.races("nets"), net, size, teacher_side(visit.is_tiny), eta, steps)
        if faults:
            raise Wrong("; ".join(faults))
        return "equal to the eager loop, never synchronises" if visit.is_gpu else "eager only: a CPU captures nothing"

    return job


def _train_job(visit: Visit, name: str):
    def job() -> str:
        from models.bench_training_step import measure_training

        rows = measure_training(visit.races("nets"), name, steps=3 if visit.is_tiny else 6, contestants=("dakd",))
        if not rows:
            raise RuntimeError("no contestant could be measured; the log says why")
        return f"{rows[-1].images_per_s:.3g} img/s, {100 * (rows[-1].flop_share or 0):.0f} % of the matrix rate"

    return job
