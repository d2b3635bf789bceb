"""Times every backend of an op beside plain torch, on the operands that the tests use, and names what it measured on.

Contestants take turns, so that a busy machine slows all alike; a time is the median over the turns; ratios come from
one run. Bandwidth counts the least traffic there can be: every operand read once, every result written once. It stands
beside that of a plain copy of the same run. Before anything is timed, each backend must be within the tests' budget.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.testing import numerics
from dakd.testing.inputs import DIFFERENTIABLE, SHAPES, operands

_ROOT = Path(__file__).resolve().parents[1]
_COPY_BYTES = 1 << 27
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Row(NamedTuple):
    """One line of the table. ratio: plain torch's time over this one's; copy_share: of the copy's bandwidth."""

    op: str
    shape: str
    dtype: str
    what: str
    contestant: str
    time_us: float
    ratio: float
    gbytes_per_s: float
    copy_share: float


def run_benchmark(op: str, function: Callable, plain: Callable, extra: dict | None = None) -> list[Row]:
    """Parses the command line, checks, times and prints; returns the rows. extra: more keyword arguments of both."""
    options = _parse(op)
    dtype = _DTYPES[options.dtype]
    names = [name for name in backends.BACKENDS if backends.why_not(op, name, options.device) is None]
    contestants = {"plain torch": plain}
    if options.compile:
        contestants["torch.compile"] = torch.compile(plain)
    contestants |= {name: _with_backend(function, name) for name in names}
    _check(op, {name: contestants[name] for name in names}, plain, dtype, options.device, extra or {})
    inputs = operands(op, options.shape, dtype=dtype, device=options.device) | (extra or {})
    copy_gbytes_per_s = _copy_bandwidth(options.device)
    _print_header(op, inputs, options, copy_gbytes_per_s)
    rows = []
    for what in ("forward", "forward+backward") if DIFFERENTIABLE[op] else ("forward",):
        calls = {name: _call(contestant, inputs, DIFFERENTIABLE[op], what) for name, contestant in contestants.items()}
        traffic = _least_bytes(plain, inputs, DIFFERENTIABLE[op], what)
        times = _time(calls, options.seconds, options.device)
        for name, time_s in times.items():
            speed = traffic / time_s / 1e9
            ratio = times["plain torch"] / time_s
            measured = (what, name, time_s * 1e6, ratio, speed, speed / copy_gbytes_per_s)
            rows.append(Row(op, options.shape, options.dtype, *measured))
            _print_row(rows[-1])
    if options.csv:
        _append_csv(options.csv, rows, _device_name(options.device))
    return rows


def _parse(op: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Times {op}: every backend that can run, beside plain torch.")
    parser.add_argument("--shape", choices=list(SHAPES[op]), default="small")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each contestant, about")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of the plain version")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


def _with_backend(function: Callable, name: str) -> Callable:
    return lambda **inputs: function(**inputs, backend=name)


def _check(op: str, contestants: dict, plain: Callable, dtype: torch.dtype, device: str, extra: dict) -> None:
    """AssertionError unless every backend is within the error budget at the tiny shape."""
    inputs = operands(op, "tiny", dtype=dtype, device=device) | extra
    for contestant in contestants.values():
        numerics.assert_matches_plain(contestant, plain, inputs, DIFFERENTIABLE[op])


def _call(contestant: Callable, inputs: dict, differentiable: tuple[str, ...], what: str) -> Callable[[], None]:
    if what == "forward":

        @torch.no_grad()
        def forward() -> None:
            contestant(**inputs)

        return forward
    leaves = {name: _leaf(value, name in differentiable) for name, value in inputs.items()}
    wanted = [leaves[name] for name in differentiable if leaves[name] is not None]
    cotangents: list[Tensor] = []

    def forward_backward() -> None:
        outputs = _floating(contestant(**leaves))
        if not cotangents:
            cotangents.extend(torch.ones_like(output) for output in outputs)
        torch.autograd.grad(outputs, wanted, cotangents)

    return forward_backward


def _least_bytes(plain: Callable, inputs: dict, differentiable: tuple[str, ...], what: str) -> int:
    """Operands read and results written; backward reads both (cotangents for results) again and writes gradients."""
    read = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
    with torch.no_grad():
        written = sum(output.nbytes for output in _floating(plain(**inputs)))
    if what == "forward":
        return read + written
    return 2 * (read + written) + sum(inputs[name].nbytes for name in differentiable if inputs[name] is not None)


def _floating(outputs: Tensor | tuple) -> list[Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output for output in outputs if isinstance(output, Tensor) and output.is_floating_point()]


def _leaf(value, is_differentiable: bool):
    return value.detach().requires_grad_() if isinstance(value, Tensor) and is_differentiable else value


def _time(calls: dict[str, Callable[[], None]], seconds: float, device: str) -> dict[str, float]:
    """Median seconds of each call; the calls take turns."""
    times: dict[str, list[float]] = {name: [_once(call, device)] for name, call in calls.items()}
    warm = sum(_once(call, device) for call in calls.values())
    for _ in range(max(3, min(200, int(seconds * len(calls) / warm)))):
        for name, call in calls.items():
            times[name].append(_once(call, device))
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


def _once(call: Callable[[], None], device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _copy_bandwidth(device: str) -> float:
    """GB/s of copying 128 MiB: bytes read plus bytes written."""
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    fastest = min(_once(lambda: target.copy_(source), device) for _ in range(8))
    return 2 * _COPY_BYTES / fastest / 1e9


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _commit() -> str:
    """The short hash of the source tree's commit; "unknown" outside a git checkout."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _print_header(op: str, inputs: dict, options: argparse.Namespace, copy_gbytes_per_s: float) -> None:
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items() if isinstance(value, Tensor))
    print(f"device  {_device_name(options.device)}  (copy {copy_gbytes_per_s:.1f} GB/s)")
    print(f"torch   {torch.__version__}   commit {_commit()}")
    print(f"{op}  shape {options.shape}  dtype {options.dtype}: {shapes}")
    print(f"{'':<18}{'contestant':<16}{'time us':>12}{'x plain':>9}{'GB/s':>9}{'% copy':>8}", flush=True)


def _print_row(row: Row) -> None:
    numbers = f"{row.time_us:>12.1f}{row.ratio:>9.2f}{row.gbytes_per_s:>9.2f}{100 * row.copy_share:>8.1f}"
    print(f"{row.what:<18}{row.contestant:<16}{numbers}", flush=True)


def _append_csv(path: Path, rows: list[Row], device: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["device", "torch", "commit", *Row._fields])
        for row in rows:
            numbers = [f"{value:.6g}" if isinstance(value, float) else value for value in row]
            writer.writerow([device, torch.__version__, _commit(), *numbers])
