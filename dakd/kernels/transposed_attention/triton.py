"""transposed_attention in Triton: three launches forward, three backward; q, k and v are read once each way, dy once.

Per head, with n_i = max(|q_i|, 1e-12), m_j = max(|k_j|, 1e-12):

Forward    1  G = q k^T, |q_i|^2, |k_j|^2 over one split of the pixels (`_gram_kernel`)
           2  their sums; S_ij = G_ij / (n_i m_j);  P = softmax_j(temperature S);  M = W P (`_fold_kernel`)
           3  y = residual + M v (`_apply_kernel`)
Backward   1  dM = dy v^T over one split of the pixels, and from the same dy  dv = M^T dy (`_dfold_kernel`)
           2  the sum of dM;  dW_b = dM P^T;  dP = W^T dM;  dT = P (dP - sum_j P dP);  dtemperature_b = sum dT S;
              dS = temperature dT;  E_ij = dS_ij / (n_i m_j) (`_dattention_kernel`)
           3  dq_i = sum_j E_ij k_j - q_i (sum_j dS_ij S_ij) / n_i^2  (second term absent where |q_i| <= 1e-12),
              dk_j = sum_i E_ij q_i - k_j (sum_i dS_ij S_ij) / m_j^2  (likewise);
              sums of dW_b and dtemperature_b over the batch; dv where C is too wide for launch 1 (`_dqk_kernel`)

Sums over pixels are split over programs and added in a fixed order: results repeat bit for bit. In the second launches
many programs add the partial sums of a head, in the forward pass each up to P for its own rows; the last to finish (an
integer counter of arrivals, which the launch before has zeroed) continues alone, with little left to do:
W P forward, the softmax's gradient backward. These small matrices are fp32; products with q, k, v and dy run on the
tensor cores in the features' dtype (for fp16, E does in TF32, whose range it needs) and add up in fp32.

NCHW and channels_last are read and written as they lie. Inputs whose H and W do not merge into one axis are copied.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dakd.kernels import triton_runtime
from dakd.kernels.transposed_attention.ops import Operands, Outputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_MIN_NORM = tl.constexpr(1e-12)
# Channels of y up to which one program can hold all of dy's at its pixels.
_MAX_FUSED_CHANNELS = 256
# Values that a search may set the two below to; each call reads them. fp32 has its own.
APPLY_PIXELS, APPLY_TILES = (64, 128), (1, 2)
# Pixels of a tile of y. Tiles of a program, which keeps its rows of W P for all of them (up to 64 inner channels).
_APPLY_PIXELS, _APPLY_TILES = 64, 1


def forward(operands: Operands, outputs: Outputs) -> None:
    q, k, v, temperature, out_weight, residual, num_heads = operands
    y, products, folded = outputs
    batch, inner, num_pixels = q.shape[0], q.shape[1], q.shape[2] * q.shape[3]
    channels, width = residual.shape[1], inner // num_heads
    q_flat, k_flat, v_flat, residual_flat = (tensor.flatten(2) for tensor in (q, k, v, residual))
    y_flat = _flat(y)
    is_wide = q.dtype == torch.float32
    precision = dict(AS_FLOAT=is_wide or triton_runtime.is_interpreted())

    # fp32 tiles take twice the registers and shared memory, so their blocks are smaller throughout.
    block_d = min(_block(width), 64 if is_wide else 128)
    # Pixels in rows of odd length come one by one, through registers.
    is_aligned = num_pixels % 16 == 0
    block_p = 32 if is_wide else 128 if block_d == 64 and is_aligned else 64
    num_tiles = triton.cdiv(width, block_d)
    num_splits, chunk = _split(q, num_pixels, batch * num_heads * num_tiles**2, block_p)
    partial = products.new_empty((num_splits, *products.shape))
    arrivals = torch.empty(batch * num_heads, dtype=torch.int32, device=q.device)
    triton_runtime.launch(
        _gram_kernel, (num_splits, batch * num_heads, num_tiles**2),
        q_flat, k_flat, partial, arrivals, num_pixels, chunk, *q_flat.stride(), *k_flat.stride(),
        NUM_HEADS=num_heads, WIDTH=width, BLOCK_D=block_d, BLOCK_P=block_p, **precision,
        num_warps=8 if block_d >= 64 else 4, num_stages=2 if is_wide else 3,
    )  # fmt: skip
    block_d = _block(width)
    # Few heads in all: fewer rows in a program, so that more programs share the sums.
    block_i = triton.cdiv(64 if batch * num_heads < 16 else 256, block_d)
    block_s = min(triton.next_power_of_2(num_splits), 8192 // (block_i * block_d))
    attention = products.new_empty((batch * num_heads, width, width))
    triton_runtime.launch(
        _fold_kernel, (triton.cdiv(width, block_i), batch * num_heads),
        partial, arrivals, products, attention, temperature.contiguous(), out_weight, folded,
        num_splits, channels, *out_weight.stride(),
        NUM_HEADS=num_heads, WIDTH=width, BLOCK_D=block_d, BLOCK_I=block_i, BLOCK_S=block_s,
        BLOCK_C=min(_block(channels), 64 if is_wide else 128, max(16, 8192 // block_d)),
        BLOCK_K=min(block_d, max(16, 8192 // block_d)),
        PRECISION="ieee" if is_wide else "tf32", num_warps=8 if width > 32 else 4, num_stages=1,
    )  # fmt: skip
    block_c = min(_block(channels), 64 if is_wide else 128)
    block_p, num_tiles = 64, 1
    if is_aligned and not is_wide:
        block_p, num_tiles = _APPLY_PIXELS, _APPLY_TILES if inner <= 64 else 1
    grid = (batch * triton.cdiv(num_pixels, block_p * num_tiles) * triton.cdiv(channels, block_c),)
    triton_runtime.launch(
        _apply_kernel, grid,
        folded, v_flat, residual_flat, y_flat, num_pixels, channels,
        *folded.stride(), *v_flat.stride(), *residual_flat.stride(), *y_flat.stride(),
        INNER=inner, NUM_TILES=num_tiles, BLOCK_C=block_c, BLOCK_P=block_p,
        BLOCK_R=min(_block(inner), 16 if is_wide else 64), **precision,
        num_warps=4 if inner <= 64 and block_p == 64 and not is_wide else 8, num_stages=3,
    )  # fmt: skip


def backward(
    operands: Operands, products: Tensor, folded: Tensor, dy: Tensor, gradients: tuple[Tensor, ...]
) -> None:
    q, k, v, temperature, out_weight, _residual, num_heads = operands
    dq, dk, dv, dtemperature, dout_weight = gradients
    batch, inner, num_pixels = q.shape[0], q.shape[1], q.shape[2] * q.shape[3]
    channels, width = dy.shape[1], inner // num_heads
    q_flat, k_flat, v_flat, dy_flat = (tensor.flatten(2) for tensor in (q, k, v, dy))
    dq_flat, dk_flat, dv_flat = (_flat(tensor) for tensor in (dq, dk, dv))
    is_wide = q.dtype == torch.float32
    precision = dict(AS_FLOAT=is_wide or triton_runtime.is_interpreted())
    is_fused = channels <= _MAX_FUSED_CHANNELS and not is_wide

    block_c = _block(channels) if is_fused else 64 if is_wide else 128
    block_j = min(_block(inner), 64)
    block_p = 16 if is_wide else 32 if block_c > 128 or num_pixels % 16 else 64
    tiles = triton.cdiv(channels, block_c), triton.cdiv(inner, block_j)
    num_splits, chunk = _split(q, num_pixels, batch * tiles[0] * tiles[1], block_p)
    partial = products.new_empty((num_splits, batch, channels, inner))
    arrivals = torch.empty(batch * num_heads, dtype=torch.int32, device=q.device)
    triton_runtime.launch(
        _dfold_kernel, (num_splits, tiles[0] * tiles[1], batch),
        dy_flat, v_flat, folded, dv_flat, partial, arrivals, num_pixels, chunk, channels,
        *dy_flat.stride(), *v_flat.stride(), *dv_flat.stride(),
        NUM_HEADS=num_heads, BLOCK_HEADS=triton.next_power_of_2(num_heads), INNER=inner, HAS_DV=is_fused,
        BLOCK_C=block_c, BLOCK_J=block_j, BLOCK_P=block_p, **precision, num_warps=8, num_stages=3,
    )  # fmt: skip
    block_d = _block(width)
    # Few heads in all: thinner slices, so that more programs share the sums, which are long; so more loads at once.
    is_thin = block_d > 64 or batch * num_heads < 16
    block_c, unroll = (16, 16) if is_thin else (64, 4)
    block_i = 32 if block_d == 128 or not (is_thin or is_wide) else 16 if is_wide or block_d > 128 else 64
    num_slices = triton.cdiv(channels, block_c)
    heads = (batch * num_heads, width)
    dattention = products.new_empty((num_slices, *heads, width))
    # bf16 has the range of fp32. fp16 does not, so there E stays in fp32 and is multiplied in TF32.
    scaled = products.new_empty((*heads, width), dtype=torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32)
    radial = products.new_empty((heads[0], 2, width))
    dtemperature_parts, dweight_parts = products.new_empty(heads[0]), products.new_empty((batch, channels, inner))
    triton_runtime.launch(
        _dattention_kernel, (num_slices, batch * num_heads),
        partial, arrivals, products, temperature.contiguous(), out_weight,
        dattention, dweight_parts, dtemperature_parts, scaled, radial,
        num_splits, batch, channels, *out_weight.stride(),
        NUM_HEADS=num_heads, WIDTH=width, BLOCK_D=block_d, BLOCK_I=min(block_d, block_i),
        BLOCK_C=block_c, UNROLL=unroll, PRECISION="ieee" if is_wide else "tf32",
        num_warps=16 if block_c < block_d else 8, num_stages=1,
    )  # fmt: skip
    block_d, block_p = _block(width), 32 if is_wide else 64
    block_d = min(block_d, 32 if is_wide else 64 if width > 128 or q.dtype == torch.float16 else 128)
    num_blocks = triton.cdiv(width, block_d)
    num_tiles = triton.cdiv(num_pixels, block_p)
    block_r = min(_block(inner), 64)
    # One launch for dq and dk, dv, and the sums of dW: small parts run next to the large one.
    grid_qk = batch * num_tiles * num_heads * num_blocks
    grid_dv = 0 if is_fused else batch * num_tiles * triton.cdiv(inner, block_r)
    triton_runtime.launch(
        _dqk_kernel, (grid_qk + grid_dv + triton.cdiv(channels * inner, 256),),
        q_flat, k_flat, dq_flat, dk_flat, scaled, radial, folded, dy_flat, dv_flat,
        dweight_parts, dout_weight, dtemperature_parts, dtemperature,
        num_pixels, batch, channels, grid_qk, grid_qk + grid_dv,
        *q_flat.stride(), *k_flat.stride(), *dq_flat.stride(), *dk_flat.stride(), *dy_flat.stride(), *dv_flat.stride(),
        *dout_weight.stride(),
        NUM_HEADS=num_heads, BLOCK_HEADS=triton.next_power_of_2(num_heads), INNER=inner, WIDTH=width,
        NUM_BLOCKS=num_blocks, HAS_DV=not is_fused, BLOCK_D=block_d, BLOCK_P=block_p, BLOCK_R=block_r,
        BLOCK_C=min(_block(channels), 32 if is_wide else 64), BLOCK_E=256, **precision,
        AS_TF32=q.dtype == torch.float16 and not triton_runtime.is_interpreted(),
        num_warps=4 if is_wide else 8, num_stages=2,
    )  # fmt: skip


def _block(size: int) -> int:
    """The power of two that holds `size`, and no less than a matrix product takes."""
    return max(16, triton.next_power_of_2(size))


def _split(q: Tensor, num_pixels: int, num_tiles: int, block_p: int) -> tuple[int, int]:
    """Programs that share the pixels of one tile, two or so on a multiprocessor, and the pixels of each."""
    wanted = 2 * triton_runtime.num_multiprocessors(q.device) // max(num_tiles, 1)
    num_splits = max(1, min(wanted, triton.cdiv(num_pixels, 2 * block_p)))
    chunk = max(1, triton.cdiv(triton.cdiv(num_pixels, num_splits), block_p)) * block_p
    return max(1, triton.cdiv(num_pixels, chunk)), chunk


def _flat(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], x.shape[2] * x.shape[3])


@triton.jit
def _gram_kernel(
    q_ptr, k_ptr, partial_ptr, arrivals_ptr, num_pixels, chunk,
    q_stride_b, q_stride_c, q_stride_p, k_stride_b, k_stride_c, k_stride_p,
    NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """partial (S, B h, d + 2, d): one split's <q_i, k_j>, |q_i|^2 and |k_j|^2."""
    NUM_TILES: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    split, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    tile_i, tile_j = tl.program_id(2) // NUM_TILES, tl.program_id(2) % NUM_TILES
    batch, first = head // NUM_HEADS, head % NUM_HEADS * WIDTH
    i, j = tile_i * BLOCK_D + tl.arange(0, BLOCK_D), tile_j * BLOCK_D + tl.arange(0, BLOCK_D)
    is_i, is_j = i < WIDTH, j < WIDTH
    q_rows = q_ptr + batch * q_stride_b + (first + i)[:, None] * q_stride_c
    k_rows = k_ptr + batch * k_stride_b + (first + j)[:, None] * k_stride_c
    gram = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
    q_square = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
    k_square = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
    for start in range(split * chunk, tl.minimum((split + 1) * chunk, num_pixels), BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        is_pixel = (pixel < num_pixels)[None, :]
        q = tl.load(q_rows + pixel[None, :] * q_stride_p, mask=is_i[:, None] & is_pixel, other=0.0)
        k = tl.load(k_rows + pixel[None, :] * k_stride_p, mask=is_j[:, None] & is_pixel, other=0.0)
        q_wide, k_wide = q.to(tl.float32), k.to(tl.float32)
        q_square += q_wide * q_wide
        k_square += k_wide * k_wide
        if AS_FLOAT:
            gram = tl.dot(q_wide, tl.trans(k_wide), gram, input_precision="ieee")
        else:
            gram = tl.dot(q, tl.trans(k), gram)
    if (split == 0) & (tl.program_id(2) == 0):
        tl.store(arrivals_ptr + head, 0)
    partial_ptr += (split * tl.num_programs(1) + head) * (WIDTH + 2) * WIDTH
    tl.store(partial_ptr + i[:, None] * WIDTH + j[None, :], gram, mask=is_i[:, None] & is_j[None, :])
    tl.store(partial_ptr + WIDTH * WIDTH + i, tl.sum(q_square, 1), mask=is_i & (tile_j == 0))
    tl.store(partial_ptr + (WIDTH + 1) * WIDTH + j, tl.sum(k_square, 1), mask=is_j & (tile_i == 0))


@triton.jit
def _attend(gram, n_square, m_square, temperature, j, WIDTH: tl.constexpr):
    """Some rows of a head, j its columns: norms n and m, cosines S and attention P, all finite outside the head too."""
    n, m = tl.maximum(tl.sqrt_rn(n_square), _MIN_NORM), tl.maximum(tl.sqrt_rn(m_square), _MIN_NORM)
    cosine = tl.div_rn(gram, n[:, None] * m[None, :])
    logits = tl.where((j < WIDTH)[None, :], temperature * cosine, float("-inf"))
    attention = tl.exp(logits - tl.max(logits, 1)[:, None])
    return n, m, cosine, tl.div_rn(attention, tl.broadcast_to(tl.sum(attention, 1)[:, None], attention.shape))


@triton.jit
def _attend_again(products_ptr, temperature, i, j, WIDTH: tl.constexpr):
    """The same of rows i, from a head's products."""
    inside = (i < WIDTH)[:, None] & (j < WIDTH)[None, :]
    gram = tl.load(products_ptr + i[:, None] * WIDTH + j[None, :], mask=inside, other=0.0)
    n_square = tl.load(products_ptr + WIDTH * WIDTH + i, mask=i < WIDTH, other=1.0)
    m_square = tl.load(products_ptr + (WIDTH + 1) * WIDTH + j, mask=j < WIDTH, other=1.0)
    return _attend(gram, n_square, m_square, temperature, j, WIDTH)


@triton.jit
def _is_last(arrivals_ptr, num_programs):
    """Whether all other programs of this counter have come here before; what they stored can then be read."""
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals_ptr, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return arrived == num_programs - 1


@triton.jit
def _fold_kernel(
    partial_ptr, arrivals_ptr, products_ptr, attention_ptr, temperature_ptr, weight_ptr, folded_ptr,
    num_splits, channels, weight_stride_c, weight_stride_r,
    NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of a head in each program: of products (B h, d + 2, d) and of attention (B h, d, d).

    In the head's last: folded (B, C, R).
    """
    SIZE: tl.constexpr = (WIDTH + 2) * WIDTH
    head = tl.program_id(1).to(tl.int64)
    batch, h = head // NUM_HEADS, head % NUM_HEADS
    i, j = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_D)
    is_i, is_j = i < WIDTH, j < WIDTH
    inside = is_i[:, None] & is_j[None, :]
    entries = i[:, None] * WIDTH + j[None, :]
    gram = tl.zeros([BLOCK_S, BLOCK_I, BLOCK_D], tl.float32)
    n_square = tl.zeros([BLOCK_S, BLOCK_I], tl.float32)
    m_square = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    for start in range(0, num_splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S).to(tl.int64)
        is_split = split < num_splits
        parts = partial_ptr + (split * tl.num_programs(1) + head) * SIZE
        gram += tl.load(
            parts[:, None, None] + entries[None, :, :], mask=is_split[:, None, None] & inside[None, :, :], other=0.0
        )
        squares = parts[:, None] + WIDTH * WIDTH
        n_square += tl.load(squares + i[None, :], mask=is_split[:, None] & is_i[None, :], other=0.0)
        # Every program needs all of them to finish its rows.
        m_square += tl.load(squares + WIDTH + j[None, :], mask=is_split[:, None] & is_j[None, :], other=0.0)
    gram_rows, n_square_rows, m_square_row = tl.sum(gram, 0), tl.sum(n_square, 0), tl.sum(m_square, 0)
    temperature = tl.load(temperature_ptr + h).to(tl.float32)
    _, _, _, attention = _attend(gram_rows, n_square_rows, m_square_row, temperature, j, WIDTH)
    products_ptr += head * SIZE
    attention_ptr += head * WIDTH * WIDTH
    tl.store(products_ptr + entries, gram_rows, mask=inside)
    tl.store(products_ptr + WIDTH * WIDTH + i, n_square_rows, mask=is_i)
    tl.store(products_ptr + (WIDTH + 1) * WIDTH + j, m_square_row, mask=is_j & (tl.program_id(0) == 0))
    tl.store(attention_ptr + entries, attention, mask=inside)
    if _is_last(arrivals_ptr + head, tl.num_programs(0)):
        k = tl.arange(0, BLOCK_K)
        weight_ptr += h * WIDTH * weight_stride_r
        folded_ptr += batch * channels * (NUM_HEADS * WIDTH) + h * WIDTH
        if BLOCK_K >= WIDTH:
            whole = tl.load(
                attention_ptr + k[:, None] * WIDTH + j[None, :],
                mask=(k < WIDTH)[:, None] & is_j[None, :], other=0.0,
            )  # fmt: skip
        for first in range(0, channels, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            folded = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
            for row in range(0, WIDTH, BLOCK_K):
                k = row + tl.arange(0, BLOCK_K)
                weight = tl.load(
                    weight_ptr + c[:, None] * weight_stride_c + k[None, :] * weight_stride_r,
                    mask=(c < channels)[:, None] & (k < WIDTH)[None, :], other=0.0,
                ).to(tl.float32)  # fmt: skip
                if BLOCK_K >= WIDTH:
                    rows = whole
                else:
                    rows = tl.load(
                        attention_ptr + k[:, None] * WIDTH + j[None, :],
                        mask=(k < WIDTH)[:, None] & is_j[None, :], other=0.0,
                    )  # fmt: skip
                folded = tl.dot(weight, rows, folded, input_precision=PRECISION)
            tl.store(
                folded_ptr + c[:, None] * (NUM_HEADS * WIDTH) + j[None, :], folded.to(folded_ptr.dtype.element_ty),
                mask=(c < channels)[:, None] & is_j[None, :],
            )  # fmt: skip


@triton.jit
def _load_rows(a_ptr, row, r, rows, num_inner, a_stride_i, a_stride_r):
    mask = (row < rows)[:, None] & (r < num_inner)[None, :]
    return tl.load(a_ptr + row[:, None] * a_stride_i + r[None, :] * a_stride_r, mask=mask, other=0.0)


@triton.jit
def _load_pixels(x_ptr, r, pixel, num_inner, num_pixels, x_stride_r, x_stride_p):
    mask = (r < num_inner)[:, None] & (pixel < num_pixels)[None, :]
    return tl.load(x_ptr + r.to(tl.int64)[:, None] * x_stride_r + pixel[None, :] * x_stride_p, mask=mask, other=0.0)


@triton.jit
def _add_product(a, x, acc, AS_FLOAT: tl.constexpr):
    """acc + a x, in fp32; x is cast to a's dtype."""
    x = x.to(a.dtype)
    if AS_FLOAT:
        return tl.dot(a.to(tl.float32), x.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, x, acc)


@triton.jit
def _product(
    a_ptr, x_ptr, row, pixel, rows, num_pixels, a_stride_i, a_stride_r, x_stride_r, x_stride_p, num_inner,
    BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """Tile (row, pixel) of a x, in fp32: a of (rows, num_inner), x of (num_inner, num_pixels)."""
    acc = tl.zeros([BLOCK_I, BLOCK_P], tl.float32)
    for start in range(0, num_inner, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        a = _load_rows(a_ptr, row, r, rows, num_inner, a_stride_i, a_stride_r)
        x = _load_pixels(x_ptr, r, pixel, num_inner, num_pixels, x_stride_r, x_stride_p)
        acc = _add_product(a, x, acc, AS_FLOAT)
    return acc


@triton.jit
def _apply_kernel(
    folded_ptr, v_ptr, residual_ptr, y_ptr, num_pixels, channels,
    folded_stride_b, folded_stride_c, folded_stride_r, v_stride_b, v_stride_r, v_stride_p,
    residual_stride_b, residual_stride_c, residual_stride_p, y_stride_b, y_stride_c, y_stride_p,
    INNER: tl.constexpr, NUM_TILES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
    AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """y = residual + folded v, NUM_TILES tiles of pixels in each program."""
    # Programs of the same pixels come one after another and find v in the cache.
    tiles_c, groups = tl.cdiv(channels, BLOCK_C), tl.cdiv(num_pixels, BLOCK_P * NUM_TILES)
    tile, rest = tl.program_id(0) % tiles_c, tl.program_id(0) // tiles_c
    batch = (rest // groups).to(tl.int64)
    c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    c_wide = c.to(tl.int64)[:, None]
    folded_ptr += batch * folded_stride_b
    v_ptr += batch * v_stride_b
    if INNER <= BLOCK_R:
        r = tl.arange(0, BLOCK_R)
        folded = _load_rows(folded_ptr, c, r, channels, INNER, folded_stride_c, folded_stride_r)
    for index in range(NUM_TILES):
        pixel = ((rest % groups).to(tl.int64) * NUM_TILES + index) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (c < channels)[:, None] & (pixel < num_pixels)[None, :]
        residual = tl.load(
            residual_ptr + batch * residual_stride_b + c_wide * residual_stride_c + pixel[None, :] * residual_stride_p,
            mask=inside, other=0.0,
        )  # fmt: skip
        if INNER <= BLOCK_R:
            v = _load_pixels(v_ptr, r, pixel, INNER, num_pixels, v_stride_r, v_stride_p)
            update = _add_product(folded, v, tl.zeros([BLOCK_C, BLOCK_P], tl.float32), AS_FLOAT)
        else:
            update = _product(
                folded_ptr, v_ptr, c, pixel, channels, num_pixels, folded_stride_c, folded_stride_r,
                v_stride_r, v_stride_p, INNER, BLOCK_C, BLOCK_P, BLOCK_R, AS_FLOAT,
            )  # fmt: skip
        y = y_ptr + batch * y_stride_b + c_wide * y_stride_c + pixel[None, :] * y_stride_p
        tl.store(y, (residual.to(tl.float32) + update).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _dfold_kernel(
    dy_ptr, v_ptr, folded_ptr, dv_ptr, partial_ptr, arrivals_ptr, num_pixels, chunk, channels,
    dy_stride_b, dy_stride_c, dy_stride_p, v_stride_b, v_stride_r, v_stride_p, dv_stride_b, dv_stride_r, dv_stride_p,
    NUM_HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, INNER: tl.constexpr, HAS_DV: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_P: tl.constexpr, AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """partial (S, B, C, R): one split's dy v^T; where a tile has all channels of dy (HAS_DV), dv = folded^T dy too."""
    tiles_c = tl.cdiv(channels, BLOCK_C)
    split, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    j = tl.program_id(1) // tiles_c * BLOCK_J + tl.arange(0, BLOCK_J)
    is_c, is_j = c < channels, j < INNER
    dy_rows = dy_ptr + batch * dy_stride_b + c.to(tl.int64)[:, None] * dy_stride_c
    v_rows = v_ptr + batch * v_stride_b + j.to(tl.int64)[:, None] * v_stride_r
    dv_rows = dv_ptr + batch * dv_stride_b + j.to(tl.int64)[:, None] * dv_stride_r
    if HAS_DV:
        folded = tl.load(
            folded_ptr + batch * channels * INNER + c[:, None] * INNER + j[None, :],
            mask=is_c[:, None] & is_j[None, :], other=0.0,
        )  # fmt: skip
    dfolded = tl.zeros([BLOCK_C, BLOCK_J], tl.float32)
    for start in range(split * chunk, tl.minimum((split + 1) * chunk, num_pixels), BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        is_pixel = (pixel < num_pixels)[None, :]
        v = tl.load(v_rows + pixel[None, :] * v_stride_p, mask=is_j[:, None] & is_pixel, other=0.0)
        dy = tl.load(dy_rows + pixel[None, :] * dy_stride_p, mask=is_c[:, None] & is_pixel, other=0.0).to(v.dtype)
        if AS_FLOAT:
            wide = dy.to(tl.float32)
            dfolded = tl.dot(wide, tl.trans(v.to(tl.float32)), dfolded, input_precision="ieee")
        else:
            dfolded = tl.dot(dy, tl.trans(v), dfolded)
        if HAS_DV:
            if AS_FLOAT:
                dv = tl.dot(tl.trans(folded.to(tl.float32)), wide, input_precision="ieee")
            else:
                dv = tl.dot(tl.trans(folded), dy)
            tl.store(
                dv_rows + pixel[None, :] * dv_stride_p, dv.to(dv_ptr.dtype.element_ty), mask=is_j[:, None] & is_pixel
            )
    if (split == 0) & (tl.program_id(1) == 0):
        h = tl.arange(0, BLOCK_HEADS)
        tl.store(arrivals_ptr + batch * NUM_HEADS + h, tl.zeros([BLOCK_HEADS], tl.int32), mask=h < NUM_HEADS)
    partial_ptr += (split * tl.num_programs(2) + batch) * channels * INNER
    tl.store(partial_ptr + c[:, None] * INNER + j[None, :], dfolded, mask=is_c[:, None] & is_j[None, :])


@triton.jit
def _dattention_kernel(
    partial_ptr, arrivals_ptr, products_ptr, temperature_ptr, weight_ptr,
    dattention_ptr, dweight_ptr, dtemperature_ptr, scaled_ptr, radial_ptr,
    num_splits, num_batch, channels, weight_stride_c, weight_stride_r,
    NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A slice of channels in each program: dweight (B, C, R) and its part of dP, dattention (slices, B h, d, d).

    In the head's last: scaled (B h, d, d), which is E; radial (B h, 2, d), the factors of q_i and k_j; dtemperature.
    """
    INNER: tl.constexpr = NUM_HEADS * WIDTH
    num_slices, num_heads = tl.num_programs(0), tl.num_programs(1)
    head = tl.program_id(1).to(tl.int64)
    batch, h = head // NUM_HEADS, head % NUM_HEADS
    products_ptr += head * (WIDTH + 2) * WIDTH
    temperature = tl.load(temperature_ptr + h).to(tl.float32)
    c, j = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    is_c, is_j = (c < channels)[:, None], (j < WIDTH)[None, :]
    dfolded = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    parts = partial_ptr + (batch * channels + c)[:, None] * INNER + h * WIDTH + j[None, :]
    for start in range(0, num_splits, UNROLL):
        for step in tl.static_range(UNROLL):
            dfolded += tl.load(parts, mask=is_c & is_j & (start + step < num_splits), other=0.0)
            parts += num_batch * channels * INNER
    for row in range(0, WIDTH, BLOCK_I):
        i = row + tl.arange(0, BLOCK_I)
        is_i = i < WIDTH
        _, _, _, attention = _attend_again(products_ptr, temperature, i, j, WIDTH)
        dweight = tl.dot(dfolded, tl.trans(attention), input_precision=PRECISION)
        entries = (batch * channels + c)[:, None] * INNER + h * WIDTH + i[None, :]
        tl.store(dweight_ptr + entries, dweight, mask=is_c & is_i[None, :])
        weight = tl.load(
            weight_ptr + c[:, None] * weight_stride_c + (h * WIDTH + i)[None, :] * weight_stride_r,
            mask=is_c & is_i[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        dattention = tl.dot(tl.trans(weight), dfolded, input_precision=PRECISION)
        slices = dattention_ptr + (tl.program_id(0) * num_heads + head) * WIDTH * WIDTH
        tl.store(slices + i[:, None] * WIDTH + j[None, :], dattention, mask=is_i[:, None] & is_j)
    if _is_last(arrivals_ptr + head, num_slices):
        dtemperature = tl.zeros([BLOCK_I], tl.float32)
        radial_k = tl.zeros([BLOCK_D], tl.float32)
        scaled_ptr += head * WIDTH * WIDTH
        radial_ptr += head * 2 * WIDTH
        for row in range(0, WIDTH, BLOCK_I):
            i = row + tl.arange(0, BLOCK_I)
            inside = (i < WIDTH)[:, None] & is_j
            n, m, cosine, attention = _attend_again(products_ptr, temperature, i, j, WIDTH)
            total = tl.zeros([BLOCK_I, BLOCK_D], tl.float32)
            for start in range(0, num_slices, UNROLL // 4):
                for index in tl.static_range(UNROLL // 4):
                    slices = dattention_ptr + ((start + index) * num_heads + head) * WIDTH * WIDTH
                    is_slice = start + index < num_slices
                    total += tl.load(slices + i[:, None] * WIDTH + j[None, :], mask=inside & is_slice, other=0.0)
            dlogits = attention * (total - tl.sum(attention * total, 1)[:, None])
            dlogits = tl.where(inside, dlogits, 0.0)
            dtemperature += tl.sum(dlogits * cosine, 1)
            dcosine = temperature * dlogits
            radial = dcosine * cosine
            radial_k += tl.sum(radial, 0)
            radial_q = tl.where(n > _MIN_NORM, tl.div_rn(tl.sum(radial, 1), n * n), 0.0)
            tl.store(radial_ptr + i, radial_q, mask=i < WIDTH)
            scaled = tl.div_rn(dcosine, n[:, None] * m[None, :])
            tl.store(scaled_ptr + i[:, None] * WIDTH + j[None, :], scaled.to(scaled_ptr.dtype.element_ty), mask=inside)
        m_square = tl.load(products_ptr + (WIDTH + 1) * WIDTH + j, mask=j < WIDTH, other=1.0)
        m = tl.maximum(tl.sqrt_rn(m_square), _MIN_NORM)
        radial_k = tl.where(m > _MIN_NORM, tl.div_rn(radial_k, m * m), 0.0)
        tl.store(radial_ptr + WIDTH + j, radial_k, mask=j < WIDTH)
        tl.store(dtemperature_ptr + head, tl.sum(dtemperature, 0))


@triton.jit
def _dqk_kernel(
    q_ptr, k_ptr, dq_ptr, dk_ptr, scaled_ptr, radial_ptr, folded_ptr, dy_ptr, dv_ptr,
    dweight_parts_ptr, dweight_ptr, dtemperature_parts_ptr, dtemperature_ptr,
    num_pixels, num_batch, channels, end_qk, end_dv,
    q_stride_b, q_stride_c, q_stride_p, k_stride_b, k_stride_c, k_stride_p,
    dq_stride_b, dq_stride_c, dq_stride_p, dk_stride_b, dk_stride_c, dk_stride_p,
    dy_stride_b, dy_stride_c, dy_stride_p, dv_stride_b, dv_stride_r, dv_stride_p,
    dweight_stride_c, dweight_stride_r,
    NUM_HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr,
    NUM_BLOCKS: tl.constexpr, HAS_DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr, AS_FLOAT: tl.constexpr, AS_TF32: tl.constexpr,
):  # fmt: skip
    """Programs below end_qk make dq and dk, those below end_dv make dv (HAS_DV), the rest sum over the batch."""
    program = tl.program_id(0)
    tiles_p = tl.cdiv(num_pixels, BLOCK_P)
    if program < end_qk:
        block, rest = program % NUM_BLOCKS, program // NUM_BLOCKS
        h, rest = rest % NUM_HEADS, rest // NUM_HEADS
        batch = (rest // tiles_p).to(tl.int64)
        head = batch * NUM_HEADS + h
        pixel = (rest % tiles_p).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        is_pixel = (pixel < num_pixels)[None, :]
        i = block * BLOCK_D + tl.arange(0, BLOCK_D)
        is_i = i < WIDTH
        channel = (h * WIDTH + i).to(tl.int64)[:, None]
        q_pixels = q_ptr + batch * q_stride_b + pixel[None, :] * q_stride_p
        k_pixels = k_ptr + batch * k_stride_b + pixel[None, :] * k_stride_p
        scaled = scaled_ptr + head * WIDTH * WIDTH
        radial = radial_ptr + head * 2 * WIDTH
        q_i = tl.load(q_pixels + channel * q_stride_c, mask=is_i[:, None] & is_pixel, other=0.0)
        k_i = tl.load(k_pixels + channel * k_stride_c, mask=is_i[:, None] & is_pixel, other=0.0)
        dq = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
        dk = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
        for index in range(NUM_BLOCKS):
            j = index * BLOCK_D + tl.arange(0, BLOCK_D)
            is_j = j < WIDTH
            if NUM_BLOCKS == 1:
                q_j, k_j = q_i, k_i
            else:
                other = (h * WIDTH + j).to(tl.int64)[:, None]
                q_j = tl.load(q_pixels + other * q_stride_c, mask=is_j[:, None] & is_pixel, other=0.0)
                k_j = tl.load(k_pixels + other * k_stride_c, mask=is_j[:, None] & is_pixel, other=0.0)
            inside = is_i[:, None] & is_j[None, :]
            e_ij = tl.load(scaled + i[:, None] * WIDTH + j[None, :], mask=inside, other=0.0)
            if NUM_BLOCKS == 1:
                e_ji = e_ij
            else:
                inside = is_j[:, None] & is_i[None, :]
                e_ji = tl.load(scaled + j[:, None] * WIDTH + i[None, :], mask=inside, other=0.0)
            if AS_TF32:
                dq = tl.dot(e_ij, k_j.to(tl.float32), dq, input_precision="tf32")
                dk = tl.dot(tl.trans(e_ji), q_j.to(tl.float32), dk, input_precision="tf32")
            elif AS_FLOAT:
                dq = tl.dot(e_ij.to(tl.float32), k_j.to(tl.float32), dq, input_precision="ieee")
                dk = tl.dot(tl.trans(e_ji.to(tl.float32)), q_j.to(tl.float32), dk, input_precision="ieee")
            else:
                dq = tl.dot(e_ij, k_j, dq)
                dk = tl.dot(tl.trans(e_ji), q_j, dk)
        dq -= tl.load(radial + i, mask=is_i, other=0.0)[:, None] * q_i.to(tl.float32)
        dk -= tl.load(radial + WIDTH + i, mask=is_i, other=0.0)[:, None] * k_i.to(tl.float32)
        dq_tile = dq_ptr + batch * dq_stride_b + channel * dq_stride_c + pixel[None, :] * dq_stride_p
        dk_tile = dk_ptr + batch * dk_stride_b + channel * dk_stride_c + pixel[None, :] * dk_stride_p
        tl.store(dq_tile, dq.to(dq_ptr.dtype.element_ty), mask=is_i[:, None] & is_pixel)
        tl.store(dk_tile, dk.to(dk_ptr.dtype.element_ty), mask=is_i[:, None] & is_pixel)
    elif program < end_dv:
        if HAS_DV:
            tiles_r: tl.constexpr = (INNER + BLOCK_R - 1) // BLOCK_R
            tile, rest = (program - end_qk) % tiles_r, (program - end_qk) // tiles_r
            batch = (rest // tiles_p).to(tl.int64)
            r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
            pixel = (rest % tiles_p).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
            dv = _product(
                folded_ptr + batch * channels * INNER, dy_ptr + batch * dy_stride_b, r, pixel, INNER, num_pixels,
                1, INNER, dy_stride_c, dy_stride_p, channels, BLOCK_R, BLOCK_P, BLOCK_C, AS_FLOAT,
            )  # fmt: skip
            dv_tile = (
                dv_ptr + batch * dv_stride_b + r.to(tl.int64)[:, None] * dv_stride_r + pixel[None, :] * dv_stride_p
            )
            is_dv = (r < INNER)[:, None] & (pixel < num_pixels)[None, :]
            tl.store(dv_tile, dv.to(dv_ptr.dtype.element_ty), mask=is_dv)
    else:
        entry = (program - end_dv) * BLOCK_E + tl.arange(0, BLOCK_E)
        h = tl.arange(0, BLOCK_HEADS)
        dweight = tl.zeros([BLOCK_E], tl.float32)
        dtemperature = tl.zeros([BLOCK_HEADS], tl.float32)
        dweight_parts = dweight_parts_ptr + entry
        dtemperature_parts = dtemperature_parts_ptr + h
        for _ in range(num_batch):
            dweight += tl.load(dweight_parts, mask=entry < channels * INNER, other=0.0)
            dtemperature += tl.load(dtemperature_parts, mask=h < NUM_HEADS, other=0.0)
            dweight_parts += channels * INNER
            dtemperature_parts += NUM_HEADS
        dweight_entries = dweight_ptr + entry // INNER * dweight_stride_c + entry % INNER * dweight_stride_r
        tl.store(dweight_entries, dweight.to(dweight_ptr.dtype.element_ty), mask=entry < channels * INNER)
        dtemperature = dtemperature.to(dtemperature_ptr.dtype.element_ty)
        tl.store(dtemperature_ptr + h, dtemperature, mask=(h < NUM_HEADS) & (program == end_dv))
