"""depthwise_conv1d in Triton: one pass forward; one pass backward, and one over its partial sums.

Forward:   a_l = bias + w_0 x_{l-1} + w_1 x_l + w_2 x_{l+1},  y = a sigmoid(a)
Backward:  da = dy (s + a s (1 - s)) with s = sigmoid(a);  dx_l = w_2 da_{l-1} + w_1 da_l + w_0 da_{l+1};
           dw_k = sum over batch and l of da_l x_{l+k-1};  dbias = sum of da

A program does BLOCK_D channels of one sample for RUNS runs of STEPS steps each. A run is walked step by step with its
neighbours in registers, so that a step is read once and has its sigmoid once, but for one or two beyond each end of
the run. Where channels are contiguous, as in a mixer's tokens (B, L, D), threads lie along channels and walk runs of up
to 8 steps; where steps are contiguous, threads lie along steps, in runs of one. Any other strides are right, and slow.
Nothing is copied or padded. All arithmetic is in fp32. dw and dbias are summed in a fixed order: each program's part
first, then the parts one after another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dakd.kernels import triton_runtime
from dakd.kernels.depthwise_conv1d.ops import Operands

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Blocks(NamedTuple):
    """The blocks of a launch: see the module's docstring. blocks_l, blocks_d: their numbers along each axis."""

    blocks_l: int
    blocks_d: int
    BLOCK_D: int
    RUNS: int
    STEPS: int


@triton.jit
def _read(ptr, step, step_stride, start, end, is_channel):
    """A block's x or dy at `step`, in fp32; zeros beyond both ends of the sequence."""
    is_inside = (step >= start) & (step < end) & is_channel
    return tl.load(ptr + step * step_stride, mask=is_inside, other=0.0).to(tl.float32)


@triton.jit
def _gradient_of_a(before, centre, after, w_0, w_1, w_2, bias, dy, HAS_SILU: tl.constexpr):
    gradient = dy
    if HAS_SILU:
        a = bias + w_0 * before + w_1 * centre + w_2 * after
        s = tl.sigmoid(a)
        gradient = dy * (s + a * s * (1 - s))
    return gradient


@triton.jit
def _forward_kernel(
    x_ptr, x_batch_stride, x_channel_stride, x_step_stride,
    y_ptr, y_batch_stride, y_channel_stride, y_step_stride,
    weight_ptr, weight_channel_stride, weight_tap_stride, bias_ptr, bias_stride,
    channels, length, blocks_l, blocks_d,
    HAS_BIAS: tl.constexpr, HAS_SILU: tl.constexpr,
    BLOCK_D: tl.constexpr, RUNS: tl.constexpr, STEPS: tl.constexpr, GRAIN: tl.constexpr,
):  # fmt: skip
    channels *= GRAIN
    x_batch_stride, x_step_stride = x_batch_stride * GRAIN, x_step_stride * GRAIN
    y_batch_stride, y_step_stride = y_batch_stride * GRAIN, y_step_stride * GRAIN
    program = tl.program_id(0).to(tl.int64)
    first_channel, row = program % blocks_d * BLOCK_D, program // blocks_d
    sample, first_step = row // blocks_l, row % blocks_l * (RUNS * STEPS)
    # Steps are counted from the program's first one, so that 32 bits hold the offsets within a block.
    start, end = -first_step, length - first_step
    step = tl.arange(0, RUNS)[:, None] * STEPS
    lane = tl.arange(0, BLOCK_D)[None, :]
    channel = first_channel + lane
    is_channel = channel < channels
    x_ptr += sample * x_batch_stride + first_step * x_step_stride + first_channel * x_channel_stride
    x_ptr += lane * x_channel_stride
    y_ptr += sample * y_batch_stride + first_step * y_step_stride + first_channel * y_channel_stride
    y_ptr += lane * y_channel_stride
    weight_ptr += channel * weight_channel_stride
    w_0 = tl.load(weight_ptr, mask=is_channel, other=0.0).to(tl.float32)
    w_1 = tl.load(weight_ptr + weight_tap_stride, mask=is_channel, other=0.0).to(tl.float32)
    w_2 = tl.load(weight_ptr + 2 * weight_tap_stride, mask=is_channel, other=0.0).to(tl.float32)
    bias = tl.zeros((1, BLOCK_D), dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel * bias_stride, mask=is_channel, other=0.0).to(tl.float32)

    before = _read(x_ptr, step - 1, x_step_stride, start, end, is_channel)
    centre = _read(x_ptr, step, x_step_stride, start, end, is_channel)
    for _ in tl.static_range(STEPS):
        after = _read(x_ptr, step + 1, x_step_stride, start, end, is_channel)
        # The bias last: added first, it made ptxas spill four registers for sm_100.
        y = w_0 * before + w_1 * centre + w_2 * after + bias
        if HAS_SILU:
            y *= tl.sigmoid(y)
        tl.store(y_ptr + step * y_step_stride, y, mask=(step < end) & is_channel)
        before, centre, step = centre, after, step + 1


