"""The solvers against diffusers and the textbooks, their order of convergence, and the spacings of their timesteps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dakd.diffusion.sampler import PairSampler, start_noise
from dakd.diffusion.schedule import CosineSchedule
from dakd.diffusion.solvers import LOGSNR_RANGE, sampling_timesteps, solver_steps

SCHEDULE = CosineSchedule()
SPACINGS = ("leading", "trailing", "logsnr")
SECOND_ORDER = ("dpmpp_2m", "heun")
B_FACTOR = 0.528


def toy_net(x_t, y_t, t):
    """A denoiser whose image estimate leaves [-1, 1] and whose labels depend on both states."""
    scale = 1.5 + t.float().view(-1, 1, 1, 1) / 1000
    return scale * torch.tanh(x_t) + 0.2 * y_t.mean(1, keepdim=True), 3 * y_t + x_t


# --- timesteps --------------------------------------------------------------------------------------------------------


def test_timesteps_of_200_steps_are_995_to_0():
    assert sampling_timesteps(SCHEDULE, 200).tolist() == list(range(995, -1, -5))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("num_steps", [1, 7, 10, 25, 30, 200, 1000])
def test_leading_and_trailing_timesteps_equal_diffusers(spacing, num_steps):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing)
    theirs.set_timesteps(num_steps)
    assert sampling_timesteps(SCHEDULE, num_steps, spacing).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("num_train_timesteps", [20, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_has_falling_timesteps_of_the_schedule(spacing, num_train_timesteps):
    schedule = CosineSchedule(num_train_timesteps)
    for num_steps in {1, 2, 3, 10, 19, 20, num_train_timesteps // 2, num_train_timesteps}:
        timesteps = sampling_timesteps(schedule, num_steps, spacing)
        assert timesteps.dtype == torch.int64 and len(timesteps) == num_steps
        assert bool((timesteps.diff() < 0).all()) and int(timesteps[-1]) >= 0
        assert int(timesteps[0]) < num_train_timesteps


def test_logsnr_timesteps_lie_at_equal_steps_of_lambda():
    first, *others = sampling_timesteps(SCHEDULE, 12, "logsnr").tolist()
    targets = torch.linspace(*LOGSNR_RANGE, 12, dtype=torch.float64)[1:]
    gaps = SCHEDULE.half_log_snr.diff().abs()[torch.tensor(others) - 1]  # to the timestep below
    assert bool(((SCHEDULE.half_log_snr[others] - targets).abs() <= gaps).all())
    assert (first, others[-1]) == (999, 12)


def test_start_noise_fits_the_first_timestep_but_for_leading_ones():
    """The image's share of the first state, which pure noise lacks."""
    missing = [float(SCHEDULE.alpha_bar[sampling_timesteps(SCHEDULE, 25, one)[0]].sqrt()) for one in SPACINGS]
    assert missing[0] == pytest.approx(0.0607, rel=0.01) and max(missing[1:]) < 1e-4


@pytest.mark.parametrize("spacing", SPACINGS)
def test_more_steps_than_timesteps_are_refused(spacing):
    with pytest.raises(ValueError, match=r"sampling_steps is 1001 with a schedule of 1000 .*; set .* 1\.\.1000"):
        sampling_timesteps(SCHEDULE, 1001, spacing)


# --- coefficients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_fused_coefficients_equal_the_textbook_ddim_step(eta, spacing):
    generator = torch.Generator().manual_seed(0)
    x_t, x_0, z = torch.randn(3, 50, dtype=torch.float64, generator=generator)
    timesteps, table = solver_steps(SCHEDULE, 50, "ddim", spacing, eta)
    for i, t in enumerate(timesteps[:-1].tolist()):
        a, p = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[timesteps[i + 1]]
        sigma = eta * torch.sqrt((1 - p) / (1 - a)) * torch.sqrt(1 - a / p)
        eps = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
        textbook = p.sqrt() * x_0 + (1 - p - sigma**2).sqrt() * eps + sigma * z
        A, B, C, sigma_fused = table[i].double()
        torch.testing.assert_close(A * x_t + B * x_0 + sigma_fused * z, textbook, rtol=1e-5, atol=1e-5)
        assert C == 0


