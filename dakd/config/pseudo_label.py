"""The settings of `pseudo_label`: labels of a student for images without labels."""

from __future__ import annotations

from typing import Literal

from dakd.config.base import Fraction, Positive, Section


class PseudoLabelConfig(Section):
    """Soft labels of the student that was trained on real images, for images without labels (self-training)."""

    codec: Literal["fp16", "logprob8"] = "fp16"
    """Format of the stored soft labels, as in generate.codec. A student that learns from both sets needs one format for
    both."""

    min_confidence: Fraction = 0.0
    """Least probability of the likeliest class, at temperature 1, with which a pixel counts in a loss: a pixel below it
    has 255 in a hard label that is stored beside the soft one. 0 stores no hard label: every pixel counts."""

    max_samples: Positive | None = None
    """Number of images, the first ones of the set. null takes all."""

    batch_size: Positive = 1
    """Images per pass; images of one size are batched."""

    shard_size: Positive = 128
    """Images per shard."""