@triton.jit
def _backward_kernel(
    dy_ptr, dy_batch_stride, dy_channel_stride, dy_step_stride,
    x_ptr, x_batch_stride, x_channel_stride, x_step_stride,
    dx_ptr, dx_batch_stride, dx_channel_stride, dx_step_stride,
    weight_ptr, weight_channel_stride, weight_tap_stride, bias_ptr, bias_stride,
    parts_ptr,
    channels, length, blocks_l, blocks_d,
    HAS_BIAS: tl.constexpr, HAS_SILU: tl.constexpr,
    BLOCK_D: tl.constexpr, RUNS: tl.constexpr, STEPS: tl.constexpr, GRAIN: tl.constexpr,
):  # fmt: skip
    channels *= GRAIN
    dy_batch_stride, dy_step_stride = dy_batch_stride * GRAIN, dy_step_stride * GRAIN
    x_batch_stride, x_step_stride = x_batch_stride * GRAIN, x_step_stride * GRAIN
    dx_batch_stride, dx_step_stride = dx_batch_stride * GRAIN, dx_step_stride * GRAIN
    program = tl.program_id(0).to(tl.int64)
    first_channel, row = program % blocks_d * BLOCK_D, program // blocks_d
    sample, first_step = row // blocks_l, row % blocks_l * (RUNS * STEPS)
    start, end = -first_step, length - first_step
    step = tl.arange(0, RUNS)[:, None] * STEPS
    lane = tl.arange(0, BLOCK_D)[None, :]
    channel = first_channel + lane
    is_channel = channel < channels
    dy_ptr += sample * dy_batch_stride + first_step * dy_step_stride + first_channel * dy_channel_stride
    dy_ptr += lane * dy_channel_stride
    x_ptr += sample * x_batch_stride + first_step * x_step_stride + first_channel * x_channel_stride
    x_ptr += lane * x_channel_stride
    dx_ptr += sample * dx_batch_stride + first_step * dx_step_stride + first_channel * dx_channel_stride
    dx_ptr += lane * dx_channel_stride
    weight_ptr += channel * weight_channel_stride
    w_0 = tl.load(weight_ptr, mask=is_channel, other=0.0).to(tl.float32)
    w_1 = tl.load(weight_ptr + weight_tap_stride, mask=is_channel, other=0.0).to(tl.float32)
    w_2 = tl.load(weight_ptr + 2 * weight_tap_stride, mask=is_channel, other=0.0).to(tl.float32)
    bias = tl.zeros((1, BLOCK_D), dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel * bias_stride, mask=is_channel, other=0.0).to(tl.float32)

    # da is a step ahead of dx, and x a step ahead of da.
    outer = _read(x_ptr, step - 2, x_step_stride, start, end, is_channel)
    before = _read(x_ptr, step - 1, x_step_stride, start, end, is_channel)
    centre = _read(x_ptr, step, x_step_stride, start, end, is_channel)
    dy = _read(dy_ptr, step - 1, dy_step_stride, start, end, is_channel)
    da_before = _gradient_of_a(outer, before, centre, w_0, w_1, w_2, bias, dy, HAS_SILU)
    after = _read(x_ptr, step + 1, x_step_stride, start, end, is_channel)
    dy = _read(dy_ptr, step, dy_step_stride, start, end, is_channel)
    da = _gradient_of_a(before, centre, after, w_0, w_1, w_2, bias, dy, HAS_SILU)
    dw_0 = tl.zeros((RUNS, BLOCK_D), dtype=tl.float32)
    dw_1, dw_2, dbias = dw_0, dw_0, dw_0
    for _ in tl.static_range(STEPS):
        # da is zero beyond the end, as dy is there.
        dw_0 += da * before
        dw_1 += da * centre
        dw_2 += da * after
        if HAS_BIAS:
            dbias += da
        before, centre = centre, after
        after = _read(x_ptr, step + 2, x_step_stride, start, end, is_channel)
        dy = _read(dy_ptr, step + 1, dy_step_stride, start, end, is_channel)
        da_after = _gradient_of_a(before, centre, after, w_0, w_1, w_2, bias, dy, HAS_SILU)
        dx = w_2 * da_before + w_1 * da + w_0 * da_after
        tl.store(dx_ptr + step * dx_step_stride, dx, mask=(step < end) & is_channel)
        da_before, da, step = da, da_after, step + 1
    parts_ptr += row * 4 * channels + first_channel + tl.arange(0, BLOCK_D)
    is_channel = first_channel + tl.arange(0, BLOCK_D) < channels
    tl.store(parts_ptr, tl.sum(dw_0, 0), mask=is_channel)
    tl.store(parts_ptr + channels, tl.sum(dw_1, 0), mask=is_channel)
    tl.store(parts_ptr + 2 * channels, tl.sum(dw_2, 0), mask=is_channel)
    if HAS_BIAS:
        tl.store(parts_ptr + 3 * channels, tl.sum(dbias, 0), mask=is_channel)


