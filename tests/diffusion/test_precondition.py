"""The share of the noisy image that the clean estimate takes, against Karras et al.'s table, velocities and optima."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from dakd.diffusion.precondition import clean_image, fine_detail, skip_and_scale
from dakd.diffusion.sampler import PairSampler, start_noise
from dakd.diffusion.schedule import CosineSchedule

TABLE = CosineSchedule().noising_table()


def net_with_output(function):
    return lambda x_t, y_t, t: (function(x_t), y_t)


def sampled(function, num_steps=50, **settings):
    x, y = start_noise(3, range(2), (32, 32), 2)
    return PairSampler(net_with_output(function), CosineSchedule(), num_steps, b=0.5, **settings)(x, y)[0]


@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 1.0, 2.0])
def test_the_factors_are_those_of_karras_et_al_in_units_of_the_image(sigma_data):
    a, s = TABLE.double().unbind(1)
    sigma = s / a  # of x_t / a = x_0 + sigma eps
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    skip, scale = skip_and_scale(TABLE.double(), sigma_data).unbind(1)
    torch.testing.assert_close(skip * a, c_skip)
    torch.testing.assert_close(scale * sigma_data, c_out)


def test_with_1_it_is_diffusers_velocity():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(50)
    x, _ = start_noise(3, range(2), (32, 32), 2)
    for t in scheduler.timesteps:
        x = scheduler.step(-torch.tanh(2 * x), t, x).prev_sample
    ours = sampled(lambda x_t: torch.tanh(2 * x_t), sigma_data=1.0, clip=100.0)
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def test_without_noise_it_is_the_image_and_in_noise_alone_it_is_the_output():
    generator = torch.Generator().manual_seed(0)
    x_t, output = torch.randn(2, 2, 1, 8, 8, generator=generator)
    ends = skip_and_scale(TABLE[[0, -1]], 0.15)
    first, last = clean_image(output, x_t, ends)
    torch.testing.assert_close(first, x_t[0], rtol=0, atol=0.2)
    torch.testing.assert_close(clean_image(torch.zeros_like(x_t), x_t, ends)[0], x_t[0], rtol=0.01, atol=0)
    torch.testing.assert_close(last, output[1], rtol=1e-2, atol=1e-3)
    assert clean_image(output.bfloat16(), x_t.bfloat16(), ends).dtype == torch.float32


@pytest.mark.parametrize("t", [20, 100, 300, 600])
def test_the_share_is_the_best_for_detail_of_that_deviation(t):
    generator = torch.Generator().manual_seed(t)
    x_0 = 0.2 * torch.randn(4, 1, 64, 64, generator=generator)
    x_t = TABLE[t, 0] * x_0 + TABLE[t, 1] * torch.randn(x_0.shape, generator=generator)

    def error(share):
        factors = skip_and_scale(TABLE[[t]], 0.2) * torch.tensor([share, 1.0])
        return float((clean_image(torch.zeros_like(x_t), x_t, factors) - x_0).square().mean())

    assert error(1.0) < min(error(0.7), error(1.4))


def test_speckle_appears_before_a_net_has_learnt_any_and_does_not_without():
    speckle = sampled(torch.zeros_like, num_steps=100, sigma_data=0.2)
    assert 0.17 < float(speckle.std()) < 0.22
    correlation = torch.corrcoef(torch.stack([speckle[..., 1:].flatten(), speckle[..., :-1].flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.1
    assert float(sampled(torch.zeros_like, num_steps=100).std()) == 0


def test_the_fine_detail_of_noise_is_what_a_mean_over_25_pixels_leaves_of_it():
    rng = np.random.default_rng(0)
    noise = [rng.normal(128, 20, (256, 256)).clip(0, 255).round().astype(np.uint8) for _ in range(2)]
    assert fine_detail(noise) == pytest.approx(20 / 127.5 * math.sqrt(1 - 1 / 25), rel=0.01)
    image = rng.integers(0, 256, (9, 11), dtype=np.uint8)
    means = ndimage.uniform_filter(image / 127.5, 5, mode="nearest")
    assert fine_detail([image]) == pytest.approx(float(np.sqrt(np.mean((image / 127.5 - means) ** 2))), rel=1e-5)
    assert fine_detail([np.full((8, 8), 9, np.uint8)]) == 0
    with pytest.raises(ValueError, match="no images"):
        fine_detail([])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_sampler_takes_the_clean_image_for_the_nets_estimate(eta):
    schedule, factors = CosineSchedule(), skip_and_scale(TABLE, 0.3)

    def net(x_t, y_t, t):
        return torch.tanh(x_t + y_t[:, :1]), y_t + x_t

    def clean_net(x_t, y_t, t):
        output, logits = net(x_t, y_t, t)
        return clean_image(output, x_t, factors[t]), logits

    x, y = start_noise(0, range(3), (8, 8), 2)
    settings = {"b": 0.5, "eta": eta}
    calls = {"sample_ids": torch.arange(3), "seed": 7}
    ours = PairSampler(net, schedule, 20, sigma_data=0.3, **settings)(x, y, **calls)
    theirs = PairSampler(clean_net, schedule, 20, **settings)(x, y, **calls)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    plain = PairSampler(net, schedule, 20, **settings)(x, y, **calls)
    assert float((plain[0] - ours[0]).abs().max()) > 0.1
