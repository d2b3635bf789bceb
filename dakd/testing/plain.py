"""Each op as a person would write it in plain torch: the independent check in tests, the rival in benchmarks.

Names and arguments are those of the rooms, less `backend`. Parameters are cast to the features' dtype, as eager code does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
