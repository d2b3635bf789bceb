"""The progress of a set: samples made, their rate, the time left, and the expected size on disk.

`status` needs no teacher, or of a set with a gate its file's metadata: a login node can ask while others generate.
"""

from __future__ import annotations

import time
from statistics import median

from dakd.config import Config
from dakd.generate.claims import living_claims
from dakd.generate.gate import current_round, open_gate
from dakd.generate.plan import GenerationPlan, open_plan
from dakd.generate.sidecar import checked_sidecar
from dakd.generate.teacher import teacher_classes
from dakd.runtime.runlog import REPORT_INTERVAL_S, format_count, format_duration, say

_NUM_WEIGHED = 16  # shards whose size is looked up
_NUM_TIMED = 64  # shards whose rate is looked up


class Progress:
    """A worker's reports: its own rate, and the state of the set, which other workers fill too.

    interval_s: the least time between two reports.
    """

    def __init__(self, plan: GenerationPlan, interval_s: float = REPORT_INTERVAL_S) -> None:
        self.plan, self.interval_s = plan, interval_s
        self._start_s = self._last_s = time.monotonic()
        self.num_shards_before = len(plan.finished_shards())
        self.num_made = 0

    def report(self, num_begun: int = 0) -> None:
        """Print a line if one is due.  num_begun: samples of the shard that is being made."""
        now = time.monotonic()
        if now - self._last_s >= self.interval_s:
            self._last_s = now
            say(self.line(num_begun, now - self._start_s))

    def count(self, num_made: int) -> None:
        """Count the samples of a shard that this worker published."""
        self.num_made += num_made
        self.report()

    def line(self, num_begun: int, elapsed_s: float) -> str:
        """One report, `elapsed_s` after the start."""
        plan = self.plan
        finished = plan.finished_shards()
        own = (self.num_made + num_begun) / elapsed_s
        # Of other workers only the published shards count: their unfinished ones are unknown here.
        others = (len(finished) - self.num_shards_before) * plan.shard_size - self.num_made
        rate = own + max(0, others) / elapsed_s
        left = (plan.num_shards - len(finished)) * plan.shard_size - num_begun
        eta = format_duration(max(0, left) / rate) if rate else "unknown"
        return (
            f"generate  shards {len(finished)}/{plan.num_shards}  {own:.3g} img/s here, {rate:.3g} in all  eta {eta}  "
            f"{_projected_size(plan, finished)}"
        )


def status(config: Config) -> str:
    """The shards that are finished, being made and missing; the rate, the time left and the size of the set.

    A worker's rate is that of the finished shards. The claims of another host's dead workers count as work.
    """
    plan = open_plan(config)
    gate = open_gate(config, teacher_classes(config)) if config.generate.gate.enabled else None
    plan, selection = current_round(plan, gate)
    finished = plan.finished_shards()
    missing = sorted(set(range(plan.num_shards)) - set(finished))
    claimed = [shard for shard in living_claims(plan.folder) if shard in set(missing)]
    bare = [shard for shard in missing if plan.tar(shard).exists()]
    facts = [checked_sidecar(plan, shard).facts for shard in finished[-_NUM_TIMED:]]
    rates = [rate for one in facts if (rate := one.get("images_per_s"))]
    lines = [
        f"{plan.folder}: {len(finished)} of {plan.num_shards} shards are finished, for {plan.num_samples} pairs",
        f"  being made  {_listed(claimed)}",
        f"  missing     {_listed(sorted(set(missing) - set(claimed)))}",
    ]
    if bare:
        lines.append(f"  no sidecar  {_listed(bare)} (the next worker derives it from the tar)")
    if gate is not None and selection is not None:
        lines.append(f"  gate        keeps {plan.num_samples} of {selection.num_candidates} candidates")
    elif gate is not None:
        measured = sum(gate.is_measured(plan, shard) for shard in finished)
        lines.append(f"  gate        {measured} shards are measured; it may need more")
    if rates:
        line = f"  rate        {median(rates):.3g} img/s a worker"
        if claimed:
            left = len(missing) * plan.shard_size / (median(rates) * len(claimed))
            line += f", {len(claimed)} at work, eta {format_duration(left)}"
        lines.append(line)
    if finished:
        lines.append(f"  size        {_projected_size(plan, finished)}")
    return "\n".join(lines)


def _projected_size(plan: GenerationPlan, finished: list[int]) -> str:
    """`1.2GB of 9.6GB`, from the first finished shards; empty where there are none."""
    tars = [plan.tar(shard) for shard in finished[:_NUM_WEIGHED]]
    sizes = [tar.stat().st_size for tar in tars if tar.exists()]
    if not sizes:
        return ""
    mean = sum(sizes) / len(sizes)
    return f"{format_count(len(finished) * mean)}B of {format_count(plan.num_shards * mean)}B"


def _listed(shards: list[int]) -> str:
    """`9: 0, 3, 4, 7, 8, 9, 10, 12 and 1 more`."""
    if not shards:
        return "0"
    more = f" and {len(shards) - 8} more" if len(shards) > 8 else ""
    return f"{len(shards)}: {', '.join(map(str, shards[:8]))}{more}"
