"""Phase 3: the ops at the models' shapes and layouts against eager torch and autocast; a few against torch.compile.

Every job races one call and writes its rows. Phase 2 checked the numbers: a wrong backend is timed here all the same,
and its verdict stands in correct.csv.
"""

from __future__ import annotations

from functools import partial

from dakd.testing.inputs import DIFFERENTIABLE
from gpu import cases, nets
from gpu.visit import Visit
from gpu.workers import Job, Phase

PHASE = "races"


def phase(visit: Visit) -> Phase:
    jobs = [Job(" ".join(["race", case.op, case.shape, case.layout, *case.options]), partial(race, visit, case), 30)
            for case in cases.raced(visit.is_tiny)]  # fmt: skip
    return Phase(PHASE, 60 if visit.is_gpu else 120, jobs)


def compiled_phase(visit: Visit) -> Phase:
    """A few ratios to torch.compile, each of which compiles for seconds."""
    ops = ("seg_loss", "ddim_step") if visit.is_gpu else ("depthwise_conv1d",)
    jobs = [Job(f"compile {op}", partial(_compile, visit, op), 40) for op in ops]
    jobs.append(Job("compile gn_silu and a block", lambda: _compiled_blocks(visit), 40))
    return Phase("compile", 45 if visit.is_gpu else 120, jobs)


def race(visit: Visit, case: cases.Case, *words: str, seconds: float = 0.25) -> str:
    """Races one case; the note names our fastest backend and its ratio to eager torch."""
    seconds = 0.01 if visit.is_tiny else seconds
    op_race = visit.op_race(case, "--seconds", str(seconds), "--no-launches", *words)
    rows = op_race.run()
    if not rows:
        raise RuntimeError("nothing was measured; the log says why")
    ours = [row for row in rows if row.contestant in op_race.backends]
    parts = []
    for what in ("forward", "forward+backward") if DIFFERENTIABLE[case.op] else ("forward",):
        timed = [row for row in ours if row.what.startswith(what) and (what != "forward" or "+" not in row.what)]
        if timed:
            best = min(timed, key=lambda row: row.time_us)
            parts.append(f"{what} {best.contestant} {best.time_us:.1f} us, {best.times_eager or 0:.2f} x eager, "
                        f"{100 * (best.copy_share or 0):.0f} % of copy")  # fmt: skip
    return "; ".join(parts)


def _compile(visit: Visit, op: str) -> str:
    return race(visit, cases.repeated(op, visit.is_tiny), "--compile", "aot_eager" if visit.is_tiny else "default")


def _compiled_blocks(visit: Visit) -> str:
    from blocks.bench_blocks import gn_silu, residual_block

    races = visit.races("races", seconds=0.2)
    shape = (2, 8, 8, 8) if visit.is_tiny else (16, 128, 256, 256)
    return nets.in_words([*gn_silu(races, (shape,)), *residual_block(races, shape)])
