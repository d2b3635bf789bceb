"""The report's section of scores: pooled, by class, how sure they are, objects by size, confidence, other folders."""

from __future__ import annotations

from pathlib import Path

from dakd.evaluate import html
from dakd.evaluate.details import DIFFERENCE_HEADER, detail_rows, difference_rows, score_name, with_interval
from dakd.evaluate.report_parts import read_json
from dakd.evaluate.svg import COLOURS
from dakd.evaluate.svg_bars import bar_chart, reliability_chart
from dakd.metrics.scores import SegmentationScores, score
from dakd.metrics.tables import iou_rows, oil_rows, score_rows


def results(run_dir: Path) -> list[str]:
    table = read_json(run_dir / "evaluate" / "table.json")
    if table is None:
        return [html.missing("Scores", "evaluate"), *_other_folders(run_dir)]
    scores = _all_scores(table)
    header, rows = iou_rows(scores)
    parts = [
        html.cards([(f"{100 * one.miou:.1f} %", f"mIoU, trained on {name}") for name, one in scores.items()]),
        html.paragraph(
            f"Percent over all pixels of the {table['num_images']} images of the {table['split']} split, pooled in one "
            f"matrix; {table['weights']} weights. Scores are means over the classes; A is one against the rest."
        ),
        html.table(*score_rows(scores), mark_best=True),
        html.subheading("IoU of each class"),
        html.table(header, rows),
        html.paragraph("A class guessed everywhere would reach its pixel share as IoU.", "note"),
    ]
    oil_header, oil_lines = oil_rows(scores)
    if oil_lines:
        parts += [html.subheading("Oil alone"), html.table(oil_header, oil_lines, mark_best=True)]
    for name, one in scores.items():
        if one.absent:
            left_out = ", ".join(one.absent)
            parts.append(html.paragraph(f"{name}: neither present nor predicted, so left out: {left_out}.", "note"))
    detailed = _detailed(table)
    if detailed:
        parts += [*_certainty(detailed), *_boundaries(detailed), *_objects(detailed), *_reliability(detailed)]
    return parts + _other_folders(run_dir)


def _certainty(tables: dict[str, dict]) -> list[str]:
    """Intervals over images, and differences of the students."""
    first = next(iter(tables.values()))["bootstrap"]
    if first is None:
        return []
    names = list(first["scores"])
    facts = first["scores"][names[0]]
    rows = [[name, *(with_interval(table, one) for one in names)] for name, table in tables.items()]
    note = (
        f"{100 * facts['level']:.0f} % intervals of a bootstrap over the {facts['num_images']} test images "
        f"({facts['num_resamples']} resamples, percentiles): how far a score would move with other images. Another "
        "training seed moves it too, which is not in here."
    )
    parts = [
        html.subheading("How sure the scores are"),
        html.paragraph(note, "note"),
        html.table(["student", *(score_name(one) for one in names)], rows),
    ]
    if facts["incomplete"]:
        told = f"{100 * facts['incomplete']:.1f} % of the resamples lack a class and are scored over the others."
        parts.append(html.paragraph(told, "note"))
    gaps = difference_rows(tables)
    if gaps:
        note = "Differences over the same resamples of the same images; p is two-sided."
        parts += [html.paragraph(note, "note"), html.table(DIFFERENCE_HEADER, gaps)]
    return parts


def _boundaries(tables: dict[str, dict]) -> list[str]:
    names = list(next(iter(tables.values()))["shares"])
    rows = []
    for student, table in tables.items():
        found = table["boundary_iou"]
        values = [found["mean"], *(found["per_class"].get(name) for name in names)]
        rows.append([student, *(None if value is None else 100 * value for value in values)])
    width = next(iter(tables.values()))["boundary_iou"]["width"]
    note = (
        f"IoU of the bands along the contours, {100 * width:g} % of the image's diagonal wide: how well outlines sit."
    )
    return [
        html.subheading("Boundary IoU"),
        html.paragraph(note, "note"),
        html.table(["student", "mean", *names], rows, mark_best=True),
    ]


def _objects(tables: dict[str, dict]) -> list[str]:
    first = next(iter(tables.values()))["objects"]
    if not first["per_class"]:
        return []
    note = (
        f"An object is a connected patch of a class. It is found when {100 * first['coverage']:g} % of its pixels are "
        "predicted as that class; a false alarm touches no such patch."
    )
    parts, drawings, rows = [html.subheading("Objects found, by size"), html.paragraph(note, "note")], [], []
    for name, own in first["per_class"].items():
        by_student = {student: table["objects"]["per_class"][name] for student, table in tables.items()}
        for place, size in enumerate(own["by_size"]):
            found = [_percent(one["by_size"][place]["recall"]) for one in by_student.values()]
            rows.append([name, size["size"], size["objects"], *found])
        rows.append([name, "all", own["objects"], *(_percent(one["recall"]) for one in by_student.values())])
        alarms = [one["false_alarms_per_image"] for one in by_student.values()]
        rows.append([name, "false alarms an image", None, *alarms])
        if own["objects"]:
            groups = [size["size"].removesuffix(" px").replace(" px and more", "+") for size in own["by_size"]]
            series = [(who, [size["recall"] for size in one["by_size"]]) for who, one in by_student.items()]
            drawings.append(bar_chart(groups, series, f"{name}: pixels of an object", "found, %"))
    parts.append(html.charts(drawings) if drawings else "")
    parts.append(html.folded_parts("All sizes as a table", html.table(["class", "size", "objects", *tables], rows)))
    if first["absent"]:
        parts.append(html.paragraph(f"No object in the truth: {', '.join(first['absent'])}.", "note"))
    return parts


def _reliability(tables: dict[str, dict]) -> list[str]:
    note = (
        "Is a student as often right as it is sure? Bars on the dashed line: yes; below it: too sure. The lower strip "
        "shows where the pixels are. ECE, the expected calibration error, is the mean distance over the pixels."
    )
    drawings = [
        reliability_chart(table["calibration"]["bins"], COLOURS[place % len(COLOURS)])
        + html.caption(f"{student}: ECE {100 * table['calibration']['ece']:.2f} %")
        for place, (student, table) in enumerate(tables.items())
    ]
    return [html.subheading("Confidence"), html.paragraph(note, "note"), html.charts(drawings)]


def _other_folders(run_dir: Path) -> list[str]:
    """Folders and students that were evaluated beside the run's own."""
    parts = []
    for path in sorted((run_dir / "evaluate").glob("*/table.json")):
        table = read_json(path)
        where = table.get("folder") or f"the {table['split']} split"
        note = f"{table['num_images']} images of {where}."
        if table.get("skipped"):
            note += f" {len(table['skipped'])} bad files were left out."
        parts += [
            html.subheading(f"Evaluated beside it: {path.parent.name}"),
            html.paragraph(note, "note"),
            html.table(*score_rows(_all_scores(table)), mark_best=True),
        ]
        detailed = _detailed(table)
        if detailed:
            parts.append(html.table(*detail_rows(detailed)))
    return parts


def _all_scores(table: dict) -> dict[str, SegmentationScores]:
    return {name: score(one["counts"], tuple(one["class_names"])) for name, one in table["students"].items()}


def _detailed(table: dict) -> dict[str, dict]:
    """The students' tables; {} for an evaluation that was written before there were details."""
    return table["students"] if all("objects" in one for one in table["students"].values()) else {}


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
