"""SAROSS-Net: the student that segments a SAR image (the paper's SAROSS-Net figure).

A four-stage encoder, a triangle of six skip modules, and four convolution decoder blocks:

    row 1 (1/4):   MVE1 -> C11 -> C12 -> C13 -> [cat] -> CD4 -> logits
    row 2 (1/8):   MVE2 -> C21 -> C22 -> [cat] -> CD3
    row 3 (1/16):  MVE3 -> C31 -> [cat] -> CD2
    row 4 (1/32):  MVE4 -> CD1

A node takes its left neighbour and the feature below that neighbour; a decoder block takes the last node of its row and
the block below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dakd.models.caft import build_skip_module, resize_to
from dakd.models.encoders import build_encoder
from dakd.models.mamba_vision import MambaVision
from dakd.models.student import COARSEST_STRIDE, StudentNet

if TYPE_CHECKING:
    from dakd.config import StudentConfig


class SAROSSNet(StudentNet):
    """The student network around any pyramid encoder.

    encoder: has `channels` (4 numbers) and `forward_features(image) -> four maps` at strides 4, 8, 16, 32.
    decoder_channels: widths of CD1 to CD4.  caft_ratio: inner width of a CAFT node over its row's channels.
    num_heads: heads of the CAFT nodes in rows 1, 2, 3.  skip_module: "caft", "conv3x3" or "none".
    outnorm: a layer norm over the channels of each encoder output, for encoders that end without one.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        decoder_channels: Sequence[int] = (256, 256, 128, 64),
        caft_ratio: float = 0.5,
        num_heads: Sequence[int] = (1, 2, 4),
        skip_module: str = "caft",
        outnorm: bool = False,
    ) -> None:
        super().__init__(num_classes, multiple=COARSEST_STRIDE)
        _check_counts(encoder, decoder_channels, num_heads)
        c1, c2, c3, c4 = encoder.channels
        d1, d2, d3, d4 = decoder_channels

        def node(row: int, c_lr: int) -> nn.Module:
            c_hr = encoder.channels[row - 1]
            return build_skip_module(skip_module, c_hr, c_lr, ratio=caft_ratio, num_heads=num_heads[row - 1])

        self.encoder = encoder
        self.outnorms = nn.ModuleList(LayerNorm2d(c) for c in encoder.channels) if outnorm else None
        self.c11, self.c12, self.c13 = node(1, c2), node(1, c2), node(1, d3)
        self.c21, self.c22 = node(2, c3), node(2, d2)
        self.c31 = node(3, d1)
        self.cd1 = DecoderBlock(c4, d1)
        self.cd2 = DecoderBlock(c3 + d1, d2)
        self.cd3 = DecoderBlock(c2 + d2, d3)
        self.cd4 = DecoderBlock(c1 + d3, d4)
        self.head = nn.Conv2d(d4, num_classes, 1)

    @classmethod
    def from_config(cls, cfg: StudentConfig, num_classes: int) -> SAROSSNet:
        encoder = build_encoder(cfg.encoder, cfg.encoder_options)
        return cls(
            encoder,
            num_classes,
            decoder_channels=cfg.decoder_channels,
            caft_ratio=cfg.caft_ratio,
            num_heads=cfg.caft_heads,
            skip_module=cfg.skip_module,
            outnorm=isinstance(encoder, MambaVision),
        )

    def encode(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W), both sides multiples of 32 -> MVE1 to MVE4, normalised where the encoder asks for it."""
        features = self.encoder.forward_features(image)
        if self.outnorms is None:
            return features
        return [norm(feature) for norm, feature in zip(self.outnorms, features)]

    def segment(self, image: Tensor) -> Tensor:
        # The 1x1 head came before this x4 upsampling: the two commute, since the bilinear weights sum to 1.
        return resize_to(self.decode(self.encode(image)), image.shape[-2:])

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """MVE1 to MVE4 -> logits (B, num_classes, H/4, W/4)."""
        mve1, mve2, mve3, mve4 = features
        c11, c21 = self.c11(mve1, mve2), self.c21(mve2, mve3)
        c12 = self.c12(c11, c21)
        d1 = resize_to(self.cd1(mve4), mve3.shape[-2:])
        c31 = self.c31(mve3, d1)
        d2 = resize_to(self.cd2(torch.cat([c31, d1], dim=1)), mve2.shape[-2:])
        c22 = self.c22(c21, d2)
        d3 = resize_to(self.cd3(torch.cat([c22, d2], dim=1)), mve1.shape[-2:])
        c13 = self.c13(c12, d3)
        return self.head(self.cd4(torch.cat([c13, d3], dim=1)))

    def set_sample_positions(self, positions: Tensor | None, seed: int = 0) -> None:
        """Ties MambaVision's drop-path to (seed, position), positions (B,) int64; other encoders have no such draws."""
        if isinstance(self.encoder, MambaVision):
            self.encoder.set_sample_positions(positions, seed)


class DecoderBlock(nn.Sequential):
    """Twice 3x3 convolution, batch norm, ReLU. Its output is upsampled by the caller."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        )


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _check_counts(encoder: nn.Module, decoder_channels: Sequence[int], num_heads: Sequence[int]) -> None:
    for name, numbers, count in (
        ("encoder.channels", encoder.channels, 4),
        ("decoder_channels", decoder_channels, 4),
        ("num_heads", num_heads, 3),
    ):
        if len(numbers) != count:
            raise ValueError(f"{name} is {tuple(numbers)}; expected {count} numbers")
