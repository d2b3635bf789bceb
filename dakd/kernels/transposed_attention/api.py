"""`transposed_attention`, the public function: checks the arguments, then calls the op."""

from __future__ import annotations

from torch import Tensor

from dakd.kernels import contract
from dakd.kernels.transposed_attention import ops

_OP = "transposed_attention"


def transposed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    out_weight: Tensor,
    residual: Tensor,
    *,
    num_heads: int,
    backend: str = "auto",
) -> Tensor:
    """y = residual + out_weight . softmax_j(temperature <q_i, k_j> / (max(|q_i|, 1e-12) max(|k_j|, 1e-12))) v.

    i and j run over the R / num_heads channels of a head, the inner products and norms over the H W pixels.
    q, k, v: (B, R, H, W), one floating dtype, NCHW or channels_last.  temperature: (num_heads,).  out_weight: (C, R).
    residual: (B, C, H, W), any floating dtype; the result has its dtype, shape and memory format.
    Parameters are read as fp32 (fp64 for fp64 q). The backward pass keeps q, k, v, the parameters and, of every sample,
    two small matrices: R (R / num_heads + 2) inner products and norms, and C R weights.
    Raises ValueError or TypeError for shapes, dtypes and devices that do not fit.
    Source: the paper's SAROSS-Net figure (CAFT block); normalisation, temperature and heads as in Restormer's
    transposed attention (swz30/Restormer).
    """
    contract.check_rank(_OP, "q", q, "(B, R, H, W)")
    contract.check_rank(_OP, "residual", residual, "(B, C, H, W)")
    batch, inner, height, width = q.shape
    channels = residual.shape[1]
    if num_heads < 1 or inner % num_heads:
        raise ValueError(f"{_OP}: {inner} channels do not split into {num_heads} heads; expected a divisor of {inner}")
    for name, tensor in (("k", k), ("v", v)):
        contract.check_shape(_OP, name, tensor, tuple(q.shape), "q's shape (B, R, H, W)")
    contract.check_shape(_OP, "residual", residual, (batch, channels, height, width), "(B, C, H, W)")
    contract.check_shape(_OP, "temperature", temperature, (num_heads,), "(num_heads,)")
    contract.check_shape(_OP, "out_weight", out_weight, (channels, inner), "(C, R)")
    contract.check_floating(_OP, q=q, temperature=temperature, out_weight=out_weight, residual=residual)
    contract.check_same_dtype(_OP, q=q, k=k, v=v)
    contract.check_same_device(_OP, q=q, k=k, v=v, temperature=temperature, out_weight=out_weight, residual=residual)
    return ops.transposed_attention(q, k, v, temperature, out_weight, residual, num_heads, backend)[0]
