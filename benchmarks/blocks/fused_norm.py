"""A candidate for an op of its own, measured before it is built: GroupNorm + SiLU in channels_last, forward alone.

torch's GroupNorm takes channels_last apart and puts it together again, and its convolutions add the bias in a kernel
that reaches a small part of the bandwidth. Here statistics and result take one pass each, and all that is constant over
a channel's pixels (the first convolution's bias, the timestep's shift) is folded into the norm's factors. `fuse` gives
the residual blocks, attention norms and convolutions of a U-Net these kernels; the weights stay its own.
"""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from dakd.kernels import triton_runtime
from dakd.models.unet import ResBlock, SelfAttention

_MOST_CHANNELS, _NUMBERS = 128, 8192  # of a program: channels, and pixels times channels of a tile
_STATISTICS_TILES = 4


@triton.jit
def sums_kernel(x_ptr, sums_ptr, num_pixels, num_splits, C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                TILES: tl.constexpr):  # fmt: skip
    """Sum and sum of squares of each channel over one split's pixels.  x: (B, P, C).  sums: (B, splits, 2, C) fp32."""
    split, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    total = tl.zeros((COLS,), tl.float32)
    squares = tl.zeros((COLS,), tl.float32)
    for tile in tl.static_range(TILES):
        rows = (split * TILES + tile) * ROWS + tl.arange(0, ROWS)
        at = x_ptr + (sample * num_pixels + rows[:, None]) * C + cols[None, :]
        x = tl.load(at, mask=rows[:, None] < num_pixels, other=0.0).to(tl.float32)
        total += tl.sum(x, axis=0)
        squares += tl.sum(x * x, axis=0)
    to = sums_ptr + (sample * num_splits + split) * 2 * C + cols
    tl.store(to, total)
    tl.store(to + C, squares)


@triton.jit
def factors_kernel(sums_ptr, weight_ptr, bias_ptr, shift_ptr, add_ptr, factors_ptr, num_pixels, num_splits, eps,
                   shift_stride, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, SPLITS: tl.constexpr,
                   HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr):  # fmt: skip
    """One group's slope and offset of each channel, for y = slope x + offset.  factors: (B, 2, C) fp32.

    WIDTH: channels of a group.  shift (B or 1, C) and add (C) are added to x before the norm, or absent.
    """
    group, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inside = tl.arange(0, BLOCK_WIDTH) < WIDTH
    cols = group * WIDTH + tl.arange(0, BLOCK_WIDTH)
    total = tl.zeros((BLOCK_WIDTH,), tl.float32)
    squares = tl.zeros((BLOCK_WIDTH,), tl.float32)
    for first in range(0, num_splits, SPLITS):
        splits = first + tl.arange(0, SPLITS)
        at = sums_ptr + (sample * num_splits + splits[:, None]) * 2 * C + cols[None, :]
        mask = (splits[:, None] < num_splits) & inside[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0), axis=0)
        squares += tl.sum(tl.load(at + C, mask=mask, other=0.0), axis=0)
    moved = tl.zeros((BLOCK_WIDTH,), tl.float32)
    if HAS_SHIFT:
        moved += tl.load(shift_ptr + sample * shift_stride + cols, mask=inside, other=0.0).to(tl.float32)
    if HAS_ADD:
        moved += tl.load(add_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    # By channel first, whose mean is near its pixels, so that the squares do not cancel across channels.
    mean_of_channel = total / num_pixels
    spread = tl.maximum(squares / num_pixels - mean_of_channel * mean_of_channel, 0.0)
    moved_mean = tl.where(inside, mean_of_channel + moved, 0.0)
    mean = tl.sum(moved_mean) / WIDTH
    deviation = tl.where(inside, moved_mean - mean, 0.0)
    variance = tl.sum(tl.where(inside, spread, 0.0) + deviation * deviation) / WIDTH
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    slope = weight / tl.sqrt(variance + eps)
    offset = tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32) + (moved - mean) * slope
    to = factors_ptr + sample * 2 * C + cols
    tl.store(to, slope, mask=inside)
    tl.store(to + C, offset, mask=inside)


@triton.jit
def apply_kernel(x_ptr, factors_ptr, y_ptr, num_pixels, C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                 HAS_SILU: tl.constexpr):  # fmt: skip
    """y = slope x + offset, and SiLU of it.  x, y: (B, P, C)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    sample = tl.program_id(2).to(tl.int64)
    slope = tl.load(factors_ptr + sample * 2 * C + cols)
    offset = tl.load(factors_ptr + sample * 2 * C + C + cols)
    places = (sample * num_pixels + rows[:, None]) * C + cols[None, :]
    mask = rows[:, None] < num_pixels
    y = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32) * slope[None, :] + offset[None, :]
    if HAS_SILU:
        y = y / (1 + tl.exp(-y))
    tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_kernel(a_ptr, b_ptr, bias_ptr, y_ptr, num_rows, C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
               HAS_B: tl.constexpr):  # fmt: skip
    """y = a + b + bias, or a + bias.  a, b, y: (B P, C).  bias: (C)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    places = rows[:, None] * C + cols[None, :]
    mask = rows[:, None] < num_rows
    y = tl.load(a_ptr + places, mask=mask, other=0.0).to(tl.float32)
    y += tl.load(bias_ptr + cols).to(tl.float32)[None, :]
    if HAS_B:
        y += tl.load(b_ptr + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=mask)