@triton.jit
def _sum_kernel(
    parts_ptr, dweight_ptr, dbias_ptr, num_parts, channels,
    HAS_BIAS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """Channels of one tap (or of the bias, after the three taps): the sum of parts (num_parts, 4, channels)."""
    tap = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = tl.arange(0, BLOCK_PARTS)[:, None]
    parts_ptr += tap * channels + channel[None, :]
    total = tl.zeros((BLOCK_PARTS, BLOCK_D), dtype=tl.float32)
    for first in range(0, num_parts, BLOCK_PARTS):
        place = (first + part).to(tl.int64) * (4 * channels)
        total += tl.load(parts_ptr + place, mask=(first + part < num_parts) & (channel < channels)[None, :], other=0.0)
    total = tl.sum(total, 0)
    tl.store(dweight_ptr + channel * 3 + tap, total, mask=(channel < channels) & (tap < 3))
    if HAS_BIAS:
        tl.store(dbias_ptr + channel, total, mask=(channel < channels) & (tap == 3))


def forward(operands: Operands, y: Tensor) -> None:
    x = operands.x
    blocks, grain = _blocks(x), _grain(x, y)
    triton_runtime.launch(
        _forward_kernel,
        (x.shape[0] * blocks.blocks_l * blocks.blocks_d,),
        *(x, *_strides(x, grain), y, *_strides(y, grain), *_parameters(operands)),
        *(x.shape[1] // grain, x.shape[2], blocks.blocks_l, blocks.blocks_d),
        **_constants(operands, blocks, grain),
    )


def backward(operands: Operands, dy: Tensor, gradients: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, bias, _ = operands
    dx, dweight, dbias = gradients
    batch, channels, length = x.shape
    blocks, grain = _blocks(x), _grain(dy, x, dx)
    # Four rows of each block: three taps and the bias.
    parts = x.new_empty(batch * blocks.blocks_l, 4, channels, dtype=torch.float32)
    # A bias and its sum take 16 registers more of a thread that holds 8 channels; with 8 warps it holds 4.
    num_warps = 8 if bias is not None and x.element_size() == 2 else 4
    triton_runtime.launch(
        _backward_kernel,
        (batch * blocks.blocks_l * blocks.blocks_d,),
        *(dy, *_strides(dy, grain), x, *_strides(x, grain), dx, *_strides(dx, grain)),
        *(*_parameters(operands), parts, channels // grain, length, blocks.blocks_l, blocks.blocks_d),
        num_warps=num_warps,
        **_constants(operands, blocks, grain),
    )
    triton_runtime.launch(
        _sum_kernel,
        (triton.cdiv(channels, 32), 3 if bias is None else 4),
        *(parts, dweight, dbias, parts.shape[0], channels),
        HAS_BIAS=bias is not None,
        BLOCK_D=32,
        BLOCK_PARTS=64,
    )


def _blocks(x: Tensor) -> Blocks:
    """Blocks for 128 threads that hold 16 bytes of x each; where channels are contiguous, eight of them a line."""
    _, channels, length = (max(size, 1) for size in x.shape)
    per_thread = 16 // x.element_size()
    if x.stride(2) == 1:
        runs, longest = min(triton.next_power_of_2(length), 32 * per_thread), 1
    else:
        runs, longest = min(triton.next_power_of_2(triton.cdiv(length, 8)), 16), 8
    block_d = min(triton.next_power_of_2(channels), 128 * per_thread // runs)
    # As many blocks as the longest runs need; then the shortest runs that still reach the end.
    blocks_l = triton.cdiv(length, longest * runs)
    return Blocks(blocks_l, triton.cdiv(channels, block_d), block_d, runs, triton.cdiv(length, blocks_l * runs))


def _grain(*tensors: Tensor) -> int:
    """8 where it divides all that is added to the place of a channel, so that 16 bytes are read at once; else 1.

    Triton itself looks only for 16, and MambaVision-L has 392 channels.
    """
    numbers = [number for tensor in tensors for number in (tensor.shape[1], tensor.stride(0), tensor.stride(2))]
    return 8 if all(number % 8 == 0 for number in numbers) else 1


def _strides(tensor: Tensor, grain: int) -> tuple[int, int, int]:
    batch, channel, step = tensor.stride()
    return batch // grain, channel, step // grain


def _parameters(operands: Operands) -> tuple:
    weight, bias = operands.weight, operands.bias
    # Without a bias, the kernel does not read its pointer.
    return weight, *weight.stride(), *((weight, 0) if bias is None else (bias, bias.stride(0)))


def _constants(operands: Operands, blocks: Blocks, grain: int) -> dict[str, bool | int]:
    shape = dict(BLOCK_D=blocks.BLOCK_D, RUNS=blocks.RUNS, STEPS=blocks.STEPS, GRAIN=grain)
    return dict(HAS_BIAS=operands.bias is not None, HAS_SILU=operands.activation == "silu", **shape)
