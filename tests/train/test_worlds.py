"""Several ranks under every ZeRO stage: the same losses as one, the same state after a stop, one end for all."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from worlds import disturb, in_folder, losses_of, train_each, with_engine, with_pairs

from dakd.config import build_config
from dakd.data.prepared import open_prepared
from dakd.runtime.tensor_files import load_state
from dakd.testing.distributed import run_world
from dakd.train.checkpoint import list_checkpoints, load_tensors, verified_facts
from dakd.train.jointnet import StageTraining, train_jointnet
from dakd.train.saross import student_folder, train_saross
from dakd.train.teacher import stage_folder, stage_weights
from dakd.weights import load_student

pytestmark = pytest.mark.slow
ENGINES = ("zero1", "zero2", "zero3", "zero1_offload", "zero2_offload", "zero3_offload")
PAIRS = "real+synthetic"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared images and pairs of a run with frozen batch norm and snapshots of averages."""
    config = with_pairs(tmp_path_factory.mktemp("data"), batch_norm="frozen")
    tree = config.model_dump(mode="json")
    for section in ("train_jointnet", "train_saross"):
        tree[section]["optimizer"]["posthoc_every"] = 3
    return build_config(tree)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Stages 1 and 2 and a student with frozen batch norm, trained by one process."""
    config = in_folder(data, tmp_path_factory.mktemp("alone") / "run")
    train_jointnet(config, (1, 2))
    train_saross(config, (PAIRS,))
    return config


def snapshot(config, step, stage=2):
    """Both averages of a stage's trained parameters."""
    folder = stage_folder(config, f"stage{stage}") / "posthoc" / f"step-{step:08d}"
    assert verified_facts(folder)["lengths"] == [0.05, 0.1]
    return load_tensors(folder)


def run(function, world, folder, *args):
    folder.mkdir()
    return run_world(function, world, folder, *args)


def assert_near(ours, theirs, rtol=1e-3, atol=2e-4):
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=rtol, atol=atol)


@pytest.mark.parametrize("world, engines", [(2, ENGINES), (4, ("zero1", "zero3"))])
def test_losses_depend_neither_on_the_number_of_processes_nor_on_zero(data, alone, tmp_path, world, engines):
    """All three stages, and with offload; SAR-Net, frozen in stage 2, comes out as stage 1 left it."""
    configs = [with_engine(in_folder(data, tmp_path / name), name) for name in engines]
    trees = [config.model_dump(mode="json") for config in configs]
    for tree in trees:
        for section in ("train_jointnet", "train_saross"):
            tree[section]["engine"]["checkpoint_every"] = 100  # only at the end
    found = run(train_each, world, tmp_path / "results", trees, (1, 2), PAIRS)[0]
    folders = [stage_folder(alone, "stage1"), stage_folder(alone, "stage2"), student_folder(alone, PAIRS)]
    wanted = [loss for folder in folders for loss in losses_of(folder)]
    assert len(wanted) == 12 and np.ptp(wanted) > 0.1
    for name, losses in zip(engines, found):
        assert losses == pytest.approx(wanted, rel=1e-4), name
    for config in configs:
        assert_near(*(load_state(stage_weights(one, "stage2", "ema")) for one in (config, alone)))
        for step in (3, 4):
            ours, theirs = (snapshot(config, step) for config in (config, alone))
            assert len(ours) > 100 and set(ours) == set(theirs)
            assert_near(ours, theirs)
        stage_1 = load_state(stage_weights(config, "stage1", "ema"))
        stage_2 = load_state(stage_weights(config, "stage2", "raw"))
        assert all(torch.equal(stage_2[f"sar_net.{name}"], value) for name, value in stage_1.items())


def stopping_at(config, steps):
    tree = config.model_dump(mode="json")
    for stage in ("stage1", "stage2"):
        tree["train_jointnet"][stage]["steps"] = steps
    tree["train_saross"]["steps"] = steps
    return tree


