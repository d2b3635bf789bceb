"""Label branches trained with L2: what the sampler makes of their output, and the probabilities that it keeps."""

from __future__ import annotations

import math

import pytest
import torch

from dakd.diffusion.label_reading import MIN_PROBABILITY, READINGS, one_hot_logits
from dakd.diffusion.sampler import PairSampler, start_noise
from dakd.diffusion.schedule import CosineSchedule
from dakd.diffusion.solvers import sampling_timesteps


def toy_net(x_t, y_t, t):
    """A denoiser of both states whose estimates leave [-1, 1]."""
    scale = 1.5 + t.float().view(-1, 1, 1, 1) / 1000
    return scale * torch.tanh(x_t), 1.2 * scale * torch.tanh(y_t + 0.3 * x_t)


def ddim_loop(net, x, y, num_steps, b):
    """Song et al. 2021, eta = 0, in float64: eps from the clamped estimate, then the next state."""
    alpha_bar, ts = CosineSchedule().alpha_bar, sampling_timesteps(CosineSchedule(), num_steps).tolist()
    x, y = x.double(), y.double()
    for t, after in zip(ts, [*ts[1:], None]):
        a, p = alpha_bar[t], 1.0 if after is None else float(alpha_bar[after])
        x_hat, y_hat = net(x, y, torch.full((len(x),), t))
        states = []
        for state, clean in ((x, x_hat.clamp(-1, 1)), (y, y_hat.clamp(-b, b))):
            eps = (state - a.sqrt() * clean) / (1 - a).sqrt()
            states.append(math.sqrt(p) * clean + math.sqrt(1 - p) * eps)
        x, y = states
    return x, y_hat


@pytest.mark.parametrize("b", [0.53, 1.0])
def test_sampling_an_l2_label_branch_equals_a_textbook_ddim_loop(b):
    x, y = start_noise(3, range(2), (8, 8), 4)
    wanted_x, y_hat = ddim_loop(toy_net, x, y, 20, b)
    assert y_hat.abs().max() > 1.1  # the clamp was at work
    image, logits = PairSampler(toy_net, CosineSchedule(), 20, b=b, reading=READINGS["l2"])(x, y)
    torch.testing.assert_close(image.double(), wanted_x, rtol=0, atol=2e-4)
    wanted = one_hot_logits(y_hat / b).softmax(1)
    torch.testing.assert_close(logits.softmax(1), wanted, rtol=0, atol=2e-4)


def test_probabilities_are_recovered_from_the_mean_of_masks():
    p = (2 * torch.rand(2, 5, 6, 6)).exp().square()
    p = p / p.sum(1, keepdim=True)  # 0.004 to 0.93
    logits = one_hot_logits(2 * p - 1)
    torch.testing.assert_close(logits.softmax(1), p)
    torch.testing.assert_close(logits, p.log(), rtol=1e-5, atol=1e-5)


def test_outputs_beyond_a_probability_are_finite_and_keep_the_class():
    y_hat = torch.tensor([1.3, -1.7, -0.9, -2.0]).view(1, 4, 1, 1).to(torch.bfloat16)
    logits = one_hot_logits(y_hat)
    assert logits.dtype == torch.float32 and logits.isfinite().all() and int(logits.argmax()) == 0
    total = 1 + 2 * MIN_PROBABILITY + (float(y_hat[0, 2, 0, 0]) + 1) / 2
    torch.testing.assert_close(logits.exp().flatten()[1], torch.tensor(MIN_PROBABILITY / total))
