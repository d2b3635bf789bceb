"""Temperature scaling against a dense grid, by its calibration, and at its bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dakd.metrics.calibration import CalibrationCounts
from dakd.metrics.temperature import HIGHEST, LOWEST, Terms, fit_temperature, sums_over_pixels


def drawn(wrong_by: float, seed: int = 0, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (5, H, W), and labels drawn from the softmax of logits / wrong_by: the best temperature is near it."""
    generator = torch.Generator().manual_seed(seed)
    logits = wrong_by * 2 * torch.randn(5, size, size, generator=generator)
    probabilities = (logits / wrong_by).softmax(0).flatten(1).T
    label = torch.multinomial(probabilities, 1, generator=generator).reshape(size, size).to(torch.uint8)
    label[0] = 255
    return logits, label


def fit(logits, label):
    passes = []

    def means_at(beta):
        passes.append(beta)
        sums, num_pixels = sums_over_pixels(logits, label, beta)
        return Terms(*(one / num_pixels for one in sums))

    return fit_temperature(means_at), passes


def loss_at(logits, label, temperature) -> float:
    return F.cross_entropy(logits.double()[None] / temperature, label.long()[None], ignore_index=255).item()


def ece(logits, label, temperature) -> float:
    counts = CalibrationCounts().update((logits / temperature).softmax(0)[None], label[None])
    return counts.to_dict()["ece"]


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_the_three_terms_are_those_of_autograd(beta):
    logits, label = drawn(1.5, size=12)
    at = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(at * logits.double()[None], label.long()[None], ignore_index=255, reduction="sum")
    (slope,) = torch.autograd.grad(loss, at, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, at)
    sums, num_pixels = sums_over_pixels(logits, label, beta)
    assert sums == pytest.approx([loss.item(), slope.item(), curvature.item()], rel=1e-9) and num_pixels == 11 * 12


@pytest.mark.parametrize("wrong_by", [0.2, 0.7, 1.0, 2.5, 9.0])
def test_the_temperature_is_that_of_a_dense_grid_and_lowers_the_loss(wrong_by):
    logits, label = drawn(wrong_by, size=40)
    found, passes = fit(logits, label)
    grid = found.temperature * np.exp(np.linspace(-0.2, 0.2, 401))  # steps of 0.1 %
    losses = [loss_at(logits, label, one) for one in grid]
    # The convex loss has no other minimum, so the grid need not reach further.
    assert found.temperature == pytest.approx(grid[int(np.argmin(losses))], rel=1e-3)
    assert found.temperature == pytest.approx(wrong_by, rel=0.15) and not found.is_at_bound
    assert found.loss == pytest.approx(min(losses), abs=1e-7) and len(passes) <= 12
    assert found.loss_before == pytest.approx(loss_at(logits, label, 1.0)) and found.loss <= found.loss_before


@pytest.mark.parametrize("wrong_by", [0.4, 3.0])
def test_the_calibration_error_falls(wrong_by):
    logits, label = drawn(wrong_by, seed=1, size=128)
    temperature = fit(*drawn(wrong_by, seed=2))[0].temperature  # of other pixels
    before, after = ece(logits, label, 1.0), ece(logits, label, temperature)
    assert before > 0.1 and after < 0.02


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_where_every_pixel_is_right_the_temperature_is_the_lower_bound(scale):
    logits, _ = drawn(1.0)
    found, _ = fit(scale * logits, logits.argmax(0))
    assert found.temperature == LOWEST and found.is_at_bound


def test_where_every_pixel_is_wrong_it_is_the_upper_bound():
    logits, _ = drawn(1.0)
    found, passes = fit(logits, logits.argmin(0))
    assert found.temperature == HIGHEST and found.is_at_bound and len(passes) < 10


def test_logits_that_are_equal_everywhere_end_at_a_bound_and_change_nothing():
    found, passes = fit(torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8))
    assert found.is_at_bound and found.loss == found.loss_before == pytest.approx(np.log(3)) and len(passes) == 2


def test_logits_that_are_not_finite_are_refused():
    logits, label = drawn(1.0, size=4)
    logits[2, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="mean cross-entropy is nan; expected a finite number"):
        fit(logits, label)
