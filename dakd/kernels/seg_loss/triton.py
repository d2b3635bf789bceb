"""seg_loss in Triton: one launch forward, one backward; every pixel's logits are read once in each.

Forward: a program sums over some tiles of one sample and stores its partial sums
    S = (sum w_y nll, sum w_y) or (sum kd, 0),  I_c = sum r_c p_c,  P_c = sum p_c,  R_c = sum r_c.
The sample's last program to arrive adds the partial sums up in the order of the programs, so that the result does not
depend on who was last, and turns them into the losses and into the coefficients 1 / sum w, offset_c, slope_c.
Backward, with those and the upstream gradients (formulas: reference.py):
    real:       ds = dce w_y / (sum w) (p - onehot(y)) + ddice p (e - sum_c p_c e_c),  e = offset + slope onehot(y)
    synthetic:  ds = dkd / (H W tau) (softmax(s / tau) - softmax(z / tau)) + ddice p (e - ...),  e = offset + slope r

In the kernels, values by class are a tuple. Up to 8 classes IS_UNROLLED: it has one tile (ROWS, COLS) a class,
and a thread holds all classes of its pixels. Beyond, it has one tile (ROWS, K_BLOCK), its second axis the classes.

Where the classes of a pixel adjoin (channels_last), a thread's COLS pixels are COLS x K adjacent numbers. It loads and
stores them RUN at a time, in up to 16 bytes, and sorts them by class in its registers. RUN is 0 in any other layout.
"""

# Triton does not compile starred elements of a tuple.
# ruff: noqa: RUF005

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dakd.kernels import arrival_counters, triton_runtime
from dakd.kernels.seg_loss.ops import Operands, Outputs, Upstream
from dakd.kernels.triton_layout import columns, tile_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_UNROLLED = 8
_PROGRAMS_PER_MULTIPROCESSOR = 16

# A tensor and its strides by sample, class and pixel.
_Planes = tuple[Tensor, int, int, int]


def forward(operands: Operands, outputs: Outputs) -> None:
    logits = operands.logits
    batch, num_classes, height, width = logits.shape
    if batch == 0:
        # Nothing is launched for an empty batch, and this output is a scalar that must be written.
        outputs.num_invalid.zero_()
        return
    planes, num_pixels = _planes(logits), height * width
    config = _config([planes], num_classes, num_pixels, operands.dice_samples)
    num_tiles = max(1, triton.cdiv(num_pixels, config["ROWS"] * config["COLS"]))
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * triton_runtime.num_multiprocessors(logits.device)
    # About as many programs as the device runs at once, each over several tiles: fewer partial sums to add.
    tiles_per_program = triton.cdiv(num_tiles * batch, wanted)
    num_programs = triton.cdiv(num_tiles, tiles_per_program)
    partials = logits.new_empty(batch, num_programs, 2 + 3 * num_classes, dtype=torch.float32)
    triton_runtime.launch(
        _forward_kernel,
        (num_programs, batch),
        *_inputs(planes, operands),
        partials,
        # For each sample the programs that have arrived; then the finished samples, and the labels that name no class.
        arrival_counters.zeros(logits.device, batch + 2),
        *outputs,
        num_pixels,
        num_tiles,
        operands.teacher_scale,
        1 / operands.temperature,
        operands.ignore_index,
        operands.dice_smooth,
        IS_GENERALIZED=operands.dice_form == "generalized",
        **_flags(operands),
        **config,
    )


def backward(operands: Operands, upstream: Upstream, dlogits: Tensor) -> None:
    logits = operands.logits
    *gradients, coefficients = upstream
    batch, num_classes, height, width = logits.shape
    planes, num_pixels = _planes(logits), height * width
    target, *target_strides = target_planes = _planes(dlogits)
    config = _config([planes, target_planes], num_classes, num_pixels, operands.dice_samples)
    triton_runtime.launch(
        _backward_kernel,
        (triton.cdiv(num_pixels, config["ROWS"] * config["COLS"]), batch),
        *_inputs(planes, operands),
        # Upstream gradients are often expanded from one number.
        *(argument for grad in gradients for argument in (grad, grad.stride(0))),
        coefficients,
        target,
        *target_strides,
        num_pixels,
        operands.teacher_scale,
        1 / operands.temperature,
        operands.ignore_index,
        **_flags(operands),
        **config,
    )
    # `_planes` made a copy where the rows of dlogits do not adjoin.
    if target is not dlogits:
        dlogits.copy_(target)


