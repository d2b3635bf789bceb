"""Memory layouts for Triton kernels: the offsets of pixels in a channel, and a thread's tile split into columns."""

# Triton does not compile starred elements of a tuple, which the rule wants.
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def offset_of(pixel, width, stride_h, stride_w, IS_FLAT: tl.constexpr):
    """Where pixels lie in one channel of a sample, in elements. IS_FLAT: pixel p lies at p stride_w."""
    if IS_FLAT:
        return pixel.to(tl.int64) * stride_w
    else:
        return (pixel // width).to(tl.int64) * stride_h + (pixel % width).to(tl.int64) * stride_w


@triton.jit
def columns(tile, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The columns of a (ROWS, WIDTH) tile, each (ROWS,), in order."""
    parts = (tile,)
    for level in tl.static_range(10):
        if len(parts) < WIDTH:
            halves = ()
            for index in tl.static_range(len(parts)):
                pairs = tl.permute(tl.reshape(parts[index], [ROWS, 2, WIDTH >> (level + 1)]), [0, 2, 1])
                low, high = tl.split(pairs)
                halves = halves + (low, high)
            parts = halves
    columns = ()
    for index in tl.static_range(WIDTH):
        columns = columns + (tl.reshape(parts[index], [ROWS]),)
    return columns


@triton.jit
def tile_of(columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The inverse of `columns`."""
    parts = columns
    for level in tl.static_range(10):
        if len(parts) > 1:
            joined = ()
            for index in tl.static_range(len(parts) // 2):
                pairs = tl.join(parts[index], parts[index + len(parts) // 2])
                joined = joined + (tl.reshape(pairs, [ROWS, 2 << level]),)
            parts = joined
    return tl.reshape(parts[0], [ROWS, WIDTH])
