"""The public API: the names of `import dakd` and the functions behind them. Only `dakd/__init__.py` imports it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from dakd.config import StudentConfig, UNetConfig, validated
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet, write_shards
from dakd.generate.teacher import Teacher
from dakd.models.jointnet import SARJointNet
from dakd.models.registry import build_student
from dakd.models.unet import UNetSizes
from dakd.predict.prediction import Prediction
from dakd.predict.student import Student
from dakd.runtime.whole import whole_number

__all__ = [
    "ClassTable", "Prediction", "Sample", "ShardSet", "Student", "Teacher", "create_joint_net", "create_student",
    "load_student", "load_teacher", "write_shards",
]  # fmt: skip


def load_student(
    file: str | Path, device: str | torch.device | None = None, scales: Sequence[float] = (1.0,)
) -> Student:
    """The student of a weights file, such as RUN/train_saross/real+synthetic/student.safetensors.

    The file is enough: it carries the settings and the class table.
    device: None takes a GPU where there is one.  scales: factors of the image's size at which it is predicted.
    Raises FileNotFoundError or ValueError where the file holds no student.

        student = dakd.load_student("student.safetensors")
        result = student.predict("image.png")
        result.label, result.probability, result.overlay()
    """
    return Student.load(file, device, scales)


def load_teacher(file: str | Path, device: str | torch.device | None = None, precision: str = "auto") -> Teacher:
    """The teacher of pairs of a weights file, such as RUN/train_jointnet/stage3/weights_ema.safetensors.

    The file is enough: it carries b, the schedule, the class table and the net's sizes.
    device: None takes a GPU where there is one.  precision: see `Teacher`.
    Raises FileNotFoundError or ValueError where the file holds no teacher.

        teacher = dakd.load_teacher("weights_ema.safetensors")
        pairs = teacher.sample(8, size=(256, 256), steps=50, seed=0)
    """
    return Teacher(file, device, precision)


def create_student(
    name: str = "saross",
    num_classes: int = 5,
    *,
    encoder: str | None = None,
    pretrained: str | Path | None = None,
    **settings: Any,
) -> nn.Module:
    """A student by name with fresh weights: image (B, 3, H, W), ImageNet-normalised -> logits (B, num_classes, H, W).

    name: saross, unet, linknet, pspnet, deeplabv3plus, segformer, unetplusplus, deeplabv2, cbdnet or sam_oil.
    encoder: None takes the default one of the name.
    pretrained: a file of the encoder's public weights, or for sam_oil SAM's folder; nothing is downloaded.
    settings: others of `train_saross.student`, such as encoder_options or decoder_channels
    (`dakd config explain train_saross.student` lists them).
    Raises ValueError for an unknown name, encoder or setting, and fewer than two classes, RuntimeError where a package
    that it needs is missing.
    """
    settings |= {"name": name, "encoder": encoder, "pretrained": None if pretrained is None else str(pretrained)}
    cfg = validated(StudentConfig, settings, "settings of the student")
    net = build_student(cfg, num_classes)
    net.load_pretrained(cfg.pretrained)
    return net


def create_joint_net(num_classes: int = 5, **sizes: Unpack[UNetSizes]) -> SARJointNet:
    """SAR-JointNet with fresh weights: x_hat, logits = net(x_t, y_t, t).

    num_classes: channels of the label's branch.
    sizes: of each branch: channels, blocks_per_level, attention_levels, norm_groups; the defaults are those of a net
    of 231.5 M parameters (`dakd config explain train_jointnet.unet`).
    Raises ValueError for sizes that make no net.
    """
    num_classes = whole_number(num_classes, "num_classes", 2)
    return SARJointNet.from_config(validated(UNetConfig, sizes, "sizes of the joint net"), num_classes)
