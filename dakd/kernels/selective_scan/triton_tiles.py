"""The parts of the scan's kernels: tiles turned into registers, states kept in memory, sums over lanes.

A program is one warp of BLOCK lanes, each with its own channel; a thread's values are a tuple of vectors over the
lanes.
"""

# Triton does not compile starred elements of a tuple, which the rule wants.
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from dakd.kernels.triton_layout import columns, tile_of

CHANNELS = 32

BLOCK = tl.constexpr(CHANNELS)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(e) with e = exp(-|x|), and e; log1p(e) = 2 atanh(s), s = e / (2 + e) <= 1/3, to 1e-8."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    t = s * s
    series = 2.0 + t * (0.66666316 + t * (0.40024854 + t * (0.27961419 + t * 0.28174657)))
    return tl.maximum(x, 0.0) + s * series, e


@triton.jit
def locate(num_channels, length, num_blocks, num_chunks, chunk_length):
    """The program's sample, first channel, first step and number of steps (int64)."""
    program = tl.program_id(0).to(tl.int64)
    first_channel = program % num_blocks * BLOCK
    first_step = program // num_blocks % num_chunks * chunk_length
    sample = program // num_blocks // num_chunks
    return sample, first_channel, first_step, tl.minimum(length - first_step, chunk_length)


@triton.jit
def shared_columns(tile, WIDTH: tl.constexpr):
    """The elements of a tile as vectors over the channels, so that every thread holds each of them."""
    tile = tl.reshape(tile.to(tl.float32), [1, WIDTH])
    return columns(tl.broadcast_to(tile, [BLOCK, WIDTH]), BLOCK, WIDTH)


@triton.jit
def load_shared(
    at, left, stride_n, stride_l, N: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr
):
    """B or C of K steps, as tiles (ROWS, WIDTH) of WIDTH states each; rows from K on are zero."""
    at += tl.arange(0, ROWS)[:, None] * stride_l + tl.arange(0, WIDTH)[None, :] * stride_n
    return load_tiles(at, left, stride_n, N, WIDTH, ROWS, K)


@triton.jit
def load_tiles(at, left, stride_n, N: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr):
    """`load_shared` from the addresses of the first tile."""
    step = tl.arange(0, ROWS)
    left = tl.minimum(left, K)
    tiles = ()
    for first in tl.static_range(0, N, WIDTH):
        state = first + tl.arange(0, WIDTH)
        is_there = (step[:, None] < left) & (state[None, :] < N)
        tiles = tiles + (tl.load(at + first * stride_n, mask=is_there, other=0.0),)
    return tiles


@triton.jit
def sum_over_lanes(values, FIRST: tl.constexpr, LAST: tl.constexpr):
    """The sums of 2^k vectors over the lanes that differ in the bits FIRST to LAST of their number, at least k bits.

    In each round, one for each bit, a lane gives away half of its vectors and gets its partner's share of the other
    half: the sum that it is left with is that of the vector whose number stands in the upper k of these bits.
    """
    lane = tl.arange(0, BLOCK)
    parts = values
    for level in tl.static_range(5):
        if (16 >> level) <= FIRST and (16 >> level) >= LAST:
            partner = lane ^ (16 >> level)
            if len(parts) > 1:
                is_upper = (lane & (16 >> level)) != 0
                halves = ()
                for index in tl.static_range(len(parts) // 2):
                    low = parts[index]
                    high = parts[index + len(parts) // 2]
                    given = tl.gather(tl.where(is_upper, low, high), partner, 0)
                    halves = halves + (tl.where(is_upper, high, low) + given,)
                parts = halves
            else:
                parts = (parts[0] + tl.gather(parts[0], partner, 0),)
    return parts[0]


# States are read and written in tiles of WIDTH, of which the last may be padded: the time to compile a kernel grows
# faster than the number of its loads and stores.


@triton.jit
def append_columns(tile, states, N: tl.constexpr, WIDTH: tl.constexpr):
    """`states` and those columns of the next (32, WIDTH) tile of them that there are."""
    found = columns(tile, BLOCK, WIDTH)
    for index in tl.static_range(WIDTH):
        if len(states) < N:
            states = states + (found[index],)
    return states


@triton.jit
def group(states, first, N: tl.constexpr, WIDTH: tl.constexpr):
    """WIDTH vectors from number `first` on as a (32, WIDTH) tile; zeros beyond N."""
    columns = ()
    for n in tl.static_range(first, first + WIDTH):
        if n < N:
            columns = columns + (states[n],)
        else:
            columns = columns + (tl.zeros([BLOCK], tl.float32),)
    return tile_of(columns, BLOCK, WIDTH)


@triton.jit
def load_decays(A_ptr, channel, in_range, stride_d, stride_n, N: tl.constexpr, WIDTH: tl.constexpr):
    """A log2 e of every state, each over the channels."""
    decays = ()
    for first in tl.static_range(0, N, WIDTH):
        state = first + tl.arange(0, WIDTH)
        is_there = in_range[:, None] & (state[None, :] < N)
        a = tl.load(A_ptr + channel[:, None] * stride_d + state[None, :] * stride_n, mask=is_there, other=0.0)
        decays = append_columns(a.to(tl.float32) * LOG2E, decays, N, WIDTH)
    return decays


@triton.jit
def load_states(ptr, row, N: tl.constexpr, WIDTH: tl.constexpr):
    """Row `row` of (rows, N, 32) fp32 as N vectors."""
    states = ()
    for first in tl.static_range(0, N, WIDTH):
        state, lane = first + tl.arange(0, WIDTH)[None, :], tl.arange(0, BLOCK)[:, None]
        tile = tl.load(ptr + (row * N + state) * BLOCK + lane, mask=state < N, other=0.0)
        states = append_columns(tile, states, N, WIDTH)
    return states


@triton.jit
def store_states(ptr, row, states, N: tl.constexpr, WIDTH: tl.constexpr):
    for first in tl.static_range(0, N, WIDTH):
        state, lane = first + tl.arange(0, WIDTH)[None, :], tl.arange(0, BLOCK)[:, None]
        tl.store(ptr + (row * N + state) * BLOCK + lane, group(states, first, N, WIDTH), mask=state < N)


@triton.jit
def keep(ptr, states, N: tl.constexpr, WIDTH: tl.constexpr):
    """Stores N vectors as (groups, 32, WIDTH) fp32, where a thread's own are neighbours."""
    own = tl.arange(0, BLOCK)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    for first in tl.static_range(0, N, WIDTH):
        tl.store(ptr + first * BLOCK + own, group(states, first, N, WIDTH))


@triton.jit
def find(ptr, first, WIDTH: tl.constexpr):
    """The WIDTH vectors from number `first` on that `keep` stored."""
    own = tl.arange(0, BLOCK)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return columns(tl.load(ptr + first * BLOCK + own), BLOCK, WIDTH)


@triton.jit
def find_all(ptr, N: tl.constexpr, WIDTH: tl.constexpr):
    """The N vectors that `keep` stored."""
    states = ()
    own = tl.arange(0, BLOCK)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    for first in tl.static_range(0, N, WIDTH):
        states = append_columns(tl.load(ptr + first * BLOCK + own), states, N, WIDTH)
    return states


@triton.jit
def zeros(N: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(N):
        zeros = zeros + (tl.zeros([BLOCK], tl.float32),)
    return zeros
