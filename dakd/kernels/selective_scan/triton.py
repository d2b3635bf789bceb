"""The scan in Triton: a thread owns a channel and walks through time with the channel's states in registers.

A program is one warp on 32 neighbouring channels of a sample. It loads tiles of 32 channels x a few steps, whole
sectors whichever of the two is contiguous, one tile ahead, and turns them so that each thread holds the steps of its
channel. With a_l = 2^(dt_l A log2 e), dt_l = softplus(delta_l + delta_bias) and b_l = dt_l u_l B_l:

Forward:   h_l = a_l h_{l-1} + b_l,  y_l = sum_n C_ln h_ln + D u_l
Backward:  g_l = dy_l C_l + G_{l+1},  G_l = a_l g_l,  z_l = G_l h_{l-1};
           p_l = sum_n g_l B_l;  du_l = p_l dt_l + D dy_l;  ddelta_l = (p_l u_l + sum_n z_l A) sigmoid(delta_l + bias);
           dB_l = sum_d g_l dt_l u_l;  dC_l = sum_d dy_l h_l;  dA = sum_{b,l} z_l dt_l;  dD = sum_{b,l} dy_l u_l;
           ddelta_bias = sum_{b,l} ddelta_l

The backward program walks through its time once, leaving the states before each tile in memory, then walks back and
recomputes a tile from them. Sums over channels are made within the warp; those over channel blocks, samples and chunks
in a second launch, in a fixed order and without atomics.

A long sequence with too few channels to fill the device is cut into chunks. With S the sum of dt over a chunk, its
states end at 2^(S A log2 e) h_start + (what it makes from zero), and G goes back through it in the same way: one launch
finds what each chunk makes from zero, one carries states and G from chunk to chunk, and then all chunks run at once.
More states than fit into registers are scanned in groups, whose shares are added in fp32.
"""

# Triton compiles no starred tuples, which the rule asks for.
# ruff: noqa: RUF005

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dakd.kernels import triton_runtime

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_CHANNELS = 32
# States whose operands a thread can hold in registers; more are scanned in groups.
_FORWARD_STATES = 16
_BACKWARD_STATES = 8
# Tiles of four steps would keep half as many states in memory, but take up to 212 registers on sm_100.
_BACKWARD_STEPS = 2
_BACKWARD_WIDTH = 4
# Cutting costs two launches and the exponentials twice: not worth it for fewer steps, nor where programs abound.
_WHOLE_LENGTH = 256
_MIN_CHUNK = 32
_PROGRAMS_PER_MULTIPROCESSOR = 8
# Steps that a thread of the second stage sums, and parameters per program of it.
_SUM_STEPS = 64
_SUM_PARAMETERS = 32

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_BLOCK = tl.constexpr(_CHANNELS)
_CARRY_CHUNKS = tl.constexpr(8)
_SUM_ROWS = tl.constexpr(16)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    *,
    y: Tensor,
) -> None:
    groups = _state_groups(A, _FORWARD_STATES)
    if len(groups) == 1:
        _forward(u, delta, A, B, C, D, delta_bias, delta_softplus, y)
        return
    share, total = (torch.empty_like(y, dtype=torch.float32) for _ in range(2))
    for index, states in enumerate(groups):
        skip = D if index == 0 else None
        target = share if index else total
        _forward(u, delta, A[:, states], B[:, states], C[:, states], skip, delta_bias, delta_softplus, target)
        if index:
            total += share
    y.copy_(total)


def backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    *,
    gradients: tuple[Tensor, ...],
) -> None:
    groups = _state_groups(A, _BACKWARD_STATES)
    if len(groups) == 1:
        _backward(dy, u, delta, A, B, C, D, delta_bias, delta_softplus, gradients)
        return
    du, ddelta, dA, dB, dC, dD, dbias = gradients
    added = (du, ddelta, dbias)
    totals = [torch.empty_like(tensor, dtype=torch.float32) for tensor in added]
    for index, states in enumerate(groups):
        skip = D if index == 0 else None
        shares = [torch.empty_like(total) for total in totals] if index else totals
        within = (shares[0], shares[1], dA[:, states], dB[:, states], dC[:, states], dD, shares[2])
        inputs = (dy, u, delta, A[:, states], B[:, states], C[:, states], skip, delta_bias)
        _backward(*inputs, delta_softplus, within)
        if index:
            for total, share in zip(totals, shares):
                total += share
    for tensor, total in zip(added, totals):
        tensor.copy_(total)


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    y: Tensor,
) -> None:
    """The forward pass for at most _FORWARD_STATES states; y may be wider than u."""
    batch, num_channels, length = u.shape
    chunk_length, num_chunks, num_blocks = _chunks(u)
    grid = (batch * num_chunks * num_blocks,)
    sequences = (u, delta, y)
    steps = _forward_steps(sequences, A)
    constants = _constants(steps, 32 // steps, sequences, A, delta_bias, delta_softplus)
    sizes = (num_channels, length, num_blocks, num_chunks, chunk_length)
    operands = (u, delta, A, B, C, A if D is None else D, A if delta_bias is None else delta_bias)
    strides = _strides(u, delta, A, B, C, D, delta_bias)
    starts = u.new_empty(0, dtype=torch.float32)
    if num_chunks > 1:
        starts, _ = _chunk_borders(operands, u, sizes, strides, (0, 0, 0), constants, backward=False)
    arguments = (*operands, starts, y, *sizes, *strides, *y.stride())
    triton_runtime.launch(
        _forward_kernel,
        grid,
        *arguments,
        num_warps=1,
        num_stages=1,
        HAS_STARTS=num_chunks > 1,
        HAS_SKIP=D is not None,
        **constants,
    )


def _backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    gradients: tuple[Tensor, ...],
) -> None:
    """The backward pass for at most _BACKWARD_STATES states; du, ddelta, ddelta_bias may be wider than u."""
    du, ddelta, dA, dB, dC, dD, dbias = gradients
    outputs = (du, ddelta)
    if not all(_has_aligned_rows(tensor, _BACKWARD_STEPS) for tensor in (u, delta, dy, du, ddelta)):
        # Addresses of odd rows would not fit into registers beside the states: turn the rows instead.
        u, delta, dy, du, ddelta = (_channels_innermost(tensor) for tensor in (u, delta, dy, du, ddelta))
    batch, num_channels, length = u.shape
    num_states = A.shape[1]
    chunk_length, num_chunks, num_blocks = _chunks(u)
    sequences = (u, delta, dy, du, ddelta)
    constants = _constants(_BACKWARD_STEPS, _BACKWARD_WIDTH, sequences, A, delta_bias, delta_softplus)
    sizes = (num_channels, length, num_blocks, num_chunks, chunk_length)
    operands = (u, delta, A, B, C, A if D is None else D, A if delta_bias is None else delta_bias)
    strides = _strides(u, delta, A, B, C, D, delta_bias)
    starts = ends = u.new_empty(0, dtype=torch.float32)
    if num_chunks > 1:
        starts, ends = _chunk_borders(operands, dy, sizes, strides, dy.stride(), constants, backward=True)
    num_programs = batch * num_chunks * num_blocks
    # A row of decays, and one of states for each tile.
    num_rows = num_programs * (triton.cdiv(chunk_length, constants["K"]) + 1)
    width = constants["WIDTH"]
    states = u.new_empty((num_rows, triton.cdiv(num_states, width), _CHANNELS, width), dtype=torch.float32)
    shares = u.new_empty((num_blocks, batch, 2, num_states, length), dtype=torch.float32)
    sums = u.new_empty((batch * num_chunks, num_states + 2, num_channels), dtype=torch.float32)
    # Whether there is a D is not compiled in: without one, ptxas took fewer registers than sm_90 needs, and spilled.
    num_skipping = 0 if D is None else num_channels
    arguments = (*operands, dy, starts, ends, states, du, ddelta, shares, sums, num_skipping, *sizes, *strides)
    triton_runtime.launch(
        _backward_kernel,
        (num_programs,),
        *arguments,
        *dy.stride(),
        *du.stride(),
        *ddelta.stride(),
        num_warps=1,
        num_stages=1,
        IS_CHUNKED=num_chunks > 1,
        **constants,
    )
    num_step_blocks = triton.cdiv(length, _SUM_STEPS)
    num_sequence_programs = batch * 2 * num_step_blocks
    num_parameters = (num_states + 2) * num_channels
    triton_runtime.launch(
        _sum_kernel,
        (num_sequence_programs + triton.cdiv(num_parameters, _SUM_PARAMETERS),),
        shares,
        sums,
        dB,
        dC,
        dA,
        dA if D is None else dD,
        dA if delta_bias is None else dbias,
        num_channels,
        length,
        num_blocks,
        batch * num_chunks,
        num_step_blocks,
        num_sequence_programs,
        shares.stride(0),
        *dB.stride(),
        *dC.stride(),
        *dA.stride(),
        1 if D is None else dD.stride(0),
        1 if delta_bias is None else dbias.stride(0),
        num_warps=4,
        num_stages=1,
        N=num_states,
        PADDED_N=triton.next_power_of_2(num_states),
        STEPS=_SUM_STEPS,
        PARAMETERS=_SUM_PARAMETERS,
        HAS_SKIP=D is not None,
        HAS_BIAS=delta_bias is not None,
    )
    for output, written in zip(outputs, (du, ddelta)):
        if written is not output:
            output.copy_(written)


def _channels_innermost(tensor: Tensor) -> Tensor:
    """`tensor` itself where dimension 1 of (B, D, L) is contiguous, else a copy that has it so."""
    return tensor if tensor.stride(1) == 1 else tensor.mT.contiguous().mT


def _chunk_borders(
    operands: tuple, dy: Tensor, sizes: tuple, strides: tuple, dy_strides: tuple, constants: dict, *, backward: bool
) -> tuple[Tensor, Tensor]:
    """The states before each chunk and, for the backward pass, G after it: (programs, N, 32) fp32 each."""
    u, A = operands[0], operands[2]
    num_channels, _, num_blocks, num_chunks, _ = sizes
    num_programs, num_states = u.shape[0] * num_blocks * num_chunks, A.shape[1]
    starts = u.new_empty((num_programs, num_states, _CHANNELS), dtype=torch.float32)
    ends = torch.empty_like(starts) if backward else starts
    totals = u.new_empty((num_programs, _CHANNELS), dtype=torch.float32)
    triton_runtime.launch(
        _chunk_kernel,
        (num_programs,),
        *operands,
        dy,
        starts,
        ends,
        totals,
        *sizes,
        *strides,
        *dy_strides,
        num_warps=1,
        num_stages=1,
        IS_BACKWARD=backward,
        **constants,
    )
    triton_runtime.launch(
        _carry_kernel,
        (u.shape[0] * num_blocks * num_states,),
        A,
        starts,
        ends,
        totals,
        num_channels,
        num_blocks,
        num_chunks,
        *A.stride(),
        num_warps=1,
        num_stages=1,
        N=num_states,
        IS_BACKWARD=backward,
    )
    return starts, ends


def _chunks(u: Tensor) -> tuple[int, int, int]:
    """Steps of a chunk, the number of chunks, and the number of channel blocks."""
    batch, num_channels, length = u.shape
    num_blocks = triton.cdiv(num_channels, _CHANNELS)
    programs = max(1, batch * num_blocks)
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * triton_runtime.num_multiprocessors(u.device)
    if length <= _WHOLE_LENGTH or 2 * programs > wanted:
        return max(1, length), 1, num_blocks
    num_chunks = min(triton.cdiv(wanted, programs), triton.cdiv(length, _MIN_CHUNK))
    # A multiple of every tile's length, so that only the last tile of all is cut.
    chunk_length = 8 * triton.cdiv(triton.cdiv(length, num_chunks), 8)
    return chunk_length, triton.cdiv(length, chunk_length), num_blocks


def _state_groups(A: Tensor, size: int) -> list[slice]:
    """Slices of at most `size` states, at least one slice."""
    num_states = A.shape[1]
    return [slice(first, min(first + size, num_states)) for first in range(0, max(1, num_states), size)]


def _constants(
    num_steps: int,
    width: int,
    sequences: tuple[Tensor, ...],
    A: Tensor,
    bias: Tensor | None,
    softplus: bool,
) -> dict:
    """What all kernels over time are compiled for.

    num_steps: steps of a tile.  width: states whose B and C are turned, and held in registers, at once.
    sequences: all (B, D, L) that are read and written.
    """
    num_states = A.shape[1]
    width = min(width, triton.next_power_of_2(max(1, num_states)))
    return dict(
        N=num_states,
        WIDTH=width,
        # A tile of fewer elements than threads would be loaded by every thread: harmless for few states alone.
        ROWS=32 // width if num_states >= 4 else num_steps,
        K=num_steps,
        ALIGNED=num_steps if all(_has_aligned_rows(tensor, num_steps) for tensor in sequences) else 1,
        HAS_BIAS=bias is not None,
        SOFTPLUS=softplus,
    )


