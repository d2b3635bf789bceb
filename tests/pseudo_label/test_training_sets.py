"""Students learn from pseudo-labelled images as from generated pairs, beside them or in their place."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from pseudo_worlds import run_with, with_student, with_unlabelled
from worlds import losses_of

from dakd.card import write_cards
from dakd.cli import STEPS, run_step
from dakd.config import Config, load_config
from dakd.data.datasets import StudentDataset
from dakd.data.prepare import prepare
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.shards import ShardSet, write_shards
from dakd.evaluate.inputs import find_students
from dakd.pipeline import pipeline_calls
from dakd.pseudo_label.step import pseudo_label
from dakd.report.report import write_report
from dakd.runtime.tensor_files import read_metadata
from dakd.train.saross import StudentTraining, train_saross
from dakd.train.student_data import student_dataset, student_steps
from dakd.verify import verify_run

SETS = ("real", "synthetic", "real+synthetic", "real+pseudo", "real+synthetic+pseudo")


def ready(folder, labelling: dict | None = None, codec: str = "fp16", **train: object) -> Config:
    """A run with 12 real scenes, 7 generated pairs and 5 pseudo-labelled images."""
    config = run_with(folder, labelling, **train)
    prepare(config)
    with_student(config), with_unlabelled(config)
    pseudo_label(config)
    rng = np.random.default_rng(0)
    pairs = [
        Sample(f"pair-{i}", rng.integers(0, 256, (32, 32), dtype=np.uint8),
               soft_label=rng.normal(size=(5, 32, 32)).astype(np.float16))
        for i in range(7)
    ]  # fmt: skip
    write_shards(config.run_path / "generate", pairs, OSD_CLASSES, shard_size=3, codec=codec, temperature=2.0)
    return config


def kinds_of_epoch(dataset: StudentDataset, epoch: int = 0) -> Counter:
    keys = [key for position in range(dataset.epoch_length)
            for key in dataset.batch([epoch * dataset.epoch_length + position]).keys[0].split("+")]  # fmt: skip
    return Counter("image" if key.startswith("image") else key.split("-")[0] for key in keys)


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("real", {"train": 12}),
        ("real+synthetic", {"train": 12, "pair": 7}),
        ("real+pseudo", {"train": 12, "image": 5}),
        ("real+synthetic+pseudo", {"train": 12, "pair": 7, "image": 5}),
    ],
)
def test_an_epoch_holds_every_sample_of_its_sets_once(tmp_path, name, wanted):
    dataset = student_dataset(ready(tmp_path), name)
    assert kinds_of_epoch(dataset) == wanted == kinds_of_epoch(dataset, 1)


def test_num_synthetic_limits_the_generated_pairs_alone(tmp_path):
    dataset = student_dataset(ready(tmp_path, num_synthetic=2), "real+synthetic+pseudo")
    assert kinds_of_epoch(dataset) == {"train": 12, "pair": 2, "image": 5}
    assert (dataset.num_synthetic, dataset.num_pseudo) == (2, 5)


def test_the_synthetic_share_is_that_of_both_sets_together(tmp_path):
    config = ready(tmp_path, synthetic_share=0.5)
    for name in ("real+pseudo", "real+synthetic+pseudo"):
        dataset = student_dataset(config, name)
        assert dataset.epoch_length == 24
        counts = kinds_of_epoch(dataset)
        assert counts["train"] == 12 and counts["pair"] + counts["image"] == 12
    assert counts == {"train": 12, "pair": 7, "image": 5}  # of twelve pairs each once


def test_mosaics_are_made_of_both_sets(tmp_path):
    dataset = student_dataset(ready(tmp_path, mosaic=True), "real+synthetic+pseudo")
    assert dataset.epoch_length == 12 + 3 and kinds_of_epoch(dataset) == {"train": 12, "pair": 7, "image": 5}
    batch = dataset.batch(list(range(15)))
    assert int(batch.is_synthetic.sum()) == 3 and batch.teacher.shape == (3, 5, 32, 32)


def test_soft_labels_of_a_batch_are_those_of_the_set(tmp_path):
    config = ready(tmp_path, flip=False)
    dataset, pairs = student_dataset(config, "real+pseudo"), ShardSet(config.run_path / "pseudo_label")
    batch, by_key = dataset.batch(list(range(17))), {pair.key: pair for pair in pairs}
    compared = 0
    for key, row in zip(batch.keys, batch.teacher_row.tolist()):
        if row >= 0 and by_key[key].sar.shape == (32, 32):
            assert np.array_equal(batch.teacher[row].numpy(), by_key[key].soft_label)
            compared += 1
    assert compared == 4 and sum(row >= 0 for row in batch.teacher_row.tolist()) == 5


def test_sets_of_unlike_codecs_are_refused_before_the_training(tmp_path):
    config = ready(tmp_path, {"codec": "logprob8"})
    with pytest.raises(ValueError, match=r"mixes soft labels of different kinds: fp16, codes of 18\.4 nats"):
        StudentTraining(config, "real+synthetic+pseudo")
    StudentTraining(config, "real+pseudo")
    hard = config.train_saross.loss.model_copy(update={"hard_labels": True})
    hard = config.model_copy(update={"train_saross": config.train_saross.model_copy(update={"loss": hard})})
    StudentTraining(hard, "real+synthetic+pseudo")


def test_sets_of_one_codec_and_temperature_are_mixed(tmp_path):
    config = ready(tmp_path, {"codec": "logprob8"}, codec="logprob8")
    batch = student_dataset(config, "real+synthetic+pseudo").batch(list(range(24)))
    assert batch.teacher.dtype == torch.uint8 and batch.teacher.shape[0] == 12 and batch.teacher_range == 18.4


def test_few_pseudo_labelled_images_are_refused_where_a_mosaic_needs_four(tmp_path):
    config = ready(tmp_path, {"max_samples": 3}, mosaic=True)
    with pytest.raises(ValueError, match=r"found 3 pseudo-labelled images; expected 4 or more \(mosaic: True\)"):
        student_dataset(config, "real+pseudo")
    assert student_dataset(config, "real+synthetic+pseudo").epoch_length == 12 + 2


def test_a_training_without_the_pseudo_labels_says_which_step_to_run(tmp_path):
    config = run_with(tmp_path)
    prepare(config)
    with pytest.raises(ValueError, match=r"no pseudo-labelled images in .*, then run the step pseudo_label"):
        train_saross(config)
    assert not (config.run_path / "train_saross").exists()


def test_a_training_refuses_labels_of_another_student(tmp_path, capsys):
    config = ready(tmp_path)
    with_student(config, seed=1)
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert run_step("train_saross", ["--config", str(path), "--training-set", "real+pseudo"]) == 1
    assert "was labelled with other settings (student: " in capsys.readouterr().err


def test_epochs_are_counted_alike_before_and_after_the_images_are_labelled(tmp_path):
    config = run_with(tmp_path, {"max_samples": 4}, steps=None, epochs=3)
    prepare(config)
    with_unlabelled(config)
    assert student_steps(config, "real+pseudo") == 3 * 4  # of 12 + 4 samples
    with_student(config)
    pseudo_label(config)
    assert student_steps(config, "real+pseudo") == 3 * 4
    assert StudentTraining(config, "real").total_steps == StudentTraining(config, "real+pseudo").total_steps == 12


def test_pseudo_labels_may_lie_elsewhere(tmp_path):
    config = ready(tmp_path / "one")
    place = tmp_path / "pairs"
    shutil.copytree(config.run_path / "pseudo_label", place)
    other = run_with(tmp_path / "two", pseudo=str(place))
    prepare(other)
    assert kinds_of_epoch(student_dataset(other, "real+pseudo")) == {"train": 12, "image": 5}
    assert pipeline_calls(other, ("pseudo_label", "train_saross")) == [("train_saross",)]


def test_students_of_pseudo_labels_follow_those_of_the_papers_sets(tmp_path):
    for name in sorted(SETS):
        folder = tmp_path / "train_saross" / name
        folder.mkdir(parents=True)
        (folder / "student.safetensors").touch()
    assert tuple(find_students(tmp_path)) == SETS


def test_the_pipeline_trains_the_student_that_labels_first():
    steps = STEPS[:-1]
    plain = load_config("smoke")
    assert pipeline_calls(plain, steps) == [(step,) for step in steps if step not in ("refine", "pseudo_label")]
    config = load_config("smoke", ["train_saross.training_sets=[real, real+synthetic+pseudo]"])
    assert pipeline_calls(config, steps)[3:7] == [
        ("generate",), ("train_saross", "--training-set", "real"), ("pseudo_label",), ("train_saross",)
    ]  # fmt: skip


def test_the_pipeline_makes_no_teacher_for_students_that_learn_from_no_pairs():
    first, last = [("prepare",), ("balance",)], [("train_saross",), ("evaluate",), ("predict",), ("report",)]

    def calls(*overrides):
        return pipeline_calls(load_config("smoke", list(overrides)), STEPS[:-1])

    real = "train_saross.training_sets=[real]"
    assert calls(real) == calls(real, "refine.repeats=2", "train_saross.steps=4") == [*first, *last]
    gate = ("generate.gate.enabled=true", "generate.gate.student=real")
    assert calls(real, "train_saross.steps=4", *gate) == [*first, *last]
    assert calls("train_saross.training_sets=[real, real+pseudo]") == [
        *first, ("train_saross", "--training-set", "real"), ("pseudo_label",), *last
    ]  # fmt: skip
    elsewhere = calls("train_saross.synthetic=pairs", "train_saross.steps=4", "refine.repeats=2")
    assert elsewhere == [*first, ("train_saross", "--training-set", "real"), ("refine",), *last]


def test_a_run_trains_itself_from_the_real_student_to_the_report(tmp_path, capsys):
    config = run_with(tmp_path, {"min_confidence": 0.01})
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    for step, *options in pipeline_calls(config, STEPS[:-1]):
        assert run_step(step, ["--config", str(path), *options]) == 0, capsys.readouterr().err
        if step == "prepare":
            with_unlabelled(config)
    run = config.run_path
    assert len(ShardSet(run / "pseudo_label")) == 5
    facts = read_metadata(run / "train_saross" / "real+pseudo" / "student.safetensors")
    real = read_metadata(run / "train_saross" / "real" / "student.safetensors")
    assert (facts["num_pseudo"], facts["num_synthetic"], real["num_pseudo"]) == (5, 0, None)
    assert facts["data"] == [*real["data"], ShardSet(run / "pseudo_label").fingerprint]
    # Another student has learnt, in as many steps.
    losses = [losses_of(run / "train_saross" / name) for name in ("real", "real+pseudo")]
    assert len(losses[0]) == len(losses[1]) == 4 and losses[0] != losses[1]
    table = (run / "evaluate" / "table.txt").read_text()
    assert table.index("real ") < table.index("real+pseudo")
    assert "synthetic set: none (no student learns from generated pairs)" in table
    page = write_report(run).read_text()
    assert page.count("no student of real, real+pseudo learns from generated pairs") == 2  # the pairs; the teacher
    assert "generate</b>" not in page and "train_jointnet" not in page.partition("Settings</h2>")[0]
    rows = re.findall(r"<tr><td>(train|unlabelled|pseudo-labelled|synthetic)</td><td>(\d+)</td>", page)
    assert dict(rows) == {"train": "12", "unlabelled": "5", "pseudo-labelled": "5"}, rows
    assert [one for one in verify_run(run) if one.state not in ("ok",)] == []
    write_cards(run)
    card = (run / "train_saross" / "real+pseudo" / "README.md").read_text()
    assert "- Pseudo-labelled images: 5, labelled by the student of the training set real" in card
    assert "- Synthetic pairs: none" in card and "1 distillation (form temperature, temperature 2)" in card
    assert "labels of another student, whose errors it may repeat" in card
