"""The meaning of a label branch's output: the sampler's estimate of the clean label, and the logits that it returns.

Trained with cross-entropy, the output is logits: the clean state is b (2 softmax - 1). Trained with L2, it estimates
the mean of b y_0, y_0 = 2 onehot - 1, given the noisy pair (the mean minimises a squared error), so that
(output / b + 1) / 2 estimates the classes' probabilities; their logarithms are logits that a student can learn from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dakd.diffusion.label_bits import MIN_PROBABILITY, code_logits


@dataclass(frozen=True)
class LabelReading:
    """label_update: of kernels.ddim_step; "identity" takes clamp(output, -b, b) for the clean state.

    to_logits: takes the branch's last output (of classes or of bits; divided by b where it is a clean state) to the
    logits of the classes (B, K, H, W).
    """

    label_update: str
    to_logits: Callable[[Tensor], Tensor]


def one_hot_logits(y_hat: Tensor) -> Tensor:
    """log p of each class, in fp32, with p = (y_hat + 1) / 2 within [MIN_PROBABILITY, 1], normalised over the classes.

    y_hat: (B, K, H, W), an estimate of 2 onehot - 1.
    """
    return ((y_hat.float() + 1) / 2).clamp(MIN_PROBABILITY, 1).log().log_softmax(1)


LOGITS = LabelReading("softmax", lambda logits: logits)
# By `train_jointnet.label_loss`.
READINGS = {"ce": LOGITS, "l2": LabelReading("identity", one_hot_logits)}


def bit_reading(num_classes: int) -> LabelReading:
    """The reading of a net that predicts a label's bits."""
    return LabelReading("identity", lambda y_hat: code_logits(y_hat, num_classes))


def reading_of(facts: dict) -> LabelReading:
    """The reading of a teacher's output, from the metadata of its weights; files without a label_loss have "ce"."""
    if facts["kind"] == "ddpm":
        return bit_reading(facts["num_classes"])
    return READINGS[facts.get("label_loss", "ce")]
