"""A pixel-space U-Net denoiser, cut into two halves so that two of them can exchange features in between.

The layout is the usual unconditional one (DDPM, Ho et al. 2020, in diffusers' form): per level `blocks_per_level`
residual blocks with the time embedding, self-attention on chosen levels and in the middle, strided convolutions down,
nearest neighbour and a convolution up. The paper does not give its U-Net; the default (113.67 M) is inferred.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dakd.models.cpu_training import GroupNorm, attend

if TYPE_CHECKING:
    from dakd.config import UNetConfig


ATTENTION_HEAD_DIM = 8  # channels of an attention head


class UNetSizes(TypedDict, total=False):
    """The sizes of a U-Net by keyword, for nets that are made of U-Nets: those of `UNet`, with its defaults."""

    channels: Sequence[int]
    blocks_per_level: int
    attention_levels: Sequence[int]
    norm_groups: int


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of the timestep, cosines first.  t: (B,) integers.  Returns (B, dim) fp32."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def group_norm(channels: int, max_groups: int) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide the channels, `max_groups` at most."""
    return GroupNorm(math.gcd(channels, max_groups), channels, eps=1e-5)


class ResBlock(nn.Module):
    """Norm, SiLU, conv, + shift, norm, SiLU, conv; the input is added (through a 1x1 where the width changes).

    The shift (B or 1, c_out) is the block's own projection of the timestep, from `embed`.
    """

    def __init__(self, c_in: int, c_out: int, time_dim: int, norm_groups: int):
        super().__init__()
        self.norm1 = group_norm(c_in, norm_groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_dim, c_out)
        self.norm2 = group_norm(c_out, norm_groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def embed(self, time: Tensor) -> Tensor:
        return self.time(F.silu(time))

    def forward(self, h: Tensor, shift: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(h)))
        inner = inner + shift[:, :, None, None]
        inner = self.conv2(F.silu(self.norm2(inner)))
        return self.shortcut(h) + inner


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels of a map, residual."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.num_heads = max(1, channels // ATTENTION_HEAD_DIM)
        if channels % self.num_heads:
            raise ValueError(
                f"a level with attention has {channels} channels, which {self.num_heads} heads cannot share; expected "
                f"a multiple of {ATTENTION_HEAD_DIM}"
            )
        self.norm = group_norm(channels, norm_groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        batch, channels, height, width = h.shape
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(batch, height * width, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)
        return h + self.out(mixed).transpose(1, 2).reshape(h.shape)


class Level(nn.Module):
    """Residual blocks (each with attention where the level has it) and a change of resolution at the end, or none."""

    def __init__(self, blocks: list[ResBlock], attention: list[SelfAttention] | None, resample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = None if attention is None else nn.ModuleList(attention)
        self.resample = resample

    def apply_block(self, index: int, h: Tensor, shift: Tensor) -> Tensor:
        h = self.blocks[index](h, shift)
        return h if self.attention is None else self.attention[index](h)


class UNet(nn.Module):
    """A denoiser x_hat = f(x_t, t): `encode` goes down and through the middle, `decode` up again.

    channels: widths of the levels, from the full resolution down; each level halves the resolution.
    blocks_per_level: residual blocks of a level on the way down; one more on the way up.
    attention_levels: levels with self-attention, 0 being the full resolution; the middle always has it.
    norm_groups: of GroupNorm, fewer where they do not divide.
    Heights and widths of images must be multiples of `stride`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (128, 128, 256, 256, 512, 512),
        blocks_per_level: int = 2,
        attention_levels: Sequence[int] = (4,),
        norm_groups: int = 32,
    ):
        super().__init__()
        if not channels or any(level >= len(channels) for level in attention_levels):
            raise ValueError(
                f"{len(channels)} levels of channels and attention on levels {tuple(attention_levels)}; "
                "expected at least one level, and attention on existing levels, counted from 0"
            )
        widths = list(channels)
        time_dim = 4 * widths[0]
        self.channels = tuple(channels)
        self.time_mlp = nn.Sequential(nn.Linear(widths[0], time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)

        def block(c_in: int, c_out: int) -> ResBlock:
            return ResBlock(c_in, c_out, time_dim, norm_groups)

        def attention(width: int) -> SelfAttention:
            return SelfAttention(width, norm_groups)

        def level(index: int, inputs: list[int], stride: int | None) -> Level:
            width = widths[index]
            blocks = [block(c_in, width) for c_in in inputs]
            attentions = [attention(width) for _ in inputs] if index in attention_levels else None
            resample = None if stride is None else nn.Conv2d(width, width, 3, stride=stride, padding=1)
            return Level(blocks, attentions, resample)

        self.down = nn.ModuleList()
        self.skip_channels = [widths[0]]  # of every skip tensor, in the order of encode
        previous = widths[0]
        for i, width in enumerate(widths):
            is_last = i == len(widths) - 1
            inputs = [previous] + [width] * (blocks_per_level - 1)
            self.down.append(level(i, inputs, None if is_last else 2))
            self.skip_channels += [width] * (blocks_per_level + (not is_last))
            previous = width

        self.mid_block1 = block(previous, previous)
        self.mid_attention = attention(previous)
        self.mid_block2 = block(previous, previous)

        self.up = nn.ModuleList()
        skips = list(self.skip_channels)
        for i, width in reversed(list(enumerate(widths))):
            inputs = []
            for _ in range(blocks_per_level + 1):
                inputs.append(previous + skips.pop())
                previous = width
            self.up.append(level(i, inputs, None if i == 0 else 1))

        self.num_encoder_blocks = len(widths) * blocks_per_level + 2  # down and middle
        self.num_blocks = self.num_encoder_blocks + len(widths) * (blocks_per_level + 1)

        self.norm_out = group_norm(widths[0], norm_groups)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    @classmethod
    def from_config(cls, cfg: UNetConfig, in_channels: int, out_channels: int) -> UNet:
        """The U-Net of the section `train_jointnet.unet`."""
        return cls(in_channels, out_channels, **dict(cfg))

    @property
    def stride(self) -> int:
        """Heights and widths of the input must be multiples of it."""
        return 2 ** (len(self.channels) - 1)

    def embed_time(self, t: Tensor) -> list[Tensor]:
        """(B,) timesteps to the shifts (B, width) of the `num_blocks` residual blocks, in the order of their use.

        Sinusoids in fp32, then the parameters' dtype. The shifts depend on t only, so a sampler may keep them.
        """
        time = self.time_mlp(timestep_embedding(t, self.channels[0]).to(self.conv_in.weight.dtype))
        return [block.embed(time) for block in self._residual_blocks()]

    def encode(self, x_t: Tensor, shifts: list[Tensor], extra: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Down and middle.

        x_t: (B, C_in, H, W).  shifts: from embed_time.  extra: (B, C0, H, W) added after conv_in, or None.
        Returns the middle's output and the skip tensors, first to last.
        """
        self._check_size(x_t)
        remaining_shifts = iter(shifts)
        h = self.conv_in(x_t)
        h = h if extra is None else h + extra
        skips = [h]
        for level in self.down:
            for index in range(len(level.blocks)):
                h = level.apply_block(index, h, next(remaining_shifts))
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)
        h = self.mid_block1(h, next(remaining_shifts))
        h = self.mid_attention(h)
        return self.mid_block2(h, next(remaining_shifts)), skips

    def decode(self, mid: Tensor, skips: list[Tensor], shifts: list[Tensor]) -> Tensor:
        """Up: (B, C_out, H, W) from the middle's output, the skip tensors and all shifts from embed_time."""
        h = mid
        remaining_skips = list(skips)
        remaining_shifts = iter(shifts[self.num_encoder_blocks :])
        for level in self.up:
            for index in range(len(level.blocks)):
                joined = torch.cat([h, remaining_skips.pop()], dim=1)
                h = level.apply_block(index, joined, next(remaining_shifts))
            if level.resample is not None:
                h = level.resample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        shifts = self.embed_time(t)
        mid, skips = self.encode(x_t, shifts)
        return self.decode(mid, skips, shifts)

    def _residual_blocks(self) -> Iterator[ResBlock]:
        for level in self.down:
            yield from level.blocks
        yield self.mid_block1
        yield self.mid_block2
        for level in self.up:
            yield from level.blocks

    def _check_size(self, x_t: Tensor) -> None:
        height, width = x_t.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"image of {height} x {width} pixels for a U-Net of {len(self.channels)} levels; "
                f"height and width must be multiples of {self.stride}"
            )
