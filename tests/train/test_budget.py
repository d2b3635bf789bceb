"""Budgets of students: schedules, steps by real views, the views that files and tables state, and the start."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from worlds import in_folder, with_pairs

from dakd.config import Config, build_config
from dakd.data.loader import make_loader
from dakd.data.prepare import prepare
from dakd.evaluate.evaluate import evaluate
from dakd.runtime.runlog import read_records
from dakd.runtime.tensor_files import load_state, read_metadata, save_weights
from dakd.train.checkpoint import load_tensors, verified_facts, write_state
from dakd.train.saross import StudentTraining, student_folder, train_saross
from dakd.train.student_data import student_steps
from dakd.weights import load_student

BOTH = "real+synthetic"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Config:
    """12 prepared images and 8 pairs, for students of 4 steps of 4 samples."""
    return with_pairs(tmp_path_factory.mktemp("data"))


def changed(config: Config, **train: object) -> Config:
    """The same experiment with other settings of train_saross."""
    tree = config.model_dump(mode="json")
    tree["train_saross"] |= train
    return build_config(tree)


def drawn(training: StudentTraining) -> dict[str, int]:
    """The training's steps and the samples that its loader gives, counted one by one."""
    loader = make_loader(training.dataset, training.section.global_batch, 0, 1, 0)
    batches = list(itertools.islice(iter(loader), training.total_steps))
    synthetic = sum(int(batch.is_synthetic.sum()) for batch in batches)
    return {"steps": len(batches), "real": 4 * len(batches) - synthetic, "synthetic": synthetic}


@pytest.mark.parametrize("options", [
    {}, {"budget": "real_views"}, {"synthetic_share": [0.9, 0.1]}, {"schedule": "synthetic_then_real"},
    {"budget": "real_views", "synthetic_share": [0.2, 1.0]}, {"mosaic": True, "budget": "real_views"},
    {"budget": "real_views", "schedule": "synthetic_then_real", "synthetic_share": 0.7},
])  # fmt: skip
def test_budgets_are_kept_and_views_are_those_of_the_loader(data, options):
    config = changed(data, **options, training_sets=["real", "synthetic", BOTH])
    real, synthetic, both = (StudentTraining(config, name) for name in config.train_saross.training_sets)
    assert real.views() == drawn(real) == {"steps": 4, "real": 16, "synthetic": 0}
    assert synthetic.views() == drawn(synthetic) == {"steps": 4, "real": 0, "synthetic": 16}
    views = drawn(both)
    assert both.views() == views and views["synthetic"] > 0
    if options.get("budget") == "real_views":
        assert 16 <= views["real"] < 16 + 4 and views["steps"] > 4
    else:
        assert views["steps"] == 4


def test_the_views_of_a_student_are_in_its_files_and_in_the_table(data, tmp_path):
    options = {"budget": "real_views", "synthetic_share": [0.75, 0.25], "training_sets": ["real", BOTH]}
    config = changed(in_folder(data, tmp_path / "run"), **options)
    prepare(config, config.run_path)
    train_saross(config)
    wanted = {name: drawn(StudentTraining(config, name)) for name in ("real", BOTH)}
    assert wanted[BOTH] == {"steps": 8, "real": 16, "synthetic": 16}
    for name, views in wanted.items():
        folder = student_folder(config, name)
        assert all(read_metadata(folder / file)["views"] == views for file in ("student.safetensors",
                                                                               "student_raw.safetensors"))  # fmt: skip
        assert [one["step"] for one in read_records(folder / "metrics.jsonl")] == list(range(1, views["steps"] + 1))
    old = student_folder(config, "real") / "student.safetensors"
    net, facts = load_student(old)
    settings = build_config(config.model_dump(mode="json") | {"evaluate": {"num_pictures": 0, "bootstrap": 0}})
    table = evaluate(settings).table
    lines = {line.split()[0]: line.split() for line in table.splitlines()[2:6]}
    assert lines["student"] == ["student", "mIoU", "F1", "A", "R", "P", "steps", "real", "views", "synthetic", "views"]
    for name, views in wanted.items():
        assert lines[name][-3:] == [str(views[key]) for key in ("steps", "real", "synthetic")]
        assert json.loads((config.run_path / "evaluate" / f"{name}.json").read_text())["views"] == views
    # As an earlier version wrote it.
    (old.parent / "manifest.json").unlink()
    save_weights(old, net.state_dict(), {key: value for key, value in facts.items() if key != "views"})
    lines = {line.split()[0]: line.split() for line in evaluate(settings).table.splitlines()[2:6]}
    assert lines["real"][-3:] == ["-", "-", "-"] and lines[BOTH][-3:] == ["8", "16", "16"]


