"""What the benchmarks of nets and of their parts share: options, machine, races and their rows."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from machine import measure_ceilings, print_machine, seconds_given, synchronise
from rows import Row, RowFile, make_rows, print_header, print_rows
from timing import Call, Timing, race

TINY_COPY_BYTES = 1 << 24


def parse(description: str, argv: Sequence[str] | None = None, *, choices: Sequence[str] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: a rehearsal whose numbers mean nothing")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each contestant, about")
    if choices:
        parser.add_argument("--only", action="append", choices=choices, help="repeatable; default: all")
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.tiny:
        options.seconds = 0.01
    return options


class Section:
    """One process's measurements on one device."""

    def __init__(self, options: argparse.Namespace):
        self.device, self.is_tiny, self.seconds = options.device, options.tiny, options.seconds
        self.is_gpu = torch.device(options.device).type == "cuda"
        self.until = time.monotonic() + seconds_given(600)
        self.ceilings = measure_ceilings(options.device, TINY_COPY_BYTES if options.tiny else None)
        print_machine(options.device, self.ceilings)
        print_header()
        self.file = RowFile(options.csv, options.device, self.ceilings)

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    def compile_mode(self) -> str:
        return "aot_eager" if self.is_tiny else "default"

    def race(
        self,
        op: str,
        shape: str,
        dtype: str,
        what: str,
        calls: dict[str, Sequence[Call]],
        *,
        least_bytes: int | None = None,
        flop: float | None = None,
        facts: Callable[[str, Timing], dict] | None = None,
        per_call: dict[str, int] | None = None,
    ) -> list[Row]:
        """Times contestants (their calls rotate through buffers), prints and keeps their rows.

        facts: further fields of a contestant's row, from its name and timing.  per_call: how many of what is measured
        one of its calls does, where that is not one.
        """
        print(f"{op}  {shape}  {dtype}")
        timings, failures = race(calls, self.device, self.seconds, limit_s=min(150.0, 0.6 * self.left_s))
        for name, why in failures.items():
            print(f"{what:<17}{name:<16} not measured: {why}", flush=True)
        for name, count in (per_call or {}).items():
            if name in timings:
                timing = timings[name]
                graph_us = None if timing.graph_us is None else timing.graph_us / count
                timings[name] = Timing(timing.called_us / count, graph_us, timing.method)
        further = {name: facts(name, timing) for name, timing in timings.items()} if facts else None
        rows = make_rows(op, shape, dtype, what, timings, self.ceilings, least_bytes=least_bytes, flop=flop,
                         facts=further)  # fmt: skip
        self.keep(rows)
        return rows

    def keep(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.file.add(row)
        print_rows(rows)

    def host_ms(self, call: Call) -> float:
        """Milliseconds until a call returns to Python, the GPU still at work."""
        synchronise(self.device)
        start = time.perf_counter()
        kept = call()
        milliseconds = (time.perf_counter() - start) * 1e3
        synchronise(self.device)
        del kept
        return milliseconds

    def peak_gb(self, call: Call) -> float | None:
        """The most memory allocated during a call, GB; None on a CPU."""
        if not self.is_gpu:
            return None
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() / 1e9
