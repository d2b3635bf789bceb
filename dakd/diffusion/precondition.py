"""The meaning of the image branch's output: the clean image, or a term added to a share of the noisy one.

    x_t = a x_0 + s eps,    a = sqrt(alpha_bar_t), s = sqrt(1 - alpha_bar_t)
    without sigma_data    x_0_hat = F                                              (paper)
    with sigma_data = d   x_0_hat = w x_t / a + sqrt(1 - w) F,   w = d^2 / (d^2 + (s / a)^2)

The second is the preconditioning of Karras et al. 2022 (Table 1), F in units of the image where theirs is in units of
sigma_data; d = 1 is the velocity of Salimans and Ho 2022 (v = -F). w is the share of x_t / a that is signal, for detail
of standard deviation d. A net whose output is x_0_hat itself must learn to hand fine detail from its input to its
output, as much of it as is signal, at every level of noise; until it has, it samples seas without speckle. With d near
the deviation of the fine detail, that much is passed on from the first step. The loss is that of x_0_hat (paper,
Eq. 5), or that of F, which the net then learns equally well at every level of noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dakd.diffusion.schedule import CosineSchedule

_FINE = 5  # pixels; detail is fine where a mean over so many squared does not show it


def fine_detail(images: Iterable[np.ndarray]) -> float:
    """The RMS of (H, W) uint8 images, as values in [-1, 1], minus their means over 5 x 5 pixels.

    In SAR images that is speckle for the most part. Raises ValueError without images.
    """
    squares, pixels = 0.0, 0
    for image in images:
        values = torch.from_numpy(np.asarray(image, np.float32) / 127.5)[None, None]
        edged = F.pad(values, [_FINE // 2] * 4, mode="replicate")
        squares += float((values - F.avg_pool2d(edged, _FINE, 1)).square().sum())
        pixels += values.numel()
    if not pixels:
        raise ValueError("the fine detail of no images; expected at least one")
    return math.sqrt(squares / pixels)


def skip_and_scale(signal_and_noise: Tensor, sigma_data: float) -> Tensor:
    """(n, 2): the factors of x_t and of F, from (n, 2) rows (a, s) of `CosineSchedule.noising_table`."""
    signal, noise = signal_and_noise.unbind(1)
    total = noise.square() + (sigma_data * signal).square()
    return torch.stack([sigma_data**2 * signal / total, noise * total.rsqrt()], dim=1)


def clean_image_at(
    output: Tensor, x_t: Tensor, t: Tensor, schedule: CosineSchedule, sigma_data: float | None
) -> Tensor:
    """x_0_hat (B, 1, H, W), from the image branch's output at the timesteps t (B,)."""
    if sigma_data is None:
        return output
    return clean_image(output, x_t, skip_and_scale(schedule.noising_table(x_t.device)[t], sigma_data))


def output_weights(t: Tensor, schedule: CosineSchedule, sigma_data: float) -> Tensor:
    """(B,) fp32: 1 / (1 - w) at the timesteps t (B,), by which the squared error of x_0_hat becomes that of F."""
    return skip_and_scale(schedule.noising_table(t.device)[t], sigma_data)[:, 1].square().reciprocal()


def clean_image(output: Tensor, x_t: Tensor, factors: Tensor) -> Tensor:
    """x_0_hat (B, 1, H, W), fp32, from F and x_t of that shape and their factors (B or 1, 2)."""
    skip, scale = factors[:, :, None, None, None].unbind(1)
    return skip * x_t.float() + scale * output.float()
