"""The definition of ddim_step, in plain PyTorch.

With A, B, sigma = coefficients[step]:  x' = A x + B clamp(x0_pred) + sigma z_x,  y' = A y + B y_0 + sigma z_y,
where y_0 is b (2 softmax(logits) - 1) or clamp(logits, -b, b).
The noise comes from the streams DDIM_IMAGE and DDIM_LABEL at (seed, step, sample id).
"""

from __future__ import annotations

from torch import Tensor

from dakd.kernels.ddim_step.ops import Operands
from dakd.runtime.seeding import Stream, philox_normal


def forward(operands: Operands, outputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, x0_pred, logits, coefficients, step, noise_ids, b, clip, label_update, seed, input_dtype = operands
    seed %= 2**64
    keep, take, sigma = coefficients.index_select(0, step.reshape(1))[0].to(x.dtype).unbind()

    def update(state: Tensor, clean: Tensor, stream: Stream) -> Tensor:
        advanced = keep * state + take * clean
        if noise_ids is None:
            return advanced
        z = philox_normal(state[:1].numel(), seed, noise_ids, step, stream, state.dtype)
        return advanced + sigma * z.view(state.shape)

    x_next, y_next, x_input, y_input = outputs
    x_next.copy_(update(x, x0_pred.to(x.dtype).clamp(-clip, clip), Stream.DDIM_IMAGE))
    y_next.copy_(update(y, _clean_label(logits.to(y.dtype), b, label_update), Stream.DDIM_LABEL))
    if input_dtype is not None:
        x_input.copy_(x_next)
        y_input.copy_(y_next)


def _clean_label(logits: Tensor, b: float, label_update: str) -> Tensor:
    if label_update == "identity":
        return logits.clamp(-b, b)
    # matches the range that the label was noised in (paper, Eq. 21)
    return b * (2 * logits.softmax(1) - 1)