def test_two_processes_go_on_bit_for_bit_also_under_another_zero_stage(data, tmp_path):
    """Stages 1 and 2 to the last bit; stage 3 adds gradients up in another order, and is equal to itself."""
    plans = {"zero1": "zero1", "zero2": "zero1", "zero3": "zero3"}
    trees, pairs = [], []
    for then, first in plans.items():
        straight = with_engine(in_folder(data, tmp_path / f"straight_{then}"), then)
        resumed = in_folder(data, tmp_path / f"resumed_{then}")
        trees += [stopping_at(straight, 4), stopping_at(with_engine(resumed, first), 2)]
        trees += [stopping_at(with_engine(resumed, then), 4)]
        pairs.append((straight, resumed))
    run(train_each, 2, tmp_path / "results", trees, (1,), PAIRS)
    for straight, resumed in pairs:
        for kind in ("raw", "ema"):
            ours, theirs = (load_state(stage_weights(config, "stage1", kind)) for config in (resumed, straight))
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        ours, theirs = (snapshot(config, 4, stage=1) for config in (resumed, straight))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        files = [student_folder(config, PAIRS) / "student.safetensors" for config in (resumed, straight)]
        ours, theirs = map(load_state, files)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    net, _ = load_student(student_folder(pairs[0][1], PAIRS) / "student.safetensors")
    assert bool(torch.isfinite(net(torch.rand(1, 3, 64, 64))).all())


def test_one_then_two_then_one_process_make_the_run_of_one(data, alone, tmp_path):
    config = in_folder(data, tmp_path / "run")
    for world, steps in ((1, 2), (2, 3), (1, 4)):
        tree = stopping_at(config, steps)
        if world == 1:
            train_each([tree], (1,), PAIRS)
        else:
            run(train_each, world, tmp_path / "results", [tree], (1,), PAIRS)
    ours, theirs = (losses_of(stage_folder(one, "stage1")) for one in (config, alone))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert losses_of(student_folder(config, PAIRS)) == pytest.approx(losses_of(student_folder(alone, PAIRS)), rel=1e-4)
    assert_near(load_state(stage_weights(config, "stage1", "ema")), load_state(stage_weights(alone, "stage1", "ema")))


def test_trouble_on_one_rank_stops_both_at_one_step_and_nothing_is_lost(data, tmp_path):
    """A signal to rank 1, then a loss and a gradient of rank 1 that are not finite, then on to the end."""
    straight, disturbed = (in_folder(data, tmp_path / name) for name in ("straight", "disturbed"))
    run(train_each, 2, tmp_path / "results", [straight.model_dump(mode="json")], (1,), None)
    messages = run(disturb, 2, tmp_path / "out", disturbed.model_dump(mode="json"))
    assert messages[0] == messages[1]
    assert "stopped after step 2 of 4 (SIGUSR1)" in messages[0]["signal"]
    # Positions 8 to 11 are the batch of step 3; rank 1 has 9 and 11, and the second of the two is poisoned.
    dataset_keys = keys_at(disturbed, range(8, 12))
    assert messages[0]["loss"].startswith("the loss is nan") and f"rank 1: {dataset_keys[3]}." in messages[0]["loss"]
    assert "rank 0" not in messages[0]["loss"] and dataset_keys[1] not in messages[0]["loss"]
    assert messages[0]["gradient"].startswith("the gradient is")
    assert all(key in messages[0]["gradient"] for key in dataset_keys)
    for kind in ("raw", "ema"):
        ours, theirs = (load_state(stage_weights(config, "stage1", kind)) for config in (disturbed, straight))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert losses_of(stage_folder(disturbed, "stage1")) == losses_of(stage_folder(straight, "stage1"))
    newest = list_checkpoints(stage_folder(disturbed, "stage1") / "checkpoints")[-1]
    facts = json.loads((newest / "state.json").read_text())
    assert (facts["position"], facts["world_size"], facts["rng"]["step"]) == (16, 2, 4)


def keys_at(config, positions):
    dataset = StageTraining(config, 1, open_prepared(config, "train"), 0.5).dataset
    return dataset.batch(positions).keys
