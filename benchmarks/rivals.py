"""Plain torch as a person would write it for speed: what "eager", "autocast" and "compile" mean in the tables.

dakd.testing.plain is written to be checked by eye: it loops over samples and draws the project's own noise with integer
tensors. To race against that would flatter the kernels, so these take whole batches, look at no value on the host, and
draw noise with torch.randn. Tests hold them to dakd.testing.plain wherever no noise is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.testing import plain


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
    stochastic: bool = False,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    input_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    A, B, sigma = coefficients[step].unbind(1)
    y0_pred = b * (2 * F.softmax(logits.to(y.dtype), dim=1) - 1)
    x_next = A * x + B * x0_pred.to(x.dtype).clamp(-clip, clip)
    y_next = A * y + B * y0_pred
    if stochastic:
        x_next = x_next + sigma * torch.randn_like(x_next)
        y_next = y_next + sigma * torch.randn_like(y_next)
    dtype = x.dtype if input_dtype is None else input_dtype
    return x_next, y_next, x_next.to(dtype), y_next.to(dtype)


def joint_noising(
    image: Tensor,
    label: Tensor,
    positions: Tensor,
    tables: Tensor,
    *,
    b: float,
    num_classes: int,
    seed: int,
    out_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.randint(0, len(tables), positions.shape, device=image.device)
    a, s = (tables[t, column][:, None, None, None] for column in (0, 1))
    x_0 = image.to(tables.dtype) / 127.5 - 1
    ignored = label >= num_classes
    onehot = F.one_hot(label.long().masked_fill(ignored, 0), num_classes).permute(0, 3, 1, 2)
    y_0 = (2 * onehot.to(tables.dtype) - 1).masked_fill(ignored[:, None], 0)
    x_t = a * x_0 + s * torch.randn_like(x_0)
    y_t = a * b * y_0 + s * torch.randn_like(y_0)
    return x_t.to(out_dtype), y_t.to(out_dtype), t


def seg_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None = None,
    teacher_row: Tensor | None = None,
    *,
    temperature: float = 2.0,
    ignore_index: int = 255,
    dice_smooth: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Real samples first: cross-entropy and soft Dice; then the synthetic ones: distillation."""
    num_classes, num_real = logits.shape[1], logits.shape[0] - (0 if teacher is None else teacher.shape[0])
    zeros = logits.new_zeros(logits.shape[0])
    real, label = logits[:num_real], labels[:num_real].long()
    known = label != ignore_index
    per_pixel = F.cross_entropy(real, label, ignore_index=ignore_index, reduction="none")
    ce = per_pixel.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
    p = real.softmax(1) * known[:, None]
    target = F.one_hot(label.masked_fill(~known, 0), num_classes).permute(0, 3, 1, 2).to(p.dtype) * known[:, None]
    overlap, total = (p * target).sum((2, 3)), (p + target).sum((2, 3))
    dice = (1 - (2 * overlap + dice_smooth) / (total + dice_smooth)).mean(1)
    if num_real == logits.shape[0]:
        return ce, zeros, dice
    soft = teacher[teacher_row[num_real:]].to(logits.dtype).div(temperature).softmax(1)
    kd = F.cross_entropy(logits[num_real:] / temperature, soft, reduction="none").mean((1, 2))
    return torch.cat([ce, zeros[num_real:]]), torch.cat([zeros[:num_real], kd]), torch.cat([dice, zeros[num_real:]])


def diffusers_ddim_step() -> Callable:
    """One step of diffusers' DDIMScheduler for each modality; ImportError where diffusers is not installed."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", set_alpha_to_one=True)
    scheduler.set_timesteps(200)
    # On the host, as a careful user would have it: a timestep on the GPU would synchronise at every step.
    timestep = int(scheduler.timesteps[7])

    def step(x, y, x0_pred, logits, coefficients, step, *, b, stochastic=False, input_dtype=None, **_unused):
        eta = 1.0 if stochastic else 0.0
        y0_pred = b * (2 * logits.float().softmax(1) - 1)
        x_next = scheduler.step(x0_pred.float(), timestep, x, eta=eta, use_clipped_model_output=True).prev_sample
        y_next = scheduler.step(y0_pred, timestep, y, eta=eta, use_clipped_model_output=True).prev_sample
        dtype = x.dtype if input_dtype is None else input_dtype
        return x_next, y_next, x_next.to(dtype), y_next.to(dtype)

    return step


def associative_selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan through torch's associative_scan, for torch.compile, which would unroll a loop over time."""
    from torch._higher_order_ops.associative_scan import associative_scan

    dt = F.softplus(delta.float() + delta_bias.float()[:, None])
    decay = torch.exp(dt[..., None] * A.float()[:, None])
    drive = (dt * u.float())[..., None] * B.float().transpose(1, 2)[:, None]

    def combine(left, right):
        return left[0] * right[0], left[1] * right[0] + right[1]

    _, states = associative_scan(combine, (decay, drive), dim=2, combine_mode="pointwise")
    y = (states * C.float().transpose(1, 2)[:, None]).sum(-1) + D.float()[:, None] * u.float()
    return y.to(u.dtype)


# What runs eagerly, and what torch.compile gets where that is something else.
EAGER = {
    "transposed_attention": plain.transposed_attention,
    "ddim_step": ddim_step,
    "joint_noising": joint_noising,
    "seg_loss": seg_loss,
    "selective_scan": plain.selective_scan,
    "depthwise_conv1d": plain.depthwise_conv1d,
}
COMPILED = EAGER | {"selective_scan": associative_selective_scan}
