"""Each op as a person would write it in plain torch: the independent check in tests, the rival in benchmarks.

Names and arguments are those of the rooms, less `backend`. Parameters are cast to the features' dtype, as eager code
does.
"""

from __future__ import annotations

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
) -> tuple[Tensor, Tensor | None, Tensor]:
    t = philox_timesteps(seed, positions, len(tables)) if t is None else t
    a, s = (tables[:, column][t][:, None, None, None] for column in (0, 1))
    x_0 = image.to(tables.dtype) / 127.5 - 1
    eps = philox_normal(x_0[:1].numel(), seed, positions, t, Stream.IMAGE_NOISE, tables.dtype).reshape(x_0.shape)
    x_t = (a * x_0 + s * eps).to(out_dtype)
    if label is None:
        return x_t, None, t
    ignored = label >= num_classes
    onehot = F.one_hot(label.long().masked_fill(ignored, 0), num_classes).permute(0, 3, 1, 2)
    y_0 = (2 * onehot.to(tables.dtype) - 1).masked_fill(ignored[:, None], 0)
    eps = philox_normal(y_0[:1].numel(), seed, positions, t, Stream.LABEL_NOISE, tables.dtype).reshape(y_0.shape)
    return x_t, (a * b * y_0 + s * eps).to(out_dtype), t


def ddim_step(
    x: Tensor,
    y: Tensor,
    x0_pred: Tensor,
    logits: Tensor,
    coefficients: Tensor,
    step: Tensor,
    *,
    b: float,
    clip: float = 1.0,
    label_update: str = "softmax",
    stochastic: bool = False,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    input_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    A, B, sigma = coefficients[step.item()].unbind()
    y0_pred = b * (2 * F.softmax(logits.to(y.dtype), dim=1) - 1)
    if label_update == "identity":
        y0_pred = logits.to(y.dtype).clamp(-b, b)
    x_next = A * x + B * x0_pred.to(x.dtype).clamp(-clip, clip)
    y_next = A * y + B * y0_pred
    if stochastic:
        for state, stream in ((x_next, Stream.DDIM_IMAGE), (y_next, Stream.DDIM_LABEL)):
            z = philox_normal(state[:1].numel(), seed, sample_ids, step, stream, state.dtype)
            state += sigma * z.reshape(state.shape)
    dtype = x.dtype if input_dtype is None else input_dtype
    return x_next, y_next, x_next.to(dtype), y_next.to(dtype)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    zero = logits.sum() * 0
    ce, kd, dice, num_invalid = [], [], [], torch.zeros((), dtype=torch.int64, device=logits.device)
    rows = [-1] * len(logits) if teacher_row is None else teacher_row.tolist()
    for s, label, row in zip(logits, labels.long(), rows):
        num_classes, p = s.shape[0], s.softmax(0).flatten(1)
        if row >= 0:
            z = teacher[row].to(s.dtype)
            if teacher_range is not None:
                z = z * (-teacher_range / 255)
            kd.append(F.cross_entropy(s[None] / temperature, z[None].div(temperature).softmax(1)))
            ce.append(zero)
            target = z.softmax(0).flatten(1)
        else:
            invalid = ((label < 0) | (label >= num_classes)) & (label != ignore_index)
            num_invalid = num_invalid + invalid.sum()
            label = label.masked_fill(invalid, ignore_index)
            kept = (label != ignore_index).flatten()
            weight = None if class_weights is None else class_weights.to(s.dtype)
            options = dict(weight=weight, ignore_index=ignore_index)
            ce.append(F.cross_entropy(s[None], label[None], **options) if kept.any() else zero)
            kd.append(zero)
            target = F.one_hot(label.flatten()[kept], num_classes).to(s.dtype).T
            p = p[:, kept]
        counts = dice_samples == "all" or (dice_samples == "real" and row < 0)
        dice.append(_dice(p, target, dice_form, dice_smooth) if counts and p.numel() else zero)
    if not ce:
        return *[logits.new_zeros(0) + zero for _ in range(3)], num_invalid
    return torch.stack(ce), torch.stack(kd), torch.stack(dice), num_invalid


def _dice(p: Tensor, target: Tensor, form: str, smooth: float) -> Tensor:
    """p, target: (K, pixels)."""
    overlap, total, size = (p * target).sum(1), (p + target).sum(1), target.sum(1)
    if form == "soft":
        return (1 - (2 * overlap + smooth) / (total + smooth)).mean()
    weight = torch.where(size >= 1, 1 / size.clamp_min(1) ** 2, 0)
    return 1 - 2 * (weight * overlap).sum() / (weight * total).sum()
