"""What the jobs of a run share: the device, the folder of results, and the tables in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import section
from machine import DEVICE_VARIABLE
from rows import COLUMNS, Table, machine_cells, now

FACT_COLUMNS = ("device", "torch", "triton", "commit", "date", "phase", "name", "value", "unit", "note")
CHECK_COLUMNS = ("device", "torch", "triton", "commit", "date", "op", "backend", "dtype", "layout", "shape", "tensor",
                 "error", "budget", "ratio", "verdict", "note")  # fmt: skip
FAMILY_COLUMNS = ("device", "torch", "triton", "commit", "date", "net", "shape", "layout", "family", "kernel",
                  "launches", "time_us", "share")  # fmt: skip
COUNTER_COLUMNS = ("device", "torch", "triton", "commit", "date", "op", "kernel", "metric", "unit", "value")
# All that a run writes; with the log no more files than may come back from a lent host.
FIRST_TABLES = {"facts": FACT_COLUMNS, "correct": CHECK_COLUMNS, "races": COLUMNS, "nets": COLUMNS,
                "families": FAMILY_COLUMNS}  # fmt: skip
SECOND_TABLES = {"facts": FACT_COLUMNS, "correct": CHECK_COLUMNS, "races": COLUMNS, "counters": COUNTER_COLUMNS}
LOG = "log.txt"


@dataclass(frozen=True)
class Run:
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
        """Writes the headers before any child can: two of them would write two."""
        for name, columns in tables.items():
            Table(self.path(name), columns).start()

    def add(self, table: str, **cells) -> None:
        """One line, written through at once."""
        columns = (FIRST_TABLES | SECOND_TABLES)[table]
        Table(self.path(table), columns).add(machine_cells(self.device) | {"date": now()} | cells)

    def fact(self, phase: str, name: str, value, unit: str = "", note: str = "") -> None:
        self.add("facts", phase=phase, name=name, value=value, unit=unit, note=note)
        print(f"{name:<44}{value} {unit}  {note}", flush=True)

    def section(self, table: str, seconds: float = 0.3) -> section.Section:
        """Races of nets and blocks, whose rows go to `table`."""
        given = ["--device", self.device, "--csv", str(self.path(table)), "--seconds", str(seconds)]
        return section.Section(section.parse("", [*given, *(["--tiny"] if self.is_tiny else [])]))

    def bench_arguments(self, *more: str) -> list[str]:
        """The command line of a room's benchmark, whose rows go to the races."""
        return ["--device", self.device, "--csv", str(self.path("races")), *more]


def find_gpu() -> str | None:
    """The first GPU's name or None; asked of another process, for a parent of forks must not touch CUDA."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        query = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
    try:
        names = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return names[0].strip() if names else None


def announce_device(device: str) -> None:
    """Lets all processes of the run know the GPU's name."""
    if device == "cuda":
        os.environ.setdefault(DEVICE_VARIABLE, find_gpu() or "unknown GPU")
