"""Phase 2: every op, backend, dtype and layout against float64, then bit for bit against itself.

The first check gives a ratio, error over budget, by output and gradient; a little over 1 may be the budget's fault.
The second reveals data races: 200 calls must give the bits of the first one, and so must a replayed graph and an eager
call that run at the same time.
"""

from __future__ import annotations

import math
import traceback
from functools import partial

import torch
from lib.calls import make_call, tensors_of
from lib.device import synchronise
from lib.op_race import STRUCK_OVER
from lib.timing import reason

from dakd.kernels import backend as backends
from dakd.testing.inputs import DIFFERENTIABLE
from gpu import cases
from gpu.visit import Visit
from gpu.workers import Job, Phase, Wrong

PHASE = "correct"
_REPEATS, _REPLAYS = 200, 20
_GATE_CYCLES = 3_000_000  # about 1.5 ms: longer than Python takes to queue a call
_CPU_BACKENDS = ("cpu", "reference")
_JOB_S, _TINY_JOB_S = 40.0, 15.0


def phase(visit: Visit, only: tuple[str, ...] = ()) -> Phase:
    """only: words that a job's name must have one of; empty: all jobs."""
    jobs = [job for job in _jobs(visit) if not only or any(word in job.name for word in only)]
    return Phase(PHASE, 60 if visit.is_gpu else 240, jobs, workers=8 if visit.is_gpu else 2)


def _jobs(visit: Visit) -> list[Job]:
    names = cases.GPU_BACKENDS if visit.is_gpu else _CPU_BACKENDS
    limit_s = _TINY_JOB_S if visit.is_tiny else _JOB_S
    dtypes = ("bf16", "fp32") if visit.is_tiny else cases.DTYPES
    jobs = [
        Job(f"{op} {name} {dtype}", partial(_check, visit, op, name, dtype), limit_s)
        for dtype in dtypes
        for name in names
        for op in cases.ops_with(name)
    ]
    repeats = [Job(f"{op} {name} repeats", partial(_repeat, visit, op, name), limit_s)
               for name in names for op in cases.ops_with(name)]  # fmt: skip
    # Wrong or changing sums are more likely in the two-byte dtypes than in fp32.
    half = [job for job in jobs if not job.name.endswith("fp32")]
    return [*half, *repeats, *(job for job in jobs if job not in half)]


def _check(visit: Visit, op: str, name: str, dtype: str) -> str:
    job = f"{op} {name} {dtype}"
    ratios: dict[str, float] = {}
    raised = []
    for seed, case in enumerate(cases.checked(op, dtype, visit.is_tiny)):
        race = visit.op_race(case)
        if visit.plant.get(job) == "wrong":
            race.function = _wrong(race.function)
        where = f"{case.shape} {case.layout}"
        cells = dict(op=op, backend=name, dtype=dtype, layout=case.layout, shape=case.shape)
        if name not in race.backends:
            absent = backends.why_not(op, name, visit.device, race.dtype) or "not for this dtype"
            visit.add("correct", **cells, verdict="absent", note=absent)
            continue
        try:
            errors = race.errors(name, case.sizes, seed)
            synchronise(visit.device)
        # A failure at one shape says nothing about the others, unless the CUDA context is gone.
        except Exception as error:
            traceback.print_exc()
            raised.append(f"{where}: {reason(error)}")
            visit.add("correct", **cells, verdict="raised", note=reason(error))
            continue
        for tensor, error in errors.items():
            verdict = "ok" if error.ratio <= 1 else "over" if error.ratio <= STRUCK_OVER else "wrong"
            visit.add("correct", **cells, tensor=tensor, error=error.error, budget=error.budget, ratio=error.ratio,
                    verdict=verdict)  # fmt: skip
            print(f"{where} {tensor}: {error.ratio:.3g} of its budget", flush=True)
            ratios[f"{where} {tensor}"] = error.ratio
    return _judge(job, ratios, raised)


def _judge(job: str, ratios: dict[str, float], raised: list[str]) -> str:
    """The job's note; Wrong where a ratio is over 1 or NaN, RuntimeError where a call raised."""
    worst = max(ratios, key=lambda what: math.inf if math.isnan(ratios[what]) else ratios[what], default=None)
    if worst is not None and not ratios[worst] <= 1:
        raise Wrong(f"{job}: {worst} is {ratios[worst]:.3g} of its budget")
    if raised:
        raise RuntimeError(f"{len(raised)} calls raised, such as {raised[0]}")
    return "absent" if worst is None else f"at most {ratios[worst]:.2g} of the budget ({worst})"


def _wrong(function):
    """The planted fault of a rehearsal: all floating outputs half as large again."""

    def planted(**inputs):
        outputs = function(**inputs)
        scaled = tuple(value * 1.5 if value.is_floating_point() else value for value in tensors_of(outputs))
        return scaled if isinstance(outputs, tuple) else scaled[0]

    return planted


def _repeat(visit: Visit, op: str, name: str) -> str:
    case = cases.repeated(op, visit.is_tiny)
    race = visit.op_race(case)
    cells = dict(op=op, backend=name, dtype=case.dtype, layout=case.layout, shape=case.shape)
    if name not in race.backends:
        visit.add("correct", **cells, verdict="absent", note=backends.why_not(op, name, visit.device, race.dtype) or "")
        return "absent"
    what = "forward+backward" if DIFFERENTIABLE[op] else "forward"
    run_once = make_call(race.with_backend(name), race.operands(case.sizes, 0), DIFFERENTIABLE[op], what)
    first = _copies(run_once())
    times = 5 if visit.is_tiny else _REPEATS
    different = sum(not _are_equal(first, run_once()) for _ in range(times))
    visit.add("correct", **cells, tensor=f"{times} repeats", error=different, verdict="wrong" if different else "ok",
            note="calls whose bits differ from the first one's")  # fmt: skip
    faults = [f"{different} of {times} repeats differ"] if different else []
    if visit.is_gpu:
        different = _replay_beside(run_once, first)
        visit.add("correct", **cells, tensor=f"{_REPLAYS} replays", error=different,
                verdict="wrong" if different else "ok", note="next to the same call on another stream")  # fmt: skip
        faults += [f"{different} of {_REPLAYS} replays differ"] if different else []
    if faults:
        raise Wrong(f"{op} {name}: {'; '.join(faults)}")
    return f"{times} repeats are equal"


def _replay_beside(run_once, first: list[torch.Tensor]) -> int:
    """Rounds in which either of two calls at the same time, a replayed one and an eager one, has other bits.

    The GPU is kept busy until both are queued, on two streams; then it may start them together.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run_once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_once()
    different, gate = 0, torch.cuda.Event()
    for _ in range(_REPLAYS):
        with torch.cuda.stream(side):
            torch.cuda._sleep(_GATE_CYCLES)
            gate.record(side)
            kept = run_once()
        torch.cuda.current_stream().wait_event(gate)
        graph.replay()
        torch.cuda.synchronize()
        different += not (_are_equal(first, captured) and _are_equal(first, kept))
    return different


def _copies(outputs) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors_of(outputs)]


def _are_equal(first: list[torch.Tensor], outputs) -> bool:
    # torch.equal: a NaN, which no op may give here, differs from itself.
    return all(torch.equal(a, b) for a, b in zip(first, tensors_of(outputs), strict=True))