def norm_silu(
    x: Tensor, norm: nn.GroupNorm, shift: Tensor | None = None, add: Tensor | None = None, *, has_silu: bool = True
) -> Tensor:
    """SiLU(norm(x + shift + add)).  x: (B, C, H, W) channels_last.  shift: (B or 1, C).  add: (C,)."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    num_pixels, cols, rows = height * width, *_tile(channels)
    num_splits = triton.cdiv(num_pixels, rows * _STATISTICS_TILES)
    sums = torch.empty(batch, num_splits, 2, channels, device=x.device)
    factors = torch.empty(batch, 2, channels, device=x.device)
    y = torch.empty_like(x)
    group_width = channels // norm.num_groups
    launch = triton_runtime.launch
    launch(sums_kernel, (num_splits, channels // cols, batch), x, sums, num_pixels, num_splits,
           C=channels, ROWS=rows, COLS=cols, TILES=_STATISTICS_TILES)  # fmt: skip
    launch(factors_kernel, (norm.num_groups, batch), sums, norm.weight, norm.bias, shift, add, factors, num_pixels,
           num_splits, norm.eps, shift.stride(0) if shift is not None and shift.shape[0] > 1 else 0, C=channels,
           WIDTH=group_width, BLOCK_WIDTH=triton.next_power_of_2(group_width), SPLITS=32,
           HAS_SHIFT=shift is not None, HAS_ADD=add is not None, num_warps=1)  # fmt: skip
    launch(apply_kernel, (triton.cdiv(num_pixels, rows), channels // cols, batch), x, factors, y, num_pixels,
           C=channels, ROWS=rows, COLS=cols, HAS_SILU=has_silu)  # fmt: skip
    return y


def add_bias(a: Tensor, bias: Tensor, b: Tensor | None = None) -> Tensor:
    """a + bias, or a + b + bias, in one pass.  a, b: (B, C, H, W) channels_last.  bias: (C,)."""
    channels = a.shape[1]
    if channels % 8:
        return a + bias[:, None, None] if b is None else a + b + bias[:, None, None]
    a = a.contiguous(memory_format=torch.channels_last)
    b = None if b is None else b.contiguous(memory_format=torch.channels_last)
    y, num_rows, cols, rows = torch.empty_like(a), a.numel() // channels, *_tile(channels)
    triton_runtime.launch(add_kernel, (triton.cdiv(num_rows, rows), channels // cols), a, b, bias, y, num_rows,
                          C=channels, ROWS=rows, COLS=cols, HAS_B=b is not None)  # fmt: skip
    return y


def _tile(channels: int) -> tuple[int, int]:
    """Channels and pixels of a program's tile."""
    cols = min(_MOST_CHANNELS, channels & -channels)
    return cols, max(1, _NUMBERS // cols)


# --- a U-Net with these kernels ---------------------------------------------------------------------------------------


def fuse(net: nn.Module) -> nn.Module:
    """Gives the U-Nets in `net`, which is changed, these kernels; returns it in channels_last."""
    net = net.to(memory_format=torch.channels_last)
    for module in net.modules():
        for kind, forward in _FORWARDS.items():
            if isinstance(module, kind):
                module.forward = MethodType(forward, module)
    return net


def _block(block: ResBlock, h: Tensor, shift: Tensor) -> Tensor:
    inner = _without_bias(block.conv1, norm_silu(h, block.norm1))
    inner = _without_bias(block.conv2, norm_silu(inner, block.norm2, shift, block.conv1.bias))
    if isinstance(block.shortcut, nn.Identity):
        return add_bias(h, block.conv2.bias, inner)
    return add_bias(_without_bias(block.shortcut, h), block.conv2.bias + block.shortcut.bias, inner)


def _attention(attention: SelfAttention, h: Tensor) -> Tensor:
    batch, _, height, width = h.shape
    tokens = norm_silu(h, attention.norm, has_silu=False).flatten(2).transpose(1, 2)
    qkv = attention.qkv(tokens).reshape(batch, height * width, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return h + attention.out(mixed).transpose(1, 2).unflatten(2, (height, width))


def _conv(conv: nn.Conv2d, h: Tensor) -> Tensor:
    return add_bias(_without_bias(conv, h), conv.bias)


def _without_bias(conv: nn.Conv2d, h: Tensor) -> Tensor:
    return F.conv2d(h, conv.weight, None, conv.stride, conv.padding)


def _norm(norm: nn.GroupNorm, h: Tensor) -> Tensor:
    return norm_silu(h, norm, has_silu=False)


# The only norm that is called as a module is the U-Net's last.
_FORWARDS = {ResBlock: _block, SelfAttention: _attention, nn.Conv2d: _conv, nn.GroupNorm: _norm}
