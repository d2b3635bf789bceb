"""A student that looks at an image in several sizes (DeepLabv2's multi-scale test, Chen et al. 2017).

Of every scale the scores (logits) are brought to the image's own size, and at each pixel and class the largest one is
taken. DeepLabv2 tests with the scales 0.5, 0.75 and 1. Any student may.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dakd.models.caft import resize_to


def at_scales(model: nn.Module, scales: Sequence[float]) -> nn.Module:
    """The model whose logits are the largest over `scales`; the model itself where the image's own size is all."""
    return model if tuple(scales) == (1.0,) else MultiScale(model, scales)


class MultiScale(nn.Module):
    """Any student, image (B, 3, H, W) -> logits (B, K, H, W), tested at several scales."""

    def __init__(self, model: nn.Module, scales: Sequence[float]) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales are {tuple(scales)}; wanted one or more positive numbers, such as 0.5, 0.75, 1")
        self.model, self.scales = model, tuple(scales)

    def forward(self, image: Tensor) -> Tensor:
        size = image.shape[-2:]
        fused: Tensor | None = None
        for scale in self.scales:
            scaled = image if scale == 1 else self._scaled(image, scale)
            logits = resize_to(self.model(scaled), size)
            fused = logits if fused is None else torch.maximum(fused, logits)
        return fused

    @staticmethod
    def _scaled(image: Tensor, scale: float) -> Tensor:
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False)
