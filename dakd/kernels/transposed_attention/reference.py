"""The definition, in plain PyTorch, with the output projection folded into one small matrix per sample.

Per head, with n_i = max(|q_i|, 1e-12), m_j = max(|k_j|, 1e-12):

Forward:   G = q k^T;  S_ij = G_ij / (n_i m_j);  P = softmax_j(temperature S);  M = W P;  y = residual + M v
Backward:  dM = dy v^T;  dv = M^T dy;  dW = dM P^T;  dP = W^T dM;  dT = P (dP - sum_j P dP);
           dtemperature = sum dT S;  dS = temperature dT;  E_ij = dS_ij / (n_i m_j);
           dq_i = sum_j E_ij k_j - q_i (sum_j dS_ij S_ij) / n_i^2   (second term absent where |q_i| <= 1e-12)
           dk_j = sum_i E_ij q_i - k_j (sum_i dS_ij S_ij) / m_j^2   (likewise)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels.contract import compute_dtype

_MIN_NORM = 1e-12


class _Map(NamedTuple):
    """Of every head: the norms n (B, h, d, 1) and m (B, h, 1, d), the cosines S and the attention P (B, h, d, d)."""

    n: Tensor
    m: Tensor
    cosine: Tensor
    attention: Tensor


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    out_weight: Tensor,
    residual: Tensor,
    num_heads: int,
    *,
    y: Tensor,
) -> None:
    dtype = compute_dtype(q.dtype)
    heads = [_split_heads(tensor.to(dtype), num_heads) for tensor in (q, k)]
    folded = _fold(out_weight.to(dtype), _attend(*heads, temperature.to(dtype)).attention)
    update = torch.bmm(folded, v.to(dtype).flatten(2))
    y.copy_(residual + update.view(residual.shape))


def backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    out_weight: Tensor,
    num_heads: int,
    *,
    gradients: tuple[Tensor, ...],
) -> None:
    dq, dk, dv, dtemperature, dout_weight = gradients
    dtype = compute_dtype(q.dtype)
    q_heads, k_heads = _split_heads(q.to(dtype), num_heads), _split_heads(k.to(dtype), num_heads)
    temperature, weight = temperature.to(dtype), out_weight.to(dtype)
    attention_map = _attend(q_heads, k_heads, temperature)
    dy, v_flat = dy.to(dtype).flatten(2), v.to(dtype).flatten(2)
    dv.copy_(torch.bmm(_fold(weight, attention_map.attention).mT, dy).view(v.shape))
    dfolded = torch.bmm(dy, v_flat.mT).unflatten(2, (num_heads, -1))
    weight = weight.unflatten(1, (num_heads, -1))
    dout_weight.copy_(torch.einsum("bchj,bhij->chi", dfolded, attention_map.attention).flatten(1))
    dattention = torch.einsum("chi,bchj->bhij", weight, dfolded)
    dlogits = attention_map.attention * (dattention - (attention_map.attention * dattention).sum(-1, keepdim=True))
    dtemperature.copy_((dlogits * attention_map.cosine).sum((0, 2, 3)))
    dcosine = dlogits * temperature[:, None, None]
    scaled, radial = dcosine / (attention_map.n * attention_map.m), dcosine * attention_map.cosine
    radial_q = _where_norm_counts(radial.sum(-1, keepdim=True), attention_map.n)
    radial_k = _where_norm_counts(radial.sum(-2, keepdim=True), attention_map.m).mT
    dq.copy_((scaled @ k_heads - radial_q * q_heads).view(q.shape))
    dk.copy_((scaled.mT @ q_heads - radial_k * k_heads).view(k.shape))


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, R, H, W) -> (B, h, d, H W)."""
    return x.flatten(2).unflatten(1, (num_heads, -1))


def _attend(q: Tensor, k: Tensor, temperature: Tensor) -> _Map:
    n = torch.linalg.vector_norm(q, dim=-1, keepdim=True).clamp_min(_MIN_NORM)
    m = torch.linalg.vector_norm(k, dim=-1, keepdim=True).clamp_min(_MIN_NORM).mT
    cosine = (q @ k.mT) / (n * m)
    return _Map(n, m, cosine, torch.softmax(temperature[:, None, None] * cosine, dim=-1))


def _fold(out_weight: Tensor, attention: Tensor) -> Tensor:
    """M = W P, (B, C, R), from W (C, R) and P (B, h, d, d)."""
    weight = out_weight.unflatten(1, (attention.shape[1], -1))
    return torch.einsum("chi,bhij->bchj", weight, attention).flatten(2)


def _where_norm_counts(radial: Tensor, norm: Tensor) -> Tensor:
    """radial / norm^2, and 0 where the norm was raised to its minimum and so does not vary."""
    return torch.where(norm > _MIN_NORM, radial / norm.square(), 0)
