"""The rival students at sizes that a CPU builds and trains in a moment, as settings of train_saross.student."""

from __future__ import annotations

DECODER = {"decoder_channels": [32, 24, 16, 12, 8]}
SMALL_RIVALS = {
    "unet": {"encoder": "mobilenet_v2", "encoder_options": DECODER},
    "linknet": {"encoder": "mobilenet_v2"},
    "pspnet": {"encoder": "mobilenet_v2", "encoder_options": {"psp_out_channels": 32}},
    "deeplabv3plus": {"encoder": "mobilenet_v2", "encoder_options": {"decoder_channels": 32}},
    "segformer": {"encoder": "mit_b0", "encoder_options": {"decoder_segmentation_channels": 32}},
    "unetplusplus": {"encoder": "mobilenet_v2", "encoder_options": DECODER},
    "deeplabv2": {"encoder": "mobilenet_v2", "encoder_options": {"output_stride": 16}},
    "cbdnet": {"encoder": "resnet18", "encoder_options": {"width": 8}},
}


def small_rival(name: str) -> dict:
    return {"name": name} | SMALL_RIVALS[name]
