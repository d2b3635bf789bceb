"""The average beside Adam's moments: exact, ramped, and started from the initial weights."""

from __future__ import annotations

import pytest
import torch

from dakd.train.ema import AveragingAdamW, ema_decay

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