def test_multistep_coefficients_with_fresh_noise_are_those_of_the_sde_solver():
    """SDE-DPM-Solver++(2M): x_t = sigma_t / sigma_s e^-h x_s + alpha_t (1 - e^-2h) D + sigma_t sqrt(1 - e^-2h) z."""
    timesteps, table = solver_steps(SCHEDULE, 12, "dpmpp_2m", "logsnr", eta=1.0)
    lambdas, alpha = SCHEDULE.half_log_snr, SCHEDULE.alpha_bar.sqrt()
    sigma = (1 - SCHEDULE.alpha_bar).sqrt()
    for i in range(1, 11):
        before, s, t = (int(timesteps[i + k]) for k in (-1, 0, 1))
        h, h_before = lambdas[t] - lambdas[s], lambdas[s] - lambdas[before]
        taken = alpha[t] * -torch.expm1(-2 * h)
        beyond = taken * h / (2 * h_before)
        wanted = [sigma[t] / sigma[s] * (-h).exp(), taken + beyond, -beyond, sigma[t] * (-torch.expm1(-2 * h)).sqrt()]
        torch.testing.assert_close(table[i].double(), torch.stack(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["ddim", *SECOND_ORDER])
def test_last_call_returns_its_estimate_itself_and_the_first_needs_none_before_it(solver):
    for num_steps in (1, 2, 3, 20):
        timesteps, table = solver_steps(SCHEDULE, num_steps, solver, "logsnr")
        assert table[-1].tolist() == [0.0, 1.0, 0.0, 0.0] and float(table[0, 2]) == 0
        assert len(timesteps) == len(table) == (max(1, 2 * num_steps - 2) if solver == "heun" else num_steps)


# --- whole solutions --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of torch tensors in diffusers
@pytest.mark.parametrize("spacing", ["trailing", "logsnr"])
@pytest.mark.parametrize("num_steps", [6, 20])
def test_multistep_sampler_equals_diffusers_on_both_branches(num_steps, spacing):
    from diffusers import DPMSolverMultistepScheduler

    timesteps = sampling_timesteps(SCHEDULE, num_steps, spacing).tolist()

    def scheduler():
        made = DPMSolverMultistepScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="sample", algorithm_type="dpmsolver++", solver_order=2,
            solver_type="midpoint", final_sigmas_type="zero",
        )  # fmt: skip
        made.set_timesteps(timesteps=timesteps)
        return made

    start, for_x, for_y = start_noise(3, range(2), (8, 8), 5), scheduler(), scheduler()
    (x, y), seen = start, 0.0
    for t in for_x.timesteps:
        x_hat, logits = toy_net(x, y, t.expand(len(x)))
        seen = max(seen, float(x_hat.abs().max()))
        x = for_x.step(x_hat.clamp(-1, 1), t, x).prev_sample
        y = for_y.step(B_FACTOR * (2 * logits.softmax(1) - 1), t, y).prev_sample
    assert seen > 1.2  # the clamp was at work
    sampler = PairSampler(toy_net, SCHEDULE, num_steps, b=B_FACTOR, solver="dpmpp_2m", spacing=spacing)
    image, ours = sampler(*start)
    torch.testing.assert_close(image, x, rtol=0, atol=5e-4)
    torch.testing.assert_close(ours, logits, rtol=0, atol=5e-3)
    other = PairSampler(toy_net, SCHEDULE, num_steps, b=B_FACTOR, solver="ddim", spacing=spacing)(*start)[0]
    assert float((other - x).abs().max()) > 0.01  # than which the agreement is much better


