"""The skip modules of SAROSS-Net: CAFT (context-aware feature transfer) and its rivals in the paper's ablation.

Each takes a high-resolution feature and the low-resolution feature below it and returns a refined high-resolution one.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dakd.config import SkipModule
from dakd.kernels.transposed_attention import transposed_attention


def build_skip_module(kind: str, c_hr: int, c_lr: int, *, ratio: float, num_heads: int) -> nn.Module:
    """One node of the triangle. kind: of `train_saross.student.skip_module`.  ratio: CAFT's inner width over c_hr."""
    kinds = get_args(SkipModule)
    if kind not in kinds:
        raise ValueError(f"skip_module is {kind!r}; expected one of {', '.join(kinds)}")
    if kind == "caft":
        return CAFT(c_hr, c_lr, round(c_hr * ratio), num_heads)
    return ConvSkip(c_hr, c_lr) if kind == "conv3x3" else PlainSkip()


class CAFT(nn.Module):
    """Transposed cross-attention from the low-resolution feature (queries) to the high-resolution one (keys, values).

    c_hr, c_lr: channels of the two inputs.  inner: width of q, k and v, divisible by num_heads.
    No layer has a bias: inner * (c_lr + 3 * c_hr + 27) weights and num_heads temperatures.
    Source: the paper's SAROSS-Net figure, lower half.
    """

    def __init__(self, c_hr: int, c_lr: int, inner: int, num_heads: int) -> None:
        super().__init__()
        if inner < 1 or inner % num_heads:
            raise ValueError(
                f"inner width {inner} does not divide into {num_heads} heads; change caft_ratio or caft_heads"
            )
        self.num_heads = num_heads
        self.q_proj = _pointwise(c_lr, inner)
        self.q_local = _depthwise(inner)
        self.k_proj = _pointwise(c_hr, inner)
        self.k_local = _depthwise(inner)
        self.v_proj = _pointwise(c_hr, inner)
        self.v_local = _depthwise(inner)
        self.temperature = nn.Parameter(torch.ones(num_heads))
        self.out_weight = nn.Parameter(torch.empty(c_hr, inner))
        nn.init.kaiming_uniform_(self.out_weight, a=math.sqrt(5))

    def forward(self, f_hr: Tensor, f_lr: Tensor) -> Tensor:
        """f_hr (B, c_hr, H, W), f_lr (B, c_lr, h, w) -> (B, c_hr, H, W)."""
        # The paper draws the 1x1 after the upsampling. Both are linear and the 1x1 has no bias, so they commute, and on
        # the small grid the 1x1 costs a quarter.
        q = self.q_local(resize_to(self.q_proj(f_lr), f_hr.shape[-2:]))
        k = self.k_local(self.k_proj(f_hr))
        v = self.v_local(self.v_proj(f_hr))
        return transposed_attention(q, k, v, self.temperature, self.out_weight, f_hr, num_heads=self.num_heads)


class ConvSkip(nn.Module):
    """The ablation's plain rival: a 3x3 convolution over both features side by side."""

    def __init__(self, c_hr: int, c_lr: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_hr + c_lr, c_hr, 3, padding=1, bias=False)

    def forward(self, f_hr: Tensor, f_lr: Tensor) -> Tensor:
        """f_hr (B, c_hr, H, W), f_lr (B, c_lr, h, w) -> (B, c_hr, H, W)."""
        return self.conv(torch.cat([f_hr, resize_to(f_lr, f_hr.shape[-2:])], dim=1))


class PlainSkip(nn.Module):
    """No module: the high-resolution feature as it is."""

    def forward(self, f_hr: Tensor, f_lr: Tensor) -> Tensor:
        """f_hr (B, c_hr, H, W) -> the same; f_lr is not used."""
        return f_hr


def resize_to(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear resize of (B, C, h, w) to `size` (H, W); x itself where it has that size."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _pointwise(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 1, bias=False)


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
