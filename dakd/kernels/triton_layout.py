"""A tile as its columns: what a thread loads and stores at once, taken apart into vectors in its registers."""

# Triton compiles no starred tuples, which the rule asks for.
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl


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
