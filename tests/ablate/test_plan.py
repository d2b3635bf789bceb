"""Cells share a job where its result would be the same, and have jobs of their own where it would not."""

from __future__ import annotations

import pytest
from ablate_worlds import SOFT, plan_of


def kinds(plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for job in plan.jobs:
        counts[job.kind] = counts.get(job.kind, 0) + 1
    return counts


def names_of(plan, kind: str) -> set[str]:
    return {job.name for job in plan.jobs if job.kind == kind}


def test_rows_that_differ_in_the_student_share_teacher_and_pairs():
    hard = SOFT | {"name": "hard", "set": {"train_saross.loss.hard_labels": True}}
    plan = plan_of({"name": "real"}, SOFT, hard)
    wanted = {"prepare": 1, "stage1": 1, "teacher": 1, "generate": 1, "student": 3, "scores": 3}
    assert kinds(plan) == wanted


@pytest.mark.parametrize("setting", [{"balance.b": 1.0}, {"train_jointnet.label_loss": "l2"}])
def test_teachers_that_differ_in_their_labels_share_stage_1(setting):
    plan = plan_of(SOFT, SOFT | {"name": "other", "set": setting})
    assert kinds(plan) == {"prepare": 1, "stage1": 1, "teacher": 2, "generate": 2, "student": 2, "scores": 2}


def test_seeds_share_the_data_alone():
    plan = plan_of(SOFT, seeds=(0, 1))
    assert kinds(plan) == {"prepare": 1, "stage1": 2, "teacher": 2, "generate": 2, "student": 2, "scores": 2}
    assert [job.config.seed for job in plan.jobs if job.kind == "student"] == [0, 1]


@pytest.mark.parametrize(
    "setting, changed",
    [
        ({"train_saross.loss.temperature": 4.0}, {"student", "scores"}),
        ({"train_saross.student.skip_module": "none"}, {"student", "scores"}),
        ({"evaluate.object_classes": ("oil",)}, {"scores"}),
        ({"generate.sampling_steps": 3}, {"generate", "student", "scores"}),
        ({"train_jointnet.unet.blocks_per_level": 2}, {"stage1", "teacher", "generate", "student", "scores"}),
        ({"train_jointnet.stage2.steps": 2}, {"teacher", "generate", "student", "scores"}),
        ({"data.window_shards": 2}, {"stage1", "teacher", "generate", "student", "scores"}),
        ({"prepare.resize": [16, 16]}, {"prepare", "stage1", "teacher", "generate", "student", "scores"}),
        ({"train_jointnet.engine.precision": "bf16"}, {"stage1", "teacher", "generate", "student", "scores"}),
        ({"train_saross.engine.log_every": 7, "train_saross.engine.threads": 3, "name": "other"}, set()),
        ({"evaluate.num_pictures": 3, "evaluate.batch_size": 2, "generate.threads": 2}, set()),
    ],
)
def test_a_setting_changes_the_jobs_whose_outcome_it_changes(setting, changed):
    before, after = plan_of(SOFT), plan_of(SOFT | {"set": setting})
    names = {job.name for job in before.jobs}
    assert {job.kind for job in after.jobs if job.name not in names} == changed


def test_a_student_of_real_images_does_not_depend_on_the_teacher():
    before, after = plan_of({"name": "real"}), plan_of({"name": "real", "set": {"balance.b": 1.0}})
    assert before.jobs == after.jobs or [job.name for job in before.jobs] == [job.name for job in after.jobs]
    assert kinds(before) == {"prepare": 1, "student": 1, "scores": 1}


def students(row: dict, **settings: object) -> list[str]:
    changed = row | {"set": {f"train_saross.{key}": value for key, value in settings.items()}}
    return [job.name for job in plan_of(changed).jobs if job.kind == "student"]


def test_batch_norm_settings_without_effect_on_a_set_share_its_student():
    real, synthetic = ({"name": name, "training_set": name} for name in ("real", "synthetic"))
    assert students(real, batch_norm="separate") == students(real)
    assert students(real, recalibrate="real") != students(real)
    assert students(synthetic, batch_norm="separate", recalibrate="real") == students(synthetic)
    assert students(SOFT, batch_norm="separate") != students(SOFT) != students(SOFT, recalibrate="real")


def test_epochs_are_counted_over_the_pairs_so_that_all_students_take_as_many_steps():
    plan = plan_of({"name": "real"}, overrides=["train_saross.steps=null", "train_saross.epochs=2"])
    assert kinds(plan)["generate"] == 1
    student = next(job for job in plan.jobs if job.kind == "student")
    assert "generate" in student.links


def test_epochs_of_real_views_are_counted_over_the_real_images_alone():
    overrides = ["train_saross.steps=null", "train_saross.epochs=2", "train_saross.budget=real_views"]
    plan = plan_of({"name": "real"}, SOFT, overrides=overrides)
    links = [job.links for job in plan.jobs if job.kind == "student"]
    assert ["generate" in one for one in links] == [False, True]
    steps = plan_of({"name": "real"}, SOFT, overrides=overrides[:2])
    assert names_of(plan, "student").isdisjoint(names_of(steps, "student"))


@pytest.mark.parametrize(
    "setting, sets",
    [
        ({"schedule": "synthetic_then_real"}, {"real+synthetic"}),
        ({"budget": "real_views"}, {"real+synthetic"}),
        ({"synthetic_share": [0.8, 0.2]}, {"real+synthetic", "synthetic"}),
        ({"init_from": "student.safetensors"}, {"real", "real+synthetic", "synthetic"}),
        ({"schedule": "mixed", "budget": "steps", "init_from": None}, set()),
    ],
)
def test_students_of_one_kind_share_their_job_between_schedules_and_budgets(setting, sets):
    changed = set()
    for name in ("real", "real+synthetic", "synthetic"):
        row = {"name": name, "training_set": name}
        settings = {f"train_saross.{key}": value for key, value in setting.items()}
        plans = [plan_of(row), plan_of(row | {"set": settings})]
        changed |= {name} if names_of(plans[0], "student") != names_of(plans[1], "student") else set()
    assert changed == sets


def test_ddpm_is_one_job_without_stages_and_does_not_depend_on_b():
    ddpm = SOFT | {"set": {"train_jointnet.generator": "ddpm"}}
    other = SOFT | {"name": "other", "set": {"train_jointnet.generator": "ddpm", "balance.b": 1.0}}
    assert kinds(plan_of(ddpm, other)) == {"prepare": 1, "teacher": 1, "generate": 1, "student": 1, "scores": 1}


def test_pairs_and_costs_need_no_student():
    plan = plan_of(SOFT, measures=["looks", "more_params"], runs=7)
    assert kinds(plan) == {"cost": 1, "prepare": 1, "stage1": 1, "teacher": 1, "generate": 1, "pairs": 1}
    assert next(job for job in plan.jobs if job.kind == "cost").steps == (("cost", "7"),)


def test_jobs_stand_after_what_they_build_on_and_seed_by_seed():
    plan = plan_of({"name": "real"}, SOFT, seeds=(0, 1))
    seen: set[str] = set()
    for job in plan.jobs:
        assert {other.name for other in job.links.values()} <= seen
        seen.add(job.name)
    seeds = [job.config.seed for job in plan.jobs if job.kind == "scores"]
    assert seeds == sorted(seeds)


def refined(name: str, loss: str | None = None, **settings) -> dict:
    given = {f"refine.{key}": value for key, value in settings.items()}
    given |= {"train_saross.loss.hard_labels": loss} if loss else {}
    return SOFT | {"name": name, "set": given}


def test_refined_pairs_are_a_job_between_pairs_and_student_by_the_student_of_the_set_real():
    plan = plan_of({"name": "real"}, SOFT, refined("gated", pixel_gate=1.25), refined("both", "both", pixel_gate=1.25))
    wanted = {"prepare": 1, "stage1": 1, "teacher": 1, "generate": 1, "refine": 1, "student": 4, "scores": 4}
    assert kinds(plan) == wanted
    job = next(job for job in plan.jobs if job.kind == "refine")
    assert job.steps == (("refine",),) and set(job.links) == {"train_saross/real", "generate"}
    real = job.links["train_saross/real"]
    assert real.steps == (("train_saross", "--training-set", "real"),)
    assert real.name in {other.name for other in plan.jobs if other.kind == "student"}
    students = [job for job in plan.jobs if job.kind == "student" and "refine" in job.links]
    assert len(students) == 2 and all("generate" not in one.links for one in students)
    assert [job.config.train_saross.loss.hard_labels for job in students] == [False, "both"]


def test_other_settings_of_refine_are_other_refined_pairs_of_the_same_ones():
    plan = plan_of(refined("a", pixel_gate=1.25), refined("b", pixel_gate=1.5), refined("c", repeats=3))
    assert (kinds(plan)["refine"], kinds(plan)["generate"], kinds(plan)["student"]) == (3, 1, 4)
    elsewhere = SOFT | {"name": "d", "set": {"refine.repeats": 3, "train_saross.synthetic": "/pairs"}}
    (job,) = [job for job in plan_of(elsewhere).jobs if job.kind == "refine"]
    assert set(job.links) == {"train_saross/real"}
    other = SOFT | {"name": "d", "set": {"refine.repeats": 3, "train_saross.synthetic": "/others"}}
    assert plan_of(elsewhere).jobs[-2].name != plan_of(other).jobs[-2].name


def test_a_gate_by_the_own_student_builds_on_its_job_and_students_of_real_images_share_it():
    gate = {"generate.gate.enabled": True, "generate.gate.student": "real"}
    row = SOFT | {"set": gate}
    softer = SOFT | {"name": "softer", "set": gate | {"train_saross.loss.temperature": 4.0}}
    plan = plan_of({"name": "real"}, row, softer)
    assert kinds(plan) == {
        "prepare": 1, "stage1": 1, "teacher": 1, "generate": 1, "student": 3, "scores": 3,
    }  # fmt: skip
    job = next(job for job in plan.jobs if job.kind == "generate")
    assert set(job.links) == {"prepare", "train_jointnet", "train_saross/real"}
    off = SOFT | {"set": {"generate.gate.student": "real"}}
    assert "train_saross/real" not in next(job for job in plan_of(off).jobs if job.kind == "generate").links


def test_a_student_of_real_images_is_the_same_whatever_is_lost_on_pairs():
    losses = {"hard_labels": True, "kd": 0.5, "kd_form": "dist", "temperature": 3.0, "dice_samples": "all"}
    rows = [{"name": key, "set": {f"train_saross.loss.{key}": value}} for key, value in losses.items()]
    plan = plan_of({"name": "real"}, *rows)
    assert kinds(plan)["student"] == 1
    assert kinds(plan_of({"name": "real"}, {"name": "ce", "set": {"train_saross.loss.ce": 0.5}}))["student"] == 2
