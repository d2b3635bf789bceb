"""The cost of the skip modules: the paper's +0.89 M, and counts that can be worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ablate_worlds import TOY
from torch import nn

from dakd.ablate.cost import count_macs, measure_cost, peak_bytes
from dakd.config import StudentConfig, load_config
from dakd.models.caft import CAFT
from dakd.models.registry import build_student

ROOT = Path(__file__).resolve().parents[2]


def test_caft_adds_the_papers_parameters_to_the_papers_net():
    with torch.device("meta"):
        nets = [build_student(StudentConfig(skip_module=name), 5) for name in ("caft", "none")]
    with_modules, without = (sum(one.numel() for one in net.parameters()) for net in nets)
    assert round((with_modules - without) / 1e6, 2) == 0.89 and with_modules - without == 887_360 + 11


def test_costs_are_those_of_the_net_and_of_the_same_without_modules():
    config = load_config(TOY)
    cost = measure_cost(config, runs=2)
    net = build_student(config.train_saross.student, 5)
    assert cost["params"] == sum(one.numel() for one in net.parameters())
    for key in ("params", "macs", "seconds", "memory"):
        assert cost["more"][key] == pytest.approx(cost[key] - cost["without"][key])
    assert cost["more"]["params"] > 0 and cost["more"]["macs"] > 0 and cost["seconds"] > 0
    assert cost["memory"] > 4 * cost["params"] and cost["runs"] == 2 and cost["size"] == [32, 32]
    plain = measure_cost(load_config(TOY, ["train_saross.student.skip_module=none"]), runs=1)
    assert plain["more"]["params"] == plain["more"]["macs"] == plain["more"]["memory"] == 0


def test_the_multiply_adds_of_caft_are_those_of_its_seven_layers():
    """Worked by hand for 16 high and 24 low channels, inner width 8, on a grid of 6 x 10 over one of 3 x 5."""
    net, f_hr, f_lr = CAFT(16, 24, inner=8, num_heads=2), torch.rand(2, 16, 6, 10), torch.rand(2, 24, 3, 5)
    queries, keys_values, last = 24 * 8 * 15, 2 * 16 * 8 * 60, 8 * 16 * 60
    depthwise = 3 * 9 * 8 * 60
    assert count_macs(net, f_hr, f_lr) == 2 * (queries + keys_values + depthwise + last)


def test_only_saross_has_skip_modules():
    config = load_config(TOY, ["train_saross.student={name: cbdnet}"])
    with pytest.raises(ValueError, match="the student is cbdnet; expected saross"):
        measure_cost(config, runs=1)


class Chain(nn.Module):
    def forward(self, x):
        first = x + 1  # 4000 bytes alive
        second = first * 2  # 8000
        view = second.view(10, 100)  # no memory of its own
        del first
        return view + 1  # 8000


def test_peak_is_the_most_that_lived_at_a_time():
    assert peak_bytes(Chain(), torch.zeros(1, 1000)) == 8000
    assert peak_bytes(nn.Identity(), torch.zeros(1, 1000)) == 0
