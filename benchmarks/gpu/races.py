"""Phase 3: the ops at the models' shapes and layouts against eager torch and autocast; and what torch.compile makes.

Every job races one call and writes its rows; correctness was phase 2's, which a race does not wait for: a wrong
backend's time is in the table too, and its verdict stands in correct.csv.
"""

from __future__ import annotations

from functools import partial

from dakd.testing.inputs import DIFFERENTIABLE
from gpu import calls, nets
from gpu.context import Run
from gpu.workers import Job, Phase

PHASE = "races"


def phase(run: Run) -> Phase:
    jobs = [Job(" ".join(["race", call.op, call.shape, call.layout, *call.options]), partial(race, run, call), 30)
            for call in calls.raced(run.is_tiny)]  # fmt: skip
    return Phase(PHASE, 60 if run.is_gpu else 120, jobs)


def compiled_phase(run: Run) -> Phase:
    """A few ratios to torch.compile, which takes seconds for each."""
    ops = ("seg_loss", "ddim_step") if run.is_gpu else ("depthwise_conv1d",)
    jobs = [Job(f"compile {op}", partial(_compile, run, op), 40) for op in ops]
    jobs.append(Job("compile gn_silu and a block", lambda: _compiled_blocks(run), 40))
    return Phase("compile", 45 if run.is_gpu else 120, jobs)


def race(run: Run, call: calls.Call, *words: str, seconds: float = 0.25) -> str:
    """Races one call; the note names our fastest backend and its ratio to eager torch."""
    given = ["--seconds", str(0.01 if run.is_tiny else seconds), "--no-launches", *words]
    bench = calls.bench(call, run.bench_arguments(*given))
    rows = bench.measure()
    if not rows:
        raise RuntimeError("nothing was measured; the log says why")
    ours = [row for row in rows if row.contestant in bench.backends]
    parts = []
    for what in ("forward", "forward+backward") if DIFFERENTIABLE[call.op] else ("forward",):
        timed = [row for row in ours if row.what.startswith(what) and (what != "forward" or "+" not in row.what)]
        if timed:
            best = min(timed, key=lambda row: row.time_us)
            parts.append(f"{what} {best.contestant} {best.time_us:.1f} us, {best.times_eager or 0:.2f} x eager, "
                        f"{100 * (best.copy_share or 0):.0f} % of copy")  # fmt: skip
    return "; ".join(parts)


def _compile(run: Run, op: str) -> str:
    return race(run, calls.repeated(op, run.is_tiny), "--compile", "aot_eager" if run.is_tiny else "default")


def _compiled_blocks(run: Run) -> str:
    from blocks.bench_blocks import gn_silu, residual_block

    section = run.section("races", seconds=0.2)
    shape = (2, 8, 8, 8) if run.is_tiny else (16, 128, 256, 256)
    return nets.in_words([*gn_silu(section, (shape,)), *residual_block(section, shape)])