def test_epochs_of_real_views_are_counted_over_the_real_samples(data):
    config = changed(data, steps=None, epochs=3, budget="real_views", training_sets=["real", BOTH])
    assert {name: student_steps(config, name) for name in ("real", BOTH, "synthetic")} == {
        "real": 9, "synthetic": 9, BOTH: 15,  # 3 epochs of 12 + 8 samples
    }  # fmt: skip
    cfg = config.train_saross
    assert not cfg.reads_generated_pairs(("real",)) and cfg.reads_generated_pairs()
    assert changed(config, budget="steps").train_saross.reads_generated_pairs(("real",))
    pairs_alone = changed(config, training_sets=["synthetic"])
    assert student_steps(pairs_alone, "synthetic") == 6


@pytest.mark.parametrize("options", [
    {"schedule": "synthetic_then_real"}, {"synthetic_share": [0.9, 0.1]}, {"init_from": "the file"},
])  # fmt: skip
def test_a_schedule_and_a_start_are_part_of_the_identity_of_the_sets_that_have_them(data, tmp_path, options):
    if "init_from" in options:
        options = {"init_from": str(random_student(data, tmp_path / "student.safetensors"))}
    names = ("real", BOTH)
    configs = (data, changed(data, **options))
    before, after = ([StudentTraining(one, name).identity for name in names] for one in configs)
    assert before[1] != after[1]
    assert (before[0] != after[0]) == ("init_from" in options)
    if "init_from" not in options:
        longer = StudentTraining(changed(data, **options, steps=5), BOTH).identity
        assert longer != after[1]  # the order follows the length
    assert StudentTraining(changed(data, budget="real_views"), "real").identity == before[0]


def test_a_checkpoint_of_before_these_settings_is_resumed_to_the_same_weights(data, tmp_path, capfd):
    whole = in_folder(data, tmp_path / "whole")
    train_saross(whole, (BOTH,))
    old = in_folder(whole, tmp_path / "old")
    folder = student_folder(old, BOTH)
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    for path in (folder / "manifest.json", *folder.glob("*.safetensors")):
        path.unlink()
    checkpoint = folder / "checkpoints" / "step-00000002"
    facts, tensors = verified_facts(checkpoint), load_tensors(checkpoint)
    assert facts["identity"].pop("schedule", 0) is None and facts["identity"].pop("init_from", 0) is None
    write_state(checkpoint, tensors, facts)
    train_saross(old, (BOTH,))
    assert "resumes after step 2 of 4" in capfd.readouterr().out
    ours, theirs = (load_state(student_folder(one, BOTH) / "student_raw.safetensors") for one in (old, whole))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("options", [
    {"schedule": "synthetic_then_real"}, {"synthetic_share": [0.9, 0.1], "budget": "real_views"},
])  # fmt: skip
def test_a_scheduled_training_resumes_bitwise_equal(data, tmp_path, options):
    whole = changed(in_folder(data, tmp_path / "whole"), **options)
    train_saross(whole, (BOTH,))
    stopped = changed(in_folder(whole, tmp_path / "stopped"))
    folder = student_folder(stopped, BOTH)
    last = sorted((folder / "checkpoints").iterdir())[-1]
    assert int(last.name[-8:]) == StudentTraining(whole, BOTH).total_steps
    shutil.rmtree(last)
    for path in (folder / "manifest.json", *folder.glob("*.safetensors")):
        path.unlink()
    train_saross(stopped, (BOTH,))
    ours, theirs = (load_state(student_folder(one, BOTH) / "student_raw.safetensors") for one in (stopped, whole))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def random_student(config: Config, path, **metadata: object):
    """A weights file of the configured net with weights that no seed gives."""
    from dakd.weights import student_metadata

    training = StudentTraining(config, "real")
    net = training.new_net()
    torch.manual_seed(99)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + ("var" in name))
    facts = student_metadata(net, config.train_saross.student, training.classes, {})
    save_weights(path, net.state_dict(), facts | metadata)
    return path


