"""The teacher's losses (paper, Eq. 5-7; L2 instead of Eq. 6), one value per sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dakd.data.sample import IGNORE_INDEX
from dakd.diffusion.label_bits import to_bits
from dakd.diffusion.precondition import clean_image_at, output_weights
from dakd.diffusion.schedule import CosineSchedule


@dataclass(frozen=True)
class ImageObjective:
    """The loss of the image branch's output: L_x, or with `of_output`, which needs sigma_data, L_x / (1 - w).

    The second is the squared error of the output F itself (weight 1 / c_out^2 of Karras et al. 2022). By L_x alone an
    error of F counts 1 - w, which is 0.002 at the first timestep: a short training leaves F there as it began.
    """

    sigma_data: float | None = None
    of_output: bool = False

    def __call__(self, x_0: Tensor, output: Tensor, x_t: Tensor, t: Tensor, schedule: CosineSchedule) -> Tensor:
        """(B,) fp32, from images (B, 1, H, W), x_0 in [-1, 1], and timesteps (B,) of the schedule."""
        loss = image_loss(x_0, clean_image_at(output, x_t, t, schedule, self.sigma_data))
        if self.of_output:
            loss = loss * output_weights(t, schedule, self.sigma_data)
        return loss


PAPERS_OBJECTIVE = ImageObjective()


def image_loss(x_0: Tensor, x_hat: Tensor) -> Tensor:
    """L_x = mean |x_0 - x_hat|^2 over the pixels of each sample (paper, Eq. 5).

    x_0: (B, 1, H, W) in [-1, 1].  x_hat: the same shape, any floating dtype.  Returns (B,) fp32.
    """
    return (x_hat.float() - x_0.float()).square().mean(dim=(1, 2, 3))


def label_loss(logits: Tensor, label: Tensor) -> Tensor:
    """L_y: cross-entropy of the raw logits with the mask, mean over each sample's known pixels (paper, Eq. 6).

    logits: (B, K, H, W).  label: (B, H, W) class ids, IGNORE_INDEX where unknown.  Returns (B,) fp32; 0 for a sample
    with no known pixel.
    """
    per_pixel = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE_INDEX, reduction="none")
    known = (label != IGNORE_INDEX).sum(dim=(1, 2)).clamp(min=1)
    return per_pixel.sum(dim=(1, 2)) / known


def label_l2_loss(y_hat: Tensor, label: Tensor, b: float) -> Tensor:
    """L2 of Label-Net's output with b y_0, y_0 = 2 onehot - 1, mean over channels and each sample's known pixels.

    JointNet's alternative to the cross-entropy: the branch learns the clean state itself (the paper's rows without CE).
    y_hat: (B, K, H, W).  label: (B, H, W) class ids, IGNORE_INDEX where unknown.  Returns (B,) fp32; 0 for a sample
    with no known pixel.
    """
    ids = torch.arange(y_hat.shape[1], device=label.device)[:, None, None]
    y_0 = 2 * (label.unsqueeze(1) == ids).float() - 1
    return _l2_of_known_pixels(y_hat, b * y_0, label)


def bit_loss(y_hat: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The same L2 with the label's bits in {-1, +1}.  y_hat: (B, n, H, W), n = `num_bits(num_classes)`."""
    return _l2_of_known_pixels(y_hat, to_bits(label, num_classes), label)


def _l2_of_known_pixels(y_hat: Tensor, y_0: Tensor, label: Tensor) -> Tensor:
    is_known = label != IGNORE_INDEX
    per_pixel = (y_hat.float() - y_0).square().mean(dim=1) * is_known
    return per_pixel.sum(dim=(1, 2)) / is_known.sum(dim=(1, 2)).clamp(min=1)