def _planes(tensor: Tensor) -> _Planes:
    """The tensor and its strides by sample, class and pixel; a copy where a row does not follow the row above it."""
    batch_stride, class_stride, row_stride, pixel_stride = tensor.stride()
    height, width = tensor.shape[2:]
    if width == 1:
        pixel_stride = row_stride
    elif height > 1 and row_stride != width * pixel_stride:
        return _planes(tensor.contiguous())
    return tensor, batch_stride, class_stride, pixel_stride


def _inputs(logits: _Planes, operands: Operands) -> tuple:
    """The kernels' first arguments: every operand with its strides; the logits stand in for absent operands."""
    _, labels, teacher, teacher_row, class_weights, *_ = operands
    label_planes = _planes(labels.unsqueeze(1))
    has_teacher = teacher is not None and len(teacher) > 0
    return (
        *logits,
        label_planes[0],
        label_planes[1],
        label_planes[3],
        *(_planes(teacher) if has_teacher else logits),
        len(teacher) if has_teacher else 0,
        logits[0] if teacher_row is None else teacher_row.contiguous(),
        logits[0] if class_weights is None else class_weights.contiguous(),
    )


def _flags(operands: Operands) -> dict[str, bool]:
    _, _, teacher, teacher_row, class_weights, *_ = operands
    return dict(
        HAS_ROW=teacher_row is not None,
        HAS_TEACHER=teacher is not None and len(teacher) > 0,
        HAS_CODES=teacher is not None and teacher.dtype == torch.uint8,
        HAS_WEIGHTS=class_weights is not None,
        HAS_DICE=operands.dice_samples != "none",
        HAS_SOFT_DICE=operands.dice_samples == "all",
    )


