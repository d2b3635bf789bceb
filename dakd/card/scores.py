"""The scores of a card: those of `dakd evaluate` that belong to exactly its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dakd.card.sections import bullets, plain, table
from dakd.card.subject import Subject
from dakd.runtime.sealed import read_json


def find_scores(model: Subject) -> dict | str:
    """The evaluation of exactly these weights, or a sentence that says why there is none."""
    if model.run is None:
        return "Not known: this card was written from the weights file only. `dakd card RUN` adds the scores of a run."
    folder = model.run / "evaluate"
    absent = "Not evaluated yet: run `dakd evaluate`."
    if not model.is_student:
        return _generation_scores(model, folder / "generation.json") or absent
    tables = [table for path in sorted(folder.glob("*.json")) if "sha256" in (table := read_json(path) or {})]
    own = [table for table in tables if table["sha256"] == model.sha256]
    return own[0] if own else absent


def _generation_scores(model: Subject, path: Path) -> dict | None:
    """The comparison of the generated with the real set, where these weights made the generated one."""
    table, index = read_json(path), read_json(path.parents[1] / "generate" / "index.json")
    if table is None or index is None:
        return None
    made_by = index.get("provenance", {}).get("checkpoint")
    is_own = made_by == model.sha256 and table["synthetic"]["num_images"] == index["num_samples"]
    return table if is_own else None


def score_section(model: Subject, scores: dict | str) -> Iterator[str]:
    """Tables in percent or in the measures' units; scores: of `find_scores`."""
    if isinstance(scores, str):
        yield scores
    elif model.is_student:
        yield from _student_scores(scores)
    else:
        yield from _teacher_scores(scores)


def _student_scores(scores: Mapping) -> Iterator[str]:
    sizes = "" if scores["scales"] == [1.0] else f", images scaled by {', '.join(map(str, scores['scales']))}"
    yield f"{scores['num_images']} images of the {scores['split']} split, counts of all images pooled{sizes}; percent."
    fields = ("iou", "f1", "precision", "recall")
    rows: list[list] = []
    for name in scores["class_names"]:
        found = scores["per_class"].get(name, {})
        values = [None if field not in found else 100 * found[field] for field in fields]
        rows.append([name, *values, 100 * scores["shares"][name]])
    means = [100 * scores[field] for field in ("miou", "f1", "precision", "recall")]
    yield table(["class", "IoU", "F1", "precision", "recall", "share of the pixels"], [*rows, ["mean", *means, None]])
    if scores["absent"]:
        names = ", ".join(map(plain, scores["absent"]))
        yield f"Left out of the means, for they neither occur nor are predicted: {names}."
    yield bullets(_student_details(scores))


def _student_details(scores: Mapping) -> dict[str, str]:
    facts = {"Pixel accuracy": f"{100 * scores['pixel_accuracy']:.2f}"}
    if views := scores.get("views"):
        drawn = f"{views['real']} real and {views['synthetic']} synthetic samples drawn, with repeats"
        facts["Training"] = f"{views['steps']} steps, {drawn}"
    for name, one in ((scores.get("bootstrap") or {}).get("scores") or {}).items():
        if one["value"] is not None:
            field, _, label = name.partition(":")
            title = {"miou": "mIoU", "f1": "Mean F1"}.get(field) or f"IoU of {plain(label)}"
            facts[title] = f"{100 * one['value']:.2f}{_interval_over_images(one)}"
    if (mean := scores.get("boundary_iou", {}).get("mean")) is not None:
        facts["Mean boundary IoU (Cheng et al. 2021)"] = f"{100 * mean:.2f}"
    if (mean := scores.get("inner_boundary_iou", {}).get("mean")) is not None:
        facts["Mean inner boundary IoU (without the image's frame)"] = f"{100 * mean:.2f}"
    calibration = scores.get("calibration", {})
    if (error := calibration.get("ece")) is not None:
        plain_ece = calibration.get("uncalibrated", {}).get("ece")
        before = "" if plain_ece is None else f" ({100 * plain_ece:.2f} without the temperature)"
        facts["Expected calibration error"] = f"{100 * error:.2f}{before}"
    return facts


def _interval_over_images(one: Mapping) -> str:
    """Nothing where there are too few images or resamples for one."""
    if one["low"] is None:
        return ""
    ends = f"{100 * one['level']:g} % interval {100 * one['low']:.2f} to {100 * one['high']:.2f}"
    return f", {ends} over {one['num_images']} images ({one['num_resamples']} resamples), other seeds not included"


def _teacher_scores(scores: Mapping) -> Iterator[str]:
    counts = [scores[name]["num_images"] for name in ("synthetic", "real")]
    yield f"{counts[0]} generated images compared with the {counts[1]} real images of the training split."
    if physics := scores.get("physics"):
        rows = [
            [f"{one['title']}{', ' if one['unit'] else ''}{one['unit']}", *map(_short, _values(one)), _range(one)]
            for one in physics["measures"].values()
        ]
        yield table(["measure", "real", "synthetic", "distance", f"{100 * physics['confidence']:g} % interval"], rows)
    if metrics := scores.get("fidelity", {}).get("metrics"):
        rows = [[one["title"], _short(one["value"]), _range(one)] for one in metrics.values()]
        yield table(["synthetic against real images", "value", "interval"], rows)
    if agreed := scores.get("agreement"):
        yield (
            f"A student that was trained on real images only agrees with the generated labels at an mIoU of "
            f"{100 * agreed['miou']:.2f} %."
        )


def _values(measure: Mapping) -> list[float | None]:
    return [measure[field] for field in ("real", "synthetic", "distance")]


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _range(one: Mapping) -> str | None:
    return None if one["low"] is None or one["high"] is None else f"{one['low']:.4g} to {one['high']:.4g}"
