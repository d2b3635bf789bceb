"""Rows whose students start from a student of another dataset of the table."""

from __future__ import annotations

import pytest
import yaml
from ablate_worlds import TABLE, TOY

from dakd.ablate.command import narrowed
from dakd.ablate.plan import make_plan
from dakd.ablate.run import JobStore, work
from dakd.ablate.spec import TableSpec, load_table, without_absent
from dakd.cli import run_step
from dakd.runtime.tensor_files import weights_hash
from dakd.weights import read_student_metadata

REAL, STARTED = {"name": "real"}, {"name": "started", "data": ["few"], "start_from": "real"}
PSEUDO = STARTED | {"name": "pseudo", "training_set": "real+pseudo"}
DATA = {
    "all": {"base": str(TOY), "set": {"prepare.simulation.looks": 3.0}},
    "few": {"base": str(TOY), "set": {"prepare.num_labelled": 8}, "earlier": "all"},
}


def tree_of(*rows: dict, **changes) -> dict:
    return TABLE | {"base": None, "data": DATA, "rows": list(rows), "seeds": [0], "set": {}, "small": {}} | changes


def plan_of(*rows: dict, **changes):
    return make_plan(TableSpec.model_validate(tree_of(*rows, **changes)), TOY.parent)


def student_of(plan, row: str, dataset: str = "few", seed: int = 0, repeat: int = 0):
    place = (row, dataset, seed, repeat)
    cell = next(cell for cell in plan.cells if (cell.row.name, cell.dataset, cell.seed, cell.repeat) == place)
    return cell.jobs["student"].links["train_saross"]


def test_a_student_starts_from_the_one_of_its_seed_and_repeat_on_the_earlier_dataset():
    plan = plan_of(REAL, STARTED, seeds=[0, 1], repeats=2)
    for seed in (0, 1):
        for repeat in (0, 1):
            started = student_of(plan, "started", seed=seed, repeat=repeat)
            assert started.start == student_of(plan, "real", "all", seed, repeat)
            alone = student_of(plan, "real", seed=seed, repeat=repeat)
            assert alone.start is None and started.links == alone.links and started.name != alone.name
    names = [job.name for job in plan.jobs]
    for job in plan.jobs:
        assert all(names.index(other.name) < names.index(job.name) for other in job.needs)


def test_the_rows_other_jobs_are_shared_and_its_own_real_student_starts_too():
    plan = plan_of(REAL, STARTED, PSEUDO)
    assert student_of(plan, "pseudo").links["pseudo_label"].links["train_saross"] == student_of(plan, "started")
    assert student_of(plan, "pseudo").start == student_of(plan, "started").start
    before = {job.name for job in plan_of(REAL).jobs}
    assert before < {job.name for job in plan.jobs}  # a start of some rows leaves the others' jobs as they were


def test_a_row_from_another_row_starts_elsewhere():
    other = {"name": "other", "set": {"train_saross.steps": 1}}
    plan = plan_of(REAL, other, STARTED, PSEUDO | {"start_from": "other"})
    assert student_of(plan, "started").start == student_of(plan, "real", "all")
    assert student_of(plan, "pseudo").start == student_of(plan, "other", "all")


def test_the_weights_of_the_start_are_those_that_the_training_begins_with(tmp_path):
    plan, store = plan_of(REAL, STARTED, PSEUDO), JobStore(tmp_path)
    assert not work(plan, store, processes=0).failed
    first = store.folder_of(student_of(plan, "real", "all")) / "train_saross" / "real" / "student.safetensors"
    for row, name in (("real", "real"), ("started", "real"), ("pseudo", "real+pseudo")):
        folder = store.folder_of(student_of(plan, row)) / "train_saross" / name
        wanted = None if row == "real" else weights_hash(first)
        assert read_student_metadata(folder / "student.safetensors").get("init_from") == wanted


def refused(tmp_path, *rows: dict, **changes) -> str:
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(tree_of(*rows, **changes)))
    with pytest.raises(ValueError) as error:
        make_plan(load_table(path), tmp_path)
    return str(error.value)


def test_starts_that_do_not_fit_are_refused(tmp_path):
    few = {"few": DATA["few"]}
    assert "data 'few' has the earlier 'all'; expected one of the datasets few" in refused(tmp_path, REAL, data=few)
    assert "starts from 'rael', which is no row" in refused(tmp_path, REAL, STARTED | {"start_from": "rael"})
    on_both = STARTED | {"data": []}
    assert "data 'all' has no earlier; name a dataset" in refused(tmp_path, REAL, on_both)
    second = PSEUDO | {"start_from": "started"}
    assert "which starts from 'real'; name a row that starts from" in refused(tmp_path, REAL, STARTED, second)
    on_few = {"name": "other", "data": ["few"]}
    found = refused(tmp_path, REAL, on_few, STARTED | {"start_from": "other"})
    assert "the earlier 'all', on which that row is not" in found
    found = refused(tmp_path, REAL, STARTED | {"data": []}, base=str(TOY), data={})
    assert "and the table has a base; give datasets by data" in found


@pytest.mark.parametrize("key, value", [("init_from", "a.safetensors"), ("student.pretrained", "b.safetensors")])
def test_a_row_does_not_start_from_two_files(tmp_path, key, value):
    found = refused(tmp_path, REAL, STARTED | {"set": {f"train_saross.{key}": value}})
    assert f"row 'started' starts from 'real', and train_saross.{key} is {value}; expected one of them" in found


def test_a_row_whose_start_is_absent_is_absent_too(monkeypatch):
    monkeypatch.delenv("SOME_WEIGHTS", raising=False)
    asking = {"name": "asking", "needs": "SOME_WEIGHTS"}
    table = TableSpec.model_validate(tree_of(REAL, asking, STARTED | {"start_from": "asking"}))
    kept, absent = without_absent(table)
    assert [row.name for row in kept.rows] == ["real"]
    assert absent == dict.fromkeys(["asking", "started"], "set SOME_WEIGHTS to run it")


def test_a_part_of_the_table_keeps_what_its_rows_start_from(tmp_path, capsys):
    table = TableSpec.model_validate(tree_of(REAL, STARTED))
    assert narrowed(table, rows=["real"], data=["few"]).data["few"].earlier is None
    assert narrowed(table, rows=["real", "started"], data=["few", "all"]) == table
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(tree_of(REAL, STARTED)))
    for options, message in (
        (["--row", "started"], "row 'started' starts from 'real'; name that one too: --row 'real'"),
        (["--data", "few"], "students on 'few' start from those on 'all'; name it too: --data 'all'"),
    ):
        assert run_step("ablate", ["--config", str(path), "--store", str(tmp_path / "store"), *options]) == 1
        assert message in capsys.readouterr().err
