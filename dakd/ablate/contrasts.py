"""The comparisons that a table's YAML names: differences over seeds and images, with Holm's p over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dakd.ablate.plan import TablePlan
from dakd.ablate.results import counts_of, paired_counts
from dakd.ablate.run import JobStore
from dakd.ablate.spec import Contrast
from dakd.metrics.two_level import SeedsAndImages, difference_over_seeds, holm, mean_score

HEADER = ("data", "contrast", "seeds", "difference by seed", "mean", "95 %, t over seeds", "95 %, seeds and images",
          "p", "Holm's p")  # fmt: skip


@dataclass(frozen=True)
class ContrastResult:
    """A contrast on one dataset, from the seeds that are done in both rows.

    to: the row that it was made to, of several the one with the best mean.  holm_p: over all contrasts of the table,
    also those that are not done yet.
    """

    contrast: Contrast
    dataset: str
    to: str
    seeds: tuple[int, ...]
    difference: SeedsAndImages
    holm_p: float | None = None


def contrast_results(plan: TablePlan, store: JobStore) -> list[ContrastResult]:
    """The contrasts of a table as far as they are done, in its order."""
    found = []
    for contrast in plan.table.contrasts:
        for dataset in contrast.data or plan.table.datasets:
            to = _best(plan, store, contrast.to, dataset)
            both = {} if to is None else paired_counts(plan, store, (contrast.of, to), dataset)
            if both:
                seeds = tuple(seed for seed in plan.table.seeds if seed in both)
                ours, theirs = zip(*(both[seed] for seed in seeds))
                found.append(ContrastResult(contrast, dataset, to, seeds, difference_over_seeds(ours, theirs)))
    known = {str(i): one.difference.p for i, one in enumerate(found) if one.difference.p is not None}
    adjusted = holm(known, plan.table.comparisons)
    return [ContrastResult(one.contrast, one.dataset, one.to, one.seeds, one.difference, adjusted.get(str(i)))
            for i, one in enumerate(found)]  # fmt: skip


def open_contrasts(plan: TablePlan, results: Sequence[ContrastResult]) -> list[str]:
    """The titles of those that have no p yet: fewer seeds are done than it needs."""
    done = {(one.contrast.title, one.dataset) for one in results if one.difference.p is not None}
    wanted = [(one.title, dataset) for one in plan.table.contrasts for dataset in one.data or plan.table.datasets]
    return [f"{dataset}, {title}" if dataset else title for title, dataset in wanted if (title, dataset) not in done]


def _best(plan: TablePlan, store: JobStore, rows: Sequence[str], dataset: str) -> str | None:
    """The row with the largest mean of mIoU over the seeds that all of the rows have; None without such a seed."""
    counts = {row: counts_of(plan, store, row, dataset) for row in rows}
    common = set.intersection(*(set(one) for one in counts.values()))
    if not common:
        return None
    return max(rows, key=lambda row: np.mean([mean_score(counts[row][seed]) for seed in sorted(common)]))


def contrast_rows(results: Sequence[ContrastResult]) -> list[list[str]]:
    """Cells of a table of contrasts, differences in points of mIoU."""
    return [_row(one) for one in results]


def _row(result: ContrastResult) -> list[str]:
    one, title = result.difference, result.contrast.title
    if len(result.contrast.to) > 1:
        title += f" (here: {result.to})"
    by_seed = " ".join(f"{100 * gap:+.2f}" for gap in one.by_seed)
    return [result.dataset or "-", title, str(len(result.seeds)), by_seed, f"{100 * one.value:+.2f}",
            _interval(one.t_low, one.t_high), _interval(one.low, one.high), _p(one.p), _p(result.holm_p)]  # fmt: skip


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"[{100 * low:+.2f}, {100 * high:+.2f}]"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
