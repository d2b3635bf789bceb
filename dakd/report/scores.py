"""The report's section of scores: pooled, by class, intervals, outlines, objects by size, confidence, other folders."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from dakd.evaluate.students import (
    DIFFERENCE_HEADER,
    bootstrap_notes,
    detail_rows,
    difference_notes,
    difference_rows,
    score_name,
    with_interval,
)
from dakd.metrics.scores import SegmentationScores, score
from dakd.metrics.tables import iou_rows, oil_rows, percent, score_rows
from dakd.report.charts import COLOURS, bar_chart, reliability_chart
from dakd.runtime.sealed import read_json


def results(run_dir: Path) -> dict | None:
    """The run's own evaluation; None where it has none, or no student."""
    table = read_json(run_dir / "evaluate" / "table.json")
    if table is None or not table["students"]:
        return None
    scores, students = _all_scores(table), table["students"]
    return {
        "table": table,
        "scores": scores,
        "pooled": score_rows(scores, _views(students)),
        "iou": iou_rows(scores),
        "oil": oil_rows(scores),
        "intervals": _intervals(students),
        "boundary": _boundary(students),
        "objects": _objects(students),
        "reliability": [
            (student, one["calibration"]["ece"], reliability_chart(one["calibration"]["bins"], colour))
            for (student, one), colour in zip(students.items(), COLOURS * len(students))
        ],
    }


def other_evaluations(run_dir: Path) -> list[dict]:
    """Evaluations of other folders and other students."""
    evaluations = []
    for path in sorted((run_dir / "evaluate").glob("*/table.json")):
        table = read_json(path)
        evaluations.append(
            {
                "name": path.parent.name,
                "folder": str(path.parent),
                "table": table,
                "pooled": score_rows(_all_scores(table), _views(table["students"])),
                "details": detail_rows(table["students"]),
            }
        )
    return evaluations


def _all_scores(table: dict) -> dict[str, SegmentationScores]:
    return {name: score(one["counts"], tuple(one["class_names"])) for name, one in table["students"].items()}


def _views(students: dict[str, dict]) -> dict[str, dict | None]:
    return {name: one.get("views") for name, one in students.items()}


def _intervals(students: dict[str, dict]) -> dict | None:
    """Intervals over images, and differences of the students; None where none were made."""
    bootstrap = next(iter(students.values()))["bootstrap"]
    if bootstrap is None:
        return None
    names = list(bootstrap["scores"])
    return {
        "facts": bootstrap["scores"][names[0]],
        "notes": bootstrap_notes(bootstrap),
        "header": ["student", *map(score_name, names)],
        "rows": [[student, *(with_interval(one, name) for name in names)] for student, one in students.items()],
        "difference_header": DIFFERENCE_HEADER,
        "difference_rows": difference_rows(students),
        "difference_notes": difference_notes(students),
    }


def _boundary(students: dict[str, dict]) -> dict:
    first = next(iter(students.values()))
    names, rows = list(first["shares"]), {}
    for kind in ("boundary_iou", "inner_boundary_iou"):
        tables = {student: one[kind] for student, one in students.items()}
        rows[kind] = [
            [student, percent(one["mean"]), *(percent(one["per_class"].get(name)) for name in names)]
            for student, one in tables.items()
        ]
    return {"width": first["boundary_iou"]["width"], "header": ["student", "mean", *names], "rows": rows}


def _objects(students: dict[str, dict]) -> dict | None:
    """None where the class table has none of the classes whose objects are counted."""
    first = next(iter(students.values()))["objects"]
    if not first["per_class"]:
        return None
    charts: list[Markup] = []
    rows = []
    for name, own in first["per_class"].items():
        of_class = {student: one["objects"]["per_class"][name] for student, one in students.items()}
        for place, size in enumerate(own["by_size"]):
            recalls = [percent(one["by_size"][place]["recall"]) for one in of_class.values()]
            rows.append([name, size["size"], size["objects"], *recalls])
        rows.append([name, "all", own["objects"], *(percent(one["recall"]) for one in of_class.values())])
        alarms = [one["false_alarms_per_image"] for one in of_class.values()]
        rows.append([name, "false alarms per image", None, *alarms])
        if own["objects"]:
            groups = [size["size"].removesuffix(" px").replace(" px and more", "+") for size in own["by_size"]]
            series = [(student, [size["recall"] for size in one["by_size"]]) for student, one in of_class.items()]
            charts.append(bar_chart(groups, series, f"{name}: pixels of an object", "found, %"))
    return {
        "coverage": first["coverage"],
        "absent": first["absent"],
        "charts": charts,
        "header": ["class", "size", "objects", *students],
        "rows": rows,
    }
