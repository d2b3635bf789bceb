"""A SAM of a few thousand random weights, as transformers saves it, and the smallest SAM-OIL around it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dakd.models.rivals.sam_oil.masks import import_transformers

SAM_SIZES = {
    "vision_config": {
        "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 32, "num_pos_feats": 8,
    },
    "prompt_encoder_config": {
        "hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 4, "image_embedding_size": 4,
    },
    "mask_decoder_config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_depth": 2,
        "iou_head_hidden_dim": 16,
    },
}  # fmt: skip
DETECTOR = {
    "box_batch_size_per_image": 8, "rpn_pre_nms_top_n_train": 20, "rpn_post_nms_top_n_train": 10,
    "rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 10, "box_detections_per_img": 5,
}  # fmt: skip


def save_tiny_sam(folder: Path) -> Path:
    """Skips the test where transformers is not installed."""
    pytest.importorskip("transformers")
    transformers = import_transformers()
    torch.manual_seed(0)
    sam = transformers.SamModel(transformers.SamConfig(**SAM_SIZES))
    # transformers starts SAM at next to nothing, where every mask would look alike.
    for name, parameter in sam.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    sam.save_pretrained(folder)
    return folder


def tiny_sam_oil(folder: Path) -> dict:
    """The section train_saross.student."""
    return {
        "name": "sam_oil",
        "encoder": "fasterrcnn_mobilenet_v3_large_320_fpn",
        "encoder_options": DETECTOR,
        "pretrained": str(folder),
        "sam_oil": {"min_score": 0.0},
    }
