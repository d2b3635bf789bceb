"""Multi-scale testing of any student, as DeepLabv2 does with the scales 0.5, 0.75 and 1 (Chen et al. 2017).

The logits of every scale are resized to the image's own size, and the largest at each pixel and class is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dakd.models.caft import resize_to


def at_scales(model: nn.Module, scales: Sequence[float]) -> nn.Module:
    """The model whose logits are the largest over `scales`; the model itself for (1.0,)."""
    return model if tuple(scales) == (1.0,) else MultiScale(model, scales)


class MultiScale(nn.Module):
    """Any student, image (B, 3, H, W) -> logits (B, K, H, W), tested at several scales."""

    def __init__(self, model: nn.Module, scales: Sequence[float]) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales are {tuple(scales)}; wanted one or more positive numbers, such as 0.5, 0.75, 1")
        self.model = model
        self.scales = tuple(scales)

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
