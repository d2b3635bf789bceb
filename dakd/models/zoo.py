"""Students by name: `build_student` turns a `StudentConfig` into a network with fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from dakd.models.encoders import build_encoder
from dakd.models.mamba_vision import MambaVision
from dakd.models.resnet import BasicResNet
from dakd.models.rivals.cbdnet import CBDNet
from dakd.models.rivals.deeplabv2 import DeepLabV2
from dakd.models.rivals.sam_oil.net import SamOil
from dakd.models.rivals.smp_nets import SmpStudent
from dakd.models.saross import SAROSSNet

if TYPE_CHECKING:
    from dakd.config import StudentConfig


class Entry(NamedTuple):
    """A student's name in print, and what builds it from its settings and the number of classes."""

    title: str
    build: Callable[[StudentConfig, int], nn.Module]


def build_student(cfg: StudentConfig, num_classes: int) -> nn.Module:
    """The student that `cfg` describes, randomly initialised: image (B, 3, H, W) -> logits (B, num_classes, H, W).

    A pretrained encoder is loaded afterwards by `dakd.weights.load_pretrained_encoder`. The net keeps the settings as
    `student_config`, for whoever saves it.
    ValueError for an unknown encoder or option; RuntimeError where a package that it needs is not installed.
    """
    net = STUDENTS[cfg.name].build(cfg, num_classes)
    net.student_config = cfg
    return net


def _saross(cfg: StudentConfig, num_classes: int) -> SAROSSNet:
    encoder = build_encoder(cfg.encoder, dict(cfg.encoder_options))
    return SAROSSNet(
        encoder,
        num_classes,
        decoder_channels=cfg.decoder_channels,
        caft_ratio=cfg.caft_ratio,
        num_heads=cfg.caft_heads,
        skip_module=cfg.skip_module,
        outnorm=isinstance(encoder, MambaVision),
    )


def _smp(cfg: StudentConfig, num_classes: int) -> SmpStudent:
    return SmpStudent(cfg.name, cfg.encoder, num_classes, cfg.encoder_options)


def _deeplabv2(cfg: StudentConfig, num_classes: int) -> DeepLabV2:
    known = ("rates", "output_stride")
    if unknown := [key for key in cfg.encoder_options if key not in known]:
        raise ValueError(
            f"encoder_options {', '.join(unknown)} are unknown to deeplabv2; known: {', '.join(known)}"
        )
    return DeepLabV2(cfg.encoder, num_classes, **cfg.encoder_options)


def _cbdnet(cfg: StudentConfig, num_classes: int) -> CBDNet:
    known = ("resnet18", "resnet34")
    if cfg.encoder not in known:
        raise ValueError(f"encoder of cbdnet is {cfg.encoder!r}; wanted {' or '.join(known)}")
    encoder = build_encoder(cfg.encoder, dict(cfg.encoder_options))
    assert isinstance(encoder, BasicResNet)
    return CBDNet(encoder, num_classes)


STUDENTS = {
    "saross": Entry("SAROSS-Net", _saross),
    "unet": Entry("UNet", _smp),
    "linknet": Entry("LinkNet", _smp),
    "pspnet": Entry("PSPNet", _smp),
    "deeplabv3plus": Entry("DeepLabV3+", _smp),
    "segformer": Entry("SegFormer", _smp),
    "unetplusplus": Entry("UNet++", _smp),
    "deeplabv2": Entry("DeepLabv2", _deeplabv2),
    "cbdnet": Entry("CBD-Net", _cbdnet),
    "sam_oil": Entry("SAM-OIL", SamOil.from_config),
}
