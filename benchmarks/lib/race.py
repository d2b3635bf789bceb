"""Races on one device: contestants take turns, and their rows are printed and written as soon as they are measured."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lib.device import measure_ceilings, print_machine, seconds_given, synchronise
from lib.table import Row, RowFile, make_rows, print_rows
from lib.timing import Call, Timing, time_in_turns

TINY_COPY_BYTES = 1 << 24


def parse(
    description: str,
    argv: Sequence[str] | None = None,
    *,
    choices: Sequence[str] = (),
    further: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """The options that all benchmarks of nets and blocks have.  further: adds those of one benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: a rehearsal whose numbers mean nothing")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each contestant, about")
    if choices:
        parser.add_argument("--only", action="append", choices=choices, help="repeatable; default: all")
    if further:
        further(parser)
    options = parser.parse_args(argv)
    options.device = options.device or default_device()
    return options


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Races:
    """The races of one process: its device, the ceilings measured there, and the file that gets the rows."""

    def __init__(self, device: str, csv: Path | None, seconds: float, *, is_tiny: bool = False, limit_s: float = 600):
        """seconds: spent on each contestant, about.  limit_s: for all races, unless a parent process sets its own."""
        self.device, self.is_tiny, self.seconds = device, is_tiny, 0.01 if is_tiny else seconds
        self.is_gpu = torch.device(device).type == "cuda"
        self.until = time.monotonic() + seconds_given(limit_s)
        self.ceilings = measure_ceilings(device, TINY_COPY_BYTES if is_tiny else None)
        print_machine(device, self.ceilings)
        self._file, self._has_header = RowFile(csv, device, self.ceilings), False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Races:
        """By the options of `parse`."""
        return cls(options.device, options.csv, options.seconds, is_tiny=options.tiny)

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    def compile_mode(self) -> str:
        return "aot_eager" if self.is_tiny else "default"

    def time(self, what: str, calls: dict[str, Sequence[Call]]) -> dict[str, Timing]:
        """Times contestants, whose calls rotate through buffers; prints why one could not be measured."""
        timings, failures = time_in_turns(calls, self.device, self.seconds, limit_s=min(150.0, 0.6 * self.left_s))
        for name, why in failures.items():
            print(f"{what:<17}{name:<16} not measured: {why}", flush=True)
        return timings

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
        """Times contestants, prints and keeps their rows.

        facts: further fields of a contestant's row, from its name and timing.  per_call: by contestant, how many of the
        things measured one of its calls does, if not one.
        """
        print(f"{op}  {shape}  {dtype}")
        timings = self.time(what, calls)
        timings |= {name: timings[name].per(count) for name, count in (per_call or {}).items() if name in timings}
        further = {name: facts(name, timing) for name, timing in timings.items()} if facts else None
        rows = make_rows(op, shape, dtype, what, timings, self.ceilings, least_bytes=least_bytes, flop=flop,
                         facts=further)  # fmt: skip
        self.keep(rows)
        return rows

    def keep(self, rows: Sequence[Row], *, prints: bool = True) -> None:
        """Writes rows to the file and prints them, unless a bench prints lines of its own."""
        for row in rows:
            self._file.add(row)
        if prints:
            print_rows(rows, with_header=not self._has_header)
            self._has_header = True

    def host_ms(self, call: Call) -> float:
        """Milliseconds until a call returns to Python; the GPU may still be working."""
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
