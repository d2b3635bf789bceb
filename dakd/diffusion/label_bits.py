"""Labels as bits, as in SatSynth: class c is its binary number in ceil(log2 K) channels of -1 and +1, lowest bit first.

Where K is not a power of two some codes belong to no class; decoding compares the classes' codes only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.data.sample import IGNORE_INDEX

# The smallest probability that an L2 branch gives to a class or a bit: a gap of 9.2 nats, which 8-bit soft labels can
# hold at temperature 1.
MIN_PROBABILITY = 1e-4
_UNKNOWN_GREY = 128  # 1/255 once normalised: the 8-bit grey value nearest to 0, halfway between the bits -1 and +1


def num_bits(num_classes: int) -> int:
    """ceil(log2 K), at least 1."""
    return max(1, (num_classes - 1).bit_length())


def to_bits(label: Tensor, num_classes: int) -> Tensor:
    """(B, H, W) class ids to (B, n, H, W) fp32 of -1 and +1; without meaning where an id is not a class."""
    return 2 * _bit_planes(label, num_classes).float() - 1


def bits_as_grey(label: Tensor, num_classes: int) -> Tensor:
    """(B, H, W) class ids to (B, n, H, W) uint8 greys that g / 127.5 - 1 turns into the bits; 1/255 where unknown.

    So the bits pass through the same noising op as an image.
    """
    grey = 255 * _bit_planes(label, num_classes).to(torch.uint8)
    return grey.masked_fill((label == IGNORE_INDEX).unsqueeze(1), _UNKNOWN_GREY)


def code_logits(y_hat: Tensor, num_classes: int) -> Tensor:
    """log p of each class, (B, K, H, W) fp32, normalised over the K classes; bits count as independent.

    y_hat: (B, n, H, W), an estimate of the bits' means: a bit is set with p = (y_hat + 1) / 2, kept MIN_PROBABILITY
    away from 0 and 1. The likeliest class has the signs of y_hat; where these are not a class's code, it differs from
    them in the least certain bits.
    """
    limit = 1 - 2 * MIN_PROBABILITY
    half_log_odds = y_hat.float().clamp(-limit, limit).atanh()  # +-: log p and log (1 - p), less a shared term
    codes = to_bits(torch.arange(num_classes, device=y_hat.device).view(-1, 1, 1), num_classes)  # (K, n, 1, 1)
    return sum(codes[:, k] * half_log_odds[:, k : k + 1] for k in range(y_hat.shape[1])).log_softmax(1)


def _bit_planes(label: Tensor, num_classes: int) -> Tensor:
    shifts = torch.arange(num_bits(num_classes), device=label.device)[:, None, None]
    return label.long().unsqueeze(1) >> shifts & 1
