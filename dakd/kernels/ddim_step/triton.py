"""ddim_step in Triton: both modalities, their noise and the next inputs of the networks in one launch.

    x' = A x + B x_0 + C x_0_before + sigma z_x,   y' likewise,   A, B, C, sigma = coefficients[step]
    x_0 = clamp(x0_pred),   y_0 = b (2 softmax(logits) - 1)   or   clamp(logits, -b, b)

A program takes a run of pixels of one sample, and all their channels: the softmax over K stays in registers. Each
tensor is read and written in its own layout; nothing is made contiguous first. The table's row is chosen on the device;
a step outside the table gives NaN. No gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dakd.kernels import triton_runtime
from dakd.kernels.ddim_step.ops import Operands
from dakd.kernels.triton_layout import offset_of
from dakd.kernels.triton_noise import normals_of_pixels, seed_words
from dakd.runtime.seeding import Stream

DTYPES = (torch.float32,)

# One 16-byte access of the fp32 state, and one block of noise. With eight, a 16-bit tensor would have 16 bytes too, but
# fp32 and 16-bit tensors then want different layouts, and Triton exchanges every result through shared memory.
_PIXELS_PER_THREAD = 4
_MAX_VALUES_PER_THREAD = 32


def forward(operands: Operands, outputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, x0_pred, logits, x0_before, logits_before = operands[:6]
    coefficients, step, noise_ids, b, clip, label_update, seed, input_dtype = operands[6:]
    batch, num_classes, height, width = y.shape
    num_pixels = height * width
    x_next, y_next, x_input, y_input = outputs
    # What is not wanted is empty or None; the kernel never touches the address that stands in for it.
    writes_input, reads_before = input_dtype is not None, x0_before is not None
    images = (x, x0_pred, x0_before if reads_before else x0_pred, x_next, x_input if writes_input else x_next)
    labels = (y, logits, logits_before if reads_before else logits, y_next, y_input if writes_input else y_next)
    pixels, num_warps = _block(batch, num_pixels, num_classes, x.device)
    num_blocks = triton.cdiv(num_pixels, pixels)
    triton_runtime.launch(
        _ddim_step,
        (batch * num_blocks,),
        *images,
        *labels,
        coefficients,
        step,
        step if noise_ids is None else noise_ids,
        *_strides(images, (0, 2, 3)),
        *_strides(labels, (0, 1, 2, 3)),
        *coefficients.stride(),
        0 if noise_ids is None else noise_ids.stride(0),
        coefficients.shape[0],
        num_blocks,
        num_pixels,
        width,
        b,
        clip,
        *seed_words(seed),
        num_warps=num_warps,
        BLOCK=pixels,
        NUM_CLASSES=num_classes,
        IS_FLAT=all(_is_flat(tensor) for tensor in (*images, *labels)),
        WRITES_INPUT=writes_input,
        READS_BEFORE=reads_before,
        IS_STOCHASTIC=noise_ids is not None,
        NOISE_BY_BLOCK=num_pixels % 4 == 0,
        IS_SOFTMAX=label_update == "softmax",
        IMAGE_STREAM=int(Stream.DDIM_IMAGE),
        LABEL_STREAM=int(Stream.DDIM_LABEL),
    )


def _block(batch: int, num_pixels: int, num_classes: int, device: torch.device) -> tuple[int, int]:
    """Pixels and warps of a program: wide accesses where K allows, and work for all multiprocessors."""
    # An odd number of pixels has no wide accesses, and each pixel draws a whole block of noise.
    per_thread = _PIXELS_PER_THREAD if num_pixels % 4 == 0 else 1
    while per_thread > 1 and per_thread * num_classes > _MAX_VALUES_PER_THREAD:
        per_thread //= 2
    return triton_runtime.pixel_block(batch, num_pixels, per_thread, device)


def _is_flat(tensor: Tensor) -> bool:
    """Whether pixel p of (B, C, H, W) lies at p times the last stride: contiguous, channels_last, slices of B and C."""
    return tensor.stride(2) == tensor.shape[3] * tensor.stride(3)


def _strides(tensors: tuple[Tensor, ...], axes: tuple[int, ...]) -> list[int]:
    """The strides along `axes` of all tensors, one tensor after the other."""
    return [tensor.stride(axis) for tensor in tensors for axis in axes]


@triton.jit(do_not_specialize=("key_low", "key_high"))
def _ddim_step(
    x_ptr,
    x0_ptr,
    x0_before_ptr,
    x_next_ptr,
    x_input_ptr,
    y_ptr,
    logits_ptr,
    logits_before_ptr,
    y_next_ptr,
    y_input_ptr,
    coefficients_ptr,
    step_ptr,
    noise_ids_ptr,
    x_stride_b,
    x_stride_h,
    x_stride_w,
    x0_stride_b,
    x0_stride_h,
    x0_stride_w,
    x0_before_stride_b,
    x0_before_stride_h,
    x0_before_stride_w,
    x_next_stride_b,
    x_next_stride_h,
    x_next_stride_w,
    x_input_stride_b,
    x_input_stride_h,
    x_input_stride_w,
    y_stride_b,
    y_stride_c,
    y_stride_h,
    y_stride_w,
    logits_stride_b,
    logits_stride_c,
    logits_stride_h,
    logits_stride_w,
    logits_before_stride_b,
    logits_before_stride_c,
    logits_before_stride_h,
    logits_before_stride_w,
    y_next_stride_b,
    y_next_stride_c,
    y_next_stride_h,
    y_next_stride_w,
    y_input_stride_b,
    y_input_stride_c,
    y_input_stride_h,
    y_input_stride_w,
    coefficients_stride_step,
    coefficients_stride_column,
    noise_ids_stride,
    num_steps,
    num_blocks,
    num_pixels,
    width,
    b,
    clip,
    key_low,
    key_high,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    IS_FLAT: tl.constexpr,
    WRITES_INPUT: tl.constexpr,
    READS_BEFORE: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    NOISE_BY_BLOCK: tl.constexpr,
    IS_SOFTMAX: tl.constexpr,
    IMAGE_STREAM: tl.constexpr,
    LABEL_STREAM: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // num_blocks).to(tl.int64)
    first_pixel = (program % num_blocks) * BLOCK
    pixel = first_pixel + tl.arange(0, BLOCK)
    is_inside = pixel < num_pixels

    step = tl.load(step_ptr)
    row_ptr = coefficients_ptr + step * coefficients_stride_step
    is_step = (step >= 0) & (step < num_steps)
    keep = tl.load(row_ptr, mask=is_step, other=float("nan")).to(tl.float32)
    take = tl.load(row_ptr + coefficients_stride_column, mask=is_step, other=float("nan")).to(tl.float32)
    take_before = tl.load(row_ptr + 2 * coefficients_stride_column, mask=is_step, other=float("nan")).to(tl.float32)
    sigma = tl.load(row_ptr + 3 * coefficients_stride_column, mask=is_step, other=float("nan")).to(tl.float32)
    position = sample
    if IS_STOCHASTIC:
        position = tl.load(noise_ids_ptr + sample * noise_ids_stride)

    # All loads stand before the first store: what a store might overwrite could not be fetched ahead of it.
    logits_ptr += sample * logits_stride_b + offset_of(pixel, width, logits_stride_h, logits_stride_w, IS_FLAT)
    y_ptr += sample * y_stride_b + offset_of(pixel, width, y_stride_h, y_stride_w, IS_FLAT)
    logits, y = (), ()
    for _ in tl.static_range(NUM_CLASSES):
        logits += (tl.load(logits_ptr, mask=is_inside, other=0.0).to(tl.float32),)
        logits_ptr += logits_stride_c
    for _ in tl.static_range(NUM_CLASSES):
        y += (tl.load(y_ptr, mask=is_inside, other=0.0),)
        y_ptr += y_stride_c
    logits_before = ()
    if READS_BEFORE:
        logits_before_ptr += sample * logits_before_stride_b + offset_of(
            pixel, width, logits_before_stride_h, logits_before_stride_w, IS_FLAT
        )
        for _ in tl.static_range(NUM_CLASSES):
            logits_before += (tl.load(logits_before_ptr, mask=is_inside, other=0.0).to(tl.float32),)
            logits_before_ptr += logits_before_stride_c
        x0_before_ptr += sample * x0_before_stride_b + offset_of(
            pixel, width, x0_before_stride_h, x0_before_stride_w, IS_FLAT
        )
        x0_before = tl.load(x0_before_ptr, mask=is_inside, other=0.0).to(tl.float32)
    x_ptr += sample * x_stride_b + offset_of(pixel, width, x_stride_h, x_stride_w, IS_FLAT)
    x0_ptr += sample * x0_stride_b + offset_of(pixel, width, x0_stride_h, x0_stride_w, IS_FLAT)
    x = tl.load(x_ptr, mask=is_inside, other=0.0)
    x0 = tl.load(x0_ptr, mask=is_inside, other=0.0).to(tl.float32)

    x_next = keep * x + take * tl.clamp(x0, -clip, clip, propagate_nan=tl.PropagateNan.ALL)
    if READS_BEFORE:
        x_next += take_before * tl.clamp(x0_before, -clip, clip, propagate_nan=tl.PropagateNan.ALL)
    if IS_STOCHASTIC:
        x_next += sigma * normals_of_pixels(
            0, first_pixel, num_pixels, step, position, IMAGE_STREAM, key_low, key_high, BLOCK, NOISE_BY_BLOCK
        )
    x_next_ptr += sample * x_next_stride_b + offset_of(pixel, width, x_next_stride_h, x_next_stride_w, IS_FLAT)
    tl.store(x_next_ptr, x_next, mask=is_inside)
    if WRITES_INPUT:
        x_input_ptr += sample * x_input_stride_b + offset_of(pixel, width, x_input_stride_h, x_input_stride_w, IS_FLAT)
        tl.store(x_input_ptr, x_next.to(x_input_ptr.dtype.element_ty), mask=is_inside)

    y0 = _clean_label(logits, b, NUM_CLASSES, IS_SOFTMAX)
    if READS_BEFORE:
        y0_before = _clean_label(logits_before, b, NUM_CLASSES, IS_SOFTMAX)
    y_next_ptr += sample * y_next_stride_b + offset_of(pixel, width, y_next_stride_h, y_next_stride_w, IS_FLAT)
    if WRITES_INPUT:
        y_input_ptr += sample * y_input_stride_b + offset_of(pixel, width, y_input_stride_h, y_input_stride_w, IS_FLAT)
    for k in tl.static_range(NUM_CLASSES):
        y_next = keep * y[k] + take * y0[k]
        if READS_BEFORE:
            y_next += take_before * y0_before[k]
        if IS_STOCHASTIC:
            y_next += sigma * normals_of_pixels(
                k, first_pixel, num_pixels, step, position, LABEL_STREAM, key_low, key_high, BLOCK, NOISE_BY_BLOCK
            )
        tl.store(y_next_ptr, y_next, mask=is_inside)
        y_next_ptr += y_next_stride_c
        if WRITES_INPUT:
            tl.store(y_input_ptr, y_next.to(y_input_ptr.dtype.element_ty), mask=is_inside)
            y_input_ptr += y_input_stride_c


@triton.jit
def _clean_label(logits, b, NUM_CLASSES: tl.constexpr, IS_SOFTMAX: tl.constexpr):
    """y_0 of each class, from a tuple of logits."""
    y0 = ()
    if IS_SOFTMAX:
        largest = logits[0]
        for k in tl.static_range(1, NUM_CLASSES):
            largest = tl.maximum(largest, logits[k])
        weights = ()
        total = tl.zeros_like(largest)
        for k in tl.static_range(NUM_CLASSES):
            weights += (tl.exp(logits[k] - largest),)
            total += weights[k]
        inverse = 1.0 / total
        for k in tl.static_range(NUM_CLASSES):
            # matches the range that the label was noised in (paper, Eq. 21)
            y0 += (b * (2.0 * (weights[k] * inverse) - 1.0),)
    else:
        for k in tl.static_range(NUM_CLASSES):
            y0 += (tl.clamp(logits[k], -b, b, propagate_nan=tl.PropagateNan.ALL),)
    return y0
