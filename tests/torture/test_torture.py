"""`make torture`: its short form passes, and it detects faults that are not survived."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torture import believed_files, ends, generation, run, scenes, walks
from torture.pair_sets import compare_finished, make_undisturbed_set
from torture.trials import Findings, Trials

from dakd.data import publish as publishing
from dakd.runtime import runlog, sealed
from dakd.runtime.sealed import seal
from dakd.train import checkpoint

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forks, which a process with a CUDA context cannot")


@pytest.mark.slow
def test_its_short_form_loses_doubles_and_accepts_nothing():
    """At least one fault of every kind; under DeepSpeed one kill."""
    short = [argument for name in run.FAMILIES if name not in ("train-other", "ends") for argument in ("--only", name)]
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--scale", "0.02", *short]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("| ")][1:-1]
    assert len(rows) == 36
    assert all(int(tried) == int(survived) > 0 for _, _, tried, survived, *_ in rows)
    assert all(int(count) == 0 for *_, lost, doubled, accepted, _ in rows for count in (lost, doubled, accepted))


@pytest.mark.slow
def test_no_process_outlives_the_first_of_its_family_and_each_training_leaves_a_checkpoint(tmp_path):
    rows = ends.end_families(tmp_path, random.Random(0), 1)
    assert len(rows) == 6
    assert all(row.is_good for row in rows), [row.total.problems for row in rows]


@pytest.mark.slow
def test_a_damaged_checkpoint_that_is_accepted_is_seen(tmp_path, monkeypatch):
    verified = checkpoint.verified_facts

    def believing(target):
        try:
            return verified(target)
        except checkpoint.Damaged as error:
            if "state.safetensors" not in str(error):
                raise
            return json.loads((target / "state.json").read_text())

    monkeypatch.setattr(checkpoint, "verified_facts", believing)
    flipped, _ = walks.damage_walks(tmp_path, random.Random(0), 6)
    assert flipped.survived < flipped.tried == 6 and flipped.total.accepted > 0 and not flipped.is_good


def walks_until(folder: Path, is_seen: Callable[[Trials], bool]) -> list[Trials]:
    """Walks that are killed twenty times each, until `is_seen`: chance decides when a kill lands."""
    rows = []
    for seed in range(10):
        (folder / str(seed)).mkdir()
        rows.append(walks.kill_walks(folder / str(seed), random.Random(seed), 20))
        if is_seen(rows[-1]):
            break
    return rows


@pytest.mark.slow
def test_a_checkpoint_that_is_written_in_place_is_seen(tmp_path, monkeypatch):
    def in_place(target, tensors, facts):
        target.mkdir(parents=True, exist_ok=True)
        checkpoint.save_file(tensors, target / "state.safetensors")
        facts = {"format": checkpoint.FORMAT, **facts, "sha256": checkpoint.file_hash(target / "state.safetensors")}
        (target / "state.json").write_text(seal(json.dumps(facts)))

    monkeypatch.setattr(checkpoint, "write_state", in_place)
    rows = walks_until(tmp_path, lambda row: row.total.accepted > 0)
    assert rows[-1].survived < rows[-1].tried and rows[-1].total.accepted > 0


@pytest.mark.slow
def test_a_step_that_is_logged_twice_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("dakd.runtime.runlog.drop_records_after", lambda path, step: None)
    monkeypatch.setattr(checkpoint, "sync", lambda path: None)
    rows = walks_until(tmp_path, lambda row: row.total.doubled > 0)
    assert rows[-1].total.doubled > 0 and not rows[-1].is_good


@pytest.mark.slow
def test_a_shard_that_is_replaced_by_a_later_one_is_seen(tmp_path, monkeypatch):
    def replacing(aside, target):
        os.replace(aside, target)
        return True

    monkeypatch.setattr(publishing, "publish", replacing)
    row = generation.race(tmp_path, random.Random(0), 1)
    assert row.survived == 0
    assert any("racers believe that they published the shard" in problem for problem in row.total.problems)


@pytest.mark.slow
def test_a_generated_tar_that_differs_is_seen(tmp_path):
    undisturbed = make_undisturbed_set(tmp_path / "alone", 2)
    config = undisturbed.copy(tmp_path / "run")
    assert compare_finished(config, undisturbed).is_good
    tar = config.run_path / "generate" / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.write_bytes(content)
    found = compare_finished(config, undisturbed)
    assert found.accepted == 1
    assert any("is not the tar that an undisturbed worker made" in problem for problem in found.problems)


@pytest.mark.slow
def test_a_file_of_a_scene_that_differs_is_damaged_or_left_over_is_seen(tmp_path):
    pytest.importorskip("rasterio")
    undisturbed = scenes.make_undisturbed_scene(tmp_path)
    out = tmp_path / "alone"
    assert scenes.compare(out, undisturbed, is_finished=True).is_good
    content = bytearray((out / "scene.quicklook.png").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "scene.quicklook.png").write_bytes(content)
    os.truncate(out / "scene.probability.tif", 3000)
    text = (out / "scene.polygons.geojson").read_text()
    (out / "scene.polygons.geojson").write_text(text.replace('"oil"', '"look-alike"', 1))
    (out / ".scene.class.tif.tmp").touch()
    (out / "scene.ships.geojson").unlink()
    found = scenes.compare(out, undisturbed, is_finished=True)
    assert found.accepted == 4  # and the record, whose hashes are those of other files
    assert any("lacks ['scene.ships.geojson']" in problem for problem in found.problems)
    assert any("['.scene.class.tif.tmp'] were left" in problem for problem in found.problems)


@pytest.mark.slow
def test_an_edited_number_that_is_believed_is_seen(tmp_path, monkeypatch):
    def unchecked(text, path, how=""):
        return text[: text.rindex(b",")] + b"}"

    monkeypatch.setattr(sealed, "unseal", unchecked)
    for module in (sealed, runlog):
        monkeypatch.setattr(module, "refuse_unlisted", lambda path, how="": None)
    rows = believed_files.damage_believed_files(tmp_path, random.Random(0), 2)
    row = next(row for row in rows if (row.work, row.fault) == ("reports, scores and predictions", "a number edited"))
    assert row.survived == 0 and row.total.accepted == 2


def test_a_fault_that_was_not_survived_fails_the_run(monkeypatch, capsys, tmp_path):
    def lossy(folder, chance, many):
        row = Trials("work", "fault")
        row.count("at work", Findings())
        row.count("at work", Findings(lost=3))
        return [row]

    monkeypatch.setattr(run, "FAMILIES", {"lossy": lossy})
    assert run.main(["--out", str(tmp_path / "table.md")]) == 1
    assert "FAILED work, fault: 1 of 2 survived" in capsys.readouterr().out
    assert "| work | fault | 2 | 1 | 3 | 0 | 0 |" in (tmp_path / "table.md").read_text()
