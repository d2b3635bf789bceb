"""Rows of results, one per (op, shape, dtype, what, contestant), and the CSV files that get them."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from lib.device import Ceilings, commit, device_name, version
from lib.timing import Timing, ratio

EAGER, COMPILED = "eager", "compile"
# What a fast variant has to beat.
RIVALS = (EAGER, "autocast", COMPILED, "max-autotune-no-cudagraphs", "aot_eager", "diffusers", "channels_last",
          "reference", "diffusers channels_last", "diffusers compile", "ddp", "ddp, bare")  # fmt: skip


@dataclass
class Row:
    """A measurement; a field that does not apply or was not measured is None, and empty in the file.

    time_us: by `method`, see timing.py; called_us: launched one by one from Python.
    times_eager, times_compile: the rival's time over this one's, by one method.
    least_mb: the least bytes that the op must move; gb_s: those over the time; copy_share: gb_s over the copy's.
    saved_mb: kept for the backward pass beyond the operands.  launches: GPU kernels, copies and fills of one call.
    cold: whether the buffers taken in turn exceed the cache.  spread: relative difference of one version measured
    twice.  flop_share: of the matrix rate of the same run.  layout: of the features in memory.
    """

    op: str
    shape: str
    dtype: str
    what: str
    contestant: str
    time_us: float
    method: str
    called_us: float
    times_eager: float | None = None
    times_compile: float | None = None
    least_mb: float | None = None
    gb_s: float | None = None
    copy_share: float | None = None
    saved_mb: float | None = None
    launches: int | None = None
    cold: bool | None = None
    spread: float | None = None
    flop_share: float | None = None
    images_per_s: float | None = None
    host_ms: float | None = None
    peak_gb: float | None = None
    layout: str = ""
    note: str = ""


MACHINE_COLUMNS = ("device", "torch", "triton", "commit", "date", "copy_gb_s", "matmul_tflop_s")
COLUMNS = MACHINE_COLUMNS + tuple(column.name for column in fields(Row))


class Table:
    """A CSV file that several processes append to: every line is one write, so none is torn or lost."""

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, tuple(columns)
        if path.exists():
            with path.open() as file:
                header = next(csv.reader(file), [])
            if tuple(header) != self.columns:
                raise ValueError(f"{path} has other columns than this version writes; move it away")

    def start(self) -> None:
        """Writes the header if there is no file yet."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(self.columns)

    def add(self, cells: dict) -> None:
        """Appends a line; columns without a cell stay empty."""
        self.start()
        self._append([_cell(cells.get(name)) for name in self.columns])

    def _append(self, line: Iterable) -> None:
        text = io.StringIO()
        csv.writer(text).writerow(line)
        with self.path.open("ab", buffering=0) as file:
            file.write(text.getvalue().encode())


def exit_status(failures: Sequence[str]) -> int:
    """Prints the bars that were missed; 1 if there are any."""
    for failure in failures:
        print(f"BELOW THE BAR  {failure}")
    return 1 if failures else 0


class RowFile:
    """Appends rows to a CSV file, each written through at once; None keeps nothing."""

    def __init__(self, path: Path | None, device: str, ceilings: Ceilings):
        self.table = None if path is None else Table(path, COLUMNS)
        self.machine = machine_cells(device) | ceilings._asdict()

    def add(self, row: Row) -> None:
        if self.table is not None:
            self.table.add(self.machine | {"date": now()} | asdict(row))


def machine_cells(device: str) -> dict[str, str]:
    """The cells of every line that say where it was measured."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": commit(),
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_rows(folder: Path) -> list[dict[str, str]]:
    """All rows of a folder's CSV files, as text; files with other columns are left out."""
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with path.open() as file:
            reader = csv.DictReader(file)
            if {"op", "contestant", "time_us"} <= set(reader.fieldnames or ()):
                rows += list(reader)
    return rows


def make_rows(
    op: str,
    shape: str,
    dtype: str,
    what: str,
    timings: dict[str, Timing],
    ceilings: Ceilings,
    *,
    least_bytes: int | None = None,
    flop: float | None = None,
    facts: dict[str, dict] | None = None,
    shared: dict | None = None,
) -> list[Row]:
    """Rows of contestants that raced one another; facts: further fields by contestant, shared: of all."""
    rows = []
    for name, timing in timings.items():
        row = Row(op, shape, dtype, what, name, timing.best_us, timing.method, timing.called_us, **(shared or {}))
        row.times_eager = ratio(timings[EAGER], timing) if EAGER in timings else None
        row.times_compile = ratio(timings[COMPILED], timing) if COMPILED in timings else None
        if least_bytes is not None:
            row.least_mb, row.gb_s = least_bytes / 1e6, least_bytes / timing.best_us / 1e3
            row.copy_share = row.gb_s / ceilings.copy_gb_s
        if flop is not None and ceilings.matmul_tflop_s:
            row.flop_share = flop / timing.best_us / 1e6 / ceilings.matmul_tflop_s
        for field, value in (facts or {}).get(name, {}).items():
            setattr(row, field, value)
        rows.append(row)
    return rows


def print_rows(rows: Iterable[Row], *, with_header: bool) -> None:
    if with_header:
        print(f"{'':<17}{'contestant':<16}{'time us':>11}{'':<9}{'x eager':>8}{'x compile':>10}{'GB/s':>9}{'% copy':>7}"
              f"{'saved MB':>9}{'launches':>9}", flush=True)  # fmt: skip
    for row in rows:
        share = None if row.copy_share is None else 100 * row.copy_share
        numbers = [
            _number(row.times_eager, 8, 2),
            _number(row.times_compile, 10, 2),
            _number(row.gb_s, 9, 1),
            _number(share, 7, 1),
            _number(row.saved_mb, 9, 1),
            _number(row.launches, 9, 0),
        ]
        extras = [
            "" if row.flop_share is None else f"{100 * row.flop_share:.0f} % of the matrix rate",
            "" if row.images_per_s is None else f"{row.images_per_s:.3g} img/s",
            "" if row.host_ms is None else f"host {row.host_ms:.2f} ms",
            "" if row.peak_gb is None else f"peak {row.peak_gb:.2f} GB",
            "in cache" if row.cold is False else "",
            row.layout,
            row.note,
        ]
        remarks = "  " + ", ".join(extra for extra in extras if extra) if any(extras) else ""
        print(f"{row.what:<17}{row.contestant:<16}{row.time_us:>11.1f} {row.method:<8}{''.join(numbers)}{remarks}",
              flush=True)  # fmt: skip


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def _cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
