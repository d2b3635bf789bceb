"""A visit to a GPU host that is lent for minutes: one command, and every line is kept as soon as it is measured.

    python3 benchmarks/gpu_run.py               # the first visit, at most 390 s
    python3 benchmarks/gpu_run.py --second      # the second one, at most 425 s: questions left by the first
    python3 benchmarks/gpu_run.py --device cpu --tiny [--second]       # a rehearsal without a GPU

Phases follow one another, each within its own limit. A phase's jobs are separate processes (gpu/workers.py): a crash, a
hang or a wrong result costs one job. Rows go to $OUT or --out, by default benchmarks/results/<device>/; the README.md
in benchmarks/results/ explains them. Needs torch with CUDA and Triton; `make gpu-kit` packs everything else that a host
may lack. Exit status 1: a check found something wrong, or a job did not end by itself.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

_START = time.monotonic()  # the imports below take seconds, which count
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
# Without it, asking whether there is a GPU would start CUDA in the parent, and no forked child could use it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

try:
    import torch
except ImportError:
    print(f"{sys.argv[0]} needs torch, which {sys.executable} does not have; make venv installs it", file=sys.stderr)
    raise SystemExit(2) from None
from gpu import correctness, facts, gpu_tests, nets, races, second_visit  # noqa: E402
from gpu.visit import FIRST_TABLES, LOG, SECOND_TABLES, Visit, announce_device, find_gpu, print_results  # noqa: E402
from gpu.workers import FAULTS, Job, JobResult, Phase, Workers  # noqa: E402
from lib.device import CEILINGS_VARIABLE, RESULTS, commit, device_name, device_slug  # noqa: E402
from lib.table import now  # noqa: E402
from lib.timing import reason  # noqa: E402

from dakd.kernels import backend  # noqa: E402

FIRST_S, SECOND_S = 390.0, 425.0
_TINY_S = 900.0  # two slow cores rehearse more slowly than a GPU host works
# Seconds spent on preparing the host before this script started.
PREPARED_VARIABLE = "DAKD_PREPARED_S"
_BAD = ("WRONG", "FAILED", "crashed", "timed out")


def main() -> int:
    options = _parse()
    start = _START - float(os.environ.get(PREPARED_VARIABLE, 0))
    announce_device(options.device)
    visit = Visit(options.device, options.tiny, _folder(options), dict(options.plant))
    until, began = start + options.total_s, now()
    phases = _phases(visit, options, lambda: until - time.monotonic())
    visit.folder.mkdir(parents=True, exist_ok=True)
    visit.start_tables(SECOND_TABLES if options.second else FIRST_TABLES)
    _import_for_children(visit)
    gc.freeze()  # imports stay for ever: children need not scan them at every collection
    if torch.cuda.is_initialized():
        raise RuntimeError("CUDA has started in the parent: no child could use it; a module imported here touches it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    workers = Workers(visit.folder / LOG, visit.plant)
    print(f"{device_name(visit.device)}, torch {torch.__version__}, commit {commit()}; rows go to {visit.folder}; "
          f"ready after {time.monotonic() - start:.1f} s", flush=True)  # fmt: skip
    results: list[JobResult] = []
    try:
        for name, make in phases.items():
            results += _run(visit, workers, name, make, until)
    finally:
        workers.end_all()
        visit.print_best(began)
        print_results(results)
        print(f"took {time.monotonic() - start:.0f} s of {options.total_s:.0f} s")
    return 1 if any(result.status.startswith(_BAD) for result in results) else 0


def _phases(visit: Visit, options: argparse.Namespace, left_s: Callable[[], float]) -> dict[str, Callable[[], Phase]]:
    """The phases in order, by name; each is made when the one before it is over."""
    first = {
        "facts": lambda: facts.phase(visit),
        "correct": lambda: correctness.phase(visit),
        "races": lambda: races.phase(visit),
        "unet": lambda: nets.unet_phase(visit),
        "loop": lambda: nets.loop_phase(visit),
        "train": lambda: nets.train_phase(visit),
        "compile": lambda: races.compiled_phase(visit),
        "tests": lambda: gpu_tests.phase(visit, max(1.0, left_s())),
    }
    later = {
        "facts": lambda: facts.phase(visit, 15),
        "recheck": lambda: second_visit.recheck_phase(visit, tuple(options.recheck or ())),
        "candidates": lambda: nets.candidates_phase(visit),
        "pipeline": lambda: second_visit.pipeline_phase(visit),
        "races": lambda: second_visit.races_phase(visit),
        "families": lambda: nets.training_families_phase(visit),
        "counters": lambda: second_visit.counters_phase(visit),
        "memcheck": lambda: second_visit.memcheck_phase(visit),
        "variants": lambda: second_visit.variants_phase(visit, tuple(options.variant or ())),
        "compile": lambda: nets.compiled_step_phase(visit, max(1.0, left_s())),
    }
    phases = later if options.second else first
    unknown = set(options.only or ()) - set(phases)
    if unknown:
        raise SystemExit(f"no phase is called {', '.join(sorted(unknown))}; there are {', '.join(phases)}")
    return {name: make for name, make in phases.items() if not options.only or name in options.only}


def _run(visit: Visit, workers: Workers, name: str, make: Callable[[], Phase], until: float) -> list[JobResult]:
    """Runs a phase; each result is printed and kept when its job ends."""
    try:
        phase = make()
    # A phase that cannot be made counts as one failed job; the other phases run.
    except Exception as error:
        traceback.print_exc()
        phase = Phase(name, 10, [Job("phase", partial(_fail, reason(error)), 10)])
    print(f"\n== {phase.name} (at most {min(phase.limit_s, until - time.monotonic()):.0f} s)", flush=True)
    start, began, results = time.monotonic(), now(), []
    for result in workers.run(phase, until):
        results.append(result)
        print(f"{result.job:<44}{result.status:<14}{result.seconds:>6.1f} s  {result.note[:100]}", flush=True)
        visit.add("facts", phase=phase.name, name=f"job {result.job}", value=result.status,
                unit="", note=f"{result.seconds:.1f} s; {result.note}")  # fmt: skip
    visit.add("facts", phase=phase.name, name="phase", value=f"{time.monotonic() - start:.1f}", unit="s")
    if phase.name == facts.PHASE:
        _pass_ceilings_on(visit, began)
    return results


def _fail(why: str) -> None:
    raise RuntimeError(why)


def _pass_ceilings_on(visit: Visit, began: str) -> None:
    """Later jobs take the ceilings that the first one measured; without them each would measure its own."""
    found = facts.measured_ceilings(visit, began)
    if found is not None:
        os.environ[CEILINGS_VARIABLE] = found


def _import_for_children(visit: Visit) -> None:
    """Imports, once for all children, what takes seconds and is installed; none of it may start CUDA."""
    rooms = [f"dakd.kernels.{op}.{name}" for op in backend.OPS for name in ("api", "reference", *_variants(visit))]
    nets = ["lib.nets", "dakd.models.mamba_vision", "dakd.diffusion.sampler"]
    # torch loads its compiler's front end, and with it sympy, at the first call of a custom operator.
    for name in ("lib.op_race", "torch._dynamo", "torch.testing", *rooms, *nets):
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"{name} cannot be imported ({error}): jobs that need it will fail", flush=True)


def _variants(visit: Visit) -> tuple[str, ...]:
    return ("triton", "cuda") if visit.is_gpu else ("cpu",)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--second", action="store_true", help="the second visit: recheck, candidates, the pipeline, "
                        "races, families of trainings, counters, memcheck, variants, compile")  # fmt: skip
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda, or cpu to rehearse with --tiny; default: cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes: a rehearsal whose numbers mean nothing")
    parser.add_argument("--out", type=Path, help="folder of the results; the variable OUT goes before it")
    parser.add_argument("--only", action="append", help="run this phase only; repeatable")
    parser.add_argument("--recheck", action="append", metavar="WORD", help="--second: check the jobs whose names have "
                        "this word; default: those that did not end well, by the device's facts.csv")  # fmt: skip
    parser.add_argument("--variant", action="append", choices=[constant.name for constant in second_visit.CONSTANTS],
                        help="--second: race this tuning constant only; repeatable")  # fmt: skip
    parser.add_argument("--total-s", type=float, help=f"seconds for everything; default: {FIRST_S:.0f}, "
                        f"--second {SECOND_S:.0f}, --tiny {_TINY_S:.0f}")  # fmt: skip
    parser.add_argument("--plant", action="append", default=[], type=_fault, metavar="FAULT:JOB",
                        help=f"rehearse a fault in a job: {', '.join(FAULTS)}")  # fmt: skip
    options = parser.parse_args()
    if options.device is None and (torch.version.cuda is None or find_gpu() is None):
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else (
            f"torch {torch.__version__} is a CPU build")  # fmt: skip
        print(f"{parser.prog} needs a CUDA device, a CUDA build of torch 2.11 or newer and Triton; no CUDA device is "
              f"found here ({built}). To rehearse without one: --device cpu --tiny", file=sys.stderr)  # fmt: skip
        raise SystemExit(2)
    options.device = options.device or "cuda"
    if options.device == "cpu" and not options.tiny:
        parser.error("on a CPU this is a rehearsal: add --tiny")
    usual_s = _TINY_S if options.device == "cpu" else SECOND_S if options.second else FIRST_S
    options.total_s = options.total_s or usual_s
    return options


def _fault(text: str) -> tuple[str, str]:
    """FAULT:JOB as (job, fault)."""
    fault, _, job = text.partition(":")
    if fault not in FAULTS or not job:
        raise argparse.ArgumentTypeError(f"{text!r}: expected FAULT:JOB, FAULT one of {', '.join(FAULTS)}")
    return job, fault


def _folder(options: argparse.Namespace) -> Path:
    if os.environ.get("OUT"):
        return Path(os.environ["OUT"])
    if options.out is not None:
        return options.out
    if options.tiny:  # a rehearsal does not belong among the results
        return Path(tempfile.mkdtemp(prefix="dakd-rehearsal-"))
    return RESULTS / device_slug(options.device)


if __name__ == "__main__":
    raise SystemExit(main())