def test_heun_sampler_equals_algorithm_1_of_karras_after_a_first_step_of_eulers():
    timesteps = sampling_timesteps(SCHEDULE, 9, "logsnr").tolist()
    alpha = SCHEDULE.alpha_bar.sqrt()
    sigma = ((1 - SCHEDULE.alpha_bar) / SCHEDULE.alpha_bar).sqrt()
    start = start_noise(3, range(2), (8, 8), 5)

    def slopes(x, y, t):
        x_hat, logits = toy_net((alpha[t] * x).float(), (alpha[t] * y).float(), torch.full((2,), t))
        clean = x_hat.clamp(-1, 1), B_FACTOR * (2 * logits.softmax(1) - 1)
        return [(state - one) / sigma[t] for state, one in zip((x, y), clean)], clean[0]

    x, y = (noise.double() / alpha[timesteps[0]] for noise in start)
    for s, t in itertools.pairwise(timesteps):
        (dx, dy), _ = slopes(x, y, s)
        h = sigma[t] - sigma[s]
        if s == timesteps[0]:
            x, y = x + h * dx, y + h * dy
            continue
        (dx_end, dy_end), _ = slopes(x + h * dx, y + h * dy, t)
        x, y = x + h * (dx + dx_end) / 2, y + h * (dy + dy_end) / 2
    wanted = slopes(x, y, timesteps[-1])[1]
    sampler = PairSampler(toy_net, SCHEDULE, 9, b=B_FACTOR, solver="heun", spacing="logsnr")
    assert sampler.num_calls == 16
    torch.testing.assert_close(sampler(*start)[0].double(), wanted.double(), rtol=0, atol=2e-3)


def test_heuns_first_step_is_not_corrected_and_the_others_are():
    grid = sampling_timesteps(SCHEDULE, 9, "logsnr").tolist()
    timesteps, table = solver_steps(SCHEDULE, 9, "heun")
    assert timesteps.tolist() == [*grid[:2], *(t for t in grid[2:] for _ in range(2))]
    corrections = table[2:-1:2]
    assert (table[:2, 0] < 1).all() and (corrections[:, 0] == 1).all()
    assert (corrections[:, 1] > 0.04).all() and (corrections[:, 1] == -corrections[:, 2]).all()


def error_on_normal_data(num_steps, solver):
    """Of the state at the last timestep, for clean states ~ N(0.3, 0.5^2): net and solution are known exactly."""
    mean, deviation = 0.3, 0.5
    timesteps, table = solver_steps(SCHEDULE, num_steps, solver, "logsnr")
    spread = (SCHEDULE.alpha_bar * deviation**2 + 1 - SCHEDULE.alpha_bar).sqrt()

    def estimate(x, t):
        a, share = SCHEDULE.alpha_bar[t].sqrt(), SCHEDULE.alpha_bar[t].sqrt() * (deviation / spread[t]) ** 2
        return mean + share * (x - a * mean)

    def exact(t, z):
        return SCHEDULE.alpha_bar[t].sqrt() * mean + spread[t] * z

    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    x, before = exact(timesteps[0], z), 0.0
    for t, (A, B, C, _) in zip(timesteps[:-1], table[:-1].double()):
        now = estimate(x, t)
        x, before = A * x + B * now + C * before, now
    return float((x - exact(timesteps[-1], z)).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_error_falls_with_the_order_of_the_solver(solver, order):
    coarse, fine = error_on_normal_data(20, solver), error_on_normal_data(40, solver)
    assert order - 0.3 < math.log2(coarse / fine) < order + 0.7
    if order == 2:
        assert coarse < error_on_normal_data(20, "ddim") / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(solver="euler"), "solver is 'euler'; expected ddim, dpmpp_2m or heun"),
        (dict(spacing="karras"), "spacing is 'karras'; expected leading, trailing or logsnr"),
        (dict(solver="dpmpp_2m", spacing="leading"), "overshoots.*set spacing to logsnr, or solver to ddim"),
        (dict(solver="heun", spacing="trailing"), "solver heun was given with spacing trailing.*expected logsnr"),
        (dict(solver="heun", eta=0.5), "eta is 0.5, and solver heun has no stochastic form; set eta to 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PairSampler(toy_net, SCHEDULE, 10, b=0.5, **settings)
