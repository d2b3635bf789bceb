"""What --dry-run says: multiply-adds and memory, against numbers worked out by hand and the published sizes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from worlds import toy_config

from dakd.config import Config, build_config
from dakd.train import dry_run
from dakd.train.dry_run import Cost, describe_jointnet, describe_saross, measure, memory_parts


@pytest.fixture(autouse=True)
def host_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_a_convolution_is_counted_as_by_hand():
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU())
        image = torch.empty(1, 2, 4, 5)
    net[0].bias.requires_grad_(False)
    # 3 x 3 x 2 products for each of 3 x 4 x 5 outputs; the convolution keeps its input, the ReLU its output, in fp32.
    assert measure(net, (image,)) == Cost(3 * 2 * 9 + 3, 3 * 2 * 9, 9 * 2 * 60, 4 * (40 + 60))


COST = Cost(num_parameters=1000, num_trained=600, macs=0.0, saved_bytes=50)


@pytest.mark.parametrize(
    ("precision", "stage", "world", "wanted"),
    [
        ("fp32", 1, 1, [4000, 2400, 9600, 400]),
        ("bf16", 1, 1, [2000, 1200, 9600, 200]),
        ("autocast", 1, 2, [4000, 2400, 4800, 200]),
        ("bf16", 2, 4, [2000, 300, 2400, 200]),
        ("bf16", 3, 4, [500, 300, 2400, 200]),
    ],
)
def test_memory_is_divided_as_zero_divides_it(precision, stage, world, wanted):
    parts = memory_parts(COST, precision, stage, world, micro_batch=8)
    assert list(parts.values()) == wanted
    assert list(parts) == ["weights", "gradients", "optimizer", "activations of 8 images"]


def test_the_teacher_at_the_papers_size_has_its_parameters_and_multiply_adds():
    # By hand: 507.58 = 2 x 248.21 (a branch) + 2 x 5.05 (19 convolutions 1x1) + 0.45 (those between the inputs) + 0.60
    # (first and last convolution of the label's branch, which have five channels instead of one).
    text = describe_jointnet(Config(name="a"))
    costs = re.findall(r"stage \d   ([\d.]+) M parameters, ([\d.]+) M trained; ([\d.]+) GMAC \((\w+\.?\w+)\)", text)
    assert costs == [
        ("113.67", "113.67", "248.21", "496GFLOP"),
        ("231.53", "117.86", "507.58", "1.02TFLOP"),
        ("231.53", "231.53", "507.58", "1.02TFLOP"),
    ]
    # Stage 1 in bf16: 113.67 M parameters x (2 + 2 + 16) bytes, as well as the activations.
    memory = re.search(r"bf16, as on a GPU: about .* \(weights 0.21, gradients 0.21, optimizer 1.69, activations", text)
    assert memory, text


def test_ddpm_is_described_as_one_net_of_image_and_bits():
    # 113.67 M of stage 1, and for each of 3 bits 9 x 128 weights at both ends and a bias.
    config = build_config({"name": "a", "train_jointnet": {"generator": "ddpm"}})
    text = describe_jointnet(config)
    assert "DDPM, 5 classes" in text and "stage 1" not in text
    assert re.findall(r"^ddpm   ([\d.]+) M parameters, ([\d.]+) M trained", text, re.M) == [("113.68", "113.68")]


def test_without_a_gpu_the_gpus_precision_has_its_own_line(tmp_path):
    config = toy_config(tmp_path)
    teacher, student = describe_jointnet(config), describe_saross(config)
    assert [teacher.count(f" {name}: about ") for name in ("fp32", "bf16, as on a GPU")] == [3, 3]
    assert [student.count(f" {name}: about ") for name in ("fp32", "autocast, as on a GPU")] == [1, 1]


def test_a_precision_that_is_set_has_the_only_line(tmp_path, monkeypatch):
    tree = toy_config(tmp_path).model_dump(mode="json")
    tree["train_saross"]["engine"]["precision"] = "fp32"
    text = describe_saross(build_config(tree))
    assert text.count(" GiB a rank ") == 1 and " fp32: about " in text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    text = describe_jointnet(toy_config(tmp_path))
    assert text.count(" GiB a rank ") == 3 and "fp32: about" not in text


def test_classes_are_known_before_anything_is_prepared(tmp_path):
    tree = toy_config(tmp_path).model_dump(mode="json")
    assert dry_run.num_classes_of(build_config(tree)) == 5
    tree["prepare"] |= {"dataset": "sos", "root": "r", "sensor": "palsar"}
    assert dry_run.num_classes_of(build_config(tree)) == 2
    tree["prepare"] |= {"dataset": "folder", "classes": {"a": (0, 0, 0), "b": (1, 1, 1), "c": (2, 2, 2)}}
    assert dry_run.num_classes_of(build_config(tree)) == 3


def test_what_training_refuses_is_refused(tmp_path, monkeypatch):
    tree = toy_config(tmp_path).model_dump(mode="json")
    for step in ("train_jointnet", "train_saross"):
        tree[step] |= {"global_batch": 4, "micro_batch": 3}
    config = build_config(tree)
    assert "activations of 2 images" in describe_jointnet(config) and "of 2 images" in describe_saross(config)
    tree["train_saross"]["loss"]["class_weights"] = [1, 2]
    with pytest.raises(ValueError, match="class_weights has 2 values for 5 classes"):
        describe_saross(build_config(tree))
    monkeypatch.setenv("WORLD_SIZE", "3")
    for describe in (describe_jointnet, describe_saross):
        with pytest.raises(ValueError, match=r"global_batch \(4\) is not a multiple of the 3 processes"):
            describe(config)
