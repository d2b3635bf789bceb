"""The solvers of the sampler: which timesteps the net is called at, and how each call moves the state.

With alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) and lambda = ln(alpha / sigma), every step from timestep s to
the next one, t, is linear in the state and in the estimates of the clean state of this call and of the one before:

    x_t = A x_s + B x0_hat + C x0_hat_before (+ fresh noise)

- ddim: A = sigma_t / sigma_s, B = alpha_t - A alpha_s, C = 0 (Song et al. 2021; the paper samples so).
- dpmpp_2m: DPM-Solver++(2M) in its form for predictions of the data (Lu et al. 2022): with h = lambda_t - lambda_s and
  r = h_before / h, the estimate is extrapolated, x0_hat + (x0_hat - x0_hat_before) / (2 r). The first step and the last
  one are of first order.
- heun: Algorithm 1 of Karras et al. 2022 without noise. Each step but the first and the last calls the net twice: a
  DDIM step, and its correction with the estimate at the place where it led.

Both modalities are extrapolated alike. The label's estimate may leave the range of probabilities by that; clamping it,
or projecting it onto the simplex, changed at most 0.1 % of the labels (demo's teacher, 10 to 25 steps), and with labels
of first order 0.3 to 1.8 % fewer agreed with the paper's 200 steps.

The last call's estimate is the result. With eta > 0, a step keeps less of the state and adds as much noise: eta = 1 is
DDPM's sampler for ddim, and SDE-DPM-Solver++(2M) for dpmpp_2m.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dakd.diffusion.schedule import CosineSchedule
from dakd.sampling import check_num_steps, check_solver, spacing_of

# lambda of the first and of the last call of the log-SNR grid. The first one is moved to the last timestep, which pure
# noise belongs to: that halved the distance of 20 steps to the paper's 200 (0.025 to 0.013, demo's teacher, 48 pairs).
LOGSNR_RANGE = (-5.0, 3.5)


class Steps(NamedTuple):
    """The calls of the net, in order, S of them.

    timesteps: (S,) int64.  coefficients: (S, 4) fp32, columns A, B, C, sigma of kernels.ddim_step.
    """

    timesteps: Tensor
    coefficients: Tensor


def sampling_timesteps(schedule: CosineSchedule, num_steps: int, spacing: str = "leading") -> Tensor:
    """(num_steps,) int64, descending.

    leading: multiples of T // num_steps, such as 995, 990, ..., 0 for 200 of 1000. It begins before the last timestep,
    which pure noise belongs to: 25 steps begin at 960, where 6 % of the state should be the image. That makes half of
    their error (RMS 0.21 to the paper's 200 steps, 0.10 with 999 for 960; demo's teacher, 16 pairs).
    trailing: T - 1 and down by T / num_steps (Lin et al. 2024).
    logsnr: T - 1, and then the timesteps nearest to equal steps of lambda, each of them once.
    Raises ValueError for more steps than timesteps.
    """
    last, counted = schedule.num_train_timesteps, torch.arange(num_steps)
    check_num_steps(num_steps, last)
    if spacing == "leading":
        return (counted * (last // num_steps)).flip(0)
    if spacing == "trailing":
        return (last - counted * (last / num_steps)).round().long() - 1
    return _logsnr_timesteps(schedule, num_steps)


def _logsnr_timesteps(schedule: CosineSchedule, num_steps: int) -> Tensor:
    targets = torch.linspace(*LOGSNR_RANGE, num_steps, dtype=torch.float64)
    nearest = (schedule.half_log_snr - targets[:, None]).abs().argmin(dim=1)
    nearest[0] = schedule.num_train_timesteps - 1
    # Where the grid is finer than the timesteps, neighbours follow one another, within 0 .. T - 1.
    counted = torch.arange(num_steps)
    falling = (nearest + counted).cummin(0).values - counted
    return torch.maximum(falling, counted.flip(0))


def solver_steps(
    schedule: CosineSchedule, num_steps: int, solver: str = "ddim", spacing: str | None = None, eta: float = 0.0
) -> Steps:
    """The calls of the net and their coefficients: num_steps of them, and with heun 2 num_steps - 2.

    Raises ValueError for settings that do not go together and for more steps than timesteps.
    """
    check_solver(solver, spacing, eta)
    timesteps = sampling_timesteps(schedule, num_steps, spacing_of(solver, spacing))
    rows = _ddim_rows(schedule, timesteps, eta)
    if solver == "dpmpp_2m":
        rows[1:-1] = _extrapolated(rows[1:-1], schedule.half_log_snr[timesteps])
    if solver == "heun":
        timesteps, rows = _corrected(schedule, timesteps, rows)
    return Steps(timesteps, rows.float())


def _ddim_rows(schedule: CosineSchedule, grid: Tensor, eta: float) -> Tensor:
    """(S, 4) float64: sigma = eta sqrt((1 - p) / (1 - a)) sqrt(1 - a / p), A = sqrt((1 - p - sigma^2) / (1 - a)),
    B = sqrt(p) - A sqrt(a), C = 0, with a = alpha_bar_t and p that of the next timestep, 1 after the last."""
    a = schedule.alpha_bar[grid]
    p = torch.cat([a[1:], torch.ones(1, dtype=torch.float64)])
    sigma = eta * ((1 - p) / (1 - a)).sqrt() * (1 - a / p).sqrt()
    A = ((1 - p - sigma**2).clamp(min=0) / (1 - a)).sqrt()
    B = p.sqrt() - A * a.sqrt()
    return torch.stack([A, B, torch.zeros_like(B), sigma], dim=1)


def _extrapolated(rows: Tensor, lambdas: Tensor) -> Tensor:
    """The rows of the steps between the first and the last, whose estimates are extrapolated; lambdas: of all."""
    h = lambdas.diff()
    beyond = rows[:, 1] * h[1:] / (2 * h[:-1])
    A, B, _, sigma = rows.unbind(1)
    return torch.stack([A, B + beyond, -beyond, sigma], dim=1)


def _corrected(schedule: CosineSchedule, grid: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Timesteps and rows with a correction after each row but the first and the last.

    In u = x / alpha and v = sigma / alpha, Heun's step from (u_s, v_s) ends at u_s + (v_t - v_s)(d_s + d_t) / 2 with
    d = (u - x0_hat) / v. Written from Euler's end, that is (x0_hat_t - x0_hat_s)(v_s - v_t) / (2 v_t) beyond it. The
    first step stays at Euler's end: from T - 1, where v is 20,000, the factor is 110 with 20 steps and 570 with 5, and
    by that would count how a net's two estimates from nothing but noise differ.
    """
    alpha_bar = schedule.alpha_bar[grid]
    v = ((1 - alpha_bar) / alpha_bar).sqrt()
    beyond = alpha_bar[2:].sqrt() * (v[1:-1] - v[2:]) / (2 * v[2:])
    corrections = torch.stack([torch.ones_like(beyond), beyond, -beyond, torch.zeros_like(beyond)], dim=1)
    both = torch.stack([rows[1:-1], corrections], dim=1).flatten(0, 1)
    places = torch.stack([grid[1:-1], grid[2:]], dim=1).flatten()
    return torch.cat([grid[:1], places, grid[1:][-1:]]), torch.cat([rows[:1], both, rows[1:][-1:]])
