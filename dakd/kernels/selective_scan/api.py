"""`selective_scan`, the public function: checks the arguments, then calls the op."""

from __future__ import annotations

from torch import Tensor

from dakd.kernels import contract
from dakd.kernels.selective_scan import ops

_OP = "selective_scan"


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
    backend: str = "auto",
) -> Tensor:
    """h_l = exp(delta_l A) h_{l-1} + delta_l B_l u_l from h = 0;  y_l = C_l . h_l + D u_l.

    u, delta: (B, D, L), floating, one dtype with B and C.  A: (D, N), negative, usually fp32.
    B, C: (B, N, L), shared by all channels.  D, delta_bias: (D,) or None.
    The step is softplus(delta + delta_bias) where delta_softplus, else delta + delta_bias.
    A, D, delta_bias are read as fp32 (fp64 for fp64 u); states are kept in that precision.
    Result: (B, D, L) in u's dtype, dense, in the order of memory that u has. The backward pass recomputes the states.
    Raises ValueError or TypeError for shapes, dtypes and devices that do not fit.
    Source: Gu and Dao 2023, Eq. 2 and 4.
    """
    contract.check_rank(_OP, "u", u, "(B, D, L)")
    contract.check_rank(_OP, "A", A, "(D, N)")
    num_channels, num_states = u.shape[1], A.shape[1]
    contract.check_shape(_OP, "delta", delta, tuple(u.shape), "u's shape (B, D, L)")
    contract.check_shape(_OP, "A", A, (num_channels, num_states), "(D, N)")
    for name, tensor in (("B", B), ("C", C)):
        contract.check_shape(_OP, name, tensor, (u.shape[0], num_states, u.shape[2]), "(B, N, L)")
    for name, tensor in (("D", D), ("delta_bias", delta_bias)):
        if tensor is not None:
            contract.check_shape(_OP, name, tensor, (num_channels,), "(D,)")
    contract.check_floating(_OP, u=u, A=A, D=D, delta_bias=delta_bias)
    contract.check_same_dtype(_OP, u=u, delta=delta, B=B, C=C)
    contract.check_same_device(_OP, u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    return ops.selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, backend)
