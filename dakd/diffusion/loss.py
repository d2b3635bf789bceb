"""The teacher's losses (paper, Eq. 5-7), one value per sample."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dakd.data.sample import IGNORE_INDEX


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
