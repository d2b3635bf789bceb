"""A table's content: means over seeds, the paper's numbers, missing results, and its three formats."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from ablate_worlds import SOFT, plan_of, write_scores
from sealed_edits import content_of, reseal

from dakd.ablate.measures import measure_of
from dakd.ablate.results import collect
from dakd.ablate.run import JobStore
from dakd.ablate.table import TABLES, refuse_other_tables, table_folder, write_table
from dakd.cli import main
from dakd.metrics.bootstrap import paired_bootstrap
from dakd.runtime.files import file_hash

REAL = {"name": "real & plain", "head": {"b": "-"}, "paper": {"miou": 70.5}}
WITH_B = SOFT | {"head": {"b": "x_1"}}


def counts(seed: int, right: int = 90, images: int = 12) -> np.ndarray:
    """(N, 2, 2) of images of 200 pixels, the same truth for every seed of the students."""
    rng = np.random.default_rng(seed)
    hits = rng.integers(right - 10, right + 10, size=(images, 2))
    return np.array([[[a, 100 - a], [100 - b, b]] for a, b in hits])


@pytest.fixture
def half_done(tmp_path):
    plan, store = plan_of(REAL, WITH_B, seeds=(0, 1), reference="real & plain"), JobStore(tmp_path / "store")
    for seed in (0, 1):
        write_scores(store, plan, "real & plain", seed, counts(seed))
    write_scores(store, plan, "soft", 0, counts(5, right=80))
    return plan, store


def test_numbers_are_means_and_deviations_over_the_seeds(half_done):
    plan, store = half_done
    real, soft = collect(plan, store)
    values = real.entries["miou"].values
    assert len(values) == 2 and real.entries["miou"].mean == pytest.approx(np.mean(values))
    assert real.entries["miou"].sd == pytest.approx(np.std(values, ddof=1))
    assert real.entries["miou"].paper == 70.5 and real.entries["f1"].paper is None
    assert soft.done == (0,) and soft.expected == (0, 1) and soft.entries["miou"].sd is None


def test_differences_are_paired_over_images_and_seeds(half_done):
    plan, store = half_done
    real, soft = collect(plan, store)
    assert real.difference is None
    wanted = paired_bootstrap(counts(5, right=80)[None], counts(0)[None])
    found = soft.difference
    assert (found.value, found.low, found.high) == (wanted.value, wanted.low, wanted.high) and found.value < 0


def test_the_counts_of_a_done_job_that_are_gone_are_named_in_place_of_no_difference(half_done):
    plan, store = half_done
    gone = next(store.folder.glob("*/evaluate/real+synthetic.images.npz"))
    gone.unlink()
    with pytest.raises(ValueError, match=r"images.npz does not exist, though its job is done; remove .* done again"):
        collect(plan, store)


def test_a_half_finished_table_shows_what_is_missing_and_the_forms_agree(half_done, tmp_path):
    plan, store = half_done
    path = write_table(plan, store, tmp_path / "out", {"student-1": "it broke"}, {"SAM": "set SAM_ROOT to run it"})
    text = path.read_text()
    real, soft = collect(plan, store)
    head = "| method       | b   | mIoU "
    assert head in text and f"{real.entries['miou'].mean:.2f} ± {real.entries['miou'].sd:.2f} | 70.50" in text
    assert f"{soft.entries['miou'].mean:.2f} (n=1)" in text and "- soft: seed 1" in text
    assert "- student-1: it broke" in text and "- SAM: set SAM_ROOT to run it" in text
    assert "± is the standard deviation (n - 1) over these 2 trainings, scored on the same images" in text
    assert "other images would change a score too" in text and "leaves out what other seeds would change" in text
    assert f"of {len(plan.jobs)} jobs are done" in text and "commit abc" in text and "measured on a CPU" in text
    with (tmp_path / "out" / "table.csv").open() as file:
        records = {(record["method"], record["measure"]): record for record in csv.DictReader(file)}
    assert float(records["real & plain", "miou"]["mean"]) == pytest.approx(real.entries["miou"].mean)
    assert records["soft", "miou"]["seeds"] == "1" and records["soft", "miou"]["seeds_wanted"] == "2"
    with (tmp_path / "out" / "seeds.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 3 * 2 and {cell["seed"] for cell in cells if cell["method"] == "soft"} == {"0"}
    tex = (tmp_path / "out" / "table.tex").read_text()
    assert r"real \& plain" in tex and r"x\_1" in tex and r"$\pm$" in tex and "real & plain" not in tex
    assert tex.count(r"\textbf{") == 2 and rf"\textbf{{{real.entries['miou'].mean:.2f}" in tex


def test_nothing_done_is_a_table_of_what_is_missing(tmp_path):
    plan = plan_of(REAL, WITH_B, seeds=(0,))
    text = write_table(plan, JobStore(tmp_path / "store"), tmp_path / "out").read_text()
    assert text.count("| missing") == 4 and "- soft: seed 0" in text and "commit nothing yet" in text


def test_rows_whose_students_see_no_pairs_have_no_measures_of_pairs(tmp_path):
    plan = plan_of(REAL, WITH_B, seeds=(0,), measures=["miou", "spectrum"])
    assert [set(cell.jobs) for cell in plan.cells] == [{"student"}, {"student", "pairs"}]
    write_scores(JobStore(tmp_path / "store"), plan, "real & plain", 0, counts(0))
    path = write_table(plan, JobStore(tmp_path / "store"), tmp_path / "out")
    real, soft = (line for line in path.read_text().splitlines() if line.startswith(("| real & plain", "| soft")))
    *_, of_pairs, _, _ = (cell.strip() for cell in real.split("|"))  # before the time
    assert of_pairs == "-" and soft.count("missing") == 2
    # In a table of pairs alone they are of the row's generator, whatever students its rows would have.
    alone = plan_of({"name": "plain"}, {"name": "soft"} | SOFT, measures=["spectrum"])
    assert [set(cell.jobs) for cell in alone.cells] == [{"pairs"}, {"pairs"}]


def test_time_counts_every_job_that_a_line_needs_once(half_done):
    plan, store = half_done
    real, soft = collect(plan, store)
    # prepare is shared by both seeds; each seed has a student and its scores
    assert real.seconds == 10 * (1 + 2 * 2)
    assert soft.seconds == 10 * (1 + 5)


def test_scores_of_an_earlier_training_are_named_with_the_remedy(half_done, tmp_path, capsys):
    plan, store = half_done
    job = plan.cells[0].jobs["student"]
    path = store.folder_of(job) / "evaluate" / "real.json"
    student = store.folder_of(job) / "train_saross" / "real" / "student.safetensors"
    student.parent.mkdir(parents=True)
    student.write_text("first")
    reseal(path, content_of(path) | {"student": "real", "weights": "ema", "sha256": file_hash(student)})
    assert "earlier training" not in write_table(plan, store, tmp_path / "out").read_text()
    student.write_text("second")
    text = write_table(plan, store, tmp_path / "out").read_text()
    assert "earlier training of their student; remove these folders" in text and text.count(f"- {path.parents[1]}") == 1
    assert (tmp_path / "out" / "table.tex").read_text().startswith("% Scores of an earlier training")
    assert f"again: {path.parents[1]}" in capsys.readouterr().out


def test_other_test_images_are_not_compared(tmp_path):
    plan, store = plan_of(REAL, WITH_B, reference="real & plain"), JobStore(tmp_path)
    write_scores(store, plan, "real & plain", 0, counts(0, images=6))
    write_scores(store, plan, "soft", 0, counts(1, images=5))
    assert collect(plan, store)[1].difference is None


def test_as_many_other_test_images_are_not_compared_either(tmp_path):
    """As rows with data of their own would have; the table is written all the same."""
    plan, store = plan_of(REAL, WITH_B, reference="real & plain"), JobStore(tmp_path)
    write_scores(store, plan, "real & plain", 0, counts(0))
    other = counts(0)
    other[:, 0, 0] += 1
    write_scores(store, plan, "soft", 0, other)
    assert collect(plan, store)[1].difference is None
    write_scores(store, plan, "soft", 0, counts(0))
    assert collect(plan, store)[1].difference.value == 0
    np.savez(next(tmp_path.glob("*/evaluate/real+synthetic.images.npz")), counts=counts(0), keys=np.arange(6) + 9)
    assert collect(plan, store)[1].difference is None


def test_one_seed_claims_no_spread_and_few_images_no_interval(tmp_path):
    plan, store = plan_of(REAL, WITH_B, reference="real & plain"), JobStore(tmp_path / "store")
    write_scores(store, plan, "real & plain", 0, counts(0, images=4))
    write_scores(store, plan, "soft", 0, counts(5, right=80, images=4))
    text = write_table(plan, store, tmp_path / "out").read_text()
    assert "±" not in text and "seed 0: one training a row, so that no number here shows" in text
    difference = collect(plan, store)[1].difference
    assert f"{100 * difference.value:+.2f} (no interval: 4 images)" in text


@pytest.mark.parametrize(("images", "are_few"), [(10, True), (29, True), (30, False)])
def test_differences_over_few_images_say_so(tmp_path, images, are_few):
    plan, store = plan_of(REAL, WITH_B, reference="real & plain"), JobStore(tmp_path / "store")
    write_scores(store, plan, "real & plain", 0, counts(0, images=images))
    write_scores(store, plan, "soft", 0, counts(5, right=80, images=images))
    text = write_table(plan, store, tmp_path / "out").read_text()
    assert ("- differences: " in text) == are_few
    assert (f"{images} images are few: the intervals are too narrow (see" in text) == are_few


def test_a_difference_of_means_over_other_classes_says_so(tmp_path):
    plan, store = plan_of(REAL, WITH_B, reference="real & plain"), JobStore(tmp_path / "store")
    one = np.zeros((40, 2, 2), np.int64)
    one[:, 0, 0] = 100
    stray = one.copy()
    stray[:5, 0] = 99, 1
    write_scores(store, plan, "real & plain", 0, one)
    write_scores(store, plan, "soft", 0, stray)
    text = write_table(plan, store, tmp_path / "out").read_text()
    assert "- difference of soft: the first mean is over 2 classes, the second over 1, 1 of them in both: " in text
    write_scores(store, plan, "soft", 0, one)
    assert "difference of soft" not in write_table(plan, store, tmp_path / "out").read_text()


def test_equal_numbers_are_both_the_best_and_a_column_of_equals_has_none(tmp_path):
    third = SOFT | {"name": "third", "head": {"b": "x"}}
    plan, store = plan_of(REAL, WITH_B, third), JobStore(tmp_path / "store")
    for row, right in (("real & plain", 80), ("soft", 90), ("third", 90)):
        write_scores(store, plan, row, 0, counts(0, right))
    write_table(plan, store, tmp_path / "out")
    rows = (tmp_path / "out" / "table.tex").read_text().split(r"\midrule")[1].splitlines()[1:4]
    assert [row.count(r"\textbf{") for row in rows] == [0, 2, 2]


def test_two_tables_whose_files_have_one_name_have_folders_of_their_own(tmp_path, monkeypatch, half_done):
    monkeypatch.chdir(tmp_path)
    files = [tmp_path / name for name in ("one/b_sweep.yaml", "two/b_sweep.yaml", "store.yaml")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
        write_table(*half_done, table_folder(file), file=file)
    folders = [table_folder(file) for file in files]
    assert folders[0] == TABLES / "b_sweep" and len(set(folders)) == 3 and TABLES / "store" not in folders
    assert all((folder / "table.md").is_file() for folder in folders)
    files[0].unlink()  # it was moved: its folder is free
    assert table_folder(tmp_path / "three" / "b_sweep.yaml") == TABLES / "b_sweep"


def test_a_folder_with_the_table_of_another_file_or_of_somebody_is_refused(tmp_path, half_done):
    one, two, out = tmp_path / "one.yaml", tmp_path / "two.yaml", tmp_path / "out"
    one.touch()
    refuse_other_tables(out, one)
    write_table(*half_done, out, file=one)
    refuse_other_tables(out, one)
    with pytest.raises(ValueError, match=r"has the table of .*one\.yaml, not of .*two\.yaml; give another folder"):
        refuse_other_tables(out, two)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"has table\.tex and no source\.json.*give another folder"):
        refuse_other_tables(tmp_path / "mine", one)


def test_the_command_asks_before_any_work_whether_a_folder_has_another_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.md").write_text("mine")
    assert main(["ablate", "--config", "ce_b", "--base", "smoke", "--status", "--out", "mine"]) == 1
    assert "mine has table.md and no source.json" in capsys.readouterr().err
    assert (tmp_path / "mine" / "table.md").read_text() == "mine" and not (tmp_path / "runs").exists()


def test_a_table_of_other_rows_or_settings_says_what_it_replaces(tmp_path, half_done, capsys):
    file, (plan, store) = tmp_path / "one.yaml", half_done
    for same in (plan, plan_of(REAL, WITH_B, seeds=(0, 1), reference="real & plain")):
        write_table(same, store, tmp_path / "out", file=file)
    assert "is replaced" not in capsys.readouterr().out
    other = plan_of(REAL, WITH_B, seeds=(0, 1), overrides=["train_saross.steps=7"])
    write_table(other, store, tmp_path / "out", file=file)
    assert f"{tmp_path / 'out'} had a table of other rows" in capsys.readouterr().out


def test_a_table_over_the_training_images_finds_their_scores(tmp_path):
    plan, store = plan_of(REAL, WITH_B, overrides=["evaluate.split=train"], reference="soft"), JobStore(tmp_path)
    for row in ("real & plain", "soft"):
        write_scores(store, plan, row, 0, counts(3))
    for cell in plan.cells:  # as the step evaluate leaves them in a run that has test images
        run = store.folder_of(cell.jobs["student"])
        (run / "prepare" / "test").mkdir(parents=True)
        (run / "prepare" / "test" / "index.json").touch()
        files = list((run / "evaluate").iterdir())
        (run / "evaluate" / "train").mkdir()
        for file in files:
            file.rename(run / "evaluate" / "train" / file.name)
    real, soft = collect(plan, store)
    assert real.entries["miou"].mean == soft.entries["miou"].mean and real.difference.value == 0


def test_steps_and_views_are_measures_of_a_student():
    result = {"views": {"steps": 7, "real": 28, "synthetic": 12}}
    found = {name: measure_of(name) for name in ("steps", "real_views", "synthetic_views")}
    assert {name: measure.read(result) for name, measure in found.items()} == {
        "steps": 7, "real_views": 28, "synthetic_views": 12,
    }  # fmt: skip
    assert [measure.read({"views": None}) for measure in found.values()] == [None] * 3
    assert {(measure.source, measure.digits, measure.better) for measure in found.values()} == {("student", 0, None)}
