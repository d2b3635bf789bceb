"""The settings that a user may change in a table, and those that must stay: seeds, the data of all seeds, scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ablate_worlds import SOFT, TABLE, TOY, plan_of

from dakd.ablate.plan import make_plan
from dakd.ablate.run import JobStore
from dakd.ablate.spec import TableSpec, experiment, load_table, without_absent
from dakd.ablate.table import facts
from dakd.cli import run_step

SCENES = {"dataset": "simulated", "simulation": {"num_train": 4, "num_test": 2, "size": [32, 32]}}


def kinds(plan) -> list[str]:
    return [job.kind for job in plan.jobs]


def test_all_seeds_have_the_same_scenes_also_where_a_user_sets_the_whole_section():
    plan = plan_of({"name": "real"}, seeds=(1, 2), overrides=[f"prepare={SCENES}"])
    assert kinds(plan).count("prepare") == 1
    assert {job.config.prepare.simulation.seed for job in plan.jobs} == {0}
    own = plan_of({"name": "real"}, overrides=["prepare.simulation.seed=5"])
    assert {job.config.prepare.simulation.seed for job in own.jobs} == {5}


@pytest.mark.parametrize(
    "override, message",
    [
        ("seed=7", "seed=7: a table has seeds of its own; choose them with --seeds"),
        ("generate.seed=7", "choose them with --seeds"),
        ("run_dir=here", "choose where they lie with --store"),
        ("evaluate.folder=/images", "evaluate.folder and evaluate.student leave a table without scores"),
        ("evaluate.student=/student.safetensors", "leave a table without scores"),
    ],
)
def test_settings_that_a_table_chooses_itself_are_refused_before_any_work(override, message):
    with pytest.raises(ValueError, match=message):
        plan_of({"name": "real"}, overrides=[override])


def test_a_layer_nearer_to_the_cell_replaces_a_section_of_which_a_farther_one_names_a_key():
    row = {"name": "rival", "set": {"train_saross.student": {"name": "unet"}}}
    row |= {"small": {"train_saross.student": {"name": "linknet"}}}
    common = {"set": {}, "small": {"train_saross.student.encoder": "resnet18"}, "reference": None}
    table = TableSpec.model_validate(TABLE | common | {"rows": [row]})
    for small, name in ((False, "unet"), (True, "linknet")):
        (student,) = {job.config.train_saross.student.name for job in make_plan(table, Path("/"), small).jobs}
        assert student == name
    assert make_plan(table, Path("/"), True).jobs[0].config.train_saross.student.encoder == "resnet34"


def test_a_variable_that_is_set_to_nothing_is_not_set(monkeypatch):
    monkeypatch.setenv("SOME_WEIGHTS", "")
    rows = [*TABLE["rows"], {"name": "w", "head": {"b": ""}, "needs": "SOME_WEIGHTS"}]
    table = TableSpec.model_validate(TABLE | {"rows": rows})
    assert without_absent(table)[1] == {"w": "set SOME_WEIGHTS to run it"}


def test_scores_are_shared_by_tables_that_look_at_pairs_and_tables_that_do_not():
    alone = plan_of(SOFT)
    with_pairs = plan_of(SOFT, measures=["fd_small", "miou"], overrides=["evaluate.fidelity.extractor=small"])
    assert {job.name for job in with_pairs.jobs} - {job.name for job in alone.jobs} == {
        job.name for job in with_pairs.jobs if job.kind == "pairs"
    }


def test_jobs_on_real_images_are_the_same_wherever_these_lie(tmp_path, monkeypatch):
    names = []
    for host in ("a", "b/c"):
        monkeypatch.setenv("DAKD_REAL_DATA", str(tmp_path / host))
        roots = [str(tmp_path / host / "sos"), str(tmp_path / host / "palsar"), "/elsewhere/sos"]
        prepares = [[f"prepare={{dataset: sos, sensor: sentinel, root: {root}}}"] for root in roots]
        names.append([[job.name for job in plan_of(SOFT, overrides=one).jobs] for one in prepares])
    assert names[0] == names[1]
    assert not set(names[0][0]) & set(names[0][1]) and not set(names[0][0]) & set(names[0][2])


def test_steps_that_are_counted_over_pairs_from_elsewhere_depend_on_these():
    epochs = ["train_saross.steps=null", "train_saross.epochs=2"]
    plans = [plan_of({"name": "real"}, overrides=[*epochs, f"train_saross.synthetic=/{one}"]) for one in "ab"]
    assert all("generate" not in kinds(plan) for plan in plans)
    assert plans[0].jobs[-1].name != plans[1].jobs[-1].name


DATA = {"A": {"base": str(TOY)}, "B": {"base": str(TOY)}, "A to B": {"base": str(TOY), "test_on": "B"}}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data", "A to B"], "dataset 'A to B' is tested on 'B'; name that one too: --data 'B'"),
        (["--seeds", "1", "1"], "the chosen part of the table is not a valid table:\n  seeds are [1, 1]"),
        (["--runs", "0"], "the table with --runs 0 is not a valid table:\n  runs: must be greater than 0"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_in_a_line(tmp_path, capsys, options, message):
    table = TABLE | {"base": None, "data": DATA, "rows": [{"name": "a"}], "reference": None}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    argv = ["--config", str(tmp_path / "table.yaml"), "--store", str(tmp_path / "store"), *options]
    assert run_step("ablate", argv) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("options, missing", [([], "0, 0, 1, 1"), (["--repeats", "1"], "0, 1")])
def test_a_table_may_train_each_seed_another_number_of_times(tmp_path, capsys, options, missing):
    table = TABLE | {"base": str(TOY), "rows": [{"name": "real"}], "reference": None, "seeds": [0, 1], "repeats": 2}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    places = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "table")]
    assert run_step("ablate", ["--config", str(tmp_path / "table.yaml"), "--status", *places, *options]) == 0
    assert f"\n- real: seed {missing}\n" in capsys.readouterr().out


def test_a_table_of_costs_says_of_what_and_over_how_many_passes(tmp_path):
    plan = plan_of({"name": "real"}, measures=["more_params"], runs=7)
    assert "costs: of one image of 32x32; time: the mean of 7 passes" in facts(plan, [], JobStore(tmp_path))
    assert not any(line.startswith("costs") for line in facts(plan_of({"name": "real"}), [], JobStore(tmp_path)))


def test_a_table_names_the_budgets_and_schedules_of_its_rows(tmp_path):
    def lines(*rows):
        return [line for line in facts(plan_of(*rows), [], JobStore(tmp_path)) if line.startswith("toy")]

    views = SOFT | {"name": "views", "set": {"train_saross.budget": "real_views"}}
    falling = SOFT | {"name": "falling", "set": {"train_saross.synthetic_share": [0.8, 0.25]}}
    first = SOFT | {"name": "first", "set": {"train_saross.schedule": "synthetic_then_real",
                                             "train_saross.synthetic_share": 0.5}}  # fmt: skip
    (alone,) = lines({"name": "real"}, SOFT)
    assert alone.endswith("student 2 steps of 4") and alone.startswith("toy: ")
    found = lines({"name": "real"}, SOFT, views, falling, first)
    text = alone.removeprefix("toy: ")
    assert found == [
        f"toy (real, soft): {text}",
        f"toy (views): {text}, budget real_views",
        f"toy (falling): {text}, synthetic_share 0.8 to 0.25",
        f"toy (first): {text}, schedule synthetic_then_real, synthetic_share 0.5",
    ]
    assert len(lines(views)) == 1 and lines(views)[0] == f"toy: {text}, budget real_views"


@pytest.mark.parametrize("value, message", [("2024", 'prepare.root: must be text (found 2024; quote'),
                                            ("null", None), ("0012", None), ('"no"', None)])  # fmt: skip
def test_a_tables_text_settings_are_those_of_its_yaml(tmp_path, value, message):
    tree = yaml.safe_dump(TABLE | {"set": {}, "rows": [{"name": "a"}], "reference": None})
    (tmp_path / "table.yaml").write_text(tree.replace("set: {}", f"set:\n  prepare.root: {value}"))
    table = load_table(tmp_path / "table.yaml")
    if message is None:
        root = experiment(table, table.rows[0], "", 0, tmp_path, False, []).prepare.root
        assert root == {"null": None, '"no"': "no"}.get(value, value)
        return
    with pytest.raises(ValueError) as caught:
        experiment(table, table.rows[0], "", 0, tmp_path, False, [])
    assert message in str(caught.value)


def test_a_tables_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "table.yaml").write_text("title: a\nset: {seed: 1}\nset: {seed: 2}\n")
    with pytest.raises(ValueError, match=r"table.yaml is not valid YAML: line 3, .* key 'set' is in line 2 already"):
        load_table(tmp_path / "table.yaml")