def _config(all_planes: list[_Planes], num_classes: int, num_pixels: int, dice_samples: str) -> dict[str, int]:
    """A tile has ROWS x COLS pixels, COLS adjacent ones a thread: 16 bytes a load, if registers hold all classes.

    all_planes: the logits and, in the backward pass, their gradient.
    """
    k_block = triton.next_power_of_2(num_classes)
    classes = dict(K=num_classes, K_BLOCK=k_block, IS_UNROLLED=num_classes <= _MAX_UNROLLED)
    if num_classes > _MAX_UNROLLED:
        return classes | dict(ROWS=max(1, 2048 // k_block), COLS=1, RUN=0, num_warps=4)
    # Pixels of a thread, whose classes all lie in registers; soft Dice keeps more numbers of each.
    most = (20 if dice_samples == "all" else 40) // num_classes
    per_load = 16 // all_planes[0][0].element_size()
    cols = min(per_load, 1 << (most.bit_length() - 1))
    if all(_are_classes_adjacent(planes, num_classes, num_pixels) for planes in all_planes):
        # The largest power of two that divides a thread's numbers.
        run = min(per_load, cols * num_classes & -(cols * num_classes))
        return classes | dict(ROWS=128, COLS=cols, RUN=run, num_warps=4)
    _, *strides, pixel_stride = all_planes[0]
    is_adjacent = pixel_stride == 1 and all(stride % 16 == 0 for stride in strides)
    return classes | dict(ROWS=128, COLS=cols if is_adjacent else 1, RUN=0, num_warps=4)


def _are_classes_adjacent(planes: _Planes, num_classes: int, num_pixels: int) -> bool:
    """Whether the numbers of neighbouring pixels adjoin, class by class, and each sample's can be loaded by 16."""
    _, batch_stride, class_stride, pixel_stride = planes
    return class_stride == 1 < pixel_stride == num_classes and batch_stride % 16 == num_pixels % 16 == 0


@triton.jit
def _forward_kernel(
    logits_ptr,
    logits_stride_b,
    logits_stride_c,
    logits_stride_p,
    labels_ptr,
    labels_stride_b,
    labels_stride_p,
    teacher_ptr,
    teacher_stride_b,
    teacher_stride_c,
    teacher_stride_p,
    num_teacher_rows,
    teacher_row_ptr,
    weights_ptr,
    partials_ptr,
    arrivals_ptr,
    ce_ptr,
    kd_ptr,
    dice_ptr,
    num_invalid_ptr,
    coefficients_ptr,
    num_pixels,
    num_tiles,
    teacher_scale,
    inverse_temperature,
    ignore_index,
    smooth,
    IS_GENERALIZED: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    HAS_CODES: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_DICE: tl.constexpr,
    HAS_SOFT_DICE: tl.constexpr,
    K: tl.constexpr,
    K_BLOCK: tl.constexpr,
    IS_UNROLLED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RUN: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    sample, num_samples = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    row = _teacher_row(teacher_row_ptr, sample, HAS_ROW)
    is_row_known = row < num_teacher_rows
    logits_ptr += sample * logits_stride_b
    labels_ptr += sample * labels_stride_b
    teacher_ptr += tl.where(is_row_known, tl.maximum(row, 0), 0) * teacher_stride_b
    partials_ptr += sample * num_programs * (2 + 3 * K)
    main, weight = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    invalid = tl.zeros([ROWS], tl.int32)
    overlap = _no_sums(K, K_BLOCK, IS_UNROLLED, ROWS)
    predicted = _no_sums(K, K_BLOCK, IS_UNROLLED, ROWS)
    actual = _no_sums(K, K_BLOCK, IS_UNROLLED, ROWS)
    if row < 0:
        class_weights = _read_numbers(weights_ptr, 1.0, HAS_WEIGHTS, K, K_BLOCK, IS_UNROLLED)
        for tile in range(program, num_tiles, num_programs):
            start, pixel, inside = _tile_pixels(tile, num_pixels, ROWS, COLS)
            label_ptr = labels_ptr + start * labels_stride_p + pixel * labels_stride_p
            label, is_invalid = _read_labels(label_ptr, inside, ignore_index, K)
            s_ptr = logits_ptr + start * logits_stride_p
            s_ptr, number, count = _find(s_ptr, logits_stride_p, pixel, num_pixels - start, K, RUN)
            s = _load_logits(s_ptr, logits_stride_c, number, count, K, K_BLOCK, IS_UNROLLED, COLS, RUN)
            p, x, log_total = _softmax(s, 1.0, K, K_BLOCK, IS_UNROLLED)
            w = _pick(class_weights, label, K_BLOCK, IS_UNROLLED)
            nll = log_total - _pick(x, label, K_BLOCK, IS_UNROLLED)
            main += tl.sum(tl.where(w > 0, w * nll, 0.0), 1)
            weight += tl.sum(w, 1)
            invalid += tl.sum(is_invalid.to(tl.int32), 1)
            if HAS_DICE:
                r = _onehot(label, K, K_BLOCK, IS_UNROLLED)
                overlap = _add_up(overlap, _times(p, r), IS_UNROLLED)
                predicted = _add_up(predicted, _where(label >= 0, p), IS_UNROLLED)
                actual = _add_up(actual, r, IS_UNROLLED)
    elif HAS_TEACHER:
        for tile in range(program, num_tiles, num_programs):
            start, pixel, inside = _tile_pixels(tile, num_pixels, ROWS, COLS)
            s_ptr = logits_ptr + start * logits_stride_p
            s_ptr, number, count = _find(s_ptr, logits_stride_p, pixel, num_pixels - start, K, RUN)
            z_ptr = teacher_ptr + start * teacher_stride_p + pixel * teacher_stride_p
            s = _load_logits(s_ptr, logits_stride_c, number, count, K, K_BLOCK, IS_UNROLLED, COLS, RUN)
            z = _load(z_ptr, teacher_stride_c, inside, teacher_scale, HAS_CODES, K, K_BLOCK, IS_UNROLLED)
            _, x, log_total = _softmax(s, inverse_temperature, K, K_BLOCK, IS_UNROLLED)
            t, _, _ = _softmax(z, inverse_temperature, K, K_BLOCK, IS_UNROLLED)
            cross_entropy = log_total - _class_sum(_times(t, x), IS_UNROLLED)
            main += tl.sum(tl.where(inside, cross_entropy, 0.0), 1)
            if HAS_SOFT_DICE:
                p, _, _ = _softmax(s, 1.0, K, K_BLOCK, IS_UNROLLED)
                r, _, _ = _softmax(z, 1.0, K, K_BLOCK, IS_UNROLLED)
                p, r = _where(inside, p), _where(inside, r)
                overlap = _add_up(overlap, _times(p, r), IS_UNROLLED)
                predicted = _add_up(predicted, p, IS_UNROLLED)
                actual = _add_up(actual, r, IS_UNROLLED)
    partial_ptr = partials_ptr + program * (2 + 3 * K)
    tl.store(partial_ptr, tl.sum(main))
    tl.store(partial_ptr + 1, tl.sum(weight))
    if HAS_DICE:
        _store_sums(partial_ptr + 2, overlap, K, K_BLOCK, IS_UNROLLED)
        _store_sums(partial_ptr + 2 + K, predicted, K, K_BLOCK, IS_UNROLLED)
        _store_sums(partial_ptr + 2 + 2 * K, actual, K, K_BLOCK, IS_UNROLLED)
    done_ptr, num_invalid_sum_ptr = arrivals_ptr + num_samples, arrivals_ptr + num_samples + 1
    # Atomic sums of integers are the same in any order.
    num_invalid = tl.sum(invalid).to(tl.int64)
    tl.atomic_add(num_invalid_sum_ptr, num_invalid, mask=num_invalid > 0)
    # All threads' stores must come before one thread counts the arrival, which releases them to the last program.
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + sample, 1, sem="acq_rel") == num_programs - 1:
        tl.store(arrivals_ptr + sample, 0)
        total = _sum_partials(partials_ptr, num_programs, 1, 1, K)
        total_weight = tl.sum(_sum_partials(partials_ptr + 1, num_programs, 1, 1, K))
        inverse_weight = tl.where(total_weight > 0, 1 / tl.where(total_weight > 0, total_weight, 1.0), 0.0)
        # A row that the teacher does not have must show: its loss is NaN.
        kd = tl.where(is_row_known | (not HAS_TEACHER), tl.sum(total) / num_pixels, float("nan"))
        tl.store(ce_ptr + sample, tl.where(row < 0, tl.sum(total) * inverse_weight, 0.0))
        tl.store(kd_ptr + sample, tl.where(row < 0, 0.0, kd))
        coefficients_ptr += sample * (1 + 2 * K)
        tl.store(coefficients_ptr, inverse_weight)
        dice = 0.0
        classes = tl.arange(0, K_BLOCK)
        offset, slope = tl.zeros([K_BLOCK], tl.float32), tl.zeros([K_BLOCK], tl.float32)
        if HAS_DICE:
            dice, offset, slope = _dice(
                _sum_partials(partials_ptr + 2, num_programs, K, K_BLOCK, K),
                _sum_partials(partials_ptr + 2 + K, num_programs, K, K_BLOCK, K),
                _sum_partials(partials_ptr + 2 + 2 * K, num_programs, K, K_BLOCK, K),
                smooth,
                IS_GENERALIZED,
                K,
                K_BLOCK,
            )
        tl.store(dice_ptr + sample, dice)
        tl.store(coefficients_ptr + 1 + classes, offset, mask=classes < K)
        tl.store(coefficients_ptr + 1 + K + classes, slope, mask=classes < K)
        if tl.atomic_add(done_ptr, 1, sem="acq_rel") == num_samples - 1:
            tl.store(num_invalid_ptr, tl.atomic_xchg(num_invalid_sum_ptr, 0))
            tl.store(done_ptr, 0)


@triton.jit
def _backward_kernel(
    logits_ptr,
    logits_stride_b,
    logits_stride_c,
    logits_stride_p,
    labels_ptr,
    labels_stride_b,
    labels_stride_p,
    teacher_ptr,
    teacher_stride_b,
    teacher_stride_c,
    teacher_stride_p,
    num_teacher_rows,
    teacher_row_ptr,
    weights_ptr,
    dce_ptr,
    dce_stride,
    dkd_ptr,
    dkd_stride,
    ddice_ptr,
    ddice_stride,
    coefficients_ptr,
    dlogits_ptr,
    dlogits_stride_b,
    dlogits_stride_c,
    dlogits_stride_p,
    num_pixels,
    teacher_scale,
    inverse_temperature,
    ignore_index,
    HAS_ROW: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    HAS_CODES: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_DICE: tl.constexpr,
    HAS_SOFT_DICE: tl.constexpr,
    K: tl.constexpr,
    K_BLOCK: tl.constexpr,
    IS_UNROLLED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RUN: tl.constexpr,
):
    sample = tl.program_id(1).to(tl.int64)
    row = _teacher_row(teacher_row_ptr, sample, HAS_ROW)
    is_row_known = row < num_teacher_rows
    start, pixel, inside = _tile_pixels(tl.program_id(0), num_pixels, ROWS, COLS)
    s_ptr = logits_ptr + sample * logits_stride_b + start * logits_stride_p
    ds_ptr = dlogits_ptr + sample * dlogits_stride_b + start * dlogits_stride_p
    s_ptr, number, count = _find(s_ptr, logits_stride_p, pixel, num_pixels - start, K, RUN)
    ds_ptr, number, count = _find(ds_ptr, dlogits_stride_p, pixel, num_pixels - start, K, RUN)
    s = _load_logits(s_ptr, logits_stride_c, number, count, K, K_BLOCK, IS_UNROLLED, COLS, RUN)
    coefficients_ptr += sample * (1 + 2 * K)
    ddice = tl.load(ddice_ptr + sample * ddice_stride)
    offset = _read_numbers(coefficients_ptr + 1, ddice, HAS_DICE, K, K_BLOCK, IS_UNROLLED)
    slope = _read_numbers(coefficients_ptr + 1 + K, ddice, HAS_DICE, K, K_BLOCK, IS_UNROLLED)
    if row < 0:
        label_ptr = labels_ptr + sample * labels_stride_b + start * labels_stride_p + pixel * labels_stride_p
        label, _ = _read_labels(label_ptr, inside, ignore_index, K)
        p, _, _ = _softmax(s, 1.0, K, K_BLOCK, IS_UNROLLED)
        r = _onehot(label, K, K_BLOCK, IS_UNROLLED)
        class_weights = _read_numbers(weights_ptr, 1.0, HAS_WEIGHTS, K, K_BLOCK, IS_UNROLLED)
        w = _pick(class_weights, label, K_BLOCK, IS_UNROLLED)
        ds = _scaled_gap(w * (tl.load(dce_ptr + sample * dce_stride) * tl.load(coefficients_ptr)), p, r)
        if HAS_DICE:
            ds = _plus(ds, _where(label >= 0, _dice_gradient(p, r, offset, slope, IS_UNROLLED)))
        _store(ds_ptr, dlogits_stride_c, ds, number, count, K, K_BLOCK, IS_UNROLLED, COLS, RUN)
    elif HAS_TEACHER:
        z_ptr = teacher_ptr + tl.where(is_row_known, row, 0) * teacher_stride_b
        z_ptr = z_ptr + start * teacher_stride_p + pixel * teacher_stride_p
        z = _load(z_ptr, teacher_stride_c, inside, teacher_scale, HAS_CODES, K, K_BLOCK, IS_UNROLLED)
        p, _, _ = _softmax(s, inverse_temperature, K, K_BLOCK, IS_UNROLLED)
        t, _, _ = _softmax(z, inverse_temperature, K, K_BLOCK, IS_UNROLLED)
        factor = tl.load(dkd_ptr + sample * dkd_stride) * inverse_temperature / num_pixels
        ds = _scaled_gap(tl.where(is_row_known, factor, float("nan")), p, t)
        if HAS_SOFT_DICE:
            p, _, _ = _softmax(s, 1.0, K, K_BLOCK, IS_UNROLLED)
            r, _, _ = _softmax(z, 1.0, K, K_BLOCK, IS_UNROLLED)
            ds = _plus(ds, _dice_gradient(p, r, offset, slope, IS_UNROLLED))
        _store(ds_ptr, dlogits_stride_c, ds, number, count, K, K_BLOCK, IS_UNROLLED, COLS, RUN)
    else:
        zeros = _where(inside & False, s)
        _store(ds_ptr, dlogits_stride_c, zeros, number, count, K, K_BLOCK, IS_UNROLLED, COLS, RUN)


@triton.jit
def _teacher_row(teacher_row_ptr, sample, HAS_ROW: tl.constexpr):
    row = sample * 0 - 1
    if HAS_ROW:
        row = tl.load(teacher_row_ptr + sample)
    return row


@triton.jit
def _tile_pixels(tile, num_pixels, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The tile's first pixel, its pixels counted from there, and which of them exist."""
    start = tl.full([], ROWS * COLS, tl.int64) * tile
    pixel = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    return start, pixel, pixel < num_pixels - start


@triton.jit
def _read_labels(label_ptr, inside, ignore_index, K: tl.constexpr):
    """Classes, -1 where there is none, and which labels are neither a class nor ignored."""
    label = tl.load(label_ptr, mask=inside, other=0)
    if label.dtype == tl.uint8:
        label = label.to(tl.int32)
    is_given = inside & (label != ignore_index)
    is_class = (label >= 0) & (label < K)
    return tl.where(is_given & is_class, label, -1).to(tl.int32), is_given & ~is_class


@triton.jit
def _read_numbers(
    numbers_ptr, factor, EXISTS: tl.constexpr, K: tl.constexpr, K_BLOCK: tl.constexpr, IS_UNROLLED: tl.constexpr
):
    """By class, a number in memory times `factor`; only `factor` where there are none."""
    numbers = ()
    if IS_UNROLLED:
        for k in tl.static_range(K):
            number = factor
            if EXISTS:
                number = factor * tl.load(numbers_ptr + k).to(tl.float32)
            numbers = numbers + (number,)
    else:
        classes = tl.arange(0, K_BLOCK)[None, :]
        number = tl.full([1, K_BLOCK], 1.0, tl.float32) * factor
        if EXISTS:
            number = factor * tl.load(numbers_ptr + classes, mask=classes < K, other=0).to(tl.float32)
        numbers = (number,)
    return numbers


@triton.jit
def _load(
    ptr,
    class_stride,
    inside,
    scale,
    HAS_SCALE: tl.constexpr,
    K: tl.constexpr,
    K_BLOCK: tl.constexpr,
    IS_UNROLLED: tl.constexpr,
):
    """By class, values in fp32: 0 at pixels that do not exist, minus infinity for classes that do not."""
    values = ()
    if IS_UNROLLED:
        for k in tl.static_range(K):
            value = tl.load(ptr + tl.cast(class_stride, tl.int64) * k, mask=inside, other=0).to(tl.float32)
            values = values + ((value * scale) if HAS_SCALE else value,)
    else:
        classes = tl.arange(0, K_BLOCK)[None, :]
        exists = classes < K
        value = tl.load(ptr + tl.cast(class_stride, tl.int64) * classes, mask=inside & exists, other=0).to(tl.float32)
        if HAS_SCALE:
            value = value * scale
        values = (tl.where(exists, value, float("-inf")),)
    return values


@triton.jit
def _find(ptr, pixel_stride, pixel, num_pixels, K: tl.constexpr, RUN: tl.constexpr):
    """Addresses of the tile's pixels, or of each thread's first run; their numbers from `ptr` on, and their limit."""
    if RUN > 0:
        ROWS: tl.constexpr = pixel.shape[0]
        COLS: tl.constexpr = pixel.shape[1]
        number = tl.arange(0, ROWS)[:, None] * (COLS * K) + tl.arange(0, RUN)[None, :]
        count = tl.minimum(num_pixels, ROWS * COLS).to(tl.int32) * K
        ptr += number
    else:
        number, count = pixel, num_pixels
        ptr += pixel * pixel_stride
    return ptr, number, count


@triton.jit
def _load_logits(
    ptr,
    class_stride,
    number,
    count,
    K: tl.constexpr,
    K_BLOCK: tl.constexpr,
    IS_UNROLLED: tl.constexpr,
    COLS: tl.constexpr,
    RUN: tl.constexpr,
):
    """`_load` from the addresses of `_find`."""
    if RUN > 0:
        ROWS: tl.constexpr = number.shape[0]
        numbers, values = (), ()
        for first in tl.static_range(0, COLS * K, RUN):
            numbers = numbers + columns(tl.load(ptr + first, mask=number + first < count, other=0), ROWS, RUN)
        for k in tl.static_range(K):
            own = ()
            for col in tl.static_range(COLS):
                own = own + (numbers[col * K + k],)
            values = values + (tile_of(own, ROWS, COLS).to(tl.float32),)
    else:
        values = _load(ptr, class_stride, number < count, 1.0, False, K, K_BLOCK, IS_UNROLLED)
    return values


@triton.jit
def _store(
    ptr,
    class_stride,
    values,
    number,
    count,
    K: tl.constexpr,
    K_BLOCK: tl.constexpr,
    IS_UNROLLED: tl.constexpr,
    COLS: tl.constexpr,
    RUN: tl.constexpr,
):
    """To the addresses of `_find`."""
    if RUN > 0:
        ROWS: tl.constexpr = number.shape[0]
        by_class = ()
        for k in tl.static_range(K):
            by_class = by_class + columns(values[k].to(ptr.dtype.element_ty), ROWS, COLS)
        for first in tl.static_range(0, COLS * K, RUN):
            numbers = ()
            for i in tl.static_range(first, first + RUN):
                numbers = numbers + (by_class[i % K * COLS + i // K],)
            tl.store(ptr + first, tile_of(numbers, ROWS, RUN), mask=number + first < count)
    elif IS_UNROLLED:
        for k in tl.static_range(K):
            tl.store(ptr + tl.cast(class_stride, tl.int64) * k, values[k], mask=number < count)
    else:
        classes = tl.arange(0, K_BLOCK)[None, :]
        tl.store(ptr + tl.cast(class_stride, tl.int64) * classes, values[0], mask=(number < count) & (classes < K))


@triton.jit
def _softmax(values, scale, K: tl.constexpr, K_BLOCK: tl.constexpr, IS_UNROLLED: tl.constexpr):
    """softmax(scale values) by class, x = scale (values - largest) by class, and log sum exp of x."""
    top = values[0]
    if IS_UNROLLED:
        for k in tl.static_range(1, K):
            top = tl.maximum(top, values[k])
    else:
        top = tl.max(top, 1)[:, None]
    powers, x = (), ()
    for i in tl.static_range(len(values)):
        shifted = (values[i] - top) * scale
        powers = powers + (tl.exp(shifted),)
        if not IS_UNROLLED:
            # Times a probability of 0, minus infinity would be NaN.
            shifted = tl.where(tl.arange(0, K_BLOCK)[None, :] < K, shifted, 0.0)
        x = x + (shifted,)
    total = _class_sum(powers, IS_UNROLLED)
    inverse = 1 / total
    p = ()
    for i in tl.static_range(len(powers)):
        p = p + (powers[i] * inverse,)
    return p, x, tl.log(total)


@triton.jit
def _class_sum(values, IS_UNROLLED: tl.constexpr):
    """(ROWS, COLS) sums over the classes."""
    total = values[0]
    if IS_UNROLLED:
        for i in tl.static_range(1, len(values)):
            total = total + values[i]
    else:
        total = tl.sum(total, 1)[:, None]
    return total


@triton.jit
def _is_class(label, i: tl.constexpr, K_BLOCK: tl.constexpr, IS_UNROLLED: tl.constexpr):
    """Where the label is that of the i-th tile's class, or by class."""
    if IS_UNROLLED:
        result = label == i
    else:
        result = label == tl.arange(0, K_BLOCK)[None, :]
    return result


@triton.jit
def _onehot(label, K: tl.constexpr, K_BLOCK: tl.constexpr, IS_UNROLLED: tl.constexpr):
    values = ()
    for i in tl.static_range(K if IS_UNROLLED else 1):
        values = values + (_is_class(label, i, K_BLOCK, IS_UNROLLED).to(tl.float32),)
    return values


@triton.jit
def _pick(values, label, K_BLOCK: tl.constexpr, IS_UNROLLED: tl.constexpr):
    """The label's value at each pixel, 0 where there is no label."""
    picked = ()
    for i in tl.static_range(len(values)):
        picked = picked + (tl.where(_is_class(label, i, K_BLOCK, IS_UNROLLED), values[i], 0.0),)
    return _class_sum(picked, IS_UNROLLED)


@triton.jit
def _times(a, b):
    values = ()
    for i in tl.static_range(len(a)):
        values = values + (a[i] * b[i],)
    return values


@triton.jit
def _plus(a, b):
    values = ()
    for i in tl.static_range(len(a)):
        values = values + (a[i] + b[i],)
    return values


@triton.jit
def _where(condition, a):
    values = ()
    for i in tl.static_range(len(a)):
        values = values + (tl.where(condition, a[i], 0.0),)
    return values


@triton.jit
def _scaled_gap(scale, a, b):
    """scale (a - b)"""
    values = ()
    for i in tl.static_range(len(a)):
        values = values + (scale * (a[i] - b[i]),)
    return values


@triton.jit
def _dice_gradient(p, r, offset, slope, IS_UNROLLED: tl.constexpr):
    """p (e - sum_c p_c e_c) with e = offset + slope r"""
    e = ()
    for i in tl.static_range(len(p)):
        e = e + (offset[i] + slope[i] * r[i],)
    mean = _class_sum(_times(p, e), IS_UNROLLED)
    values = ()
    for i in tl.static_range(len(p)):
        values = values + (p[i] * (e[i] - mean),)
    return values


@triton.jit
def _no_sums(K: tl.constexpr, K_BLOCK: tl.constexpr, IS_UNROLLED: tl.constexpr, ROWS: tl.constexpr):
    """Sums over pixels: by class, (ROWS,) of each row's pixels; or (K_BLOCK,) of all."""
    sums = ()
    for _ in tl.static_range(K if IS_UNROLLED else 1):
        sums = sums + (tl.zeros([ROWS if IS_UNROLLED else K_BLOCK], tl.float32),)
    return sums


@triton.jit
def _add_up(sums, values, IS_UNROLLED: tl.constexpr):
    results = ()
    for i in tl.static_range(len(sums)):
        results = results + (sums[i] + tl.sum(values[i], 1 if IS_UNROLLED else 0),)
    return results


@triton.jit
def _store_sums(ptr, sums, K: tl.constexpr, K_BLOCK: tl.constexpr, IS_UNROLLED: tl.constexpr):
    if IS_UNROLLED:
        for k in tl.static_range(K):
            tl.store(ptr + k, tl.sum(sums[k]))
    else:
        classes = tl.arange(0, K_BLOCK)
        tl.store(ptr + classes, sums[0], mask=classes < K)


@triton.jit
def _sum_partials(ptr, num_programs, COUNT: tl.constexpr, COUNT_BLOCK: tl.constexpr, K: tl.constexpr):
    """(COUNT_BLOCK,) sums over a sample's programs, which lie 2 + 3 K numbers apart."""
    BLOCK: tl.constexpr = 32 if COUNT_BLOCK <= 32 else 4
    columns = tl.arange(0, COUNT_BLOCK)[None, :]
    sums = tl.zeros([BLOCK, COUNT_BLOCK], tl.float32)
    for first in range(0, num_programs, BLOCK):
        program = first + tl.arange(0, BLOCK)[:, None]
        mask = (program < num_programs) & (columns < COUNT)
        # Other multiprocessors wrote them: not from this one's cache.
        sums += tl.load(ptr + program * (2 + 3 * K) + columns, mask=mask, other=0, cache_modifier=".cg")
    return tl.sum(sums, 0)


@triton.jit
def _dice(overlap, predicted, actual, smooth, IS_GENERALIZED: tl.constexpr, K: tl.constexpr, K_BLOCK: tl.constexpr):
    """A sample's Dice loss, and offset and slope of its gradient by class, from the sums I, P, R."""
    exists = tl.arange(0, K_BLOCK) < K
    if IS_GENERALIZED:
        # A class of less than one pixel has no weight: 1 / R^2 would drown all others.
        weight = tl.where(exists & (actual >= 1), 1 / tl.maximum(actual * actual, 1), 0.0)
        numerator = tl.sum(weight * overlap)
        denominator = tl.sum(weight * (predicted + actual))
        is_compared = denominator > 0
        denominator = tl.where(is_compared, denominator, 1.0)
        dice = tl.where(is_compared, 1 - 2 * numerator / denominator, 0.0)
        offset = tl.where(is_compared, 2 * weight * numerator / (denominator * denominator), 0.0)
        slope = tl.where(is_compared, -2 * weight / denominator, 0.0)
    else:
        union = predicted + actual + smooth
        is_compared = exists & (union > 0)
        union = tl.where(is_compared, union, 1.0)
        dice = tl.sum(tl.where(is_compared, 1 - (2 * overlap + smooth) / union, 0.0)) / K
        offset = tl.where(is_compared, (2 * overlap + smooth) / (K * union * union), 0.0)
        slope = tl.where(is_compared, -2 / (K * union), 0.0)
    return dice, offset, slope
