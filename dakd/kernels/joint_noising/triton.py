"""joint_noising in Triton: timesteps, noise and both noisy inputs in one launch; the noise is never stored.

    x_t = a x_0 + s eps_x,   y_t = a b y_0 + s eps_y,   a, s = tables[t],   t = floor(T word / 2^32)
    x_0 = image / 127.5 - 1;   y_0 = 2 onehot - 1, or 0 for an id that is not a class

A program takes a run of pixels of one sample, draws the sample's t for itself and then all channels of its pixels; the
first program of a sample writes t. A given t outside the table gives NaN. No gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dakd.kernels import triton_runtime
from dakd.kernels.joint_noising.ops import Operands
from dakd.kernels.triton_layout import offset_of
from dakd.kernels.triton_noise import draw_timestep, normals_of_pixels, seed_words
from dakd.runtime.seeding import Stream

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def forward(operands: Operands, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    image, label, positions, tables, b, num_classes, seed, t, _out_dtype = operands
    batch, _, height, width = image.shape
    num_pixels = height * width
    # A whole block of noise for each thread; blocks that span channels are drawn once for each of their pixels.
    per_thread = 4 if num_pixels % 4 == 0 else 1
    pixels, num_warps = triton_runtime.pixel_block(batch, num_pixels, per_thread, image.device)
    num_blocks = triton.cdiv(num_pixels, pixels)
    # The kernel never touches the addresses that stand in for a missing label or t.
    label_strides = (0, 0, 0) if label is None else label.stride()
    triton_runtime.launch(
        _joint_noising,
        (batch * num_blocks,),
        image,
        image if label is None else label,
        positions,
        tables,
        positions if t is None else t,
        *outputs,
        image.stride(0),
        image.stride(2),
        image.stride(3),
        *label_strides,
        positions.stride(0),
        *tables.stride(),
        0 if t is None else t.stride(0),
        tables.shape[0],
        num_blocks,
        num_pixels,
        width,
        b,
        *seed_words(seed),
        num_warps=num_warps,
        BLOCK=pixels,
        NUM_CLASSES=0 if label is None else num_classes,
        IS_FLAT=image.stride(2) == width * image.stride(3) and label_strides[1] == width * label_strides[2],
        DRAWS_T=t is None,
        NOISE_BY_BLOCK=num_pixels % 4 == 0,
        TIMESTEP_STREAM=int(Stream.TIMESTEP),
        IMAGE_STREAM=int(Stream.IMAGE_NOISE),
        LABEL_STREAM=int(Stream.LABEL_NOISE),
    )


@triton.jit(do_not_specialize=("key_low", "key_high"))
def _joint_noising(
    image_ptr,
    label_ptr,
    positions_ptr,
    tables_ptr,
    t_ptr,
    x_t_ptr,
    y_t_ptr,
    t_out_ptr,
    image_stride_b,
    image_stride_h,
    image_stride_w,
    label_stride_b,
    label_stride_h,
    label_stride_w,
    positions_stride,
    tables_stride_t,
    tables_stride_column,
    t_stride,
    num_timesteps,
    num_blocks,
    num_pixels,
    width,
    b,
    key_low,
    key_high,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    IS_FLAT: tl.constexpr,
    DRAWS_T: tl.constexpr,
    NOISE_BY_BLOCK: tl.constexpr,
    TIMESTEP_STREAM: tl.constexpr,
    IMAGE_STREAM: tl.constexpr,
    LABEL_STREAM: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // num_blocks).to(tl.int64)
    first_pixel = (program % num_blocks) * BLOCK
    pixel = first_pixel + tl.arange(0, BLOCK)
    is_inside = pixel < num_pixels
    position = tl.load(positions_ptr + sample * positions_stride)

    image_ptr += sample * image_stride_b + offset_of(pixel, width, image_stride_h, image_stride_w, IS_FLAT)
    grey = tl.load(image_ptr, mask=is_inside, other=0)
    if NUM_CLASSES > 0:
        label_ptr += sample * label_stride_b + offset_of(pixel, width, label_stride_h, label_stride_w, IS_FLAT)
        label = tl.load(label_ptr, mask=is_inside, other=0)

    if DRAWS_T:
        t = draw_timestep(position, num_timesteps, TIMESTEP_STREAM, key_low, key_high)
    else:
        t = tl.load(t_ptr + sample * t_stride)
    if first_pixel == 0:
        tl.store(t_out_ptr + sample, t)
    is_timestep = (t >= 0) & (t < num_timesteps)
    row_ptr = tables_ptr + t * tables_stride_t
    signal = tl.load(row_ptr, mask=is_timestep, other=float("nan")).to(tl.float32)
    noise = tl.load(row_ptr + tables_stride_column, mask=is_timestep, other=float("nan")).to(tl.float32)

    # 2 grey - 255 is exact, so that x_0 has one rounding.
    x_0 = (2 * grey.to(tl.int32) - 255).to(tl.float32) * (1.0 / 255.0)
    eps = normals_of_pixels(
        0, first_pixel, num_pixels, t, position, IMAGE_STREAM, key_low, key_high, BLOCK, NOISE_BY_BLOCK
    )
    x_t = signal * x_0 + noise * eps
    tl.store(x_t_ptr + sample * num_pixels + pixel, x_t.to(x_t_ptr.dtype.element_ty), mask=is_inside)
    if NUM_CLASSES > 0:
        # aligns the label's corruption with the image's by their SNR (paper, Eq. 4)
        balanced = signal * b
        absent = tl.where((label >= 0) & (label < NUM_CLASSES), -balanced, 0.0)
        y_t_ptr += sample * num_pixels * NUM_CLASSES + pixel
        for k in tl.static_range(NUM_CLASSES):
            eps = normals_of_pixels(
                k, first_pixel, num_pixels, t, position, LABEL_STREAM, key_low, key_high, BLOCK, NOISE_BY_BLOCK
            )
            y_t = tl.where(label == k, balanced, absent) + noise * eps
            tl.store(y_t_ptr, y_t.to(y_t_ptr.dtype.element_ty), mask=is_inside)
            y_t_ptr += num_pixels
