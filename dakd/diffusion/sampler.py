"""The DDIM sampler of pairs: image and label from noise, by one function (paper, inference listing and Eq. 21).

At every step the networks predict the clean image and the label's logits; the image estimate is clamped, the label
estimate is b (2 softmax(logits) - 1), and both states move by x_prev = A x_t + B x0_hat (+ sigma z). The state is fp32
throughout; coefficients and timesteps come from device tables at a device step counter, so that nothing synchronises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from dakd.diffusion.schedule import CosineSchedule
from dakd.kernels.ddim_step import ddim_step
from dakd.runtime.seeding import Stream, numpy_rng

# (x_t, y_t, t) -> (x_hat, logits)
JointDenoiser = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def start_noise(seed: int, indices: Iterable[int], size: tuple[int, int], num_classes: int) -> tuple[Tensor, Tensor]:
    """Standard normal starts of the samples `indices`, drawn on the host: keyed by (seed, index) and nothing else.

    Returns x (B, 1, H, W) and y (B, K, H, W), fp32, on the CPU.
    """

    def draw(stream: Stream, channels: int) -> Tensor:
        shape = (channels, *size)
        drawn = [numpy_rng(seed, i, stream=stream).standard_normal(shape, dtype=np.float32) for i in indices]
        return torch.from_numpy(np.stack(drawn))

    indices = list(indices)
    return draw(Stream.START_IMAGE, 1), draw(Stream.START_LABEL, num_classes)


class PairSampler:
    """DDIM over `num_steps` of the schedule's steps, "leading" spacing; eta = 0 is deterministic."""

    def __init__(
        self,
        net: JointDenoiser,
        schedule: CosineSchedule,
        num_steps: int,
        *,
        b: float,
        eta: float = 0.0,
        clip: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.net, self.b, self.eta, self.clip, self.dtype = net, b, eta, clip, dtype
        self.num_steps, self.device = num_steps, torch.device(device)
        self._timesteps = schedule.sampling_timesteps(num_steps).to(device)
        self._coefficients = schedule.ddim_table(num_steps, eta, device)

    @torch.no_grad()
    def __call__(
        self, x: Tensor, y: Tensor, *, sample_ids: Tensor | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """x: (B, 1, H, W) and y: (B, K, H, W) standard normal.  sample_ids: (B,) int64, keys of the noise of eta > 0.

        Returns the image (B, 1, H, W) in [-clip, clip], fp32, and the last raw logits (B, K, H, W).
        """
        x = x.to(self.device, torch.float32)
        y = y.to(self.device, torch.float32)
        ids = None if sample_ids is None else sample_ids.to(self.device)
        step = torch.zeros(1, dtype=torch.int64, device=self.device)
        x_input, y_input = x.to(self.dtype), y.to(self.dtype)
        for _ in range(self.num_steps):
            t = self._timesteps[step].expand(x.shape[0])
            x_hat, logits = self.net(x_input, y_input, t)
            x, y, x_input, y_input = ddim_step(
                x,
                y,
                x_hat,
                logits,
                self._coefficients,
                step,
                b=self.b,
                clip=self.clip,
                stochastic=self.eta > 0,
                seed=seed,
                sample_ids=ids,
                input_dtype=self.dtype,
            )
            step.add_(1)
        return x, logits


def to_grey(image: Tensor) -> Tensor:
    """[-1, 1] to uint8 grey values, rounded; values outside are clamped."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
