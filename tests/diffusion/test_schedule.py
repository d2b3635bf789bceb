"""The schedule's published values and their precision."""

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

    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(SCHEDULE.alpha_bar.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-8)


def test_noising_table_keeps_precision_at_the_first_step():
    table = SCHEDULE.noising_table()
    a, s = table[0].double()
    assert float(a**2 + s**2) == pytest.approx(1.0, abs=1e-7)
    assert float(s**2) == pytest.approx(1 - float(SCHEDULE.alpha_bar[0]), rel=1e-6)
