from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from tiny_students import TINY_MAMBA_STUDENT

from dakd.config import StudentConfig
from dakd.models.encoders import TimmEncoder, build_encoder
from dakd.models.mamba_vision import MambaVision
from dakd.models.registry import build_student
from dakd.models.resnet import ResNet34


def student(**settings) -> torch.nn.Module:
    with torch.device("meta"):
        return build_student(StudentConfig(**settings), num_classes=5)


def test_default_student_is_saross_net_b_of_103_8_million_parameters():
    net = student()
    assert isinstance(net.encoder, MambaVision) and net.encoder.channels == (128, 256, 512, 1024)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 103.8
    assert net.outnorms is not None


@pytest.mark.parametrize("name, dim", [("t", 80), ("t2", 80), ("s", 96), ("b", 128), ("l", 196)])
def test_every_mamba_vision_variant_is_built_by_name(name, dim):
    assert student(encoder=f"mamba_vision_{name}").encoder.channels[0] == dim


def test_encoder_options_override_a_variant_and_size_a_custom_encoder():
    encoder = student(encoder="mamba_vision_t", encoder_options=dict(drop_path=0.1)).encoder
    assert encoder.drop_path == 0.1 and encoder.channels[0] == 80
    net = build_student(StudentConfig(**TINY_MAMBA_STUDENT), num_classes=3)
    assert net.eval()(torch.randn(1, 3, 40, 50)).shape == (1, 3, 40, 50)


def test_resnet34_student_has_the_counted_caft_weights():
    net = student(encoder="resnet34")
    nodes = [getattr(net, name) for name in ("c11", "c12", "c13", "c21", "c22", "c31")]
    assert isinstance(net.encoder, ResNet34) and net.outnorms is None
    assert round(sum(p.numel() for node in nodes for p in node.parameters()) / 1e6, 3) == 0.253


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(encoder="mamba_vision_x"), "did you mean mamba_vision_"),
        (dict(encoder="mamba_vision_b", encoder_options=dict(depth=3)), "encoder_options depth are unknown"),
        (dict(encoder="resnet34", encoder_options=dict(depth=3)), "depth are unknown to resnet34; known: width"),
        (dict(encoder="timm:resnet18", encoder_options=dict(pretrained=True)), "file of pretrained weights in student"),
    ],
)
def test_unknown_encoders_and_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        student(**settings)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_of_the_timm_encoders_is_named_with_its_remedy(monkeypatch, package):
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeError, match=rf"needs the package {package}, .* pip install -e '\.\[encoders\]'"):
        build_encoder("timm:resnet18", {})


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name, options", [("resnet18", {}), ("swin_tiny_patch4_window7_224", dict(img_size=64))])
def test_timm_encoders_give_four_maps_at_strides_4_to_32(name, options):
    encoder = build_encoder(f"timm:{name}", options).eval()
    features = encoder.forward_features(torch.randn(1, 3, 64, 64))
    shapes = [tuple(feature.shape) for feature in features]
    assert shapes == [(1, c, s, s) for c, s in zip(encoder.channels, (16, 8, 4, 2))]


@pytest.mark.slow
def test_timm_models_without_a_pyramid_or_of_unknown_name_are_refused():
    with pytest.raises(ValueError, match=r"also expected \[4, 8, 32\]"):
        TimmEncoder("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"near names: .*resnet34"):
        TimmEncoder("resnet34x")
