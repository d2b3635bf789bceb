"""The labels curve of a table: mIoU against the number of labelled images, and how many labels each row saves.

A row saves labels where its score equals that of the table's `curve` row with more of them: the number at which that
row's curve, straight between its places on a logarithmic axis and never falling, reaches the score. The interval draws
the images, the same for all, and the seeds (S - 1 of S, see `metrics.two_level`). Places and rows with as many seeds
share their draws: the labelled images of a seed at one place are among its images at the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dakd.ablate.plan import TablePlan
from dakd.ablate.results import counts_of
from dakd.ablate.run import JobStore
from dakd.metrics.bootstrap import CONFIDENCE, MIN_IMAGES, draw_weights
from dakd.metrics.two_level import MIN_SEEDS, mean_score, over_drawn_seeds, t_quantile
from dakd.shipped import extra_remedy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADER = ("data", "row", "mIoU, %", "labels for that score", "95 %", "times its labels")
_NUM_RESAMPLES = 1000

Counts = Mapping[int, np.ndarray]  # (R, N, K, K) by seed


@dataclass(frozen=True)
class Saving:
    """A row with so many labels.

    equal_at: the labels with which the curve has its score; None beyond the curve's end, 0 before its beginning.
    low, high: of it, None where a number of labels has fewer than MIN_SEEDS seeds; infinite where so many resamples lie
    beyond the end.
    """

    dataset: str
    row: str
    labels: int
    score: float
    equal_at: float | None
    low: float | None
    high: float | None


def savings(plan: TablePlan, store: JobStore) -> list[Saving]:
    """What each other row saves at each place, as far as results are done; [] for a table without a curve."""
    table = plan.table
    if table.curve is None:
        return []
    places = {name: spec.labels for name, spec in table.data.items()}
    base = {name: counts_of(plan, store, table.curve, name) for name in places}
    base = {name: counts for name, counts in base.items() if counts}
    if len(base) < 2:
        return []
    rng = np.random.default_rng(0)
    num_images = next(iter(next(iter(base.values())).values())).shape[1]
    times = draw_weights(_NUM_RESAMPLES, num_images, rng).astype(np.float64)
    known = np.array([places[name] for name in base])
    curve = np.array([_score(counts) for counts in base.values()])
    drawn = np.stack([_drawn_scores(counts, times) for counts in base.values()])
    found = []
    for row in (row.name for row in table.rows if row.name != table.curve):
        for name in places:
            counts = counts_of(plan, store, row, name)
            if counts:
                score = _score(counts)
                own = _drawn_scores(counts, times)
                equal = equal_at(score, known, curve)
                ends = (None, None)
                if min(map(len, [*base.values(), counts])) >= MIN_SEEDS and num_images >= MIN_IMAGES:
                    reached = [equal_at(own[b], known, drawn[:, b]) for b in range(_NUM_RESAMPLES)]
                    ends = _ends(np.array([np.inf if one is None else one for one in reached]))
                found.append(Saving(name, row, places[name], score, equal, *ends))
    return found


def equal_at(score: float, places: np.ndarray, scores: np.ndarray) -> float | None:
    """The place at which a curve through (places, scores) reaches a score first; None where it never does.

    Between places it is straight over the logarithm of the place; it is made never to fall. The place of a score below
    its first one is not known: 0.
    """
    order = np.argsort(places)
    logs, rising = np.log(places[order]), np.maximum.accumulate(scores[order])
    if score > rising[-1]:
        return None
    above = int(np.argmax(rising >= score))
    if above == 0:
        return float(places[order][0]) if score == rising[0] else 0.0
    share = (score - rising[above - 1]) / (rising[above] - rising[above - 1])
    return float(np.exp(logs[above - 1] + share * (logs[above] - logs[above - 1])))


def saving_rows(found: Sequence[Saving]) -> list[list[str]]:
    rows = []
    for one in found:
        ends = "-" if one.low is None or one.high is None else f"[{_place(one.low)}, {_place(one.high)}]"
        times = f"{one.equal_at / one.labels:.2f}" if one.equal_at else "-"
        rows.append([one.dataset, one.row, f"{100 * one.score:.2f}", _place(one.equal_at), ends, times])
    return rows


def draw_curve(plan: TablePlan, store: JobStore, path: Path) -> bool:
    """Draw mIoU over the places, a line a row, in a panel for each of the table's `panels`.

    Bars are 95 % intervals by t over the seeds, dots the single seeds. A line has a gap where its row lacks a place
    that another row of the panel has. False, and nothing is drawn, for a table without a curve or with fewer than two
    places done.
    """
    if plan.table.curve is None:
        return False
    points = {row.name: _points(plan, store, row.name) for row in plan.table.rows}
    if max(map(len, points.values())) < 2:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError(f"the curve needs matplotlib, which is not installed; run: {extra_remedy('dev')}") from None
    panels = plan.table.panels or {plan.table.title: tuple(points)}
    figure = Figure(figsize=(7.5 * len(panels), 5.2), dpi=110, layout="constrained")
    places = sorted(spec.labels for spec in plan.table.data.values())
    colours = {name: f"C{number % 10}" for number, name in enumerate(points)}  # a row has one in all panels
    for axes, (title, rows) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()):
        shown = {name: points[name] for name in rows if points.get(name)}
        measured = sorted({place for own in shown.values() for place in own})
        for number, (name, own) in enumerate(shown.items()):
            style = {"color": "black", "linewidth": 2.2} if number == 0 else {"color": colours[name], "linewidth": 1.4}
            _draw_line(axes, name, own, measured, 1 + 0.012 * (number - len(shown) / 2), style)
        axes.set(xscale="log", xlabel="labelled images", ylabel="mIoU, %", title=title)
        axes.set_xticks(places, [str(place) for place in places])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True


def _draw_line(
    axes: Axes, name: str, points: dict[float, list[float]], places: list[float], shift: float, style: dict
) -> None:
    """places: those between which the line runs; it is interrupted at one that `points` lacks."""
    means = [float(np.mean(points[place])) if place in points else np.nan for place in places]
    halves = [_half_width(points[place]) if place in points else np.nan for place in places]
    shifted = [place * shift for place in places]
    axes.errorbar(shifted, means, yerr=halves, marker="o", markersize=4, capsize=3, label=name, **style)
    for place, at in zip(places, shifted):
        own = points.get(place, [])
        axes.plot([at] * len(own), own, ".", color=style["color"], alpha=0.35, markersize=4)


def _points(plan: TablePlan, store: JobStore, row: str) -> dict[float, list[float]]:
    """By place the mIoU of each seed, percent, a mean over its repeats."""
    found = {}
    for name, spec in plan.table.data.items():
        counts = counts_of(plan, store, row, name)
        if counts:
            found[spec.labels] = [100 * _score({0: one}) for one in counts.values()]
    return found


def _half_width(values: Sequence[float]) -> float:
    if len(values) < MIN_SEEDS:
        return 0.0
    return t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5


def _score(counts: Counts) -> float:
    """The mean over seeds of the means over repeats of mIoU."""
    return float(np.mean([mean_score(one) for one in counts.values()]))


def _drawn_scores(counts: Counts, times: np.ndarray) -> np.ndarray:
    """(B,) scores of resamples; times: (B, N) draws of the images. The seeds are drawn here, as for all of as many."""
    by_seed = np.stack([mean_score(counts[seed], times) for seed in sorted(counts)])
    rng = np.random.default_rng(len(by_seed))
    return over_drawn_seeds(by_seed, rng) if len(by_seed) >= MIN_SEEDS else by_seed.mean(axis=0)


def _ends(reached: np.ndarray) -> tuple[float, float]:
    """Of the middle 95 %; by sorting, since some may be infinite."""
    tail = (1 - CONFIDENCE) / 2
    ordered = np.sort(reached)
    return float(ordered[int(tail * len(ordered))]), float(ordered[int((1 - tail) * len(ordered)) - 1])


def _place(value: float | None) -> str:
    """In words where it lies beyond either end of the curve."""
    if value is None or np.isinf(value):
        return "more than measured"
    return f"{value:.0f}" if value else "fewer than measured"
