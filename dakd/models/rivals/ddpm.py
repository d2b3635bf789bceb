"""DDPM as in SatSynth (the paper's rival): one U-Net over the image and the label's bits as channels of one input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn

from dakd.models.unet import UNet, UNetSizes

if TYPE_CHECKING:
    from dakd.config import UNetConfig


class DDPM(nn.Module):
    """x_hat, y_hat = net(x_t, y_t, t): the clean image and the label's clean bits, in the joint net's interface.

    label_channels: bits of a class id.  sizes: of the U-Net, by keyword: channels, blocks_per_level, ... of `UNet`.
    """

    def __init__(self, label_channels: int, **sizes: Unpack[UNetSizes]):
        super().__init__()
        self.label_channels = label_channels
        self.unet = UNet(1 + label_channels, 1 + label_channels, **sizes)

    @classmethod
    def from_config(cls, cfg: UNetConfig, label_channels: int) -> DDPM:
        """The net of the section `train_jointnet.unet`."""
        return cls(label_channels, **dict(cfg))

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t: (B, 1, H, W).  y_t: (B, n, H, W), bits of -1 and +1 plus noise.  t: (B,).  Returns the same shapes."""
        return self.denoise(x_t, y_t, self.embed_time(t))

    def embed_time(self, t: Tensor) -> list[Tensor]:
        """(B,) timesteps to the shifts of all residual blocks."""
        return self.unet.embed_time(t)

    def denoise(self, x_t: Tensor, y_t: Tensor, shifts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """`forward` with the shifts of `embed_time`; a shift of one row serves the whole batch."""
        shifts = list(shifts)
        mid, skips = self.unet.encode(torch.cat([x_t, y_t], dim=1), shifts)
        clean = self.unet.decode(mid, skips, shifts)
        return clean[:, :1], clean[:, 1:]
