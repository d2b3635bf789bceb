"""The kernels of the scan; `triton.py` describes how they work together, and launches them."""

# Triton does not compile starred elements of a tuple, which the rule wants.
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from dakd.kernels.selective_scan import triton_tiles as tiles

_CARRY_CHUNKS = tl.constexpr(8)
_SUM_ROWS = tl.constexpr(16)


@triton.jit
def forward_kernel(
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
    sample, first_channel, first, num_steps = tiles.locate(num_channels, length, num_blocks, num_chunks, chunk_length)
    if ALIGNED > 1:
        # Says to the compiler what the host made sure of.
        first, num_steps = first // ALIGNED * ALIGNED, num_steps // ALIGNED * ALIGNED
        u_stride_b, u_stride_d = u_stride_b // ALIGNED * ALIGNED, u_stride_d // ALIGNED * ALIGNED
        delta_stride_b, delta_stride_d = delta_stride_b // ALIGNED * ALIGNED, delta_stride_d // ALIGNED * ALIGNED
        y_stride_b, y_stride_d = y_stride_b // ALIGNED * ALIGNED, y_stride_d // ALIGNED * ALIGNED
    row, step = tl.arange(0, tiles.BLOCK), tl.arange(0, K)
    in_range = first_channel + row < num_channels
    decays = tiles.load_decays(A_ptr, first_channel + row, in_range, A_stride_d, A_stride_n, N, WIDTH)
    skip, bias = tl.zeros([tiles.BLOCK], tl.float32), tl.zeros([tiles.BLOCK], tl.float32)
    if HAS_SKIP:
        skip = tl.load(D_ptr + (first_channel + row) * D_stride, mask=in_range, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + (first_channel + row) * bias_stride, mask=in_range, other=0.0).to(tl.float32)
    h = tiles.zeros(N)
    if HAS_STARTS:
        h = tiles.load_states(starts_ptr, tl.program_id(0).to(tl.int64), N, WIDTH)

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
    B_ahead = tiles.load_shared(B_at, num_steps, B_stride_n, B_stride_l, N, WIDTH, ROWS, K)
    C_ahead = tiles.load_shared(C_at, num_steps, C_stride_n, C_stride_l, N, WIDTH, ROWS, K)
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
        B_ahead = tiles.load_shared(B_at, left, B_stride_n, B_stride_l, N, WIDTH, ROWS, K)
        C_ahead = tiles.load_shared(C_at, left, C_stride_n, C_stride_l, N, WIDTH, ROWS, K)

        u = tiles.columns(u_tile, tiles.BLOCK, K)
        raw = tiles.columns(delta_tile, tiles.BLOCK, K)
        dt, product, y = (), (), ()
        for t in tl.static_range(K):
            x = raw[t].to(tl.float32) + bias
            if SOFTPLUS:
                x, _ = tiles.softplus(x)
            dt = dt + (x,)
            product = product + (x * u[t].to(tl.float32),)
            y = y + (skip * u[t].to(tl.float32),)
        ends = ()
        for first_state in tl.static_range(0, N, WIDTH):
            B = tiles.shared_columns(B_tiles[first_state // WIDTH], ROWS * WIDTH)
            C = tiles.shared_columns(C_tiles[first_state // WIDTH], ROWS * WIDTH)
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
        tl.store(y_at + y_offsets, tiles.tile_of(rounded, tiles.BLOCK, K), mask=is_stored)
        y_at += K * y_stride_l


@triton.jit
def chunk_kernel(
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
    sample, first_channel, first, num_steps = tiles.locate(num_channels, length, num_blocks, num_chunks, chunk_length)
    if ALIGNED > 1:
        # Says to the compiler what the host made sure of.
        first, num_steps = first // ALIGNED * ALIGNED, num_steps // ALIGNED * ALIGNED
        u_stride_b, u_stride_d = u_stride_b // ALIGNED * ALIGNED, u_stride_d // ALIGNED * ALIGNED
        delta_stride_b, delta_stride_d = delta_stride_b // ALIGNED * ALIGNED, delta_stride_d // ALIGNED * ALIGNED
        dy_stride_b, dy_stride_d = dy_stride_b // ALIGNED * ALIGNED, dy_stride_d // ALIGNED * ALIGNED
    row, step = tl.arange(0, tiles.BLOCK), tl.arange(0, K)
    in_range = first_channel + row < num_channels
    decays = tiles.load_decays(A_ptr, first_channel + row, in_range, A_stride_d, A_stride_n, N, WIDTH)
    bias = tl.zeros([tiles.BLOCK], tl.float32)
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

    h, G, prefix = tiles.zeros(N), tiles.zeros(N), tiles.zeros(N)
    if IS_BACKWARD:
        ones = ()
        for n in tl.static_range(N):
            ones = ones + (prefix[n] + 1.0,)
        prefix = ones
    total = tl.zeros([tiles.BLOCK], tl.float32)
    for index in range(tl.cdiv(num_steps, K)):
        left = num_steps - index * K
        is_feature = in_range[:, None] & (step[None, :] < left)
        u = tiles.columns(tl.load(u_at + u_offsets, mask=is_feature, other=0.0), tiles.BLOCK, K)
        raw = tiles.columns(tl.load(delta_at + delta_offsets, mask=is_feature, other=0.0), tiles.BLOCK, K)
        B_tiles = tiles.load_shared(B_at, left, B_stride_n, B_stride_l, N, WIDTH, ROWS, K)
        if IS_BACKWARD:
            dy = tiles.columns(tl.load(dy_at + dy_offsets, mask=is_feature, other=0.0), tiles.BLOCK, K)
            C_tiles = tiles.load_shared(C_at, left, C_stride_n, C_stride_l, N, WIDTH, ROWS, K)
        dt, product = (), ()
        for t in tl.static_range(K):
            x = raw[t].to(tl.float32) + bias
            if SOFTPLUS:
                x, _ = tiles.softplus(x)
            # A step past the end takes no time.
            x = tl.where(t < left, x, 0.0)
            total += x
            dt = dt + (x,)
            product = product + (x * u[t].to(tl.float32),)
        ends, sums, decayed = (), (), ()
        for first_state in tl.static_range(0, N, WIDTH):
            B = tiles.shared_columns(B_tiles[first_state // WIDTH], ROWS * WIDTH)
            if IS_BACKWARD:
                C = tiles.shared_columns(C_tiles[first_state // WIDTH], ROWS * WIDTH)
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
    tiles.store_states(starts_ptr, program, h, N, WIDTH)
    if IS_BACKWARD:
        tiles.store_states(ends_ptr, program, G, N, WIDTH)
    tl.store(totals_ptr + program * tiles.BLOCK + row, total)


@triton.jit
def carry_kernel(
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
    row = tl.arange(0, tiles.BLOCK)
    channel = block * tiles.BLOCK + row
    a = tl.load(A_ptr + channel * A_stride_d + n * A_stride_n, mask=channel < num_channels, other=0.0)
    decay = a.to(tl.float32) * tiles.LOG2E
    num_rounds = tl.cdiv(num_chunks, _CARRY_CHUNKS)
    lane = tl.arange(0, _CARRY_CHUNKS)
    carried = tl.zeros([tiles.BLOCK], tl.float32)
    for index in range(num_rounds):
        chunk = index * _CARRY_CHUNKS + lane
        at = first_program + chunk * num_blocks
        carried = _carry_round(starts_ptr, totals_ptr, at, chunk < num_chunks, n, decay, carried, N)
    if IS_BACKWARD:
        carried = tl.zeros([tiles.BLOCK], tl.float32)
        for index in range(num_rounds):
            chunk = num_chunks - 1 - index * _CARRY_CHUNKS - lane
            at = first_program + chunk * num_blocks
            carried = _carry_round(ends_ptr, totals_ptr, at, chunk >= 0, n, decay, carried, N)


@triton.jit
def _carry_round(ptr, totals_ptr, program, is_there, n, decay, carried, N: tl.constexpr):
    """`carried` past the chunks of the given programs, in their order; each chunk's own share is replaced by what it
    starts from.
    """
    row = tl.arange(0, tiles.BLOCK)[:, None]
    at = ptr + (program[None, :] * N + n) * tiles.BLOCK + row
    made = tiles.columns(tl.load(at, mask=is_there[None, :], other=0.0), tiles.BLOCK, _CARRY_CHUNKS)
    totals = tl.load(totals_ptr + program[None, :] * tiles.BLOCK + row, mask=is_there[None, :], other=0.0)
    totals = tiles.columns(totals, tiles.BLOCK, _CARRY_CHUNKS)
    befores = ()
    for index in tl.static_range(_CARRY_CHUNKS):
        befores = befores + (carried,)
        carried = tl.exp2(totals[index] * decay) * carried + made[index]
    tl.store(at, tiles.tile_of(befores, tiles.BLOCK, _CARRY_CHUNKS), mask=is_there[None, :])
    return carried


@triton.jit
def _walk(
    h,
    decays,
    bias,
    u_at,
    delta_at,
    B_at,
    in_range,
    left,
    past,
    u_stride_l,
    delta_stride_l,
    B_stride_n,
    B_stride_l,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """The states after a tile from those before it.

    u_at, delta_at, B_at: a thread's addresses in the first tile.  left, past: steps from this one on, and before it.
    """
    is_feature = in_range[:, None] & (tl.arange(0, K)[None, :] < left)
    u = tiles.columns(tl.load(u_at + past * u_stride_l, mask=is_feature, other=0.0), tiles.BLOCK, K)
    raw = tiles.columns(tl.load(delta_at + past * delta_stride_l, mask=is_feature, other=0.0), tiles.BLOCK, K)
    B_tiles = tiles.load_tiles(B_at + past * B_stride_l, left, B_stride_n, N, WIDTH, ROWS, K)
    dt, product = (), ()
    for t in tl.static_range(K):
        x = raw[t].to(tl.float32) + bias
        if SOFTPLUS:
            x, _ = tiles.softplus(x)
        dt = dt + (x,)
        product = product + (x * u[t].to(tl.float32),)
    ends = ()
    for first_state in tl.static_range(0, N, WIDTH):
        B = tiles.shared_columns(B_tiles[first_state // WIDTH], ROWS * WIDTH)
        for n in tl.static_range(first_state, first_state + WIDTH):
            if n < N:
                current = h[n]
                for t in tl.static_range(K):
                    b = product[t] * B[t * WIDTH + n - first_state]
                    current = tl.exp2(dt[t] * decays[n]) * current + b
                ends = ends + (current,)
    return ends


@triton.jit
def backward_kernel(
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
    TILES: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """du and ddelta; the channel block's share of dB and dC; the program's share of dA, dD and ddelta_bias."""
    sample, first_channel, first, num_steps = tiles.locate(num_channels, length, num_blocks, num_chunks, chunk_length)
    if ALIGNED > 1:
        # Says to the compiler what the host made sure of.
        first, num_steps = first // ALIGNED * ALIGNED, num_steps // ALIGNED * ALIGNED
        u_stride_b, u_stride_d = u_stride_b // ALIGNED * ALIGNED, u_stride_d // ALIGNED * ALIGNED
        delta_stride_b, delta_stride_d = delta_stride_b // ALIGNED * ALIGNED, delta_stride_d // ALIGNED * ALIGNED
        dy_stride_b, dy_stride_d = dy_stride_b // ALIGNED * ALIGNED, dy_stride_d // ALIGNED * ALIGNED
        du_stride_b, du_stride_d = du_stride_b // ALIGNED * ALIGNED, du_stride_d // ALIGNED * ALIGNED
        ddelta_stride_b, ddelta_stride_d = ddelta_stride_b // ALIGNED * ALIGNED, ddelta_stride_d // ALIGNED * ALIGNED
    program = tl.program_id(0).to(tl.int64)
    row, step = tl.arange(0, tiles.BLOCK), tl.arange(0, K)
    in_range = first_channel + row < num_channels
    decays = tiles.load_decays(A_ptr, first_channel + row, in_range, A_stride_d, A_stride_n, N, WIDTH)
    skips = first_channel + row < num_skipping
    skip = tl.load(D_ptr + (first_channel + row) * D_stride, mask=skips, other=0.0).to(tl.float32)
    bias = tl.zeros([tiles.BLOCK], tl.float32)
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
    # Rows of N vectors: the decays; the states before each tile of the group that is walked back, but its first; the
    # states before each group of TILES tiles, which are kept.
    ROW: tl.constexpr = (N + WIDTH - 1) // WIDTH * WIDTH * tiles.BLOCK
    decays_at = states_ptr + program * (tl.cdiv(chunk_length, TILES * K) + TILES) * ROW
    kept_at = decays_at + TILES * ROW
    tiles.keep(decays_at, decays, N, WIDTH)
    h = tiles.zeros(N)
    if IS_CHUNKED:
        h = tiles.load_states(starts_ptr, program, N, WIDTH)
    for index in range(num_tiles):
        left = num_steps - index * K
        past = (num_steps - left).to(tl.int64)
        if index % TILES == 0:
            tiles.keep(kept_at + past // (TILES * K) * ROW, h, N, WIDTH)
        h = _walk(
            h,
            decays,
            bias,
            u_at,
            delta_at,
            B_at,
            in_range,
            left,
            past,
            u_stride_l,
            delta_stride_l,
            B_stride_n,
            B_stride_l,
            N,
            WIDTH,
            ROWS,
            K,
            SOFTPLUS,
        )
    # The states are read back below by whichever thread's turn it is.
    tl.debug_barrier()

    # The lane that holds a sum over channels: K sums of dB, then K of dC, each in LANES neighbouring lanes, which in
    # turn hold WIDTH states.
    LANES: tl.constexpr = tiles.BLOCK // (2 * K)
    value, state = row // LANES, row % LANES // (LANES // WIDTH)
    block = first_channel // tiles.BLOCK
    num_samples = tl.num_programs(0) // num_blocks // num_chunks
    shares_at = shares_ptr + (block * num_samples + sample) * 2 * N * length + first
    shares_at += value // K * (N * length) + state * length + value % K

    G, dA = tiles.zeros(N), tiles.zeros(N)
    if IS_CHUNKED:
        G = tiles.load_states(ends_ptr, program, N, WIDTH)
    dskip, dbias = tl.zeros([tiles.BLOCK], tl.float32), tl.zeros([tiles.BLOCK], tl.float32)
    for walked in range(num_tiles):
        index = num_tiles - 1 - walked
        left = num_steps - index * K
        past = (num_steps - left).to(tl.int64)
        inner = index % TILES
        if TILES > 1:  # noqa: SIM102 - decided while compiling, as the next one is not
            if (inner == TILES - 1) | (walked == 0):
                # The group's states are written over those of the group after it, which all threads have read.
                tl.debug_barrier()
                decays = tiles.find_all(decays_at, N, WIDTH)
                h = tiles.find_all(kept_at + past // (TILES * K) * ROW, N, WIDTH)
                for number in range(inner):
                    # All but the last tile of a sequence are whole, and that one is not walked again.
                    before = past - (inner - number) * K
                    h = _walk(
                        h,
                        decays,
                        bias,
                        u_at,
                        delta_at,
                        B_at,
                        in_range,
                        K,
                        before,
                        u_stride_l,
                        delta_stride_l,
                        B_stride_n,
                        B_stride_l,
                        N,
                        WIDTH,
                        ROWS,
                        K,
                        SOFTPLUS,
                    )
                    tiles.keep(decays_at + (number + 1) * ROW, h, N, WIDTH)
                tl.debug_barrier()
        starts_at = tl.where(inner == 0, kept_at + past // (TILES * K) * ROW, decays_at + inner * ROW)
        is_feature = in_range[:, None] & (step[None, :] < left)
        u_raw = tiles.columns(tl.load(u_at + past * u_stride_l, mask=is_feature, other=0.0), tiles.BLOCK, K)
        raw = tiles.columns(tl.load(delta_at + past * delta_stride_l, mask=is_feature, other=0.0), tiles.BLOCK, K)
        dy_raw = tiles.columns(tl.load(dy_at + past * dy_stride_l, mask=is_feature, other=0.0), tiles.BLOCK, K)
        B_tiles = tiles.load_tiles(B_at + past * B_stride_l, left, B_stride_n, N, WIDTH, ROWS, K)
        C_tiles = tiles.load_tiles(C_at + past * C_stride_l, left, C_stride_n, N, WIDTH, ROWS, K)
        dt, slopes, product, u, dy = (), (), (), (), ()
        dproduct, ddt = (), ()
        for t in tl.static_range(K):
            x = raw[t].to(tl.float32) + bias
            slope = tl.full([tiles.BLOCK], 1.0, tl.float32)
            if SOFTPLUS:
                argument = x
                x, e = tiles.softplus(argument)
                slope = tl.where(argument >= 0, 1.0, e) / (1.0 + e)
            # A step past the end takes no time and has no gradient.
            dt = dt + (tl.where(t < left, x, 0.0),)
            slopes = slopes + (tl.where(t < left, slope, 0.0),)
            u = u + (u_raw[t].to(tl.float32),)
            dy = dy + (dy_raw[t].to(tl.float32),)
            product = product + (dt[t] * u[t],)
            dproduct = dproduct + (tl.zeros([tiles.BLOCK], tl.float32),)
            ddt = ddt + (tl.zeros([tiles.BLOCK], tl.float32),)
        carried, slowing = (), ()
        for first_state in tl.static_range(0, N, WIDTH):
            B = tiles.shared_columns(B_tiles[first_state // WIDTH], ROWS * WIDTH)
            C = tiles.shared_columns(C_tiles[first_state // WIDTH], ROWS * WIDTH)
            # Read again for each tile: in the cache they do not take registers.
            their_decays = tiles.find(decays_at, first_state, WIDTH)
            starts = tiles.find(starts_at, first_state, WIDTH)
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
                    sums = sums + (tiles.sum_over_lanes(dB + dC, 16, LANES),)
                else:
                    sums = sums + (tl.zeros([tiles.BLOCK], tl.float32),)
            sums_at = shares_at + (first_state * length + past)
            is_written = (row % (LANES // WIDTH) == 0) & (first_state + state < N) & (value % K < left)
            tl.store(sums_at, tiles.sum_over_lanes(sums, LANES // 2, 1), mask=is_written)
        G, dA = carried, slowing
        du, ddelta = (), ()
        for t in tl.static_range(K):
            du = du + ((dproduct[t] * dt[t] + skip * dy[t]).to(du_ptr.dtype.element_ty),)
            gradient = (dproduct[t] * u[t] + ddt[t] * tiles.LN2) * slopes[t]
            ddelta = ddelta + (gradient.to(ddelta_ptr.dtype.element_ty),)
            dskip += dy[t] * u[t]
            dbias += gradient
        tl.store(du_at + past * du_stride_l, tiles.tile_of(du, tiles.BLOCK, K), mask=is_feature)
        tl.store(ddelta_at + past * ddelta_stride_l, tiles.tile_of(ddelta, tiles.BLOCK, K), mask=is_feature)

    # Addressed by the program's number alone: a register that lives through both loops would be spilled.
    sums_at = sums_ptr + program * ((N + 2) * tiles.BLOCK)
    for first_state in tl.static_range(0, N, WIDTH):
        states = first_state + tl.arange(0, WIDTH)[None, :]
        their_sums = tiles.group(dA, first_state, N, WIDTH)
        tl.store(sums_at + states * tiles.BLOCK + row[:, None], their_sums, mask=states < N)
    tl.store(sums_at + N * tiles.BLOCK + row, dskip)
    tl.store(sums_at + (N + 1) * tiles.BLOCK + row, dbias)


@triton.jit
def sum_kernel(
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
        total = _sum_rows(sums_ptr, parameter, num_rows, num_blocks * (N + 2) * tiles.BLOCK, PARAMETERS)
        # A row holds, for each channel block, N + 2 kinds of its channels.
        kind = parameter // tiles.BLOCK % (N + 2)
        channel = parameter // tiles.BLOCK // (N + 2) * tiles.BLOCK + parameter % tiles.BLOCK
        is_there = channel < num_channels
        dA_at = dA_ptr + channel * dA_stride_d + kind * dA_stride_n
        tl.store(dA_at, total.to(dA_ptr.dtype.element_ty), mask=is_there & (kind < N))
        if HAS_SKIP:
            tl.store(dD_ptr + channel * dD_stride, total.to(dD_ptr.dtype.element_ty), mask=is_there & (kind == N))
        if HAS_BIAS:
            dbias_at = dbias_ptr + channel * dbias_stride
            tl.store(dbias_at, total.to(dbias_ptr.dtype.element_ty), mask=is_there & (kind == N + 1))


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
