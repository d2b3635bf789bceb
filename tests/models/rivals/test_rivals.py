"""The rivals of SAROSS-Net: their sizes, their inputs, and what they refuse."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from small_rivals import SMALL_RIVALS, small_rival

from dakd.config import STUDENT_KINDS, StudentConfig, build_config
from dakd.models.encoders import import_smp, import_torchvision
from dakd.models.registry import STUDENT_CLASSES, build_student
from dakd.models.student import pad_to_multiple

RIVALS = tuple(SMALL_RIVALS)


def small(name: str, num_classes: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_student(StudentConfig(**small_rival(name)), num_classes)


def number_of_parameters(name: str, num_classes: int) -> int:
    with torch.device("meta"):
        net = build_student(StudentConfig(name=name), num_classes)
    return sum(parameter.numel() for parameter in net.parameters())


def test_every_name_has_a_class_an_encoder_and_a_small_form():
    assert set(STUDENT_CLASSES) == set(STUDENT_KINDS) == {"saross", "sam_oil", *RIVALS}  # sam_oil has tests of its own
    for name, kind in STUDENT_KINDS.items():
        assert StudentConfig(name=name).encoder == StudentConfig(name=name, encoder=None).encoder == kind.encoder


@pytest.mark.parametrize(
    ("name", "num_classes", "millions"),
    # smp publishes the first four; 27.5 M is SegFormer-B2's on ADE20K's 150 classes (Xie et al. 2021).
    [("unet", 1 + 1, 24.44), ("linknet", 2, 21.77), ("unetplusplus", 2, 26.08), ("deeplabv3plus", 2, 26.68),
     ("segformer", 150, 27.46)],
)  # fmt: skip
def test_nets_of_smp_have_their_published_sizes(name, num_classes, millions):
    assert number_of_parameters(name, num_classes) / 1e6 == pytest.approx(millions, abs=0.005)


def test_pspnet_and_deeplabv2_have_the_parameters_counted_by_hand():
    # PSPNet: ResNet-34; three pools with batch norm (512 -> 128) and one with a bias; 1024 -> 512; a 3x3 head.
    pools = 3 * (512 * 128 + 2 * 128) + 512 * 128 + 128
    assert number_of_parameters("pspnet", 2) == 21_284_672 + pools + 1024 * 512 + 2 * 512 + 512 * 9 * 2 + 2
    # DeepLabv2: ResNet-101 without its classifier (44,549,160 - 2,049,000), and four 3x3 classifiers.
    assert number_of_parameters("deeplabv2", 5) == 42_500_160 + 4 * (2048 * 9 * 5 + 5)


@torch.no_grad()
@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("num_classes", [2, 5])
def test_an_image_of_any_size_gets_logits_of_its_size(name, num_classes):
    net, image = small(name, num_classes).eval(), torch.randn(2, 3, 65, 83)
    logits = net(image)
    assert logits.shape == (2, num_classes, 65, 83) and logits.isfinite().all()
    assert logits.std(dim=(2, 3)).min() > 0
    torch.testing.assert_close(net(pad_to_multiple(image, net.multiple))[..., :65, :83], logits)
    maps = net.encode(torch.randn(1, 3, 64, 64))
    assert [64 // one.shape[-1] for one in maps] == sorted(64 // one.shape[-1] for one in maps)


@pytest.mark.parametrize("name", RIVALS)
def test_every_parameter_has_a_gradient(name):
    net = small(name).train()
    net(torch.randn(2, 3, 65, 83)).square().mean().backward()
    assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_deeplabv2_sums_its_dilated_classifiers_over_a_map_of_stride_8():
    settings = {"encoder": "mobilenet_v2", "encoder_options": {"rates": [1, 6]}}
    net = build_student(StudentConfig(name="deeplabv2", **settings), 3).eval()
    image = torch.randn(1, 3, 72, 64)
    coarse = net.encode(image)[-1]
    assert coarse.shape[-2:] == (9, 8)
    scores = sum(
        F.conv2d(F.pad(coarse, [rate] * 4), c.weight, c.bias, dilation=rate) for rate, c in zip((1, 6), net.classifiers)
    )
    wanted = F.interpolate(scores, size=(72, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(net(image), wanted)


def test_nets_are_built_as_their_authors_describe_them():
    with torch.device("meta"):
        nets = {name: build_student(StudentConfig(name=name), 2) for name in ("pspnet", "deeplabv3plus", "deeplabv2")}
        strides = {name: 64 // net.encode(torch.empty(1, 3, 64, 64))[-1].shape[-1] for name, net in nets.items()}
    assert strides == {"pspnet": 8, "deeplabv3plus": 16, "deeplabv2": 8}
    aspp = nets["deeplabv3plus"].net.decoder.aspp[0].convs
    assert [aspp[i][0][0].dilation[0] for i in (1, 2, 3)] == [6, 12, 18]
    assert [classifier.dilation[0] for classifier in nets["deeplabv2"].classifiers] == [6, 12, 18, 24]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(name="unet", encoder="mamba_vision_b"), r"'mamba_vision_b' is unknown to unet.*to null"),
        (dict(name="deeplabv2", encoder="resnet3"), r"unknown to deeplabv2.*near names: resnet34"),
        (dict(name="unet", encoder_options=dict(decoder_chanels=[8])), "did you mean decoder_channels"),
        (dict(name="unet", encoder_options=dict(classes=3)), "encoder_options classes are unknown to unet"),
        (dict(name="unet", encoder_options=dict(decoder_channels=[8])), "unet with resnet34 .* cannot be built"),
        (dict(name="pspnet", encoder="vgg11"), "pspnet with vgg11 .* cannot be built: .*dilated"),
        (dict(name="deeplabv2", encoder_options=dict(rate=3)), "known: rates, output_stride"),
        (dict(name="deeplabv2", encoder_options=dict(rates=[])), "rates of deeplabv2 are"),
        (dict(name="deeplabv2", encoder_options=dict(output_stride=5)), "expected 8, 16 or 32"),
        (dict(name="cbdnet", encoder="resnet50"), "expected resnet18 or resnet34"),
        (dict(name="cbdnet", encoder_options=dict(depth=3)), "depth are unknown to resnet34; known: width"),
    ],
)
def test_unknown_encoders_and_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_student(StudentConfig(**settings), 2)


@pytest.mark.parametrize(("name", "num_classes"), [("linknet", 1), ("cbdnet", 1)])
def test_one_class_is_refused(name, num_classes):
    with pytest.raises(ValueError, match="num_classes is 1; expected at least 2"), torch.device("meta"):
        build_student(StudentConfig(name=name), num_classes)


def test_settings_of_saross_net_are_refused_with_another_net():
    student = {"name": "unet", "caft_heads": [1, 1, 1], "skip_module": "none"}
    with pytest.raises(ValueError, match=r"caft_heads, skip_module: only SAROSS-Net has .* found with unet"):
        build_config({"name": "a", "train_saross": {"student": student}})
    with pytest.raises(ValueError, match=r"train_saross\.student\.name: .*cbdnet.*found 'unett'"):
        build_config({"name": "a", "train_saross": {"student": {"name": "unett"}}})


def test_a_batch_of_one_that_batch_norm_cannot_take_is_reported_with_its_remedy():
    with pytest.raises(ValueError, match=r"a batch of 1 image\(s\) of 64 x 64; set micro_batch to 2 or more"):
        small("deeplabv3plus").train()(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        small("unet")(torch.randn(1, 1, 64, 64))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    for name in ("unet", "deeplabv2"):
        with pytest.raises(RuntimeError, match=r"segmentation_models_pytorch, .*pip install -e '\.\[rivals\]'"):
            build_student(StudentConfig(name=name), 2)


def test_a_public_file_fills_the_encoder_and_one_that_does_not_fit_is_refused(tmp_path):
    source = import_torchvision().models.resnet18().state_dict()
    torch.save(source, tmp_path / "resnet18.pth")
    for name in ("unet", "deeplabv2", "cbdnet"):
        cfg = StudentConfig(name=name, encoder="resnet18", pretrained=str(tmp_path / "resnet18.pth"))
        net = build_student(cfg, 2)
        net.load_pretrained(cfg.pretrained)
        loaded = net.encoder.state_dict()
        assert loaded and all(torch.equal(value, source[key]) for key, value in loaded.items())
    for settings, message in (
        ({"encoder": "resnet34"}, r"96 missing:\n    layer1\.2\.conv1\.weight"),
        ({"encoder": "mit_b0"}, "unexpected"),
        ({"encoder": "resnet18", "pretrained": str(tmp_path / "no.pth")}, r"no\.pth does not exist.*nothing is downl"),
    ):
        cfg = StudentConfig(**({"name": "unet", "pretrained": str(tmp_path / "resnet18.pth")} | settings))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            build_student(cfg, 2).load_pretrained(cfg.pretrained)


def test_files_of_transformers_and_of_timm_fill_the_encoders_of_smp(tmp_path):
    smp = import_smp()
    for encoder, head in (("mit_b0", "head.weight"), ("tu-mobilenetv3_small_050", "classifier.weight")):
        source = smp.encoders.get_encoder(encoder, weights=None).state_dict()
        public = {key.removeprefix("model."): value for key, value in source.items()} | {head: torch.zeros(1)}
        torch.save(public, tmp_path / "public.pth")
        cfg = StudentConfig(name="unet", encoder=encoder, pretrained=str(tmp_path / "public.pth"))
        net = build_student(cfg, 2)
        net.load_pretrained(cfg.pretrained)
        loaded = net.encoder.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in source.items())
