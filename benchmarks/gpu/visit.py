"""A visit to a GPU host: the device, the folder of results with its tables, and the summary that is printed last."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib.device import DEVICE_VARIABLE
from lib.op_race import OpRace
from lib.race import Races
from lib.table import COLUMNS, RIVALS, Table, machine_cells, now, read_rows

from dakd.kernels import backend
from gpu import cases
from gpu.workers import JobResult

_HEAD = ("device", "torch", "triton", "commit", "date")
FACT_COLUMNS = (*_HEAD, "phase", "name", "value", "unit", "note")
CHECK_COLUMNS = (*_HEAD, "op", "backend", "dtype", "layout", "shape", "tensor", "error", "budget", "ratio", "verdict",
                 "note")  # fmt: skip
FAMILY_COLUMNS = (*_HEAD, "net", "shape", "layout", "family", "kernel", "launches", "time_us", "share")
COUNTER_COLUMNS = (*_HEAD, "op", "kernel", "metric", "unit", "value")
# All files of a visit. With the log at most eight: no more may come back from a lent host.
FIRST_TABLES = {"facts": FACT_COLUMNS, "correct": CHECK_COLUMNS, "races": COLUMNS, "nets": COLUMNS,
                "families": FAMILY_COLUMNS}  # fmt: skip
SECOND_TABLES = {"facts": FACT_COLUMNS, "correct": CHECK_COLUMNS, "races": COLUMNS, "nets": COLUMNS,
                 "families": FAMILY_COLUMNS, "counters": COUNTER_COLUMNS}  # fmt: skip
LOG = "log.txt"


@dataclass(frozen=True)
class Visit:
    """is_tiny: toy shapes, a rehearsal whose numbers mean nothing.  plant: a fault by the name of the job."""

    device: str
    is_tiny: bool
    folder: Path
    plant: dict[str, str] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    def path(self, table: str) -> Path:
        return self.folder / f"{table}.csv"

    def start_tables(self, tables: dict[str, tuple[str, ...]]) -> None:
        """Writes the headers before there are children: two of them at once would write two."""
        for name, columns in tables.items():
            Table(self.path(name), columns).start()

    def add(self, table: str, **cells) -> None:
        """One line, written through at once."""
        columns = (FIRST_TABLES | SECOND_TABLES)[table]
        Table(self.path(table), columns).add(machine_cells(self.device) | {"date": now()} | cells)

    def fact(self, phase: str, name: str, value, unit: str = "", note: str = "") -> None:
        self.add("facts", phase=phase, name=name, value=value, unit=unit, note=note)
        print(f"{name:<44}{value} {unit}  {note}", flush=True)

    def races(self, table: str, seconds: float = 0.3) -> Races:
        """Races of nets and blocks, whose rows go to `table`."""
        return Races(self.device, self.path(table), seconds, is_tiny=self.is_tiny)

    def op_race(self, case: cases.Case, *words: str) -> OpRace:
        """The race of one op at one shape, whose rows go to the races.  words: further options."""
        return cases.op_race(case, "--device", self.device, "--csv", str(self.path("races")), *words)

    # -- the summary --------------------------------------------------------------------------------------------------

    def print_best(self, since: str) -> None:
        """One line per op, shape and direction since a date: the fastest that is no rival, and its ratios."""
        groups: dict[tuple, list[dict[str, str]]] = {}
        for row in read_rows(self.folder):
            if row["date"] >= since:
                # In another layout an op is another measurement; nets race layouts against one another.
                layout = row["layout"] if row["op"] in backend.OPS else ""
                groups.setdefault((row["op"], row["shape"], row["dtype"], layout, row["what"]), []).append(row)
        if not groups:
            return
        print("\n== results" + (" of a rehearsal: the numbers mean nothing" if self.is_tiny else ""))
        print(f"{'op':<22}{'shape':<28}{'what':<18}{'best':<15}{'us':>10}{'x eager':>9}{'x compile':>10}{'% copy':>8}"
              f"{'% matmul':>9}{'img/s':>8}")  # fmt: skip
        for (op, shape, _dtype, _layout, what), group in groups.items():
            ours = [row for row in group if row["contestant"] not in RIVALS]
            best = min(ours or group, key=lambda row: float(row["time_us"]))
            shown = best["contestant"] if ours else f"({best['contestant']})"
            print(f"{op:<22}{shape[:27]:<28}{what:<18}{shown:<15}{float(best['time_us']):>10.1f}"
                  f"{_cell(best['times_eager'], 9, 2)}{_cell(best['times_compile'], 10, 2)}"
                  f"{_cell(best['copy_share'], 8, 1, 100)}{_cell(best['flop_share'], 9, 1, 100)}"
                  f"{_cell(best['images_per_s'], 8, 2)}")  # fmt: skip


def print_results(results: Sequence[JobResult]) -> None:
    """How every job ended."""
    print("\n== jobs")
    for found in results:
        print(f"{found.phase:<9}{found.job:<38}{found.status:<16}{found.seconds:>6.1f} s  {found.note[:100]}")
    late = [found.job for found in results if found.status == "no time left"]
    if late:
        print(f"not run for lack of time: {', '.join(late)}")
    wrong = [found.job for found in results if found.status == "WRONG"]
    print(f"WRONG: {', '.join(wrong)}" if wrong else "every check passed")
    broken = [f"{found.job} ({found.status})" for found in results
              if found.status.startswith(("FAILED", "crashed", "timed out"))]  # fmt: skip
    print(f"did not end well: {', '.join(broken)}" if broken else "every job that was started ended", flush=True)


def _cell(text: str, width: int, digits: int, factor: float = 1.0) -> str:
    return f"{'-':>{width}}" if not text else f"{float(text) * factor:>{width}.{digits}f}"


def find_gpu() -> str | None:
    """The first GPU's name or None, asked of another process: a parent of forks must not touch CUDA."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        query = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
    try:
        names = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return names[0].strip() if names else None


def announce_device(device: str) -> None:
    """Passes the GPU's name to all processes of the visit."""
    if device == "cuda":
        os.environ.setdefault(DEVICE_VARIABLE, find_gpu() or "unknown GPU")
