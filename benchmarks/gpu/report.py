"""The short tables that a run prints last: the fastest of ours by op, and what became of every job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rows import RIVALS, read_rows

from gpu.workers import Outcome


def print_best(folder: Path, since: str, is_tiny: bool) -> None:
    """One line per op, shape and direction of this run: the fastest that is not plain torch, and its ratios."""
    groups: dict[tuple, list[dict[str, str]]] = {}
    for row in read_rows(folder):
        if row["date"] >= since:
            key = (row["op"], row["shape"], row["dtype"], row["layout"] if row["op"] in _OPS else "", row["what"])
            groups.setdefault(key, []).append(row)
    if not groups:
        return
    print("\n== results" + (" of a rehearsal: the numbers mean nothing" if is_tiny else ""))
    print(f"{'op':<22}{'shape':<28}{'what':<18}{'best':<15}{'us':>10}{'x eager':>9}{'x compile':>10}{'% copy':>8}"
          f"{'% matmul':>9}{'img/s':>8}")  # fmt: skip
    for (op, shape, _dtype, _layout, what), group in groups.items():
        ours = [row for row in group if row["contestant"] not in RIVALS] or group
        best = min(ours, key=lambda row: float(row["time_us"]))
        shown = best["contestant"] if best["contestant"] not in RIVALS else f"({best['contestant']})"
        print(f"{op:<22}{shape[:27]:<28}{what:<18}{shown:<15}{float(best['time_us']):>10.1f}"
              f"{_cell(best['times_eager'], 9, 2)}{_cell(best['times_compile'], 10, 2)}"
              f"{_cell(best['copy_share'], 8, 1, 100)}{_cell(best['flop_share'], 9, 1, 100)}"
              f"{_cell(best['images_per_s'], 8, 2)}")  # fmt: skip


# Where a layout makes another measurement; nets race layouts against one another.
_OPS = ("transposed_attention", "ddim_step", "joint_noising", "seg_loss", "selective_scan", "depthwise_conv1d")


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    print("\n== jobs")
    for outcome in outcomes:
        print(f"{outcome.phase:<9}{outcome.job:<38}{outcome.status:<16}{outcome.seconds:>6.1f} s  {outcome.note[:100]}")
    late = [outcome.job for outcome in outcomes if outcome.status == "no time left"]
    if late:
        print(f"not run for lack of time: {', '.join(late)}")
    wrong = [outcome.job for outcome in outcomes if outcome.status == "WRONG"]
    print(f"WRONG: {', '.join(wrong)}" if wrong else "nothing that was checked is wrong")
    broken = [f"{outcome.job} ({outcome.status})" for outcome in outcomes
              if outcome.status.startswith(("FAILED", "crashed", "timed out"))]  # fmt: skip
    print(f"did not end well: {', '.join(broken)}" if broken else "every job that was started ended", flush=True)


def _cell(text: str, width: int, digits: int, factor: float = 1.0) -> str:
    return f"{'-':>{width}}" if not text else f"{float(text) * factor:>{width}.{digits}f}"