def test_a_training_starts_from_exactly_the_weights_of_init_from(data, tmp_path):
    path = random_student(data, tmp_path / "student.safetensors")
    training = StudentTraining(changed(data, init_from=str(path)), BOTH)
    start, wanted = training.build(True).net.state_dict(), load_state(path)
    assert start.keys() == wanted.keys() and all(torch.equal(start[name], value) for name, value in wanted.items())
    other = StudentTraining(data, BOTH).build(True).net.state_dict()
    assert any(not torch.equal(other[name], value) for name, value in wanted.items())


def test_a_student_is_trained_on_pairs_and_then_on_real_samples_in_two_runs(data, tmp_path):
    first = in_folder(data, tmp_path / "first")
    train_saross(first, ("synthetic",))
    weights = student_folder(first, "synthetic") / "student.safetensors"
    second = changed(in_folder(data, tmp_path / "second"), init_from=str(weights), steps=2)
    train_saross(second, ("real",))
    facts = read_metadata(student_folder(second, "real") / "student.safetensors")
    assert facts["views"] == {"steps": 2, "real": 8, "synthetic": 0} and len(facts["init_from"]) == 64
    # Other weights in that file are another experiment.
    random_student(data, weights)
    with pytest.raises(ValueError, match=r"init_from: '.*' there, '.*' now"):
        train_saross(second, ("real",))


@pytest.mark.parametrize("options, message", [
    ({"student": {"skip_module": "none"}}, "holds another student:\n  skip_module: caft there, none now\n"),
    ({"student": {"decoder_channels": [16, 16, 16, 16]}}, "decoder_channels: .* there, .* now"),
    ({}, r"classes: \('sea', 'oil', 'a', 'b', 'c'\) there, \('sea', 'oil', 'look-alike', 'ship', 'land'\) now"),
    ({"student": {"pretrained": "encoder.pth"}}, "expected one of them: leave out student.pretrained"),
])  # fmt: skip
def test_a_start_that_does_not_fit_is_refused(data, tmp_path, options, message):
    other = {"classes": {"names": ["sea", "oil", "a", "b", "c"], "colours": [[i, 0, 0] for i in range(5)]}}
    path = random_student(data, tmp_path / "student.safetensors", **({} if options else other))
    net = data.model_dump(mode="json")["train_saross"]["student"] | options.get("student", {})
    with pytest.raises(ValueError, match=message):
        StudentTraining(changed(data, init_from=str(path), student=net), "real")


def test_a_start_that_is_no_file_or_no_student_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"absent\.safetensors, which is no file; expected a student\.safetensors"):
        StudentTraining(changed(data, init_from=str(tmp_path / "absent.safetensors")), "real")
    save_weights(tmp_path / "teacher.safetensors", {"a": torch.zeros(1)}, {"kind": "jointnet"})
    with pytest.raises(ValueError, match="holds jointnet, not a student"):
        StudentTraining(changed(data, init_from=str(tmp_path / "teacher.safetensors")), "real")
