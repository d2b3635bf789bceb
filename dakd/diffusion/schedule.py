"""The noise schedule: squared-cosine betas over T steps, in float64, and the tables that training and sampling read.

    abar(s) = cos((s + 0.008) / 1.008 * pi / 2)^2,   beta_i = min(1 - abar((i + 1) / T) / abar(i / T), 0.999)

(Nichol and Dhariwal 2021; the paper names the schedule and T = 1000.) Everything is computed in float64 and returned
as fp32 tables: in bf16 alpha_bar_0 would be 1, and 1 - alpha_bar_0 taken in fp32 is off by 5e-4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

_MAX_BETA = 0.999  # keeps the last steps from erasing x_0 entirely


@dataclass(frozen=True)
class CosineSchedule:
    """alpha_bar_t of the forward process x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps."""

    num_train_timesteps: int = 1000

    @cached_property
    def betas(self) -> torch.Tensor:
        """(T,) float64."""
        edges = torch.arange(self.num_train_timesteps + 1, dtype=torch.float64) / self.num_train_timesteps
        alpha_bar = torch.cos((edges + 0.008) / 1.008 * (math.pi / 2)) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=_MAX_BETA)

    @cached_property
    def alpha_bar(self) -> torch.Tensor:
        """(T,) float64: products of 1 - beta."""
        return torch.cumprod(1 - self.betas, dim=0)

    @cached_property
    def half_log_snr(self) -> torch.Tensor:
        """(T,) float64, falling: ln(sqrt(alpha_bar_t) / sqrt(1 - alpha_bar_t)), half the logarithm of the SNR."""
        return (self.alpha_bar / (1 - self.alpha_bar)).log() / 2

    def noising_table(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """(T, 2) fp32: sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t) of every step; made once for a device."""
        return _noising_table(self, str(device))


@lru_cache(maxsize=8)
def _noising_table(schedule: CosineSchedule, device: str) -> torch.Tensor:
    return torch.stack([schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()], dim=1).float().to(device)
