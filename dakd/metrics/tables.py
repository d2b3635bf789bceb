"""Tables as text, and scores as the paper's tables show them: percent with two decimals, one row per student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dakd.metrics.scores import SegmentationScores

# Column heads of the paper's segmentation tables and the fields behind them.
COLUMNS = {"mIoU": "miou", "F1": "f1", "A": "accuracy", "R": "recall", "P": "precision"}
# Column heads of a training's length and samples, and the keys of its `views`.
VIEW_COLUMNS = {"steps": "steps", "real views": "real", "synthetic views": "synthetic"}
# By the student's name: {"steps", "real", "synthetic"}, None of a student whose file does not have them.
Views = Mapping[str, Mapping[str, int] | None]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str | float | int | None]]) -> str:
    """Aligned plain text: the first column to the left, the others to the right.

    Floats show two decimals, None a dash. Raises ValueError for a row of another length than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)} has {len(row)} cells for {len(header)} columns; give one cell a column")
    lines = [list(header), *([format_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join(_align(line, widths) for line in (lines[0], rule, *lines[1:]))


def format_cell(cell: str | float | int | None) -> str:
    if cell is None:
        return "-"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def score_rows(
    scores: dict[str, SegmentationScores], views: Views | None = None
) -> tuple[list[str], list[list[str | float | int | None]]]:
    """Header and rows of mIoU, F1, A, R, P in percent, and of steps and samples drawn where `views` are given.

    scores: by the student's name.
    """
    rows: list[list[str | float | int | None]] = []
    for name, result in scores.items():
        own = () if views is None else [(views.get(name) or {}).get(key) for key in VIEW_COLUMNS.values()]
        rows.append([name, *(100 * getattr(result, field) for field in COLUMNS.values()), *own])
    return ["student", *COLUMNS, *(VIEW_COLUMNS if views is not None else ())], rows


def iou_rows(scores: dict[str, SegmentationScores]) -> tuple[list[str], list[list[str | float | None]]]:
    """Header and rows of each class's IoU in percent; the first row is the class's share of the test pixels."""
    first = next(iter(scores.values()))
    rows: list[list[str | float | None]] = [["pixel share", *(100 * share for share in first.shares.values())]]
    for name, result in scores.items():
        found = [result.per_class.get(class_name) for class_name in result.class_names]
        rows.append([name, *(None if one is None else 100 * one.iou for one in found)])
    return ["IoU by class", *first.class_names], rows


def oil_rows(scores: dict[str, SegmentationScores]) -> tuple[list[str], list[list[str | float]]]:
    """Header and rows of the one-class convention; empty rows where it does not apply."""
    rows = []
    for name, result in scores.items():
        if result.has_oil_convention:
            oil = result.oil_convention()
            rows.append([name, *(100 * oil[field] for field in COLUMNS.values())])
    return ["oil alone", *COLUMNS], rows


def format_scores(scores: dict[str, SegmentationScores], views: Views | None = None) -> str:
    """All score tables of students on one test set as text; scores: by the student's name, at least one.

    views: see `score_rows`. Classes that neither occur nor are predicted are named; with two classes both conventions
    are shown.
    """
    if not scores:
        raise ValueError("no scores to show; give those of at least one student")
    parts = [format_table(*score_rows(scores, views)), format_table(*iou_rows(scores))]
    oil_header, oil_lines = oil_rows(scores)
    if oil_lines:
        note = "(A, R, P and F1 of oil alone; the table above shows class means)"
        parts.append(format_table(oil_header, oil_lines) + "\n" + note)
    for name, result in scores.items():
        if result.absent:
            parts.append(f"{name}: left out of the means, neither present nor predicted: {', '.join(result.absent)}")
    return "\n\n".join(parts)


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]).rstrip()
