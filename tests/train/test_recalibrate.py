"""Batch norm's statistics from images of one's choice, against moments of maps that are collected whole."""

from __future__ import annotations

import pytest
import torch
from direct_moments import ERROR_BUDGET, STATISTICS, direct_moments
from small_rivals import SMALL_RIVALS, small_rival
from torch import nn

from dakd.config import StudentConfig
from dakd.models.registry import build_student
from dakd.train.recalibrate import Moments, even_batches, recalibrate


def students() -> dict[str, dict]:
    small = {"name": "saross", "decoder_channels": [16, 16, 16, 8], "caft_heads": [1, 1, 1]}
    hybrid = {"dim": 8, "in_dim": 8, "depths": [1, 1, 2, 2], "num_heads": [1, 1, 2, 4], "drop_path": 0.5}
    return {
        "mamba_vision": small | {"encoder": "mamba_vision", "encoder_options": hybrid},
        "resnet": small | {"encoder": "resnet18", "encoder_options": {"width": 8}},
    } | {name: small_rival(name) for name in SMALL_RIVALS}


@pytest.mark.parametrize("name", students())
def test_recalibrated_statistics_are_those_of_all_values_that_a_batch_norm_sees(name):
    torch.manual_seed(0)
    net = build_student(StudentConfig(**students()[name]), 3)
    images = torch.randn(5, 3, 64, 64) + 0.5
    batches = [images[chosen] for chosen in even_batches(5, 2)]
    assert [len(batch) for batch in batches] == [2, 3]
    wanted = direct_moments(build_with(net, students()[name]), batches)
    assert wanted
    before = {key: value.clone() for key, value in net.state_dict().items()}
    recalibrate(net, batches)
    after = net.state_dict()
    for norm, (mean, variance) in wanted.items():
        for key, value in zip(STATISTICS, (mean, variance)):
            torch.testing.assert_close(after[f"{norm}.{key}"], value.float(), **ERROR_BUDGET)
            assert not torch.allclose(after[f"{norm}.{key}"], before[f"{norm}.{key}"])
    others = [key for key in before if not key.endswith(STATISTICS)]
    assert all(torch.equal(after[key], before[key]) for key in others)
    assert not any(module.training for module in net.modules())


def build_with(net: nn.Module, settings: dict) -> nn.Module:
    copied = build_student(StudentConfig(**settings), net.num_classes)
    copied.load_state_dict(net.state_dict())
    return copied


def test_spoilt_statistics_change_nothing():
    torch.manual_seed(0)
    net = build_student(StudentConfig(**students()["resnet"]), 3)
    batches = list(torch.randn(4, 3, 64, 64).split(2))
    recalibrate(net, batches)
    once = {key: value.clone() for key, value in net.state_dict().items()}
    for key, value in net.state_dict().items():
        if key.endswith(STATISTICS):
            value.fill_(1e6)
    recalibrate(net, batches)
    assert all(torch.equal(value, once[key]) for key, value in net.state_dict().items())


def test_moments_keep_their_digits_beside_a_large_mean():
    torch.manual_seed(0)
    values = torch.randn(6, 2, 3, 3, dtype=torch.float64) + 1e7
    moments = Moments()
    for part in values.split((1, 2, 3)):
        moments.add(part)
    flat = values.transpose(0, 1).flatten(1)
    torch.testing.assert_close(moments.mean, flat.mean(1), rtol=1e-15, atol=0)
    # A sum of squares of 1e14 would have no digit of a variance of 1 beyond the second.
    torch.testing.assert_close(moments.variance, flat.var(1), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "count, size, sizes", [(1, 4, [1]), (3, 4, [3]), (9, 4, [4, 5]), (8, 4, [4, 4]), (3, 1, [3]), (4, 1, [2, 2])]
)
def test_batches_are_even_hold_every_image_once_and_two_where_there_are_two(count, size, sizes):
    batches = even_batches(count, size)
    assert [len(batch) for batch in batches] == sizes
    assert [place for batch in batches for place in batch] == list(range(count))
