"""For the CPU, in torch's own matrix products: every map is walked in chunks of pixels that stay in the cache.

Per head, with n_i = max(|q_i|, 1e-12), m_j = max(|k_j|, 1e-12), and the chunks of a sample one after another:

Forward:   G = q k^T, |q_i|^2, |k_j|^2;  S_ij = G_ij / (n_i m_j);  P = softmax_j(temperature S);  M = W P;
           y = residual + M v
Backward:  dM = dy v^T and dv = M^T dy;  dW = dM P^T;  dP = W^T dM;  dT = P (dP - sum_j P dP);
           dtemperature = sum dT S;  dS = temperature dT;  E_ij = dS_ij / (n_i m_j);
           dq_i = sum_j E_ij k_j - q_i (sum_j dS_ij S_ij) / n_i^2   (second term absent where |q_i| <= 1e-12)
           dk_j = sum_i E_ij q_i - k_j (sum_i dS_ij S_ij) / m_j^2   (likewise)

Products are written straight into the result, NCHW or channels_last: a chunk is a matrix whose rows or columns are
contiguous, and both suit the matrix product. Narrow features are cast chunk by chunk to fp32 for the sums over pixels
(G and dM), for torch would round these to the features' dtype. Other products of bf16 are bf16's own; fp16 has none on
most CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dakd.kernels.transposed_attention.ops import Operands, Outputs

REMEDY = ""
_MIN_NORM = 1e-12
# Pixels of a chunk for each thread.
_CHUNK = 4096


def why_not(device_type: str) -> str | None:
    """The reason why this variant cannot run on this kind of device; None when it can."""
    return None if device_type == "cpu" else f"it is made for the CPU, not for {device_type!r}"


def forward(operands: Operands, outputs: Outputs) -> None:
    q, k, v, temperature, out_weight, residual, num_heads = operands
    y, products, folded = outputs
    products.zero_()
    for sample, (q_chunk, k_chunk) in _chunks(q, k):
        sums = products[sample]
        q_chunk, k_chunk = q_chunk.to(sums.dtype), k_chunk.to(sums.dtype)
        for head, rows in enumerate(_heads(q, num_heads)):
            sums[head, :-2] += torch.mm(q_chunk[rows], k_chunk[rows].t())
        for row, x in ((-2, q_chunk), (-1, k_chunk)):
            sums[:, row] += _squares(x).view(num_heads, -1)
    attention = _attend(products, temperature)[-1]
    weight = out_weight.to(products.dtype).unflatten(1, (num_heads, -1))
    folded.copy_(torch.einsum("chi,bhij->bchj", weight, attention).flatten(2))
    for sample, (v_chunk, residual_chunk, y_chunk) in _chunks(v, residual, y):
        matrix, v_chunk = _operand(folded[sample]), _operand(v_chunk)
        if y.dtype == v_chunk.dtype:
            torch.addmm(residual_chunk, matrix, v_chunk, out=y_chunk)
        else:
            torch.add(residual_chunk, torch.mm(matrix, v_chunk), out=y_chunk)


def backward(
    operands: Operands, products: Tensor, folded: Tensor, dy: Tensor, gradients: tuple[Tensor, ...]
) -> None:
    q, k, v, temperature, out_weight, _residual, num_heads = operands
    dq, dk, dv, dtemperature, dout_weight = gradients
    dfolded = torch.zeros_like(folded, dtype=products.dtype)
    for sample, (dy_chunk, v_chunk, dv_chunk) in _chunks(dy, v, dv):
        dfolded[sample] += torch.mm(dy_chunk.to(dfolded.dtype), v_chunk.to(dfolded.dtype).t())
        matrix = _operand(folded[sample])
        _multiply(matrix.t(), dy_chunk.to(matrix.dtype), dv_chunk)

    n, m, cosine, attention = _attend(products, temperature)
    dfolded = dfolded.unflatten(2, (num_heads, -1))
    dout_weight.copy_(torch.einsum("bchj,bhij->chi", dfolded, attention).flatten(1))
    weight = out_weight.to(products.dtype).unflatten(1, (num_heads, -1))
    dattention = torch.einsum("chi,bchj->bhij", weight, dfolded)
    dlogits = attention * (dattention - (attention * dattention).sum(-1, keepdim=True))
    dtemperature.copy_((dlogits * cosine).sum((0, 2, 3)))
    dcosine = dlogits * temperature.to(products.dtype)[:, None, None]
    scaled, radial = dcosine / (n * m), dcosine * cosine
    radial_q = torch.where(n > _MIN_NORM, radial.sum(-1, keepdim=True) / n.square(), 0)
    radial_k = torch.where(m > _MIN_NORM, radial.sum(-2, keepdim=True) / m.square(), 0).mT

    if q.dtype == torch.bfloat16:
        scaled = scaled.bfloat16()
    for sample, (q_chunk, k_chunk, dq_chunk, dk_chunk) in _chunks(q, k, dq, dk):
        q_chunk, k_chunk = _operand(q_chunk), _operand(k_chunk)
        for head, rows in enumerate(_heads(q, num_heads)):
            matrix = scaled[sample, head]
            _multiply(matrix, k_chunk[rows], dq_chunk[rows], minus=radial_q[sample, head], of=q_chunk[rows])
            _multiply(matrix.t(), q_chunk[rows], dk_chunk[rows], minus=radial_k[sample, head], of=k_chunk[rows])


def _chunks(*maps: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """Yields a sample's index and the same run of its pixels from all maps (B, C, H, W), as (C, pixels) each."""
    flat = [x.flatten(2) for x in maps]
    size = _CHUNK * torch.get_num_threads()
    for sample in range(flat[0].shape[0]):
        for first in range(0, flat[0].shape[2], size):
            yield sample, [x[sample, :, first : first + size] for x in flat]


def _heads(q: Tensor, num_heads: int) -> list[slice]:
    width = q.shape[1] // num_heads
    return [slice(first, first + width) for first in range(0, q.shape[1], width)]


def _squares(x: Tensor) -> Tensor:
    """The sum of squares of each row; the norm's loop is the faster one only where rows are contiguous."""
    return torch.linalg.vector_norm(x, dim=1).square() if x.stride(1) == 1 else x.square().sum(1)


def _operand(x: Tensor) -> Tensor:
    """x in the dtype in which maps are multiplied by small matrices."""
    return x.float() if x.dtype == torch.float16 else x


def _multiply(matrix: Tensor, x: Tensor, out: Tensor, minus: Tensor | None = None, of: Tensor | None = None) -> None:
    """out = matrix x - minus * of."""
    product = torch.mm(matrix, x, out=out) if out.dtype == x.dtype else torch.mm(matrix, x)
    if minus is not None:
        product.addcmul_(of, minus.to(product.dtype), value=-1)
    if product is not out:
        out.copy_(product)


def _attend(products: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every head: n (B, h, d, 1), m (B, h, 1, d), the cosines S and the attention P (B, h, d, d)."""
    n = products[:, :, -2, :, None].sqrt().clamp_min(_MIN_NORM)
    m = products[:, :, -1, None, :].sqrt().clamp_min(_MIN_NORM)
    cosine = products[:, :, :-2] / (n * m)
    return n, m, cosine, torch.softmax(temperature.to(products.dtype)[:, None, None] * cosine, dim=-1)
