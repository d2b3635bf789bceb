"""Each op in plain torch, written in the obvious way: the independent check in tests, the rival in benchmarks.

Names and arguments are those of the rooms, without `backend`. Parameters are cast to the features' dtype, as eager code
does. Whole batches are computed at once, and no value is read on the host, so that a race is fair.

racing: leaves out what nobody would write for speed. The noise comes from torch.randn, not from the project's streams,
which plain torch has to draw with slow integer tensors; labels that name no class are neither looked for nor counted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.runtime.seeding import Stream, philox_normal, philox_timesteps


def depthwise_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = "silu"
) -> Tensor:
    bias = None if bias is None else bias.to(x.dtype)
    y = F.conv1d(x, weight.to(x.dtype).unsqueeze(1), bias, padding=1, groups=x.shape[1])
    return F.silu(y) if activation == "silu" else y


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
) -> Tensor:
    A = A.to(u.dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.to(u.dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    state = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    outputs = []
    for step in range(u.shape[2]):
        dt = delta[:, :, step, None]
        state = torch.exp(dt * A) * state + dt * u[:, :, step, None] * B[:, None, :, step]
        outputs.append((state * C[:, None, :, step]).sum(-1))
    y = torch.stack(outputs, dim=-1)
    return y if D is None else y + D.to(u.dtype)[:, None] * u


def transposed_attention(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, out_weight: Tensor, residual: Tensor, *, num_heads: int
) -> Tensor:
    heads = [tensor.flatten(2).unflatten(1, (num_heads, -1)) for tensor in (q, k, v)]
    queries, keys = F.normalize(heads[0], dim=-1), F.normalize(heads[1], dim=-1)
    logits = queries @ keys.transpose(-2, -1) * temperature.to(q.dtype)[:, None, None]
    mixed = (logits.softmax(-1) @ heads[2]).reshape(q.shape)
    return residual + F.conv2d(mixed, out_weight.to(q.dtype)[:, :, None, None])


def joint_noising(
    image: Tensor,
    label: Tensor | None,
    positions: Tensor,
    tables: Tensor,
    *,
    b: float,
    num_classes: int,
    seed: int,
    t: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    racing: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    if t is None and racing:
        t = torch.randint(0, len(tables), positions.shape, device=image.device)
    elif t is None:
        t = philox_timesteps(seed, positions, len(tables))
    a, s = (tables[t, column][:, None, None, None] for column in (0, 1))

    def noisy(clean: Tensor, stream: Stream) -> Tensor:
        eps = torch.randn_like(clean) if racing else _own_noise(clean, seed, positions, t, stream)
        return (a * clean + s * eps).to(out_dtype)

    x_t = noisy(image.to(tables.dtype) / 127.5 - 1, Stream.IMAGE_NOISE)
    if label is None:
        return x_t, None, t
    ignored = label >= num_classes
    onehot = F.one_hot(label.long().masked_fill(ignored, 0), num_classes).permute(0, 3, 1, 2)
    y_0 = (2 * onehot.to(tables.dtype) - 1).masked_fill(ignored[:, None], 0)
    return x_t, noisy(b * y_0, Stream.LABEL_NOISE), t


def ddim_step(
    x: Tensor,
    y: Tensor,
    x0_pred: Tensor,
    logits: Tensor,
    coefficients: Tensor,
    step: Tensor,
    *,
    b: float,
    x0_before: Tensor | None = None,
    logits_before: Tensor | None = None,
    clip: float = 1.0,
    label_update: str = "softmax",
    stochastic: bool = False,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    input_dtype: torch.dtype | None = None,
    racing: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    A, B, C, sigma = coefficients[step.reshape(1)].unbind(1)

    def clean_image(x0_pred: Tensor) -> Tensor:
        return x0_pred.to(x.dtype).clamp(-clip, clip)

    def clean_label(logits: Tensor) -> Tensor:
        y0_pred = logits.to(y.dtype)
        return b * (2 * F.softmax(y0_pred, dim=1) - 1) if label_update == "softmax" else y0_pred.clamp(-b, b)

    def advanced(state: Tensor, clean: Callable, pred: Tensor, before: Tensor | None, stream: Stream) -> Tensor:
        state = A * state + B * clean(pred)
        if before is not None:
            state = state + C * clean(before)
        if not stochastic:
            return state
        z = torch.randn_like(state) if racing else _own_noise(state, seed, sample_ids, step, stream)
        return state + sigma * z

    x_next = advanced(x, clean_image, x0_pred, x0_before, Stream.DDIM_IMAGE)
    y_next = advanced(y, clean_label, logits, logits_before, Stream.DDIM_LABEL)
    dtype = x.dtype if input_dtype is None else input_dtype
    return x_next, y_next, x_next.to(dtype), y_next.to(dtype)


def _own_noise(like: Tensor, seed: int, positions: Tensor, step: Tensor, stream: Stream) -> Tensor:
    return philox_normal(like[:1].numel(), seed, positions, step, stream, like.dtype).reshape(like.shape)


def seg_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None = None,
    teacher_row: Tensor | None = None,
    *,
    teacher_range: float | None = None,
    temperature: float = 2.0,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    dice_samples: str = "real",
    dice_form: str = "soft",
    dice_smooth: float = 1.0,
    racing: bool = False,
) -> tuple[Tensor, ...]:
    """racing: real samples stand first; after them, as many synthetic ones as the teacher has rows."""
    if not racing and teacher_row is not None:
        order = torch.argsort((teacher_row >= 0).to(torch.uint8), stable=True)
        logits, labels, teacher_row = logits[order], labels[order], teacher_row[order]
    num_classes, num_real = logits.shape[1], len(logits) - (0 if teacher is None else len(teacher))
    real, label = logits[:num_real], labels[:num_real].long()
    known = label != ignore_index
    if not racing:
        is_class = (label >= 0) & (label < num_classes)
        num_invalid, known = (known & ~is_class).sum(), known & is_class
        label = label.masked_fill(~known, ignore_index)
    index, mask = label.masked_fill(~known, 0), known[:, None]

    weight = None if class_weights is None else class_weights.to(logits.dtype)
    per_pixel = F.cross_entropy(real, label, weight=weight, ignore_index=ignore_index, reduction="none")
    total = (known if weight is None else weight[index] * known).flatten(1).sum(1)
    ce = per_pixel.flatten(1).sum(1) / torch.where(total > 0, total, 1)
    # A sample without a term has no gradient, but the check asks for one.
    kd = dice = logits.new_zeros(len(logits)) if racing else 0 * logits[:, 0, 0, 0]
    if dice_samples != "none":
        target = F.one_hot(index, num_classes).permute(0, 3, 1, 2).to(logits.dtype) * mask
        dice = torch.cat([_dice(real.softmax(1) * mask, target, dice_form, dice_smooth), dice[num_real:]])
    if num_real < len(logits):
        synthetic = logits[num_real:]
        soft = teacher[teacher_row[num_real:]].to(logits.dtype)
        if teacher_range is not None:
            soft = soft * (-teacher_range / 255)
        distilled = F.cross_entropy(synthetic / temperature, (soft / temperature).softmax(1), reduction="none")
        if dice_samples == "all":
            of_synthetic = _dice(synthetic.softmax(1), soft.softmax(1), dice_form, dice_smooth)
            dice = torch.cat([dice[:num_real], of_synthetic])
        ce = torch.cat([ce, kd[num_real:]])
        kd = torch.cat([kd[:num_real], distilled.mean((1, 2))])
    if racing:
        return ce, kd, dice
    terms = (ce, kd, dice) if teacher_row is None else (term[order.argsort()] for term in (ce, kd, dice))
    return *terms, num_invalid


def _dice(p: Tensor, target: Tensor, form: str, smooth: float) -> Tensor:
    """p, target: (B, K, H, W), 0 at pixels that do not count. Result: (B,)."""
    overlap, total = (p * target).sum((2, 3)), (p + target).sum((2, 3))
    if form == "soft":
        return (1 - (2 * overlap + smooth) / (total + smooth)).mean(1)
    size = target.sum((2, 3))
    weight = torch.where(size >= 1, 1 / size.clamp_min(1) ** 2, 0)
    numerator, denominator = (weight * overlap).sum(1), (weight * total).sum(1)
    is_compared = denominator > 0
    return torch.where(is_compared, 1 - 2 * numerator / torch.where(is_compared, denominator, 1), 0)
