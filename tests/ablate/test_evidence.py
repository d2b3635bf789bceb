"""The scores in benchmarks/evidence make the tables that the documents there show, on a host without the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dakd.ablate.command import narrowed
from dakd.ablate.contrasts import contrast_results, contrast_rows
from dakd.ablate.kept_results import take_results
from dakd.ablate.plan import make_plan
from dakd.ablate.run import JobStore
from dakd.ablate.spec import build_table, load_table

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "benchmarks" / "evidence"
TEXT = (EVIDENCE / "labels_64.md").read_text()


@pytest.mark.parametrize(
    "table, results, chosen, count",
    [
        ("labels", "labels_64", {"data": ["50 labels"]}, 4),
        ("self_training", "labels_64", {"rows": ["soft labels", "soft labels, Dice"]}, 1),
        ("pair_labels", "pairs_64", {}, 2),
        ("sampler_labels", "pairs_64", {"seeds": (0, 1, 2)}, 3),
        ("teacher_steps", "pairs_64", {"rows": ["600", "2,400"]}, 1),
        ("other_sensor", "labels_64", {"seeds": (0, 1, 2)}, 6),
    ],
)
def test_contrasts_of_the_kept_scores_are_those_of_the_document(table, results, chosen, count, tmp_path, monkeypatch):
    rows = contrast_rows(found(table, results, chosen, {}, tmp_path, monkeypatch))
    assert len(rows) == count
    for _, _, _, by_seed, mean, over_seeds, _, *p in rows:
        assert f"| {by_seed} | {mean} | {over_seeds} |" in TEXT and f"| {' | '.join(p)} |" in TEXT, by_seed


def test_the_planned_contrasts_with_25_labels_follow_from_the_five_new_choices(tmp_path, monkeypatch):
    chosen = {"data": ["25 labels"]}
    contrasts = [{"of": "DAKD", "to": to, **chosen} for to in ("real", "self-training")]
    changes = {"contrasts": contrasts, "repeats": 1}
    rows = contrast_rows(found("labels", "labels_64", chosen | {"seeds": range(5, 10)}, changes, tmp_path, monkeypatch))
    assert len(rows) == 2
    for _, _, num_seeds, *rest in rows:
        assert num_seeds == "5" and f"| {' | '.join(rest)} |" in TEXT


HALF, BOTH = "real, half the steps", "DAKD and self-training"
OF_25 = [
    *(("DAKD", to) for to in ("real", HALF, "self-training")),
    *(("self-training", to) for to in ("real", HALF)),
    *((BOTH, to) for to in ("real", "self-training", "DAKD")),
    (HALF, "real"),
]
OF_THE_CURVE = [("self-training", "real"), ("DAKD", "real"), ("DAKD", "self-training"), ("DAKD", HALF), (HALF, "real")]
SCHEDULES = ["mixed, as many real views", "synthetic then real", "falling share", "mixed, recalibrated"]


@pytest.mark.parametrize(
    "table, data, seeds, differences",
    [
        ("schedule", "100 labels", None, [("real, twice the steps", "real"), ("mixed", "real")]),
        ("schedule", "100 labels", None, [(SCHEDULES[0], "real"), *((one, "mixed") for one in SCHEDULES[1:])]),
        ("labels", "25 labels", range(10), OF_25),
        *(("labels", f"{num} labels", None, OF_THE_CURVE) for num in (25, 50, 100, 200, 400)),
        ("labels", "839 labels", None, [("DAKD", "real"), ("DAKD", HALF), (HALF, "real")]),
    ],
)
def test_differences_that_were_not_planned_follow_too(table, data, seeds, differences, tmp_path, monkeypatch):
    chosen = {"data": [data], "seeds": seeds}
    contrasts = [{"of": of, "to": to, "data": [data]} for of, to in differences]
    rows = contrast_rows(found(table, "labels_64", chosen, {"contrasts": contrasts}, tmp_path, monkeypatch))
    assert len(rows) == len(differences)
    for _, _, _, by_seed, mean, over_seeds, *_ in rows:
        assert f"| {by_seed} | {mean} | {over_seeds} |" in TEXT, by_seed


def test_the_difference_over_all_fifteen_teachers_follows_too(tmp_path, monkeypatch):
    arguments = {"contrasts": [{"of": "DAKD", "to": "real", "data": ["50 labels"]}]}
    (planned,) = found("labels", "labels_64", {"data": ["50 labels"]}, arguments, tmp_path / "a", monkeypatch)
    arguments = {"contrasts": [{"of": "soft", "to": "real"}], "repeats": 1}
    (further,) = found("pair_labels", "pairs_64", {}, arguments, tmp_path / "b", monkeypatch)
    by_seed = 100 * (2 * np.array(planned.difference.by_seed) + np.array(further.difference.by_seed)) / 3
    low, high = stats.t.interval(0.95, len(by_seed) - 1, by_seed.mean(), stats.sem(by_seed))
    said = " ".join(TEXT.split())
    assert f"by {by_seed.mean():+.2f} [{low:+.2f}, {high:+.2f}], by choice" in said
    assert " ".join(f"{one:+.2f}" for one in by_seed) in said


def found(table, results, chosen, changes, folder, monkeypatch):
    """The results of a table's contrasts from kept scores.  changes: of the table."""
    monkeypatch.setenv("DAKD_REAL_DATA", str(folder / "nowhere"))
    file = ROOT / "configs" / "ablate" / f"{table}.yaml"
    spec = narrowed(build_table(load_table(file).model_dump() | changes, table), **chosen)
    plan, store = make_plan(spec, file.parent), JobStore(folder / "store")
    assert take_results(plan, store, EVIDENCE / results) > 0
    return contrast_results(plan, store)
