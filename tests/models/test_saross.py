from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from tiny_students import TINY_MAMBA
from torch import Tensor, nn

from dakd.models.mamba_vision import VARIANTS, MambaVision
from dakd.models.saross import DecoderBlock, LayerNorm2d, SAROSSNet
from dakd.models.student import pad_to_multiple

TRIANGLE = ("c11", "c12", "c13", "c21", "c22", "c31")


class PyramidStub(nn.Module):
    """Four strided convolutions: the smallest encoder with the right interface."""

    channels = (4, 6, 8, 10)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.channels)
        strides = (4, 2, 2, 2)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, s, s) for a, b, s in zip(widths, widths[1:], strides)
        )

    def forward_features(self, image: Tensor) -> list[Tensor]:
        features = []
        for layer in self.layers:
            image = layer(image)
            features.append(image)
        return features


def small_net(**options) -> SAROSSNet:
    torch.manual_seed(0)
    options = dict(decoder_channels=(8, 8, 6, 4), num_heads=(1, 1, 2)) | options
    return SAROSSNet(PyramidStub(), 5, **options)


def base_net(**options) -> SAROSSNet:
    with torch.device("meta"):
        return SAROSSNet(MambaVision(num_classes=0, **VARIANTS["B"]), 5, **options)


def count_triangle(net: SAROSSNet) -> int:
    return sum(p.numel() for name in TRIANGLE for p in getattr(net, name).parameters())


def test_triangle_at_base_size_has_887360_weights_and_11_temperatures():
    assert count_triangle(base_net()) == 887_360 + 11


def test_triangle_of_convolutions_at_base_size_has_the_counted_number_of_weights():
    assert count_triangle(base_net(skip_module="conv3x3")) == 7_667_712
    assert count_triangle(base_net(skip_module="none")) == 0


def test_whole_net_at_base_size_has_103_8_million_parameters():
    net = base_net(outnorm=True)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 103.8
    blocks = [sum(p.numel() for p in block.parameters()) for block in (net.cd1, net.cd2, net.cd3, net.cd4)]
    assert blocks == [2_950_144, 2_360_320, 737_792, 184_576]


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(64, 96), (65, 125), (33, 32), (7, 300), (1, 1)])
@pytest.mark.parametrize("skip_module", ["caft", "conv3x3", "none"])
def test_logits_have_the_size_of_the_image_whatever_it_is(height, width, skip_module):
    net = small_net(skip_module=skip_module).eval()
    logits = net(torch.randn(2, 3, height, width))
    assert logits.shape == (2, 5, height, width) and logits.isfinite().all()


@torch.no_grad()
def test_an_odd_size_gives_the_crop_of_the_mirrored_image():
    net = small_net().eval()
    image = torch.randn(1, 3, 50, 90)
    padded = F.pad(image, (0, 6, 0, 14), mode="reflect")
    torch.testing.assert_close(net(image), net(padded)[..., :50, :90])


def test_padding_mirrors_where_it_can_and_repeats_the_edge_where_it_cannot():
    image = torch.arange(40 * 9.0).reshape(1, 1, 40, 9)
    padded = pad_to_multiple(image, 32)
    assert padded.shape == (1, 1, 64, 32)
    assert torch.equal(padded[0, 0, 40:, 0], image[0, 0, 15:39, 0].flip(0))
    assert torch.equal(padded[0, 0, 3, 9:], image[0, 0, 3, 8].expand(23))
    assert pad_to_multiple(padded, 32) is padded
    with pytest.raises(ValueError, match="0 x 9 pixels"):
        pad_to_multiple(image[:, :, :0], 32)


