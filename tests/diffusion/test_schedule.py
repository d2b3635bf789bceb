"""The schedule's published values, and the fused DDIM coefficients against the textbook step."""

from __future__ import annotations

import pytest
import torch

from dakd.diffusion.schedule import CosineSchedule

SCHEDULE = CosineSchedule()


def test_alpha_bar_has_the_squared_cosine_values():
    wanted = {0: 0.9999587, 100: 0.971576, 500: 0.492285, 900: 0.0236161, 995: 3.886e-5, 999: 2.429e-9}
    for t, value in wanted.items():
        assert float(SCHEDULE.alpha_bar[t]) == pytest.approx(value, rel=2e-4)
    assert float(SCHEDULE.betas[999]) == 0.999
    assert float(SCHEDULE.betas[998]) < 0.999


def test_schedule_equals_diffusers():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="leading")
    torch.testing.assert_close(SCHEDULE.alpha_bar.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-8)
    theirs.set_timesteps(200)
    assert SCHEDULE.sampling_timesteps(200).tolist() == theirs.timesteps.tolist()


def test_noising_table_keeps_precision_at_the_first_step():
    table = SCHEDULE.noising_table()
    a, s = table[0].double()
    assert float(a**2 + s**2) == pytest.approx(1.0, abs=1e-7)
    assert float(s**2) == pytest.approx(1 - float(SCHEDULE.alpha_bar[0]), rel=1e-6)


def test_timesteps_of_200_steps_are_995_to_0():
    assert SCHEDULE.sampling_timesteps(200).tolist() == list(range(995, -1, -5))


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="1001 sampling steps"):
        SCHEDULE.sampling_timesteps(1001)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_fused_coefficients_equal_the_textbook_ddim_step(eta):
    generator = torch.Generator().manual_seed(0)
    x_t, x_0, z = torch.randn(3, 50, dtype=torch.float64, generator=generator)
    table = SCHEDULE.ddim_table(50, eta).double()
    timesteps = SCHEDULE.sampling_timesteps(50)
    for i, t in enumerate(timesteps[:-1].tolist()):
        a, p = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[timesteps[i + 1]]
        sigma = eta * torch.sqrt((1 - p) / (1 - a)) * torch.sqrt(1 - a / p)
        eps = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
        textbook = p.sqrt() * x_0 + (1 - p - sigma**2).sqrt() * eps + sigma * z
        A, B, sigma_fused = table[i]
        torch.testing.assert_close(A * x_t + B * x_0 + sigma_fused * z, textbook, rtol=1e-5, atol=1e-5)


def test_last_step_returns_the_estimate_itself():
    assert SCHEDULE.ddim_table(200)[-1].tolist() == [0.0, 1.0, 0.0]
