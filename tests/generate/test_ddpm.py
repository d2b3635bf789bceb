"""Pairs from DDPM: made from its own weights, decoded to classes, and read by a student as any teacher's are."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from worlds import with_ddpm, with_teacher

from dakd.config import build_config
from dakd.data.loader import make_loader
from dakd.data.prepare import prepare
from dakd.data.shards import ShardSet, verify
from dakd.diffusion.label_reading import bit_reading
from dakd.diffusion.sampler import PairSampler, start_noise, to_grey
from dakd.diffusion.schedule import CosineSchedule
from dakd.generate.generate import generate
from dakd.generate.teacher import teacher_file
from dakd.train.student_data import student_dataset
from dakd.weights import load_teacher


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    config = with_ddpm(tmp_path_factory.mktemp("ddpm") / "run", size=[64, 64])
    return config, generate(config)


def test_shards_hold_its_images_and_the_log_probabilities_of_the_classes(generated):
    config, folder = generated
    assert verify(folder) == [] and len(ShardSet(folder)) == 7
    net, facts = load_teacher(teacher_file(config))
    sampler = PairSampler(net, CosineSchedule(), 3, b=facts["b"], reading=bit_reading(5))
    image, logits = sampler(*start_noise(0, [4], (64, 64), 3))
    sample = ShardSet(folder).read(4)
    assert np.abs(sample.sar.astype(int) - to_grey(image)[0, 0].numpy().astype(int)).max() <= 1
    np.testing.assert_allclose(sample.soft_label, logits[0].numpy(), rtol=2e-3, atol=5e-3)
    assert sample.meta["b"] == 1.0 and sample.soft_label.shape == (5, 64, 64)


def test_a_deterministic_set_does_not_depend_on_how_often_it_was_interrupted(tmp_path):
    whole = generate(with_ddpm(tmp_path / "whole", deterministic=True))
    config = with_ddpm(tmp_path / "parts", deterministic=True)
    parts = generate(config)
    for name in ("shard-000001.json", "shard-000001.tar", "index.json"):
        (parts / name).unlink()
    assert ShardSet(generate(config)).fingerprint == ShardSet(whole).fingerprint


@pytest.mark.parametrize("hard_labels", [False, True])
def test_a_students_loader_reads_its_pairs(generated, tmp_path, hard_labels):
    config, folder = generated
    tree = config.model_dump(mode="json") | {"run_dir": str(tmp_path / "run")}
    tree["train_saross"]["loss"]["hard_labels"], tree["train_saross"]["flip"] = hard_labels, False
    config = build_config(tree)
    shutil.copytree(folder, config.run_path / "generate")
    prepare(config, config.run_path)
    batch = next(iter(make_loader(student_dataset(config, "real+synthetic"), 19, 0, 1, 0)))
    shards, rows = ShardSet(folder), batch.is_synthetic.nonzero().flatten().tolist()
    assert len(rows) == 7
    for row in rows:
        soft_label = shards.read(int(batch.keys[row][-8:])).soft_label
        if hard_labels:
            assert np.array_equal(batch.label[row].numpy(), soft_label.argmax(0))
        else:
            found = batch.teacher[int(batch.teacher_row[row])]
            assert torch.equal(found, torch.from_numpy(soft_label.copy()))


def test_the_generators_of_one_run_folder_do_not_take_one_anothers_weights(generated, tmp_path):
    ddpm, joint = generated[0], with_teacher(tmp_path / "run")
    shutil.copytree(ddpm.run_path / "train_jointnet", joint.run_path / "train_jointnet", dirs_exist_ok=True)
    both = build_config(ddpm.model_dump(mode="json") | {"run_dir": str(joint.run_path)})
    assert [load_teacher(teacher_file(c))[1]["kind"] for c in (both, joint)] == ["ddpm", "jointnet"]
