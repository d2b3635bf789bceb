"""How far a set is, at what rate it grows, when it will be there and how large it will be."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dakd.generate.plan import Plan
from dakd.runtime.runlog import REPORT_INTERVAL_S, format_count, format_duration, say

_NUM_WEIGHED = 16


class Progress:
    """A worker's reports: its own rate, and the set's state, to which other workers add.

    interval_s: at most one line in so many seconds.
    """

    def __init__(self, plan: Plan, interval_s: float = REPORT_INTERVAL_S) -> None:
        self.plan, self.interval_s = plan, interval_s
        self._start_s = self._last_s = time.monotonic()
        self.num_there_before = len(finished_shards(plan))
        self.num_made = 0

    def report(self, num_begun: int = 0) -> None:
        """Print a line if one is due.  num_begun: samples of the shard that is being made."""
        now = time.monotonic()
        if now - self._last_s >= self.interval_s:
            self._last_s = now
            say(self.line(num_begun, now - self._start_s))

    def finish(self, num_made: int) -> None:
        """Count the samples of a shard that this worker published."""
        self.num_made += num_made
        self.report()

    def line(self, num_begun: int, elapsed_s: float) -> str:
        """One report, `elapsed_s` after the start."""
        plan = self.plan
        there = finished_shards(plan)
        num_there = len(there)
        own = (self.num_made + num_begun) / elapsed_s
        # What others have published since the start; what they are at is not known.
        others = (num_there - self.num_there_before) * plan.shard_size - self.num_made
        rate = own + max(0, others) / elapsed_s
        left = (plan.num_shards - num_there) * plan.shard_size - num_begun
        eta = format_duration(max(0, left) / rate) if rate else "unknown"
        return (
            f"generate  shards {num_there}/{plan.num_shards}  {own:.3g} img/s here, {rate:.3g} in all  eta {eta}  "
            f"{projection(plan, there)}"
        )


def finished_shards(plan: Plan) -> list[int]:
    """The shards of the plan that are there, in order; one look into the folder."""
    names = {entry.name for entry in os.scandir(plan.folder)}
    return [shard for shard in range(plan.num_shards) if plan.sidecar(shard).name in names]


def projection(plan: Plan, there: list[int]) -> str:
    """`1.2GB of 9.6GB`, from the shards that are there; empty where there is none to weigh."""
    mean = _mean_bytes([plan.tar(shard) for shard in there[:_NUM_WEIGHED]])
    if not mean:
        return ""
    return f"{format_count(len(there) * mean)}B of {format_count(plan.num_shards * mean)}B"


def _mean_bytes(paths: list[Path]) -> float:
    sizes = [path.stat().st_size for path in paths if path.exists()]
    return sum(sizes) / max(1, len(sizes))
