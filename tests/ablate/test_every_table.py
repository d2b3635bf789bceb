"""Each table that comes with dakd, by its own command, at toy size: all share one store, and so one toy teacher."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from dakd.ablate.measures import MEASURES
from dakd.cli import run_step

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted((ROOT / "configs" / "ablate").glob("*.yaml"))
TOY = Path(__file__).with_name("toy.yaml")
# What toy images are, whatever data a table names.
SIMULATED = yaml.safe_dump(yaml.safe_load(TOY.read_text())["prepare"], default_flow_style=True).strip()
# Rows of a table take so many pairs, and a set must have them; or they need images without labels.
_FEW_LABELS = ["prepare.num_labelled=16"]
OVERRIDES = {
    "amount": ["generate.num_samples=210", "generate.shard_size=70"],
    **dict.fromkeys(["labels", "other_sensor", "pair_labels", "sampler_labels", "schedule", "self_training",
                     "teacher_steps"], _FEW_LABELS),
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Away from the repository, without what a user may have set."""
    for name in ("OSD_ROOT", "SOS_ROOT", "DAKD_REAL_DATA", "SAM_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def papers_of(row: dict) -> set[str]:
    """The measures that a row has numbers of the paper for, of any dataset."""
    numbers = row.get("paper", {})
    return {name for key, value in numbers.items() for name in (value if isinstance(value, dict) else [key])}


@pytest.mark.slow
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_tables_command_makes_the_whole_table(path, store, in_a_folder, capsys):
    options = ["--small", "--base", str(TOY), "--seeds", "0", "--runs", "2", "--processes", "0", "--store", str(store)]
    options += ["--out", "out", f"prepare={SIMULATED}", *OVERRIDES.get(path.stem, [])]
    assert run_step("ablate", ["--config", str(path), *options, "--figures"]) == 0
    capsys.readouterr()
    table = (in_a_folder / "out" / "table.md").read_text()
    assert "missing" not in table and "Failed" not in table, table
    spec = yaml.safe_load(path.read_text())
    wanted = {row["name"] for row in spec["rows"] if not row.get("needs")}
    has_students = any(MEASURES[name].source == "student" for name in spec["measures"])
    sees_pairs = {row["name"]: "synthetic" in row.get("training_set", "") or not has_students for row in spec["rows"]}
    with (in_a_folder / "out" / "table.csv").open() as file:
        records = list(csv.DictReader(file))
    assert {record["method"] for record in records} == wanted
    for record in records:
        assert record["measure"] in MEASURES
        # what four small images do not hold has no score, and five classes have no convention for two
        absent = ("iou_", "oil_", "looks", "autocorrelation", "contrast", "edges", "pair_")
        may_be_absent = record["measure"].startswith(absent)
        of_no_pairs = MEASURES[record["measure"]].source == "pairs" and not sees_pairs[record["method"]]
        wanted_seeds = "0" if of_no_pairs else str(spec.get("repeats", 1))
        assert record["seeds"] == wanted_seeds or (may_be_absent and not record["mean"]), record
    shown = set(spec.get("small_measures") or spec["measures"])
    papers = {record["measure"] for record in records if record["paper"]}
    assert papers == shown & {name for row in spec["rows"] for name in papers_of(row)}
    assert (in_a_folder / "out" / "figures" / "noising.png").exists() or path.stem == "skip_modules"
    # the same command again finds nothing left to do
    assert run_step("ablate", ["--config", str(path), *options]) == 0
    assert "done in" not in capsys.readouterr().out
