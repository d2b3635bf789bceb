"""The definition of transposed_attention, in plain PyTorch; the output projection is folded into a matrix per sample.

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

from dakd.kernels.transposed_attention.ops import Operands, Outputs

_MIN_NORM = 1e-12


class _Map(NamedTuple):
    """Of every head: the norms n (B, h, d, 1) and m (B, h, 1, d), the cosines S and the attention P (B, h, d, d)."""

    n: Tensor
    m: Tensor
    cosine: Tensor
    attention: Tensor


def forward(operands: Operands, outputs: Outputs) -> None:
    q, k, v, temperature, out_weight, residual, num_heads = operands
    y, products, folded = outputs
    dtype = products.dtype
    q_heads, k_heads = (_split_heads(tensor.to(dtype), num_heads) for tensor in (q, k))
    products[:, :, :-2] = q_heads @ k_heads.mT
    products[:, :, -2] = q_heads.square().sum(-1)
    products[:, :, -1] = k_heads.square().sum(-1)
    attention = _attend(products, temperature.to(dtype)).attention
    weight = out_weight.to(dtype).unflatten(1, (num_heads, -1))
    exact = torch.einsum("chi,bhij->bchj", weight, attention).flatten(2)
    folded.copy_(exact)
    y.copy_(residual + torch.bmm(exact, v.to(dtype).flatten(2)).view(residual.shape))


def backward(
    operands: Operands, products: Tensor, folded: Tensor, dy: Tensor, gradients: tuple[Tensor, ...]
) -> None:
    q, k, v, temperature, out_weight, _residual, num_heads = operands
    dq, dk, dv, dtemperature, dout_weight = gradients
    dtype = products.dtype
    q_heads, k_heads = (_split_heads(tensor.to(dtype), num_heads) for tensor in (q, k))
    dy, temperature = dy.to(dtype).flatten(2), temperature.to(dtype)
    dv.copy_(torch.bmm(folded.to(dtype).mT, dy).view(v.shape))
    dfolded = torch.bmm(dy, v.to(dtype).flatten(2).mT).unflatten(2, (num_heads, -1))
    n, m, cosine, attention = _attend(products, temperature)
    dout_weight.copy_(torch.einsum("bchj,bhij->chi", dfolded, attention).flatten(1))
    weight = out_weight.to(dtype).unflatten(1, (num_heads, -1))
    dattention = torch.einsum("chi,bchj->bhij", weight, dfolded)
    dlogits = attention * (dattention - (attention * dattention).sum(-1, keepdim=True))
    dtemperature.copy_((dlogits * cosine).sum((0, 2, 3)))
    dcosine = dlogits * temperature[:, None, None]
    scaled, radial = dcosine / (n * m), dcosine * cosine
    radial_q = _where_norm_counts(radial.sum(-1, keepdim=True), n)
    radial_k = _where_norm_counts(radial.sum(-2, keepdim=True), m).mT
    dq.copy_((scaled @ k_heads - radial_q * q_heads).view(q.shape))
    dk.copy_((scaled.mT @ q_heads - radial_k * k_heads).view(k.shape))


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, R, H, W) -> (B, h, d, H W)."""
    return x.flatten(2).unflatten(1, (num_heads, -1))


def _attend(products: Tensor, temperature: Tensor) -> _Map:
    n = products[:, :, -2, :, None].sqrt().clamp_min(_MIN_NORM)
    m = products[:, :, -1, None, :].sqrt().clamp_min(_MIN_NORM)
    cosine = products[:, :, :-2] / (n * m)
    return _Map(n, m, cosine, torch.softmax(temperature[:, None, None] * cosine, dim=-1))


def _where_norm_counts(radial: Tensor, norm: Tensor) -> Tensor:
    """radial / norm^2, and 0 where the norm was raised to its minimum and so does not vary."""
    return torch.where(norm > _MIN_NORM, radial / norm.square(), 0)
