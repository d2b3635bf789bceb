"""Tables as YAML: faulty ones are refused with clear errors, and each cell gets its settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ablate_worlds import TABLE, TOY

from dakd.ablate.command import narrowed, with_bases
from dakd.ablate.measures import MEASURES, measure_of
from dakd.ablate.plan import make_plan
from dakd.ablate.spec import experiment, foreign_test, load_table, without_absent
from dakd.cli import run_step
from dakd.data.prepared import prepare_settings

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, changes: dict | None = None) -> Path:
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(TABLE | (changes or {})))
    return path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"measures": ["miuo"]}, "did you mean miou"),
        ({"measures": []}, "measures"),
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "two rows are called a"),
        ({"reference": "none"}, "reference 'none' is not a row"),
        ({"seeds": [1, 1]}, "expected different whole numbers"),
        ({"seeds": [-1]}, "at least 0"),
        ({"data": {"A": {"base": "x"}}}, "either base"),
        ({"rows": [{"name": "real", "paper": {"fid": 1.0}}]}, "paper's fid; expected measures of"),
        ({"rows": [{"name": "real", "head": {"x": "1"}}, {"name": "b"}]}, "different heads"),
        ({"rows": [{"name": "real", "sett": {}}]}, "rows.0.sett"),
        ({"base": None, "data": {"A": {"base": "x", "test_on": "B"}}}, "tested on 'B'"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_table(write(tmp_path, changes))


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no table at"):
        load_table(tmp_path / "nothing.yaml")
    (tmp_path / "broken.yaml").write_text("title: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_table(tmp_path / "broken.yaml")


def test_a_cell_has_the_tables_the_rows_and_the_users_settings_in_that_order(tmp_path):
    table = load_table(write(tmp_path))
    row = table.rows[1]
    cell = experiment(table, row, "", 4, tmp_path, False, [])
    assert (cell.train_saross.steps, cell.balance.b, cell.seed, cell.generate_seed) == (5, 0.5, 4, 4)
    assert cell.prepare.simulation.seed == 0  # one dataset for all seeds
    fixed = table.model_copy(update={"set": table.set | {"generate.seed": 5}})
    assert [experiment(fixed, row, "", seed, tmp_path, False, []).generate_seed for seed in (0, 4)] == [0, 4]
    assert experiment(table, row, "", 4, tmp_path, True, []).train_saross.steps == 1
    assert experiment(table, row, "", 4, tmp_path, True, ["train_saross.steps=9"]).train_saross.steps == 9
    with pytest.raises(ValueError, match=r"balance\.x: unknown key"):
        experiment(table, row, "", 4, tmp_path, False, ["balance.x=1"])


def test_a_data_set_may_be_tested_on_another(tmp_path):
    data = {
        "A": {"base": str(TOY), "set": {"prepare.simulation.looks": 3.0}},
        "A to B": {"base": str(TOY), "test_on": "B"},
        "B": {"base": str(TOY), "set": {"prepare.simulation.looks": 9.0}},
    }
    table = load_table(write(tmp_path, {"base": None, "data": data, "rows": TABLE["rows"][1:], "reference": None}))
    assert foreign_test(table, "A", tmp_path, False, []) is None
    assert foreign_test(table, "A to B", tmp_path, False, []).prepare.simulation.looks == 9.0
    found = {cell.dataset: cell.jobs["student"] for cell in make_plan(table, tmp_path).cells}
    looks = {name: scores.config.prepare.simulation.looks for name, scores in found.items()}
    assert looks == {"A": 3.0, "A to B": 9.0, "B": 9.0}  # a job refuses images of other settings than its own


def test_every_seed_is_scored_on_another_dataset_of_few_labels_as_it_is_prepared(tmp_path):
    few = {"base": str(TOY), "set": {"prepare.num_labelled": 8}}
    data = {"A": few, "A to B": {"base": str(TOY), "test_on": "B"}, "B": few}
    tree = {"base": None, "data": data, "rows": TABLE["rows"][1:], "reference": None, "seeds": [0, 1]}
    scores = [cell.jobs["student"] for cell in make_plan(load_table(write(tmp_path, tree)), tmp_path).cells]
    chosen = [job.config.prepare.subset_seed for job in scores]
    assert [chosen.count(seed) for seed in (0, 1)] == [2 + 2, 2]  # the choice of "A to B" is one for both seeds
    for job in scores:
        assert prepare_settings(job.config) == prepare_settings(job.links["prepare"].config)


def test_a_row_whose_needs_are_not_met_is_named(tmp_path, monkeypatch):
    rows = [{"name": "real"}, {"name": "weights", "needs": "SOME_WEIGHTS"}]
    table = load_table(write(tmp_path, {"rows": rows}))
    monkeypatch.delenv("SOME_WEIGHTS", raising=False)
    left, absent = without_absent(table)
    assert [row.name for row in left.rows] == ["real"] and absent == {"weights": "set SOME_WEIGHTS to run it"}
    monkeypatch.setenv("SOME_WEIGHTS", "/here")
    assert without_absent(table) == (table, {})


def test_rows_seeds_and_bases_are_chosen_on_the_command_line(tmp_path):
    table = load_table(write(tmp_path))
    chosen = narrowed(table, ["soft"], [], [7])
    assert [row.name for row in chosen.rows] == ["soft"] and chosen.seeds == (7,) and chosen.reference is None
    with pytest.raises(ValueError, match="no row 'sofd'; choose soft"):
        narrowed(table, ["sofd"], [], None)
    assert narrowed(table, [], [], None, "soft").reference == "soft" != table.reference
    with pytest.raises(ValueError, match="no row 'sofd'; choose soft"):
        narrowed(table, [], [], None, "sofd")
    with pytest.raises(ValueError, match="reference 'real' is not a row; choose one of soft"):
        narrowed(table, ["soft"], [], None, "real")
    with pytest.raises(ValueError, match="no dataset X; it has a single dataset"):
        narrowed(table, [], ["X"], None)
    other = tmp_path / "other.yaml"
    other.write_text(TOY.read_text())
    assert with_bases(table, [str(other)]).base == str(other)
    with pytest.raises(ValueError, match="no configuration at"):
        with_bases(table, [str(tmp_path / "absent.yaml")])
    with pytest.raises(ValueError, match="no dataset 'X'"):
        with_bases(table, [f"X={other}"])


def test_tables_and_their_experiments_are_found_by_name_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_step("ablate", ["--config", "ce_b", "--base", "smoke", "--seeds", "0", "--small", "--status"]) == 0
    assert (tmp_path / "runs" / "ablate" / "ce_b" / "table.md").exists()
    assert run_step("ablate", ["--config", "ce", "--status"]) == 1
    assert "no table at ce; did you mean 'ce_b'" in capsys.readouterr().err
    assert run_step("ablate", ["--config", "ce_b", "--base", "smok", "--status"]) == 1
    assert "--base smok: no configuration at smok; did you mean 'smoke'" in capsys.readouterr().err


def test_measures_in_place_of_a_table_s_take_the_paper_s_numbers_and_jobs_with_them(monkeypatch):
    monkeypatch.setenv("OSD_ROOT", "/somewhere")
    folder = ROOT / "configs" / "ablate"
    costs = narrowed(load_table(folder / "skip_modules.yaml"), measures=["more_params", "seconds"])
    assert costs.measures == ("more_params", "seconds") and costs.small_measures is None
    assert [row.paper for row in costs.rows] == [
        {"seconds": 39.52}, {"more_params": 6.95, "seconds": 48.36}, {"more_params": 0.89, "seconds": 45.28}
    ]  # fmt: skip
    assert {job.kind for job in make_plan(costs, folder).jobs} == {"cost"}
    methods = narrowed(load_table(folder / "methods.yaml"), data=["OSD"], measures=["miou"])
    assert {tuple(row.paper) for row in methods.rows} <= {("OSD",), ()} and set(methods.data) == {"OSD"}
    assert all(set(numbers) <= {"miou"} for row in methods.rows for numbers in row.paper.values())
    with pytest.raises(ValueError, match="measure 'secnds' is unknown; did you mean seconds"):
        narrowed(costs, measures=["secnds"])
    with pytest.raises(ValueError, match="measures name seconds twice"):
        narrowed(costs, measures=["seconds", "seconds"])
    students = load_table(folder / "kd_forms.yaml")
    assert narrowed(students, measures=["fid"]).reference is None
    assert narrowed(students, measures=["fid", "f1"]).reference == students.reference


HALVES = [{"title": "a\ud800"}, {"rows": [{"name": "b\udfff"}]}, {"set": {"c\ud800": 1}}]


@pytest.mark.parametrize("changes", HALVES)
def test_half_a_character_is_refused_in_words(tmp_path, changes):
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(TABLE | changes))  # as an escape
    with pytest.raises(ValueError, match=r"table\.yaml is not valid YAML: '[abc]\\ud[8f]..' has half a character"):
        load_table(path)


def test_a_reference_that_is_absent_is_refused_where_it_was_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("OSD_ROOT", "/somewhere")
    monkeypatch.delenv("SAM_ROOT", raising=False)
    path = ROOT / "configs" / "ablate" / "osd_classes.yaml"
    name = next(row.name for row in load_table(path).rows if row.needs)
    assert run_step("ablate", ["--config", str(path), "--status", "--reference", name]) == 1
    assert f"--reference {name}: set SAM_ROOT to run it" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "ablate").glob("*.yaml")), ids=lambda path: path.stem)
def test_data_sets_of_a_table_stay_apart_over_one_small_base(path, monkeypatch):
    for name in ("OSD_ROOT", "SOS_ROOT", "DAKD_REAL_DATA", "SAM_ROOT"):
        monkeypatch.setenv(name, "/somewhere")
    table = with_bases(load_table(path), [str(ROOT / "configs" / "evidence.yaml")])
    prepared = [
        experiment(table, table.rows[0], dataset, 0, path.parent, True, []).prepare.model_dump_json()
        for dataset, spec in table.datasets.items()
        if spec.test_on is None
    ]
    assert len(set(prepared)) == len(prepared)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "ablate").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_table_that_comes_with_dakd_is_valid_with_and_without_small(path, monkeypatch):
    for name in ("OSD_ROOT", "SOS_ROOT", "DAKD_REAL_DATA", "SAM_ROOT"):
        monkeypatch.setenv(name, "/somewhere")
    table = load_table(path)
    for dataset in table.datasets:
        for row in table.rows:
            for small in (False, True):
                config = experiment(table, row, dataset, 0, path.parent, small, [])
                assert config.train_saross.steps or config.train_saross.epochs == 200


def test_every_measure_reads_a_number_or_nothing():
    assert measure_of("miou").read({"miou": 0.5}) == 50
    assert measure_of("iou_ship").read({"per_class": {"sea": {"iou": 1.0}}}) is None
    fid = {"fidelity": {"metrics": {"fid": {"value": 3.5, "low": 3.0, "high": 4.0}}}}
    assert measure_of("fid").read(fid) == 3.5 and measure_of("fid").read_interval(fid) == (3.0, 4.0)
    assert measure_of("miou").read_interval({"miou": 0.5}) is None
    assert all(measure.read({}) is None and measure.read_interval({}) is None for measure in MEASURES.values())
