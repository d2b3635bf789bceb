"""Students that a CPU builds and runs in a moment, as settings of train_saross.student."""

from __future__ import annotations

TINY_MAMBA = dict(dim=8, in_dim=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=[8, 8, 4, 2])
TINY_MAMBA_STUDENT = dict(
    encoder="mamba_vision", encoder_options=TINY_MAMBA, decoder_channels=(8, 8, 6, 4), caft_heads=(1, 2, 2)
)
TINY_STUDENT = dict(
    encoder="resnet18", encoder_options={"width": 4}, decoder_channels=(8, 8, 8, 8), caft_heads=(1, 1, 1)
)
