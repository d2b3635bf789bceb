"""Scores and predictions of students that have been trained again since: their weights are others now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dakd.runtime.files import file_hash
from dakd.runtime.sealed import read_json
from dakd.weights import STUDENT_FILES


def earlier_scores(folder: Path, run_dir: Path) -> list[str]:
    """A sentence for each student of an evaluation whose weights have changed since.

    folder: of the evaluation's tables; [] where there are none.  run_dir: of the run's students.
    """
    table = read_json(folder / "table.json")
    scores = {name: read_json(folder / f"{name}.json") for name in (table["students"] if table else ())}
    # The table is shown, and an evaluation that was stopped may have written the students' own files alone.
    hashes = table.get("sha256", {}) if table else {}
    return [
        f"{name}: scores of an earlier training of this student; run: dakd evaluate"
        for name, one in scores.items()
        if one is not None and is_of_earlier_training({**one, "sha256": hashes.get(name, one.get("sha256"))}, run_dir)
    ]


def earlier_predictions(record: Mapping[str, Any], run_dir: Path) -> list[str]:
    """A sentence where the student of a predict.json in RUN/predict has other weights now."""
    name = record["training_set"]
    weights = run_dir / "train_saross" / name / Path(record["student"]).name
    if not _has_changed(weights, record["student_sha256"]):
        return []
    return [f"{name}: predictions of an earlier training of this student; run: dakd predict"]


def is_of_earlier_training(scores: Mapping[str, Any], run_dir: Path) -> bool:
    """Whether a student's scores (NAME.json) are of other weights than those that are there now; False without any."""
    weights = scores.get("weights")
    path = Path(str(weights)).expanduser()  # of a student from elsewhere
    if weights in STUDENT_FILES:
        path = run_dir / "train_saross" / scores["student"] / STUDENT_FILES[weights]
    return _has_changed(path, scores.get("sha256"))


def _has_changed(weights: Path, sha256: str | None) -> bool:
    return sha256 is not None and weights.is_file() and file_hash(weights) != sha256