def _forward_steps(sequences: tuple[Tensor, ...], A: Tensor) -> int:
    """Steps of a forward tile: 8, for 16-byte loads of two-byte features, where registers allow and few are wasted."""
    u = sequences[0]
    fits = u.element_size() == 2 and A.shape[1] <= 8 and u.shape[2] >= 128
    wide = all(tensor.stride(1) == 1 for tensor in sequences) or all(_has_aligned_rows(x, 8) for x in sequences)
    return 8 if fits and wide else 4


def _has_aligned_rows(tensor: Tensor, num_steps: int) -> bool:
    """Whether L is contiguous and cut into whole tiles, so that a thread loads its channel's tile at once."""
    sizes = (tensor.shape[2], tensor.stride(0), tensor.stride(1))
    return tensor.stride(2) == 1 and all(size % num_steps == 0 for size in sizes)


def _strides(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> tuple[int, ...]:
    """In elements: three each of u, delta, B, C; two of A; one each of D and delta_bias."""
    vectors = (1 if tensor is None else tensor.stride(0) for tensor in (D, delta_bias))
    return *u.stride(), *delta.stride(), *A.stride(), *B.stride(), *C.stride(), *vectors


@triton.jit
def _softplus(x):
    """max(x, 0) + log1p(e) with e = exp(-|x|), and e; log1p(e) = 2 atanh(s), s = e / (2 + e) <= 1/3, to 1e-8."""
    e = tl.exp2(-tl.abs(x) * _LOG2E)
    s = e / (2.0 + e)
    t = s * s
    series = 2.0 + t * (0.66666316 + t * (0.40024854 + t * (0.27961419 + t * 0.28174657)))
    return tl.maximum(x, 0.0) + s * series, e


@triton.jit
def _locate(num_channels, length, num_blocks, num_chunks, chunk_length):
    """The program's sample, first channel, first step and number of steps (int64)."""
    program = tl.program_id(0).to(tl.int64)
    first_channel = program % num_blocks * _BLOCK
    first_step = program // num_blocks % num_chunks * chunk_length
    sample = program // num_blocks // num_chunks
    return sample, first_channel, first_step, tl.minimum(length - first_step, chunk_length)


@triton.jit
def _columns(tile, ROWS: tl.constexpr, WIDTH: tl.constexpr):
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
def _tile(columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The inverse of `_columns`."""
    parts = columns
    for level in tl.static_range(10):
        if len(parts) > 1:
            joined = ()
            for index in tl.static_range(len(parts) // 2):
                pairs = tl.join(parts[index], parts[index + len(parts) // 2])
                joined = joined + (tl.reshape(pairs, [ROWS, 2 << level]),)
            parts = joined
    return tl.reshape(parts[0], [ROWS, WIDTH])


@triton.jit
def _shared_columns(tile, WIDTH: tl.constexpr):
    """The elements of a tile as vectors over the channels, so that every thread holds each of them."""
    tile = tl.reshape(tile.to(tl.float32), [1, WIDTH])
    return _columns(tl.broadcast_to(tile, [_BLOCK, WIDTH]), _BLOCK, WIDTH)


@triton.jit
def _load_shared(
    at, left, stride_n, stride_l, N: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr
):
    """B or C of K steps, as tiles (ROWS, WIDTH) of WIDTH states each; rows from K on are zero."""
    at += tl.arange(0, ROWS)[:, None] * stride_l + tl.arange(0, WIDTH)[None, :] * stride_n
    return _load_tiles(at, left, stride_n, N, WIDTH, ROWS, K)


@triton.jit
def _load_tiles(at, left, stride_n, N: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr):
    """`_load_shared` from the addresses of the first tile."""
    step = tl.arange(0, ROWS)
    left = tl.minimum(left, K)
    tiles = ()
    for first in tl.static_range(0, N, WIDTH):
        state = first + tl.arange(0, WIDTH)
        is_there = (step[:, None] < left) & (state[None, :] < N)
        tiles = tiles + (tl.load(at + first * stride_n, mask=is_there, other=0.0),)
    return tiles


@triton.jit
def _sum_over_lanes(values, FIRST: tl.constexpr, LAST: tl.constexpr):
    """The sums of 2^k vectors over the lanes that differ in the bits FIRST to LAST of their number, at least k bits.

    In each round, one for each bit, a lane gives away half of its vectors and gets its partner's share of the other
    half: the sum that it is left with is that of the vector whose number stands in the upper k of these bits.
    """
    lane = tl.arange(0, _BLOCK)
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
def _first(tile, states, N: tl.constexpr, WIDTH: tl.constexpr):
    """`states` and those columns of the next (32, WIDTH) tile of them that there are."""
    columns = _columns(tile, _BLOCK, WIDTH)
    for index in tl.static_range(WIDTH):
        if len(states) < N:
            states = states + (columns[index],)
    return states


@triton.jit
def _group(states, first, N: tl.constexpr, WIDTH: tl.constexpr):
    """WIDTH vectors from number `first` on as a (32, WIDTH) tile; zeros where there are no more than N."""
    columns = ()
    for n in tl.static_range(first, first + WIDTH):
        if n < N:
            columns = columns + (states[n],)
        else:
            columns = columns + (tl.zeros([_BLOCK], tl.float32),)
    return _tile(columns, _BLOCK, WIDTH)


@triton.jit
def _load_decays(A_ptr, channel, in_range, stride_d, stride_n, N: tl.constexpr, WIDTH: tl.constexpr):
    """A log2 e of every state, each over the channels."""
    decays = ()
    for first in tl.static_range(0, N, WIDTH):
        state = first + tl.arange(0, WIDTH)
        is_there = in_range[:, None] & (state[None, :] < N)
        a = tl.load(A_ptr + channel[:, None] * stride_d + state[None, :] * stride_n, mask=is_there, other=0.0)
        decays = _first(a.to(tl.float32) * _LOG2E, decays, N, WIDTH)
    return decays


@triton.jit
def _load_states(ptr, row, N: tl.constexpr, WIDTH: tl.constexpr):
    """Row `row` of (rows, N, 32) fp32 as N vectors."""
    states = ()
    for first in tl.static_range(0, N, WIDTH):
        state, lane = first + tl.arange(0, WIDTH)[None, :], tl.arange(0, _BLOCK)[:, None]
        tile = tl.load(ptr + (row * N + state) * _BLOCK + lane, mask=state < N, other=0.0)
        states = _first(tile, states, N, WIDTH)
    return states


@triton.jit
def _store_states(ptr, row, states, N: tl.constexpr, WIDTH: tl.constexpr):
    for first in tl.static_range(0, N, WIDTH):
        state, lane = first + tl.arange(0, WIDTH)[None, :], tl.arange(0, _BLOCK)[:, None]
        tl.store(ptr + (row * N + state) * _BLOCK + lane, _group(states, first, N, WIDTH), mask=state < N)


@triton.jit
def _keep(ptr, states, N: tl.constexpr, WIDTH: tl.constexpr):
    """Stores N vectors as (groups, 32, WIDTH) fp32, where a thread's own are neighbours."""
    own = tl.arange(0, _BLOCK)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    for first in tl.static_range(0, N, WIDTH):
        tl.store(ptr + first * _BLOCK + own, _group(states, first, N, WIDTH))


@triton.jit
def _find(ptr, first, WIDTH: tl.constexpr):
    """The WIDTH vectors from number `first` on that `_keep` stored."""
    own = tl.arange(0, _BLOCK)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return _columns(tl.load(ptr + first * _BLOCK + own), _BLOCK, WIDTH)


@triton.jit
def _zeros(N: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(N):
        zeros = zeros + (tl.zeros([_BLOCK], tl.float32),)
    return zeros


@triton.jit
def _forward_kernel(
    u_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    bias_ptr,
    starts_ptr,
    y_ptr,
    num_channels,
    length,
    num_blocks,
    num_chunks,
    chunk_length,
    u_stride_b,
    u_stride_d,
    u_stride_l,
    delta_stride_b,
    delta_stride_d,
    delta_stride_l,
    A_stride_d,
    A_stride_n,
    B_stride_b,
    B_stride_n,
    B_stride_l,
    C_stride_b,
    C_stride_n,
    C_stride_l,
    D_stride,
    bias_stride,
    y_stride_b,
    y_stride_d,
    y_stride_l,
    HAS_STARTS: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    sample, first_channel, first, num_steps = _locate(num_channels, length, num_blocks, num_chunks, chunk_length)
    if ALIGNED > 1:
        # Says to the compiler what the host made sure of.
        first, num_steps = first // ALIGNED * ALIGNED, num_steps // ALIGNED * ALIGNED
        u_stride_b, u_stride_d = u_stride_b // ALIGNED * ALIGNED, u_stride_d // ALIGNED * ALIGNED
        delta_stride_b, delta_stride_d = delta_stride_b // ALIGNED * ALIGNED, delta_stride_d // ALIGNED * ALIGNED
        y_stride_b, y_stride_d = y_stride_b // ALIGNED * ALIGNED, y_stride_d // ALIGNED * ALIGNED
    row, step = tl.arange(0, _BLOCK), tl.arange(0, K)
    in_range = first_channel + row < num_channels
    decays = _load_decays(A_ptr, first_channel + row, in_range, A_stride_d, A_stride_n, N, WIDTH)
    skip, bias = tl.zeros([_BLOCK], tl.float32), tl.zeros([_BLOCK], tl.float32)
    if HAS_SKIP:
        skip = tl.load(D_ptr + (first_channel + row) * D_stride, mask=in_range, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + (first_channel + row) * bias_stride, mask=in_range, other=0.0).to(tl.float32)
    h = _zeros(N)
    if HAS_STARTS:
        h = _load_states(starts_ptr, tl.program_id(0).to(tl.int64), N, WIDTH)

    u_at = u_ptr + sample * u_stride_b + first_channel * u_stride_d + first * u_stride_l
    delta_at = delta_ptr + sample * delta_stride_b + first_channel * delta_stride_d + first * delta_stride_l
    B_at = B_ptr + sample * B_stride_b + first * B_stride_l
    C_at = C_ptr + sample * C_stride_b + first * C_stride_l
    y_at = y_ptr + sample * y_stride_b + first_channel * y_stride_d + first * y_stride_l
    u_offsets = row[:, None] * u_stride_d + step[None, :] * u_stride_l
    delta_offsets = row[:, None] * delta_stride_d + step[None, :] * delta_stride_l
    y_offsets = row[:, None] * y_stride_d + step[None, :] * y_stride_l

    is_feature = in_range[:, None] & (step[None, :] < num_steps)
    u_ahead = tl.load(u_at + u_offsets, mask=is_feature, other=0.0)
    delta_ahead = tl.load(delta_at + delta_offsets, mask=is_feature, other=0.0)
    B_ahead = _load_shared(B_at, num_steps, B_stride_n, B_stride_l, N, WIDTH, ROWS, K)
    C_ahead = _load_shared(C_at, num_steps, C_stride_n, C_stride_l, N, WIDTH, ROWS, K)
    for index in range(tl.cdiv(num_steps, K)):
        u_tile, delta_tile, B_tiles, C_tiles = u_ahead, delta_ahead, B_ahead, C_ahead
        is_stored = is_feature
        # The next tile is on its way while this one is scanned.
        left = num_steps - (index + 1) * K
        is_feature = in_range[:, None] & (step[None, :] < left)
        u_at += K * u_stride_l
        delta_at += K * delta_stride_l
        B_at += K * B_stride_l
        C_at += K * C_stride_l
        u_ahead = tl.load(u_at + u_offsets, mask=is_feature, other=0.0)
        delta_ahead = tl.load(delta_at + delta_offsets, mask=is_feature, other=0.0)
        B_ahead = _load_shared(B_at, left, B_stride_n, B_stride_l, N, WIDTH, ROWS, K)
        C_ahead = _load_shared(C_at, left, C_stride_n, C_stride_l, N, WIDTH, ROWS, K)

        u = _columns(u_tile, _BLOCK, K)
        raw = _columns(delta_tile, _BLOCK, K)
        dt, product, y = (), (), ()
        for t in tl.static_range(K):
            x = raw[t].to(tl.float32) + bias
            if SOFTPLUS:
                x, _ = _softplus(x)
            dt = dt + (x,)
            product = product + (x * u[t].to(tl.float32),)
            y = y + (skip * u[t].to(tl.float32),)
        ends = ()
        for first_state in tl.static_range(0, N, WIDTH):
            B = _shared_columns(B_tiles[first_state // WIDTH], ROWS * WIDTH)
            C = _shared_columns(C_tiles[first_state // WIDTH], ROWS * WIDTH)
            for n in tl.static_range(first_state, first_state + WIDTH):
                if n < N:
                    current = h[n]
                    sums = ()
                    for t in tl.static_range(K):
                        b = product[t] * B[t * WIDTH + n - first_state]
                        current = tl.exp2(dt[t] * decays[n]) * current + b
                        sums = sums + (y[t] + current * C[t * WIDTH + n - first_state],)
                    y = sums
                    ends = ends + (current,)
        h = ends
        rounded = ()
        for t in tl.static_range(K):
            rounded = rounded + (y[t].to(y_ptr.dtype.element_ty),)
        tl.store(y_at + y_offsets, _tile(rounded, _BLOCK, K), mask=is_stored)
        y_at += K * y_stride_l


@triton.jit
def _chunk_kernel(
    u_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    bias_ptr,
    dy_ptr,
    starts_ptr,
    ends_ptr,
    totals_ptr,
    num_channels,
    length,
    num_blocks,
    num_chunks,
    chunk_length,
    u_stride_b,
    u_stride_d,
    u_stride_l,
    delta_stride_b,
    delta_stride_d,
    delta_stride_l,
    A_stride_d,
    A_stride_n,
    B_stride_b,
    B_stride_n,
    B_stride_l,
    C_stride_b,
    C_stride_n,
    C_stride_l,
    D_stride,
    bias_stride,
    dy_stride_b,
    dy_stride_d,
    dy_stride_l,
    IS_BACKWARD: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """What a chunk makes from zero: its last states, the sum of dt and, walking the same way, G before its first step.

    G is the sum over l of (the decay from before the first step to l) dy_l C_l.
    """
    sample, first_channel, first, num_steps = _locate(num_channels, length, num_blocks, num_chunks, chunk_length)
    if ALIGNED > 1:
        # Says to the compiler what the host made sure of.
        first, num_steps = first // ALIGNED * ALIGNED, num_steps // ALIGNED * ALIGNED
        u_stride_b, u_stride_d = u_stride_b // ALIGNED * ALIGNED, u_stride_d // ALIGNED * ALIGNED
        delta_stride_b, delta_stride_d = delta_stride_b // ALIGNED * ALIGNED, delta_stride_d // ALIGNED * ALIGNED
        dy_stride_b, dy_stride_d = dy_stride_b // ALIGNED * ALIGNED, dy_stride_d // ALIGNED * ALIGNED
    row, step = tl.arange(0, _BLOCK), tl.arange(0, K)
    in_range = first_channel + row < num_channels
    decays = _load_decays(A_ptr, first_channel + row, in_range, A_stride_d, A_stride_n, N, WIDTH)
    bias = tl.zeros([_BLOCK], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + (first_channel + row) * bias_stride, mask=in_range, other=0.0).to(tl.float32)
    u_at = u_ptr + sample * u_stride_b + first_channel * u_stride_d + first * u_stride_l
    delta_at = delta_ptr + sample * delta_stride_b + first_channel * delta_stride_d + first * delta_stride_l
    dy_at = dy_ptr + sample * dy_stride_b + first_channel * dy_stride_d + first * dy_stride_l
    B_at = B_ptr + sample * B_stride_b + first * B_stride_l
    C_at = C_ptr + sample * C_stride_b + first * C_stride_l
    u_offsets = row[:, None] * u_stride_d + step[None, :] * u_stride_l
    delta_offsets = row[:, None] * delta_stride_d + step[None, :] * delta_stride_l
    dy_offsets = row[:, None] * dy_stride_d + step[None, :] * dy_stride_l

    h, G, prefix = _zeros(N), _zeros(N), _zeros(N)
    if IS_BACKWARD:
        ones = ()
        for n in tl.static_range(N):
            ones = ones + (prefix[n] + 1.0,)
        prefix = ones
    total = tl.zeros([_BLOCK], tl.float32)
    for index in range(tl.cdiv(num_steps, K)):
        left = num_steps - index * K
        is_feature = in_range[:, None] & (step[None, :] < left)
        u = _columns(tl.load(u_at + u_offsets, mask=is_feature, other=0.0), _BLOCK, K)
        raw = _columns(tl.load(delta_at + delta_offsets, mask=is_feature, other=0.0), _BLOCK, K)
        B_tiles = _load_shared(B_at, left, B_stride_n, B_stride_l, N, WIDTH, ROWS, K)
        if IS_BACKWARD:
            dy = _columns(tl.load(dy_at + dy_offsets, mask=is_feature, other=0.0), _BLOCK, K)
            C_tiles = _load_shared(C_at, left, C_stride_n, C_stride_l, N, WIDTH, ROWS, K)
        dt, product = (), ()
        for t in tl.static_range(K):
            x = raw[t].to(tl.float32) + bias
            if SOFTPLUS:
                x, _ = _softplus(x)
            # A step past the end takes no time.
            x = tl.where(t < left, x, 0.0)
            total += x
            dt = dt + (x,)
            product = product + (x * u[t].to(tl.float32),)
        ends, sums, decayed = (), (), ()
        for first_state in tl.static_range(0, N, WIDTH):
            B = _shared_columns(B_tiles[first_state // WIDTH], ROWS * WIDTH)
            if IS_BACKWARD:
                C = _shared_columns(C_tiles[first_state // WIDTH], ROWS * WIDTH)
            for n in tl.static_range(first_state, first_state + WIDTH):
                if n < N:
                    current, gathered, reach = h[n], G[n], prefix[n]
                    for t in tl.static_range(K):
                        a = tl.exp2(dt[t] * decays[n])
                        current = a * current + product[t] * B[t * WIDTH + n - first_state]
                        if IS_BACKWARD:
                            reach = reach * a
                            gathered += reach * (dy[t].to(tl.float32) * C[t * WIDTH + n - first_state])
                    ends = ends + (current,)
                    sums = sums + (gathered,)
                    decayed = decayed + (reach,)
        h, G, prefix = ends, sums, decayed
        u_at += K * u_stride_l
        delta_at += K * delta_stride_l
        dy_at += K * dy_stride_l
        B_at += K * B_stride_l
        C_at += K * C_stride_l
    program = tl.program_id(0).to(tl.int64)
    _store_states(starts_ptr, program, h, N, WIDTH)
    if IS_BACKWARD:
        _store_states(ends_ptr, program, G, N, WIDTH)
    tl.store(totals_ptr + program * _BLOCK + row, total)


@triton.jit
def _carry_kernel(
    A_ptr,
    starts_ptr,
    ends_ptr,
    totals_ptr,
    num_channels,
    num_blocks,
    num_chunks,
    A_stride_d,
    A_stride_n,
    N: tl.constexpr,
    IS_BACKWARD: tl.constexpr,
):
    """Carries one state of a channel block over the chunks, in place: what they make becomes what they start from."""
    program = tl.program_id(0).to(tl.int64)
    n = program % N
    block = program // N % num_blocks
    # Programs over time are numbered by sample, then chunk, then channel block.
    first_program = program // N // num_blocks * num_chunks * num_blocks + block
    row = tl.arange(0, _BLOCK)
    channel = block * _BLOCK + row
    a = tl.load(A_ptr + channel * A_stride_d + n * A_stride_n, mask=channel < num_channels, other=0.0)
    decay = a.to(tl.float32) * _LOG2E
    num_rounds = tl.cdiv(num_chunks, _CARRY_CHUNKS)
    lane = tl.arange(0, _CARRY_CHUNKS)
    carried = tl.zeros([_BLOCK], tl.float32)
    for index in range(num_rounds):
        chunk = index * _CARRY_CHUNKS + lane
        at = first_program + chunk * num_blocks
        carried = _carry_round(starts_ptr, totals_ptr, at, chunk < num_chunks, n, decay, carried, N)
    if IS_BACKWARD:
        carried = tl.zeros([_BLOCK], tl.float32)
        for index in range(num_rounds):
            chunk = num_chunks - 1 - index * _CARRY_CHUNKS - lane
            at = first_program + chunk * num_blocks
            carried = _carry_round(ends_ptr, totals_ptr, at, chunk >= 0, n, decay, carried, N)


@triton.jit
def _carry_round(ptr, totals_ptr, program, is_there, n, decay, carried, N: tl.constexpr):
    """`carried` past the chunks of the given programs, in their order; each chunk's own share is replaced by what it
    starts from.
    """
    row = tl.arange(0, _BLOCK)[:, None]
    at = ptr + (program[None, :] * N + n) * _BLOCK + row
    made = _columns(tl.load(at, mask=is_there[None, :], other=0.0), _BLOCK, _CARRY_CHUNKS)
    totals = tl.load(totals_ptr + program[None, :] * _BLOCK + row, mask=is_there[None, :], other=0.0)
    totals = _columns(totals, _BLOCK, _CARRY_CHUNKS)
    befores = ()
    for index in tl.static_range(_CARRY_CHUNKS):
        befores = befores + (carried,)
        carried = tl.exp2(totals[index] * decay) * carried + made[index]
    tl.store(at, _tile(befores, _BLOCK, _CARRY_CHUNKS), mask=is_there[None, :])
    return carried


@triton.jit
def _backward_kernel(
    u_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    bias_ptr,
    dy_ptr,
    starts_ptr,
    ends_ptr,
    states_ptr,
    du_ptr,
    ddelta_ptr,
    shares_ptr,
    sums_ptr,
    num_skipping,
    num_channels,
    length,
    num_blocks,
    num_chunks,
    chunk_length,
    u_stride_b,
    u_stride_d,
    u_stride_l,
    delta_stride_b,
    delta_stride_d,
    delta_stride_l,
    A_stride_d,
    A_stride_n,
    B_stride_b,
    B_stride_n,
    B_stride_l,
    C_stride_b,
    C_stride_n,
    C_stride_l,
    D_stride,
    bias_stride,
    dy_stride_b,
    dy_stride_d,
    dy_stride_l,
    du_stride_b,
    du_stride_d,
    du_stride_l,
    ddelta_stride_b,
    ddelta_stride_d,
    ddelta_stride_l,
    IS_CHUNKED: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """du and ddelta; the channel block's share of dB and dC; the program's share of dA, dD and ddelta_bias."""
    sample, first_channel, first, num_steps = _locate(num_channels, length, num_blocks, num_chunks, chunk_length)
    if ALIGNED > 1:
        # Says to the compiler what the host made sure of.
        first, num_steps = first // ALIGNED * ALIGNED, num_steps // ALIGNED * ALIGNED
        u_stride_b, u_stride_d = u_stride_b // ALIGNED * ALIGNED, u_stride_d // ALIGNED * ALIGNED
        delta_stride_b, delta_stride_d = delta_stride_b // ALIGNED * ALIGNED, delta_stride_d // ALIGNED * ALIGNED
        dy_stride_b, dy_stride_d = dy_stride_b // ALIGNED * ALIGNED, dy_stride_d // ALIGNED * ALIGNED
        du_stride_b, du_stride_d = du_stride_b // ALIGNED * ALIGNED, du_stride_d // ALIGNED * ALIGNED
        ddelta_stride_b, ddelta_stride_d = ddelta_stride_b // ALIGNED * ALIGNED, ddelta_stride_d // ALIGNED * ALIGNED
    program = tl.program_id(0).to(tl.int64)
    row, step = tl.arange(0, _BLOCK), tl.arange(0, K)
    in_range = first_channel + row < num_channels
    decays = _load_decays(A_ptr, first_channel + row, in_range, A_stride_d, A_stride_n, N, WIDTH)
    skips = first_channel + row < num_skipping
    skip = tl.load(D_ptr + (first_channel + row) * D_stride, mask=skips, other=0.0).to(tl.float32)
    bias = tl.zeros([_BLOCK], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + (first_channel + row) * bias_stride, mask=in_range, other=0.0).to(tl.float32)
    # A thread's own addresses in the first tile: all that it keeps of them while it walks.
    channel = first_channel + row[:, None]
    u_at = u_ptr + sample * u_stride_b + first * u_stride_l
    u_at += channel * u_stride_d + step[None, :] * u_stride_l
    delta_at = delta_ptr + sample * delta_stride_b + first * delta_stride_l
    delta_at += channel * delta_stride_d + step[None, :] * delta_stride_l
    dy_at = dy_ptr + sample * dy_stride_b + first * dy_stride_l
    dy_at += channel * dy_stride_d + step[None, :] * dy_stride_l
    du_at = du_ptr + sample * du_stride_b + first * du_stride_l
    du_at += channel * du_stride_d + step[None, :] * du_stride_l
    ddelta_at = ddelta_ptr + sample * ddelta_stride_b + first * ddelta_stride_l
    ddelta_at += channel * ddelta_stride_d + step[None, :] * ddelta_stride_l
    B_at = B_ptr + sample * B_stride_b + first * B_stride_l
    C_at = C_ptr + sample * C_stride_b + first * C_stride_l
    shared_step, shared_state = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    B_at += shared_step * B_stride_l + shared_state * B_stride_n
    C_at += shared_step * C_stride_l + shared_state * C_stride_n
    num_steps = num_steps.to(tl.int32)

    num_tiles = tl.cdiv(num_steps, K)
    # A row of decays, and one of states for each tile.
    ROW: tl.constexpr = (N + WIDTH - 1) // WIDTH * WIDTH * _BLOCK
    decays_at = states_ptr + program * (tl.cdiv(chunk_length, K) + 1) * ROW
    states_at = decays_at + ROW
    _keep(decays_at, decays, N, WIDTH)
    h = _zeros(N)
    if IS_CHUNKED:
        h = _load_states(starts_ptr, program, N, WIDTH)
    for index in range(num_tiles):
        left = num_steps - index * K
        past = (num_steps - left).to(tl.int64)
        _keep(states_at + past * (ROW // K), h, N, WIDTH)
        is_feature = in_range[:, None] & (step[None, :] < left)
        u = _columns(tl.load(u_at + past * u_stride_l, mask=is_feature, other=0.0), _BLOCK, K)
        raw = _columns(tl.load(delta_at + past * delta_stride_l, mask=is_feature, other=0.0), _BLOCK, K)
        B_tiles = _load_tiles(B_at + past * B_stride_l, left, B_stride_n, N, WIDTH, ROWS, K)
        dt, product = (), ()
        for t in tl.static_range(K):
            x = raw[t].to(tl.float32) + bias
            if SOFTPLUS:
                x, _ = _softplus(x)
            dt = dt + (x,)
            product = product + (x * u[t].to(tl.float32),)
        ends = ()
        for first_state in tl.static_range(0, N, WIDTH):
            B = _shared_columns(B_tiles[first_state // WIDTH], ROWS * WIDTH)
            for n in tl.static_range(first_state, first_state + WIDTH):
                if n < N:
                    current = h[n]
                    for t in tl.static_range(K):
                        b = product[t] * B[t * WIDTH + n - first_state]
                        current = tl.exp2(dt[t] * decays[n]) * current + b
                    ends = ends + (current,)
        h = ends
    # The states are read back below by whichever thread's turn it is.
    tl.debug_barrier()

    # The lane that holds a sum over channels: K sums of dB, then K of dC, each in LANES neighbouring lanes, which in
    # turn hold WIDTH states.
    LANES: tl.constexpr = _BLOCK // (2 * K)
    value, state = row // LANES, row % LANES // (LANES // WIDTH)
    block = first_channel // _BLOCK
    num_samples = tl.num_programs(0) // num_blocks // num_chunks
    shares_at = shares_ptr + (block * num_samples + sample) * 2 * N * length + first
    shares_at += value // K * (N * length) + state * length + value % K

    G, dA = _zeros(N), _zeros(N)
    if IS_CHUNKED:
        G = _load_states(ends_ptr, program, N, WIDTH)
    dskip, dbias = tl.zeros([_BLOCK], tl.float32), tl.zeros([_BLOCK], tl.float32)
    for walked in range(num_tiles):
        index = num_tiles - 1 - walked
        left = num_steps - index * K
        past = (num_steps - left).to(tl.int64)
        is_feature = in_range[:, None] & (step[None, :] < left)
        u_raw = _columns(tl.load(u_at + past * u_stride_l, mask=is_feature, other=0.0), _BLOCK, K)
        raw = _columns(tl.load(delta_at + past * delta_stride_l, mask=is_feature, other=0.0), _BLOCK, K)
        dy_raw = _columns(tl.load(dy_at + past * dy_stride_l, mask=is_feature, other=0.0), _BLOCK, K)
        B_tiles = _load_tiles(B_at + past * B_stride_l, left, B_stride_n, N, WIDTH, ROWS, K)
        C_tiles = _load_tiles(C_at + past * C_stride_l, left, C_stride_n, N, WIDTH, ROWS, K)
        dt, slopes, product, u, dy = (), (), (), (), ()
        dproduct, ddt = (), ()
        for t in tl.static_range(K):
            x = raw[t].to(tl.float32) + bias
            slope = tl.full([_BLOCK], 1.0, tl.float32)
            if SOFTPLUS:
                argument = x
                x, e = _softplus(argument)
                slope = tl.where(argument >= 0, 1.0, e) / (1.0 + e)
            # A step past the end takes no time and has no gradient.
            dt = dt + (tl.where(t < left, x, 0.0),)
            slopes = slopes + (tl.where(t < left, slope, 0.0),)
            u = u + (u_raw[t].to(tl.float32),)
            dy = dy + (dy_raw[t].to(tl.float32),)
            product = product + (dt[t] * u[t],)
            dproduct = dproduct + (tl.zeros([_BLOCK], tl.float32),)
            ddt = ddt + (tl.zeros([_BLOCK], tl.float32),)
        carried, slowing = (), ()
        for first_state in tl.static_range(0, N, WIDTH):
            B = _shared_columns(B_tiles[first_state // WIDTH], ROWS * WIDTH)
            C = _shared_columns(C_tiles[first_state // WIDTH], ROWS * WIDTH)
            # Read again for each tile: in the cache they do not take registers.
            their_decays = _find(decays_at, first_state, WIDTH)
            starts = _find(states_at + past * (ROW // K), first_state, WIDTH)
            sums = ()
            for n in tl.static_range(first_state, first_state + WIDTH):
                if n < N:
                    decay = their_decays[n - first_state]
                    a, trail = (), (starts[n - first_state],)
                    for t in tl.static_range(K):
                        a = a + (tl.exp2(dt[t] * decay),)
                        trail = trail + (a[t] * trail[t] + product[t] * B[t * WIDTH + n - first_state],)
                    back, rate = G[n], dA[n]
                    dB, dC, new_dproduct, new_ddt = (), (), (), ()
                    for t in tl.static_range(K - 1, -1, -1):
                        g = dy[t] * C[t * WIDTH + n - first_state] + back
                        back = a[t] * g
                        z = back * trail[t]
                        rate += z * dt[t]
                        # Prepended, for t runs backwards.
                        new_dproduct = (dproduct[t] + g * B[t * WIDTH + n - first_state],) + new_dproduct
                        new_ddt = (ddt[t] + z * decay,) + new_ddt
                        dB = (g * product[t],) + dB
                        dC = (dy[t] * trail[t + 1],) + dC
                    dproduct, ddt = new_dproduct, new_ddt
                    carried, slowing = carried + (back,), slowing + (rate,)
                    sums = sums + (_sum_over_lanes(dB + dC, 16, LANES),)
                else:
                    sums = sums + (tl.zeros([_BLOCK], tl.float32),)
            sums_at = shares_at + (first_state * length + past)
            is_written = (row % (LANES // WIDTH) == 0) & (first_state + state < N) & (value % K < left)
            tl.store(sums_at, _sum_over_lanes(sums, LANES // 2, 1), mask=is_written)
        G, dA = carried, slowing
        du, ddelta = (), ()
        for t in tl.static_range(K):
            du = du + ((dproduct[t] * dt[t] + skip * dy[t]).to(du_ptr.dtype.element_ty),)
            gradient = (dproduct[t] * u[t] + ddt[t] * _LN2) * slopes[t]
            ddelta = ddelta + (gradient.to(ddelta_ptr.dtype.element_ty),)
            dskip += dy[t] * u[t]
            dbias += gradient
        tl.store(du_at + past * du_stride_l, _tile(du, _BLOCK, K), mask=is_feature)
        tl.store(ddelta_at + past * ddelta_stride_l, _tile(ddelta, _BLOCK, K), mask=is_feature)

    row_at = sums_ptr + (sample * num_chunks + program // num_blocks % num_chunks) * (N + 2) * num_channels
    row_at += first_channel
    for first_state in tl.static_range(0, N, WIDTH):
        states = first_state + tl.arange(0, WIDTH)[None, :]
        is_there = in_range[:, None] & (states < N)
        tl.store(row_at + states * num_channels + row[:, None], _group(dA, first_state, N, WIDTH), mask=is_there)
    tl.store(row_at + N * num_channels + row, dskip, mask=in_range)
    tl.store(row_at + (N + 1) * num_channels + row, dbias, mask=in_range)


@triton.jit
def _sum_kernel(
    shares_ptr,
    sums_ptr,
    dB_ptr,
    dC_ptr,
    dA_ptr,
    dD_ptr,
    dbias_ptr,
    num_channels,
    length,
    num_blocks,
    num_rows,
    num_step_blocks,
    num_sequence_programs,
    apart,
    dB_stride_b,
    dB_stride_n,
    dB_stride_l,
    dC_stride_b,
    dC_stride_n,
    dC_stride_l,
    dA_stride_d,
    dA_stride_n,
    dD_stride,
    dbias_stride,
    N: tl.constexpr,
    PADDED_N: tl.constexpr,
    STEPS: tl.constexpr,
    PARAMETERS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """First the programs that sum dB and dC over channel blocks, then those of dA, dD, ddelta_bias over all rows."""
    program = tl.program_id(0).to(tl.int64)
    if program < num_sequence_programs:
        first_step = program % num_step_blocks * STEPS
        is_dC = program // num_step_blocks % 2
        sample = program // num_step_blocks // 2
        at = shares_ptr + (sample * 2 + is_dC) * N * length
        if is_dC == 0:
            to = dB_ptr + sample * dB_stride_b
            _sum_blocks(at, to, first_step, length, num_blocks, apart, dB_stride_n, dB_stride_l, N, PADDED_N, STEPS)
        else:
            to = dC_ptr + sample * dC_stride_b
            _sum_blocks(at, to, first_step, length, num_blocks, apart, dC_stride_n, dC_stride_l, N, PADDED_N, STEPS)
    else:
        parameter = (program - num_sequence_programs) * PARAMETERS + tl.arange(0, PARAMETERS)
        total = _sum_rows(sums_ptr, parameter, num_rows, (N + 2) * num_channels, PARAMETERS)
        kind, channel = parameter // num_channels, parameter % num_channels
        dA_at = dA_ptr + channel * dA_stride_d + kind * dA_stride_n
        tl.store(dA_at, total.to(dA_ptr.dtype.element_ty), mask=kind < N)
        if HAS_SKIP:
            tl.store(dD_ptr + channel * dD_stride, total.to(dD_ptr.dtype.element_ty), mask=kind == N)
        if HAS_BIAS:
            dbias_at = dbias_ptr + channel * dbias_stride
            tl.store(dbias_at, total.to(dbias_ptr.dtype.element_ty), mask=kind == N + 1)


@triton.jit
def _sum_blocks(
    at,
    to,
    first_step,
    length,
    num_blocks,
    apart,
    stride_n,
    stride_l,
    N: tl.constexpr,
    PADDED_N: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Writes the sum of a sample's (N, STEPS) over the channel blocks, which lie `apart`."""
    state, step = tl.arange(0, PADDED_N), first_step + tl.arange(0, STEPS)
    is_there = (state[:, None] < N) & (step[None, :] < length)
    at += state[:, None] * length + step[None, :]
    total = tl.zeros([PADDED_N, STEPS], tl.float32)
    for _ in range(num_blocks):
        total += tl.load(at, mask=is_there, other=0.0)
        at += apart
    tl.store(to + state[:, None] * stride_n + step[None, :] * stride_l, total.to(to.dtype.element_ty), mask=is_there)


@triton.jit
def _sum_rows(sums_ptr, parameter, num_rows, width, PARAMETERS: tl.constexpr):
    """The sums of the given columns of (num_rows, width)."""
    row = tl.arange(0, _SUM_ROWS).to(tl.int64)
    total = tl.zeros([_SUM_ROWS, PARAMETERS], tl.float32)
    for first in range(0, num_rows, _SUM_ROWS):
        is_there = (first + row[:, None] < num_rows) & (parameter[None, :] < width)
        total += tl.load(sums_ptr + (first + row[:, None]) * width + parameter[None, :], mask=is_there, other=0.0)
    return tl.sum(total, axis=0)
