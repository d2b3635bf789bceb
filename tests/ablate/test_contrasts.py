"""Repeats, contrasts over seeds, the labels curve, and results that outlive their store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ablate_worlds import TABLE, TOY, write_scores
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from dakd.ablate.command import narrowed
from dakd.ablate.contrasts import contrast_results, open_contrasts
from dakd.ablate.curve import _draw_line, draw_curve, equal_at, saving_rows, savings
from dakd.ablate.figures import draw_figures
from dakd.ablate.kept_results import keep_results, take_results
from dakd.ablate.plan import TablePlan, make_plan
from dakd.ablate.results import collect
from dakd.ablate.run import JobStore, work
from dakd.ablate.spec import TableSpec, load_table
from dakd.ablate.table import write_table
from dakd.metrics.two_level import mean_score
from dakd.runtime.sealed import write_json

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "ablate"
DATA = {"10": {"base": str(TOY), "labels": 10, "set": {"prepare.num_labelled": 4}},
        "40": {"base": str(TOY), "labels": 40, "set": {"prepare.num_labelled": 8}}}  # fmt: skip
ROWS = [
    {"name": "real"},
    {"name": "stopped", "set": {"train_saross.steps": 7}},
    {"name": "soft", "set": {"balance.b": 0.5}, "training_set": "real+synthetic"},
]
CONTRASTS = [{"of": "soft", "to": "real"}, {"of": "soft", "to": ["real", "stopped"], "data": ["10"]}]
CURVES = {"data": DATA, "rows": ROWS, "seeds": [0, 1, 2, 3, 4], "repeats": 2, "measures": ["miou"], "curve": "real",
          "contrasts": CONTRASTS}  # fmt: skip
# The share of right pixels by row and number of labels; soft with 10 labels is as good as real with 20.
SHARES = {"real": {"10": 0.70, "40": 0.80}, "stopped": {"10": 0.72, "40": 0.79}, "soft": {"10": 0.75, "40": 0.82}}


def table(**changes) -> TableSpec:
    return TableSpec.model_validate({"title": "Labels"} | CURVES | changes)


def plan_of(**changes) -> TablePlan:
    return make_plan(table(**changes), Path("/"))


def counts_of(share: float, rng: np.random.Generator, num_images: int = 40) -> np.ndarray:
    counts = np.zeros((num_images, 2, 2), np.int64)
    for true in (0, 1):
        counts[:, true, true] = rng.binomial(400, share, num_images)
        counts[:, true, 1 - true] = 400 - counts[:, true, true]
    return counts


def filled(store: JobStore, plan: TablePlan, seeds=(0, 1, 2, 3, 4), shift: float = 0.01) -> dict:
    """Results of all cells of these seeds, whose scores differ by seed and repeat; the counts by cell."""
    written = {}
    for cell in plan.cells:
        if cell.seed in seeds:
            rng = np.random.default_rng([cell.seed, cell.repeat, len(cell.row.name), int(cell.dataset)])
            share = SHARES[cell.row.name][cell.dataset] + shift * rng.normal()
            key = cell.row.name, cell.seed, cell.dataset, cell.repeat
            written[key] = counts_of(share, rng)
            write_scores(store, plan, cell.row.name, cell.seed, written[key], cell.dataset, cell.repeat)
    return written


# --- repeats ----------------------------------------------------------------------------------------------------------


def test_repeats_share_the_choice_of_labels_and_nothing_else():
    plan = plan_of(seeds=[3, 4], rows=ROWS[2:], curve=None, contrasts=[])
    of_one = [cell for cell in plan.cells if cell.dataset == "10"]
    assert [(cell.seed, cell.repeat) for cell in of_one] == [(3, 0), (3, 1), (4, 0), (4, 1)]
    configs = [cell.jobs["student"].config for cell in of_one]
    assert [one.seed for one in configs] == [3, 1003, 4, 1004] == [one.generate_seed for one in configs]
    assert [one.prepare.subset_seed for one in configs] == [3, 3, 4, 4]
    jobs = {kind: {job.name for job in plan.jobs if job.kind == kind} for kind in ("prepare", "teacher", "student")}
    assert [len(jobs[kind]) for kind in ("prepare", "teacher", "student")] == [4, 8, 8]


def test_a_row_may_be_on_some_datasets_alone():
    rows = [ROWS[0], ROWS[2] | {"data": ["10"]}]
    plan = plan_of(rows=rows, contrasts=[], seeds=[0], repeats=1)
    assert [(cell.row.name, cell.dataset) for cell in plan.cells] == [("real", "10"), ("soft", "10"), ("real", "40")]
    assert [one.row.name for one in collect(plan, JobStore("absent"))] == ["real", "soft", "real"]
    assert [row.name for row in narrowed(table(rows=rows, contrasts=[]), data=["40"]).rows] == ["real"]
    with pytest.raises(ValueError, match="'soft' is on 7; expected datasets of 10, 40"):
        table(rows=[ROWS[0], ROWS[2] | {"data": ["7"]}], contrasts=[])
    with pytest.raises(ValueError, match="need all datasets"):
        table(rows=[ROWS[0] | {"data": ["10"]}], contrasts=[])
    chosen = narrowed(table(rows=rows, contrasts=[]), data=["10"], reference="soft")
    assert chosen.reference == "soft" and list(chosen.data) == ["10"]
    with pytest.raises(ValueError, match=r"'soft' is not on 40; .* choose datasets that it is on by --data"):
        narrowed(table(rows=rows, contrasts=[]), reference="soft")


def test_a_table_without_few_labels_is_as_it_was():
    plan = make_plan(TableSpec.model_validate(TABLE), Path("/"))
    assert all(cell.repeat == 0 and cell.jobs["student"].config.prepare.subset_seed is None for cell in plan.cells)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": [1000]}, "expected seeds below 1000"),
        ({"contrasts": [{"of": "sofd", "to": "real"}]}, "names 'sofd', which is no row"),
        ({"contrasts": [{"of": "soft", "to": "real", "data": ["7"]}]}, "is on 7; expected datasets of 10, 40"),
        ({"rows": [*ROWS[:2], ROWS[2] | {"data": ["10"]}]}, "is on 40, and row 'soft' is not; give by data"),
        ({"curve": "rael"}, "names 'rael', which is no row"),
        ({"panels": {"a": ["rael"]}}, "panel 'a' names 'rael', which is no row"),
        ({"data": {"10": DATA["10"]}}, "give two datasets or more their own"),
        ({"data": DATA | {"x": {"base": str(TOY)}}}, "give two datasets or more their own"),
        ({"measures": ["looks"]}, "contrasts and curves are of mIoU"),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_a_part_of_the_table_keeps_the_comparisons_that_are_left():
    assert [one.title for one in narrowed(table(), rows=["real", "soft"]).contrasts] == ["soft minus real"]
    one = narrowed(table(), data=["40"])
    assert [contrast.title for contrast in one.contrasts] == ["soft minus real"] and one.curve is None
    assert narrowed(table(), rows=["soft"]).curve is None
    pairs = narrowed(table(), measures=["looks"])
    assert pairs.curve is None and pairs.contrasts == ()


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_each_dataset_of_each_table_can_be_chosen_alone_with_those_that_it_needs(file):
    whole = load_table(file)
    for name, spec in whole.data.items():
        needed = {name, spec.test_on or name, spec.earlier or name}
        part = narrowed(whole, data=[one for one in whole.data if one in needed])
        assert set(part.data) == needed and part.comparisons in (0, whole.comparisons)


# --- contrasts --------------------------------------------------------------------------------------------------------


def test_a_contrast_is_the_mean_over_seeds_of_means_over_repeats_with_holms_p(tmp_path):
    plan, store = plan_of(), JobStore(tmp_path)
    written = filled(store, plan)

    def score(row: str, seed: int, data: str) -> float:
        return mean_score(np.stack([written[row, seed, data, repeat] for repeat in (0, 1)]))

    found = contrast_results(plan, store)
    assert [(one.dataset, one.to) for one in found] == [("10", "real"), ("40", "real"), ("10", "stopped")]
    for one in found:
        gaps = [score("soft", seed, one.dataset) - score(one.to, seed, one.dataset) for seed in range(5)]
        assert one.difference.by_seed == pytest.approx(gaps, abs=1e-12)
        assert one.difference.p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, rel=1e-8)
    ordered = sorted(found, key=lambda one: one.difference.p)
    assert ordered[0].holm_p == pytest.approx(min(1, 3 * ordered[0].difference.p))
    assert ordered[1].holm_p == pytest.approx(max(ordered[0].holm_p, min(1, 2 * ordered[1].difference.p)))


def test_holms_p_is_over_the_planned_contrasts_whatever_part_of_them_is_made(tmp_path):
    plan, store = plan_of(), JobStore(tmp_path / "store")
    filled(store, plan)
    whole = contrast_results(plan, store)
    part = make_plan(narrowed(table(), data=["40"]), Path("/"))
    (alone,) = contrast_results(part, store)
    assert alone.difference.p == whole[1].difference.p and alone.holm_p == pytest.approx(min(1, 3 * alone.difference.p))
    assert "all 3 contrasts of the table" in write_table(part, store, tmp_path / "part").read_text()
    two = make_plan(table(seeds=[0, 1]), Path("/"))  # two seeds have no interval and no p
    assert open_contrasts(two, contrast_results(two, store)) == [
        "10, soft minus real", "40, soft minus real", "10, soft minus the better of real and stopped"]  # fmt: skip
    assert open_contrasts(plan, whole) == []
    text = write_table(make_plan(table(), Path("/")), JobStore(tmp_path / "none"), tmp_path / "none").read_text()
    assert "Contrasts without enough seeds yet: 10, soft minus real; 40, soft minus real; 10, soft minus the" in text


def test_seeds_and_repeats_that_one_row_lacks_are_left_out(tmp_path):
    plan, store = plan_of(), JobStore(tmp_path)
    filled(store, plan, seeds=(0, 1, 2))
    cell = next(cell for cell in plan.cells if (cell.row.name, cell.seed, cell.dataset) == ("soft", 1, "10"))
    shutil.rmtree(store.folder_of(cell.jobs["student"]))
    found = contrast_results(plan, store)[0]
    assert found.seeds == (0, 1, 2) and found.difference.num_repeats == 2
    text = write_table(plan, store, tmp_path / "table").read_text()
    assert "soft minus the better of real and stopped (here: stopped)" in text
    assert "- 10, soft: seed 1, 3, 3, 4, 4" in text and "2 trainings each" in text


# --- the curve --------------------------------------------------------------------------------------------------------


def test_labels_for_a_score_lie_on_the_line_over_their_logarithm():
    places, scores = np.array([10.0, 40.0, 160.0]), np.array([0.6, 0.7, 0.75])
    assert equal_at(0.65, places, scores) == pytest.approx(20.0)
    assert equal_at(0.7, places, scores) == pytest.approx(40.0)
    assert equal_at(0.6, places, scores) == 10.0 and equal_at(0.76, places, scores) is None
    assert equal_at(0.59, places, scores) == 0  # fewer labels than any that were tried
    # A dip is passed over, whatever the order of the places.
    assert equal_at(0.65, places[::-1], np.array([0.75, 0.55, 0.6])) == pytest.approx(40 * 4 ** (1 / 3))


def test_the_labels_that_a_row_saves_have_an_interval_over_seeds_and_images(tmp_path):
    plan, store = plan_of(), JobStore(tmp_path)
    written = filled(store, plan, shift=0.003)
    soft = next(one for one in savings(plan, store) if (one.row, one.labels) == ("soft", 10))

    def mean(row: str, data: str) -> float:
        of_seeds = [np.stack([written[row, seed, data, repeat] for repeat in (0, 1)]) for seed in range(5)]
        return float(np.mean([mean_score(counts) for counts in of_seeds]))

    share = (mean("soft", "10") - mean("real", "10")) / (mean("real", "40") - mean("real", "10"))
    assert soft.equal_at == pytest.approx(10 * 4**share) and 15 < soft.equal_at < 25
    assert 10 < soft.low < soft.equal_at < soft.high < 40
    rows = saving_rows(savings(plan, store))
    assert [rows[-1][0], rows[-1][1], rows[-1][3]] == ["40", "soft", "more than measured"]
    panels = {"all": ["real", "stopped", "soft"], "two": ["stopped", "soft"]}
    sizes = []
    for number, own in enumerate(({}, panels)):
        path = tmp_path / "figures" / f"{number}.png"
        assert draw_curve(plan_of(panels=own), store, path) and path.stat().st_size > 10_000
        sizes.append(Image.open(path).size)
    assert sizes[1][0] == 2 * sizes[0][0]


def test_a_line_is_interrupted_where_its_row_was_not_trained():
    axes = Figure().subplots()
    _draw_line(axes, "soft", {10: [70.0, 72.0], 40: [75.0, 75.0]}, [10, 20, 40], 1.0, {"color": "C1"})
    drawn = axes.containers[0].lines[0]
    np.testing.assert_array_equal(drawn.get_xdata(), [10, 20, 40])
    np.testing.assert_array_equal(np.asarray(drawn.get_ydata(), float), [71.0, np.nan, 75.0])


def test_nothing_is_drawn_or_saved_before_two_numbers_of_labels_are_done(tmp_path):
    plan, store = plan_of(), JobStore(tmp_path)
    assert savings(plan, store) == [] and not draw_curve(plan, store, tmp_path / "curve.png")
    assert contrast_results(plan, store) == []


# --- results that outlive their store ---------------------------------------------------------------------------------


def test_kept_results_make_the_same_table_in_an_empty_store_and_leave_nothing_to_do(tmp_path):
    plan, store = plan_of(), JobStore(tmp_path / "store")
    filled(store, plan)
    kept = tmp_path / "kept"
    assert keep_results(plan, store, kept) == 60 == len(list(kept.glob("*.zip")))
    assert keep_results(plan, store, kept) == 0
    assert max(path.stat().st_size for path in kept.iterdir()) < 4096
    other = JobStore(tmp_path / "other")
    assert take_results(plan, other, kept) == 60 and other.remaining(plan) == []
    tables = [write_table(plan, one, tmp_path / f"table{i}") for i, one in enumerate((store, other))]
    of_results = [path.read_text().partition("jobs are done")[0].rpartition("\n")[0] for path in tables]
    assert of_results[0] == of_results[1] and "soft minus real" in of_results[0]
    done: list[str] = []
    work(plan, other, 0, after_each=lambda: done.append("a job"))
    assert done == []  # neither teachers nor students are trained for results that are there


def test_kept_results_of_other_settings_are_named_with_the_root_they_may_differ_by(tmp_path, capsys):
    plan, store = plan_of(), JobStore(tmp_path / "store")
    filled(store, plan)
    keep_results(plan, store, tmp_path / "kept")
    resized = make_plan(table(), Path("/"), overrides=["prepare.resize=[48, 48]"])
    assert take_results(resized, JobStore(tmp_path / "other"), tmp_path / "kept") == 0
    assert "none of the 60 results in" in (said := capsys.readouterr().out) and "another prepare.root than None" in said
    assert take_results(plan, JobStore(tmp_path / "other"), tmp_path / "empty") == 0
    assert take_results(plan, JobStore(tmp_path / "other"), tmp_path / "kept") == 60
    assert "none of the" not in capsys.readouterr().out


def test_what_is_missing_is_still_to_do_with_all_that_it_builds_on(tmp_path):
    plan, store = plan_of(), JobStore(tmp_path / "store")
    filled(store, plan)
    keep_results(plan, store, tmp_path / "kept")
    cell = next(cell for cell in plan.cells if cell.row.name == "soft")
    (tmp_path / "kept" / f"{cell.jobs['student'].name}.zip").unlink()
    other = JobStore(tmp_path / "other")
    take_results(plan, other, tmp_path / "kept")
    assert {job.name for job in other.remaining(plan)} == {job.name for job in cell.jobs["student"].chain()}


def test_kept_results_draw_the_curve_without_the_images_and_weights_of_their_jobs(tmp_path):
    plan, store, kept = plan_of(), JobStore(tmp_path / "store"), tmp_path / "kept"
    filled(store, plan)
    keep_results(plan, store, kept)
    other = JobStore(tmp_path / "other")
    take_results(plan, other, kept)
    assert [path.name for path in draw_figures(plan, other, tmp_path / "figures")] == ["curve.png"]


def test_scores_of_an_earlier_training_are_not_kept(tmp_path):
    plan, store, kept = plan_of(), JobStore(tmp_path / "store"), tmp_path / "kept"
    filled(store, plan, seeds=(0,))
    job = plan.cells[0].jobs["student"]
    weights = store.folder_of(job) / "train_saross" / "real" / "student.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("second")
    path = store.folder_of(job) / "evaluate" / "real.json"
    facts = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    write_json(path, facts | {"student": "real", "weights": "ema", "sha256": "of the first"})
    assert keep_results(plan, store, kept) == 11 and not (kept / f"{job.name}.zip").exists()
    weights.unlink()
    assert keep_results(plan, store, kept) == 1


def test_the_zip_of_a_training_split_serves_a_store_with_and_without_test_images(tmp_path):
    plan = plan_of(set={"evaluate.split": "train"})
    store, kept = JobStore(tmp_path / "store"), tmp_path / "kept"
    for cell in plan.cells:  # before the scores are written: they have a folder of their own beside a test split
        index = store.folder_of(cell.jobs["student"]) / "prepare" / "test" / "index.json"
        index.parent.mkdir(parents=True)
        index.write_text("{}")
    filled(store, plan, seeds=(0,))
    for scores in store.folder.glob("*/evaluate"):
        (scores / "train").mkdir()
        for path in scores.glob("real*") if (scores / "real.json").exists() else scores.glob("real+synthetic*"):
            path.rename(scores / "train" / path.name)
    assert keep_results(plan, store, kept) == 12
    other = JobStore(tmp_path / "other")
    assert take_results(plan, other, kept) == 12
    found = [[line.entries["miou"].values for line in collect(plan, one)] for one in (store, other)]
    assert found[0] == found[1] and all(found[0])


def test_a_damaged_zip_and_that_of_another_job_are_refused(tmp_path):
    plan, store = plan_of(), JobStore(tmp_path / "store")
    filled(store, plan, seeds=(0,))
    kept = tmp_path / "kept"
    keep_results(plan, store, kept)
    first, second = sorted(kept.iterdir())[:2]
    whole = first.read_bytes()
    first.write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"is damaged .*remove it, and the job is done again"):
        take_results(plan, JobStore(tmp_path / "one"), kept)
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match="is the record of"):
        take_results(plan, JobStore(tmp_path / "two"), kept)
    assert not (tmp_path / "two" / first.stem).exists()  # nothing of it is in the store
