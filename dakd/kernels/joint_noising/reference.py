"""The definition of joint_noising, in plain PyTorch.

x_t = a x_0 + s eps_x,  y_t = a b y_0 + s eps_y,  with a, s = tables[t];
x_0 = image / 127.5 - 1;  y_0 = 2 onehot - 1, or 0 for an id that is not a class.
The noise comes from the streams IMAGE_NOISE and LABEL_NOISE at (seed, step = t, position).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.kernels.contract import compute_dtype
from dakd.kernels.joint_noising.ops import Operands
from dakd.runtime.seeding import Stream, philox_normal, philox_timesteps


def forward(operands: Operands, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    image, label, positions, tables, b, num_classes, seed, t, _out_dtype = operands
    x_t, y_t, t_out = outputs
    seed %= 2**64
    t_out.copy_(philox_timesteps(seed, positions, tables.shape[0]) if t is None else t)
    dtype = compute_dtype(x_t.dtype)
    signal, noise = (column[:, None, None, None] for column in tables.to(dtype)[t_out].unbind(1))

    def diffuse(clean: Tensor, stream: Stream) -> Tensor:
        eps = philox_normal(clean[:1].numel(), seed, positions, t_out, stream, dtype).view(clean.shape)
        return signal * clean + noise * eps

    x_t.copy_(diffuse(image.to(dtype) / 127.5 - 1, Stream.IMAGE_NOISE))
    if label is not None:
        # aligns the label's corruption with the image's by their SNR (paper, Eq. 4)
        y_t.copy_(diffuse(b * _signed_onehot(label, num_classes, dtype), Stream.LABEL_NOISE))


def _signed_onehot(label: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """(B, H, W) ids -> (B, K, H, W) of -1 and +1; 0 where the id is not a class."""
    ids = torch.arange(num_classes, device=label.device)[:, None, None]
    label = label.unsqueeze(1).to(torch.int64)
    known = (label >= 0) & (label < num_classes)
    return (2 * (label == ids).to(dtype) - 1) * known
