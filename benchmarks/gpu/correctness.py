"""Phase 2: every op, backend, dtype and layout against float64, then bit for bit against itself.

The first is a ratio, error over budget, by output and gradient: a little over 1 may be a matter of the budget.
The second shows a race: 200 calls give the bits of the first one, and so do a replayed graph and an eager call that run
at the same time.
"""

from __future__ import annotations

import math
import traceback
from functools import partial

import torch
from harness import STRUCK_OVER, make_call
from machine import synchronise
from timing import reason

from dakd.kernels import backend as backends
from dakd.testing.inputs import DIFFERENTIABLE
from gpu import calls
from gpu.context import Run
from gpu.workers import Job, Phase, Wrong

PHASE = "correct"
_REPEATS, _REPLAYS = 200, 20
_GATE_CYCLES = 3_000_000  # some 1.5 ms: longer than Python takes to queue a call
_CPU_BACKENDS = ("cpu", "reference")
_JOB_S, _TINY_JOB_S = 40.0, 15.0


def phase(run: Run, only: tuple[str, ...] = ()) -> Phase:
    """only: words that a job's name must have one of; empty: all jobs."""
    jobs = [job for job in _jobs(run) if not only or any(word in job.name for word in only)]
    return Phase(PHASE, 60 if run.is_gpu else 240, jobs, workers=8 if run.is_gpu else 2)


def _jobs(run: Run) -> list[Job]:
    names = calls.GPU_BACKENDS if run.is_gpu else _CPU_BACKENDS
    limit_s = _TINY_JOB_S if run.is_tiny else _JOB_S
    dtypes = ("bf16", "fp32") if run.is_tiny else calls.DTYPES
    jobs = [
        Job(f"{op} {name} {dtype}", partial(_check, run, op, name, dtype), limit_s)
        for dtype in dtypes
        for name in names
        for op in calls.ops_with(name)
    ]
    repeats = [Job(f"{op} {name} repeats", partial(_repeat, run, op, name), limit_s)
               for name in names for op in calls.ops_with(name)]  # fmt: skip
    # A wrong sum in the two-byte dtypes, or one that changes, is more likely than one in fp32.
    half = [job for job in jobs if not job.name.endswith("fp32")]
    return [*half, *repeats, *(job for job in jobs if job not in half)]


def _check(run: Run, op: str, name: str, dtype: str) -> str:
    job = f"{op} {name} {dtype}"
    ratios: dict[str, float] = {}
    raised = []
    for seed, call in enumerate(calls.checked(op, dtype, run.is_tiny)):
        bench = calls.bench(call, run.bench_arguments())
        if run.plant.get(job) == "wrong":
            bench.function = _wrong(bench.function)
        where = f"{call.shape} {call.layout}"
        cells = dict(op=op, backend=name, dtype=dtype, layout=call.layout, shape=call.shape)
        if name not in bench.backends:
            absent = backends.why_not(op, name, run.device, bench.dtype) or "not for this dtype"
            run.add("correct", **cells, verdict="absent", note=absent)
            continue
        try:
            errors = bench.errors(name, call.sizes, seed)
            synchronise(run.device)
        # What does not compile or launch at one shape says nothing of the others, unless the context is gone.
        except Exception as error:
            traceback.print_exc()
            raised.append(f"{where}: {reason(error)}")
            run.add("correct", **cells, verdict="raised", note=reason(error))
            continue
        for tensor, error in errors.items():
            verdict = "ok" if error.ratio <= 1 else "over" if error.ratio <= STRUCK_OVER else "wrong"
            run.add("correct", **cells, tensor=tensor, error=error.error, budget=error.budget, ratio=error.ratio,
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
        scaled = tuple(value * 1.5 if value.is_floating_point() else value for value in _tensors(outputs))
        return scaled if isinstance(outputs, tuple) else scaled[0]

    return planted


def _repeat(run: Run, op: str, name: str) -> str:
    call = calls.repeated(op, run.is_tiny)
    bench = calls.bench(call, run.bench_arguments())
    cells = dict(op=op, backend=name, dtype=call.dtype, layout=call.layout, shape=call.shape)
    if name not in bench.backends:
        run.add("correct", **cells, verdict="absent", note=backends.why_not(op, name, run.device, bench.dtype) or "")
        return "absent"
    what = "forward+backward" if DIFFERENTIABLE[op] else "forward"
    run_once = make_call(bench.with_backend(name), bench.operands(call.sizes, 0), DIFFERENTIABLE[op], what)
    first = _copies(run_once())
    times = 5 if run.is_tiny else _REPEATS
    different = sum(not _are_equal(first, run_once()) for _ in range(times))
    run.add("correct", **cells, tensor=f"{times} repeats", error=different, verdict="wrong" if different else "ok",
            note="calls whose bits differ from the first one's")  # fmt: skip
    faults = [f"{different} of {times} repeats differ"] if different else []
    if run.is_gpu:
        different = _replay_beside(run_once, first)
        run.add("correct", **cells, tensor=f"{_REPLAYS} replays", error=different,
                verdict="wrong" if different else "ok", note="beside the same call on another stream")  # fmt: skip
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


def _tensors(outputs) -> list[torch.Tensor]:
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return [output for output in outputs if isinstance(output, torch.Tensor)]


def _copies(outputs) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in _tensors(outputs)]


def _are_equal(first: list[torch.Tensor], outputs) -> bool:
    # Written so that a NaN, which no op may give here, differs.
    return all(torch.equal(a, b) for a, b in zip(first, _tensors(outputs), strict=True))
