"""The definition of ddim_step, in plain PyTorch.

With A, B, C, sigma = coefficients[step]:  x' = A x + B x_0 + C x_0_before + sigma z_x, and likewise y', where x_0 is
clamp(x0_pred, -clip, clip), and y_0 is b (2 softmax(logits) - 1) or clamp(logits, -b, b). C serves where the estimates
of the step before are given.
The noise comes from the streams DDIM_IMAGE and DDIM_LABEL at (seed, step, sample id).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from dakd.kernels.ddim_step.ops import Operands
from dakd.runtime.seeding import Stream, philox_normal


def forward(operands: Operands, outputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, x0_pred, logits, x0_before, logits_before = operands[:6]
    coefficients, step, noise_ids, b, clip, label_update, seed, input_dtype = operands[6:]
    seed %= 2**64
    keep, take, take_before, sigma = coefficients.index_select(0, step.reshape(1))[0].to(x.dtype).unbind()

    def update(state: Tensor, pred: Tensor, before: Tensor | None, clean: Callable, stream: Stream) -> Tensor:
        advanced = keep * state + take * clean(pred.to(state.dtype))
        if before is not None:
            advanced = advanced + take_before * clean(before.to(state.dtype))
        if noise_ids is None:
            return advanced
        z = philox_normal(state[:1].numel(), seed, noise_ids, step, stream, state.dtype)
        return advanced + sigma * z.view(state.shape)

    x_next, y_next, x_input, y_input = outputs
    clean_label = partial(_clean_label, b=b, label_update=label_update)
    x_next.copy_(update(x, x0_pred, x0_before, lambda pred: pred.clamp(-clip, clip), Stream.DDIM_IMAGE))
    y_next.copy_(update(y, logits, logits_before, clean_label, Stream.DDIM_LABEL))
    if input_dtype is not None:
        x_input.copy_(x_next)
        y_input.copy_(y_next)


def _clean_label(logits: Tensor, b: float, label_update: str) -> Tensor:
    if label_update == "identity":
        return logits.clamp(-b, b)
    # matches the range that the label was noised in (paper, Eq. 21)
    return b * (2 * logits.softmax(1) - 1)