@torch.no_grad()
def test_nodes_and_decoder_blocks_are_wired_as_in_the_paper():
    net = small_net().eval()
    seen, made = {}, {}
    for name in (*TRIANGLE, "cd1", "cd2", "cd3", "cd4"):
        def record(module, inputs, output, name=name):
            seen[name], made[name] = inputs, output
        getattr(net, name).register_forward_hook(record)
    image = torch.randn(1, 3, 64, 96)
    net(image)
    mve = net.encoder.forward_features(image)

    def up(name: str) -> Tensor:
        return F.interpolate(made[name], scale_factor=2, mode="bilinear", align_corners=False)

    wanted = {
        "c31": (mve[2], up("cd1")),
        "c21": (mve[1], mve[2]),
        "c22": (made["c21"], up("cd2")),
        "c11": (mve[0], mve[1]),
        "c12": (made["c11"], made["c21"]),
        "c13": (made["c12"], up("cd3")),
        "cd1": (mve[3],),
        "cd2": (torch.cat([made["c31"], up("cd1")], 1),),
        "cd3": (torch.cat([made["c22"], up("cd2")], 1),),
        "cd4": (torch.cat([made["c13"], up("cd3")], 1),),
    }
    for name, inputs in wanted.items():
        for got, expected in zip(seen[name], inputs, strict=True):
            torch.testing.assert_close(got, expected)


@torch.no_grad()
def test_head_before_the_last_upsampling_equals_the_head_after_it():
    net = small_net().eval()
    image = torch.randn(1, 3, 64, 64)
    grabbed = []
    net.cd4.register_forward_hook(lambda module, inputs, output: grabbed.append(output))
    logits = net(image)
    late = net.head(F.interpolate(grabbed[0], scale_factor=4, mode="bilinear", align_corners=False))
    torch.testing.assert_close(logits, late, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_every_parameter():
    net = small_net(outnorm=True).train()
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_outnorm_normalises_the_channels_of_every_pixel():
    net = small_net(outnorm=True)
    for feature in net.encode(torch.randn(2, 3, 64, 64)):
        torch.testing.assert_close(feature.mean(dim=1), torch.zeros_like(feature[:, 0]), atol=1e-5, rtol=0)
    norm = LayerNorm2d(6)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 6, 3, 4)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    expected = (x - mean) / (variance + 1e-5).sqrt() * norm.weight.view(1, -1, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_decoder_block_is_two_convolutions_with_norm_and_relu_and_keeps_the_grid():
    block = DecoderBlock(3, 5)
    assert [type(layer) for layer in block] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2
    assert block(torch.randn(2, 3, 7, 9)).shape == (2, 5, 7, 9)


def test_sample_positions_reach_the_encoder_and_do_no_harm_without_drop_path():
    small_net().set_sample_positions(torch.arange(2), seed=0)
    encoder = MambaVision(**TINY_MAMBA, drop_path=0.9, layer_scale=None, num_classes=0)
    net = SAROSSNet(encoder, 2, decoder_channels=(8, 8, 6, 4)).train()
    net.set_sample_positions(torch.arange(2), seed=5)
    image = torch.randn(2, 3, 64, 64)
    tied = [net(image) for _ in range(4)]
    assert all(torch.equal(logits, tied[0]) for logits in tied)
    net.set_sample_positions(None)
    assert not all(torch.allclose(net(image), tied[0]) for _ in range(4))


def test_wrong_inputs_and_settings_are_refused():
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        small_net()(torch.randn(1, 1, 32, 32))
    with pytest.raises(ValueError, match="decoder_channels is"):
        small_net(decoder_channels=(8, 8, 8))
    with pytest.raises(ValueError, match="num_classes is 1"):
        SAROSSNet(PyramidStub(), 1)


@pytest.mark.slow
@torch.no_grad()
def test_base_net_segments_a_whole_sentinel_scene_on_the_cpu():
    torch.manual_seed(0)
    net = SAROSSNet(MambaVision(num_classes=0, **VARIANTS["B"]), 5, outnorm=True).eval()
    start = time.perf_counter()
    logits = net(torch.randn(1, 3, 650, 1250))
    print(f"one forward at 650 x 1250: {time.perf_counter() - start:.1f} s")
    assert logits.shape == (1, 5, 650, 1250) and logits.isfinite().all()
