"""The page of a study: what was measured as two charts, a table and pictures; it opens without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import dakd.report
from dakd.convergence.choice import Bound, Tolerances
from dakd.convergence.record import PAGE, SHEET
from dakd.convergence.settings import FAMILIES
from dakd.convergence.words import HEADER
from dakd.report.charts import COLOURS, Line, line_chart
from dakd.report.pictures import embed
from dakd.runtime.files import write_text


def write_page(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    shown: Mapping[str, Any],
    table: Sequence[Sequence[str | int]],
    bounds: Mapping[str, Bound],
    tolerances: Tolerances,
    lines: Mapping[str, Sequence[str]],
    has_real: bool,
) -> Path:
    """rows: judged.  shown: the row whose physics the page lists.  lines: heading, notes and verdict."""
    environment = Environment(
        # The style is the report's.
        loader=FileSystemLoader([Path(__file__).parent, Path(dakd.report.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("page.html").render(
        lines=lines,
        charts=draw_charts(rows, tolerances),
        header=HEADER,
        table_rows=table,
        physics=_physics_rows(shown["real" if has_real else "physics"], bounds),
        physics_of="the real images" if has_real else "the reference's pairs",
        sheet=embed(folder / SHEET),
    )
    path = folder / PAGE
    write_text(path, text)
    return path


def draw_charts(rows: Sequence[Mapping[str, Any]], tolerances: Tolerances) -> list[Markup]:
    """RMS, and the share of other labels, against calls, a line for each solver and spacing; both logarithmic."""
    return [
        *_chart(rows, lambda row: row["rms"], tolerances.rms, "RMS to the reference"),
        *_chart(rows, lambda row: 100 * (1 - row["agreement"]), 100 * (1 - tolerances.agreement),
                "labels unlike the reference's, %"),
    ]  # fmt: skip


def _chart(rows: Sequence[Mapping[str, Any]], value: Any, tolerance: float, y_label: str) -> list[Markup]:
    """One chart, or none where every value is 0."""
    ordered = sorted(rows, key=lambda row: row["calls"])
    lines = []
    for (solver, spacing), colour in zip(FAMILIES, COLOURS, strict=True):
        own = [row for row in ordered if (row["solver"], row["spacing"]) == (solver, spacing)]
        calls = [row["calls"] for row in own]
        lines.append(Line(f"{solver}, {spacing}", calls, [value(row) for row in own], colour, solver == "heun"))
    ends = [ordered[0]["calls"], ordered[-1]["calls"]]
    lines.append(Line("tolerance", ends, [tolerance, tolerance], "currentColor", dashed=True))
    if not any(y > 0 for line in lines for y in line.y):
        return []
    return [line_chart(lines, "calls of the net", y_label, log_y=True)]


def _physics_rows(distances: Mapping[str, float | None], bounds: Mapping[str, Bound]) -> list[list[str]]:
    """Measure, distance, its bound and the pairs that have it."""
    return [
        [
            f"{bound.title}, {bound.unit}" if bound.unit else bound.title,
            _short(distances[key]),
            _short(bound.largest),
            str(bound.num_images),
        ]
        for key, bound in bounds.items()
    ]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
