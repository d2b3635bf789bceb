"""Rows of self-training: the real student labels, and is the one of the row of real images."""

from __future__ import annotations

from collections import Counter

import pytest
from ablate_worlds import SOFT, plan_of
from pseudo_worlds import with_unlabelled

from dakd.ablate import run
from dakd.ablate.results import collect
from dakd.ablate.run import JobStore, work
from dakd.data.shards import ShardSet

REAL = {"name": "real"}
PSEUDO = {"name": "pseudo", "training_set": "real+pseudo"}
BOTH = {"name": "both", "training_set": "real+synthetic+pseudo"}


def kinds(plan) -> dict[str, int]:
    return Counter(job.kind for job in plan.jobs)


def student_of(plan, name: str):
    cell = next(cell for cell in plan.cells if cell.row.name == name)
    return cell.jobs["student"].links["train_saross"]


def test_a_row_of_self_training_has_its_chain_of_jobs():
    plan = plan_of(PSEUDO)
    assert [job.kind for job in plan.jobs] == ["prepare", "student", "pseudo", "student", "scores"]
    real, pseudo, student = plan.jobs[1:4]
    assert real.steps == (("train_saross", "--training-set", "real"),) and pseudo.steps == (("pseudo_label",),)
    assert pseudo.links == {"prepare": plan.jobs[0], "train_saross": real}
    assert student.links == {"prepare": plan.jobs[0], "pseudo_label": pseudo}
    assert student.steps == (("train_saross", "--training-set", "real+pseudo"),)


def test_the_labelling_student_is_shared_with_the_row_of_real_images():
    plan = plan_of(REAL, PSEUDO, SOFT, BOTH)
    wanted = {"prepare": 1, "student": 4, "pseudo": 1, "stage1": 1, "teacher": 1, "generate": 1, "scores": 4}
    assert kinds(plan) == wanted
    assert student_of(plan, "pseudo").links["pseudo_label"].links["train_saross"] == student_of(plan, "real")
    both = student_of(plan, "both").links
    assert both["pseudo_label"] == student_of(plan, "pseudo").links["pseudo_label"]
    assert both["generate"] == student_of(plan, "soft").links["generate"]


@pytest.mark.parametrize(
    "setting",
    [
        {"train_saross.loss.kd": 2.0},
        {"train_saross.loss.temperature": 4.0},
        {"train_saross.loss.kd_form": "dist"},
        {"train_saross.loss.hard_labels": True},
        {"train_saross.loss.dice_samples": "all"},
        {"train_saross.mosaic": True},
        {"train_saross.synthetic_share": 0.5},
        {"train_saross.num_synthetic": 5},
    ],
)
def test_settings_of_pairs_do_not_train_the_labelling_student_again(setting):
    plan = plan_of(REAL, PSEUDO | {"set": setting})
    assert kinds(plan) == {"prepare": 1, "student": 2, "pseudo": 1, "scores": 2}


@pytest.mark.parametrize(
    "setting, changed",
    [
        ({"pseudo_label.min_confidence": 0.9}, {"pseudo", "student", "scores"}),
        ({"pseudo_label.batch_size": 4}, set()),
        ({"generate.sampling_steps": 3}, set()),
        ({"train_saross.num_synthetic": 5}, set()),
        ({"train_saross.synthetic_share": 0.5}, {"student", "scores"}),
        ({"train_saross.optimizer.lr": 1e-2}, {"student", "pseudo", "scores"}),
        ({"train_saross.loss.temperature": 4.0}, {"student", "scores"}),
        ({"train_saross.loss.temperature": 4.0, "pseudo_label.codec": "logprob8"}, {"pseudo", "student", "scores"}),
    ],
)
def test_a_setting_changes_the_jobs_of_self_training_whose_outcome_it_changes(setting, changed):
    before, after = plan_of(PSEUDO), plan_of(PSEUDO | {"set": setting})
    names = {job.name for job in before.jobs}
    assert {job.kind for job in after.jobs if job.name not in names} == changed


def test_settings_of_pseudo_labels_change_no_job_of_other_rows():
    setting = {"pseudo_label.min_confidence": 0.9, "train_saross.pseudo": "/elsewhere"}
    before, after = plan_of(REAL, SOFT), plan_of(REAL | {"set": setting}, SOFT | {"set": setting})
    assert [job.name for job in before.jobs] == [job.name for job in after.jobs]


def test_epochs_over_pseudo_labels_are_counted_without_labelling():
    sets = "train_saross.training_sets=[real, real+pseudo]"
    epochs = [sets, "train_saross.steps=null", "train_saross.epochs=2"]
    assert kinds(plan_of(REAL, overrides=epochs)) == {"prepare": 1, "student": 1, "scores": 1}
    plans = [plan_of(REAL, overrides=[*epochs, f"pseudo_label.max_samples={count}"]) for count in (5, 6)]
    assert len({student_of(plan, "real").name for plan in plans}) == 2


def test_a_toy_table_of_self_training_is_done_in_process(tmp_path, monkeypatch):
    plan, store = plan_of(REAL, PSEUDO), JobStore(tmp_path)

    def prepared(config):
        prepare(config)
        with_unlabelled(config)

    prepare = run.prepare
    monkeypatch.setattr(run, "prepare", prepared)
    unfinished = work(plan, store, processes=0)
    assert not unfinished.failed and all(store.is_done(job) for job in plan.jobs)
    job = student_of(plan, "pseudo")
    pairs = ShardSet(store.folder_of(job) / "pseudo_label")
    assert len(pairs) == 5 and pairs.index.provenance["pseudo_label"]["codec"] == "fp16"
    lines = collect(plan, store)
    assert [len(line.done) for line in lines] == [1, 1] and all(line.entries["miou"].values for line in lines)
