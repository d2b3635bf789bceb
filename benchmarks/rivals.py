"""The rivals in the races: what "eager", "autocast" and "compile" mean in the tables, and a peer package's step.

They are the plain definitions of dakd.testing.plain with `racing`: whole batches, no value read on the host, noise from
torch.randn. torch.compile gets another form of the scan, for it would unroll the loop over time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.testing import plain

ddim_step = partial(plain.ddim_step, racing=True)
joint_noising = partial(plain.joint_noising, racing=True)
seg_loss = partial(plain.seg_loss, racing=True)


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


# The functions that run eagerly, and those that torch.compile gets.
EAGER = {
    "transposed_attention": plain.transposed_attention,
    "ddim_step": ddim_step,
    "joint_noising": joint_noising,
    "seg_loss": seg_loss,
    "selective_scan": plain.selective_scan,
    "depthwise_conv1d": plain.depthwise_conv1d,
}
COMPILED = EAGER | {"selective_scan": associative_selective_scan}
