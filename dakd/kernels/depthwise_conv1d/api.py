"""`depthwise_conv1d`, the public function: checks the arguments, then calls the op."""

from __future__ import annotations

from torch import Tensor

from dakd.kernels import contract
from dakd.kernels.depthwise_conv1d import ops

_OP = "depthwise_conv1d"
WIDTH = 3


def depthwise_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = "silu", backend: str = "auto"
) -> Tensor:
    """y = act(bias + sum_k weight[:, k] x[:, :, l + k - 1]), with zeros beyond both ends.

    x: (B, D, L), floating, any strides.  weight: (D, 3).  bias: (D,) or None.  activation: "silu" or None.
    Parameters are read as fp32 (fp64 for fp64 x).  Result: (B, D, L) in x's dtype, dense, in the order of memory
    that x has.
    Raises ValueError or TypeError for shapes, dtypes and devices that do not fit.
    Source: the MambaVision mixer's convolutions (not causal: one step before, one after).
    """
    contract.check_rank(_OP, "x", x, "(B, D, L)")
    contract.check_shape(_OP, "weight", weight, (x.shape[1], WIDTH), "(D, 3)")
    if bias is not None:
        contract.check_shape(_OP, "bias", bias, (x.shape[1],), "(D,)")
    contract.check_floating(_OP, x=x, weight=weight, bias=bias)
    contract.check_same_device(_OP, x=x, weight=weight, bias=bias)
    contract.check_choice(_OP, "activation", activation, "silu", None)
    return ops.depthwise_conv1d(x, weight, bias, activation, backend)
