"""Which parameters decay, the learning rate at every step, and the averages that the optimizer keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dakd.config import OptimizerConfig
from dakd.train.optim import AveragingAdamW, ema_decay, learning_rate, optimizer_identity, parameter_groups


def small_net():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2, bias=False))
    net[2].weight._no_weight_decay = True
    return net


def test_vectors_and_marked_parameters_do_not_decay_for_the_student():
    net = small_net()
    decayed, kept = parameter_groups(net, 0.01, decays_vectors=False)
    assert [p.shape for p in decayed["params"]] == [net[0].weight.shape]
    assert decayed["weight_decay"] == 0.01 and kept["weight_decay"] == 0.0
    assert len(kept["params"]) == 4


def test_everything_but_marked_parameters_decays_for_the_teacher():
    decayed, kept = parameter_groups(small_net(), 0.01, decays_vectors=True)
    assert len(decayed["params"]) == 4 and len(kept["params"]) == 1


def test_frozen_parameters_are_in_no_group():
    net = small_net().requires_grad_(False)
    net[0].weight.requires_grad_(True)
    groups = parameter_groups(net, 0.01, decays_vectors=True)
    assert sum(len(group["params"]) for group in groups) == 1


@pytest.mark.parametrize("decay, halfway, last", [("constant", 1.0, 1.0), ("poly", 0.5, 0.01), ("cosine", 0.5, 0.0)])
def test_rate_warms_up_then_follows_its_decay(decay, halfway, last):
    cfg = OptimizerConfig(warmup_steps=10, lr_decay=decay)
    rates = [learning_rate(step, 110, 2.0, cfg) / 2.0 for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[60] == pytest.approx(halfway)
    assert rates[109] == pytest.approx(last, abs=1e-3)


@pytest.mark.parametrize(
    "settings, shorter, longer, may",
    [({}, 600, 900, True), ({}, 499, 900, False), ({"lr_decay": "poly"}, 600, 900, False)],
)
def test_a_run_may_be_made_longer_where_that_changes_no_rate_of_its_steps(settings, shorter, longer, may):
    cfg = OptimizerConfig(warmup_steps=500, **settings)
    before, after = (optimizer_identity(cfg, 1e-4, steps) for steps in (shorter, longer))
    assert (before == after) == may
    rates = [[learning_rate(step, total, 1e-4, cfg) for step in range(shorter)] for total in (shorter, longer)]
    assert (rates[0] == rates[1]) == may


def test_warm_up_longer_than_the_run_reaches_the_peak_at_its_end():
    rates = torch.tensor([learning_rate(step, 4, 1.0, OptimizerConfig(warmup_steps=500)) for step in range(4)])
    assert rates.tolist() == [0.25, 0.5, 0.75, 1.0]


# --- averages ---------------------------------------------------------------------------------------------------------

DECAYS = {"ema": lambda step: ema_decay(step, 0.9)}


def test_decay_ramps_up_to_its_maximum():
    assert ema_decay(1, 0.9999) == pytest.approx(2 / 11)
    assert ema_decay(90, 0.9999) == pytest.approx(0.91)
    assert ema_decay(10**6, 0.9999) == 0.9999
    assert ema_decay(5, 0.0) == 0.0


def test_average_equals_its_definition_and_adamw_is_torchs():
    torch.manual_seed(0)
    start = torch.randn(7)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ema_adamw = AveragingAdamW([ours], decays=DECAYS, lr=0.1, weight_decay=0.01)
    adamw = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    wanted = start.double()
    for step in range(1, 30):
        gradient = torch.randn(7)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        ema_adamw.step()
        adamw.step()
        assert torch.equal(ours, theirs)
        decay = ema_decay(step, 0.9)
        wanted = decay * wanted + (1 - decay) * ours.detach().double()
    torch.testing.assert_close(ema_adamw.state[ours]["ema"].double(), wanted, rtol=1e-5, atol=1e-6)


def test_parameters_without_gradient_have_no_average():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = AveragingAdamW([parameter], decays=DECAYS, lr=0.1)
    optimizer.step()
    assert "ema" not in optimizer.state[parameter]


def test_states_made_beforehand_give_the_same_steps():
    def run(beforehand):
        torch.manual_seed(1)
        parameter = torch.nn.Parameter(torch.randn(5))
        optimizer = AveragingAdamW([parameter], decays=DECAYS, lr=0.1)
        if beforehand:
            optimizer.create_states()
        for _ in range(5):
            parameter.grad = torch.randn(5)
            optimizer.step()
        return parameter.detach(), optimizer.state[parameter]

    (early, early_state), (late, late_state) = run(True), run(False)
    assert torch.equal(early, late) and set(early_state) == set(late_state)
    assert all(torch.equal(early_state[name], late_state[name]) for name in late_state)
