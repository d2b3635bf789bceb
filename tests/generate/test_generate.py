"""Generation: the set is a function of the checkpoint and the settings, whoever makes it, and finished shards stay."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from worlds import generate_pairs, toy_config

from dakd.config import build_config
from dakd.data.sample import OSD_CLASSES
from dakd.data.shards import ShardSet, verify
from dakd.data.soft_labels import range_for
from dakd.diffusion.sampler import PairSampler, start_noise, to_grey
from dakd.diffusion.schedule import CosineSchedule
from dakd.generate.generate import generate
from dakd.models.jointnet import SARJointNet
from dakd.runtime.files import file_hash
from dakd.testing.distributed import run_world
from dakd.weights import load_teacher, save_weights


def with_teacher(run_dir, **settings):
    """A toy run whose teacher is an untrained net with speaking bridges."""
    tree = toy_config(run_dir).model_dump(mode="json")
    tree["generate"] |= settings
    config = build_config(tree)
    torch.manual_seed(0)
    net = SARJointNet(config.train_jointnet.unet, 5)
    for parameter in [*net.sar_bridge.parameters(), *net.label_bridge.parameters()]:
        torch.nn.init.normal_(parameter, std=0.05)
    facts = {
        "kind": "jointnet",
        "unet": config.train_jointnet.unet.model_dump(mode="json"),
        "num_classes": 5,
        "schedule": config.train_jointnet.schedule.model_dump(mode="json"),
        "b": 0.4,
        "classes": OSD_CLASSES.to_dict(),
    }
    save_weights(teacher_file(config), net.state_dict(), facts)
    return config


def teacher_file(config):
    return config.run_path / "train_jointnet" / "stage3" / "weights_ema.safetensors"


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    config = with_teacher(tmp_path_factory.mktemp("generate") / "run")
    return config, generate(config)


def test_shards_hold_the_number_of_pairs_asked_for(generated):
    _, folder = generated
    shards = ShardSet(folder)
    assert len(shards) == 7 and [shard["num_samples"] for shard in shards.index["shards"]] == [3, 3, 1]
    assert shards.index["num_soft"] == 7 and shards.index["kind"] == "synthetic" and shards.index["codec"] == "fp16"
    assert verify(folder) == []
    assert (folder / "contact_sheet.png").stat().st_size > 0


def test_a_record_tells_where_it_comes_from(generated):
    config, folder = generated
    sample = ShardSet(folder).read(5)
    assert sample.key == "synthetic-00000005" and sample.label is None
    assert sample.meta == {
        "index": 5,
        "seed": 0,
        "sampler": "ddim",
        "steps": 3,
        "b": 0.4,
        "checkpoint": file_hash(teacher_file(config)),
    }


def test_image_and_logits_are_the_samplers_last_ones(generated):
    config, folder = generated
    net, facts = load_teacher(teacher_file(config))
    image, logits = PairSampler(net, CosineSchedule(), 3, b=facts["b"])(*start_noise(0, [4], (16, 16), 5))
    sample = ShardSet(folder).read(4)
    assert np.abs(sample.sar.astype(int) - to_grey(image)[0, 0].numpy().astype(int)).max() <= 1
    np.testing.assert_allclose(sample.soft_label, logits[0].numpy(), rtol=2e-3, atol=2e-3)


def test_b_comes_from_the_checkpoint_and_not_from_the_config(generated, tmp_path):
    config, folder = generated
    tree = config.model_dump(mode="json") | {"run_dir": str(tmp_path / "run"), "balance": {"b": 0.9}}
    other = build_config(tree)
    save_weights(teacher_file(other), *_teacher(config))
    assert ShardSet(generate(other)).index["fingerprint"] == ShardSet(folder).index["fingerprint"]


def _teacher(config):
    net, facts = load_teacher(teacher_file(config))
    return net.state_dict(), facts


def test_finished_shards_are_kept_and_missing_ones_made_again(generated, tmp_path, capfd):
    config = with_teacher(tmp_path / "run")
    folder = generate(config)
    kept = (folder / "shard-000000.tar").stat().st_mtime_ns
    (folder / "shard-000001.json").unlink()
    (folder / "index.json").unlink()
    generate(config)
    assert "2 of 3 shards are there already" in capfd.readouterr().out
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == kept
    assert ShardSet(folder).index["fingerprint"] == ShardSet(generated[1]).index["fingerprint"]


def test_shards_of_other_settings_are_not_mixed_in(tmp_path):
    folder = generate(with_teacher(tmp_path / "run"))
    with pytest.raises(ValueError, match="made with another seed"):
        generate(with_teacher(tmp_path / "run", seed=1))
    assert verify(folder) == []


def test_a_larger_set_keeps_the_full_shards_and_lengthens_the_last(generated, tmp_path, capfd):
    folder = generate(with_teacher(tmp_path / "run", num_samples=5))
    assert len(ShardSet(folder)) == 5
    before = [(folder / f"shard-{shard:06d}.tar").stat() for shard in range(2)]
    assert generate(with_teacher(tmp_path / "run", num_samples=7)) == folder
    after = [(folder / f"shard-{shard:06d}.tar").stat() for shard in range(2)]
    assert "1 of 3 shards are there already" in capfd.readouterr().out
    assert before[0].st_mtime_ns == after[0].st_mtime_ns and before[1].st_ino != after[1].st_ino
    shards, whole = ShardSet(folder), ShardSet(generated[1])
    assert [shards.key(i) for i in range(len(shards))] == [whole.key(i) for i in range(7)] and verify(folder) == []
    assert [shard["num_samples"] for shard in shards.index["shards"]] == [3, 3, 1]


@pytest.mark.parametrize("num_samples", [6, 2])
def test_a_smaller_set_is_refused(generated, tmp_path, num_samples):
    config = with_teacher(tmp_path / "run", num_samples=num_samples)
    shutil.copytree(generated[1], config.run_path / "generate")
    with pytest.raises(ValueError, match=rf"more than generate.num_samples \({num_samples}\) .*num_synthetic"):
        generate(config)
    assert verify(config.run_path / "generate") == []


def test_logits_beyond_float16_are_clipped_by_the_codec(tmp_path):
    config = with_teacher(tmp_path / "run", num_samples=1)
    weights, facts = _teacher(config)
    weights["label_net.conv_out.bias"][0] = 1e6
    save_weights(teacher_file(config), weights, facts)
    soft_label = ShardSet(generate(config)).read(0).soft_label
    assert (soft_label[0] == np.finfo(np.float16).max).all() and np.isfinite(soft_label).all()


def test_generation_without_a_teacher_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="run train_jointnet first"):
        generate(toy_config(tmp_path / "run"))


def test_eta_above_zero_makes_another_set_that_is_as_repeatable(tmp_path):
    first, again = (generate(with_teacher(tmp_path / name, eta=0.5)) for name in ("first", "again"))
    plain = generate(with_teacher(tmp_path / "plain"))
    fingerprints = [ShardSet(folder).index["fingerprint"] for folder in (first, again, plain)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.slow
def test_two_processes_make_the_same_set_as_one(generated, tmp_path):
    config = with_teacher(tmp_path / "run")
    results = tmp_path / "results"
    results.mkdir()
    folder = run_world(generate_pairs, 2, results, config.model_dump(mode="json"))[0]
    ours, theirs = ShardSet(folder), ShardSet(generated[1])
    assert len(ours) == len(theirs) == 7
    for i in range(7):
        a, b = ours.read(i), theirs.read(i)
        assert a.key == b.key and json.dumps(a.meta) == json.dumps(b.meta)
        assert np.abs(a.sar.astype(int) - b.sar.astype(int)).max() <= 1
        np.testing.assert_allclose(a.soft_label, b.soft_label, rtol=2e-3, atol=2e-3)


def test_soft_labels_are_codes_for_the_students_temperature_where_asked_and_a_set_has_one_codec(tmp_path):
    config = with_teacher(tmp_path / "run", codec="logprob8", num_samples=3)
    shards = ShardSet(generate(config))
    sample = shards.read(0)
    assert sample.soft_label.dtype == np.uint8 and shards.index["codec"] == "logprob8"
    assert sample.soft_range == shards.index["soft_range"] == range_for(config.train_saross.loss.temperature)
    for settings in ({"codec": "fp16"}, {"codec": "logprob8", "temperature": 5.0}):
        with pytest.raises(ValueError, match=r"was made with another (codec|temperature)"):
            generate(with_teacher(tmp_path / "run", num_samples=3, **settings))
