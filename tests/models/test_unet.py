"""The U-Net's size, halves and inputs."""

from __future__ import annotations

import pytest
import torch

from dakd.config import UNetConfig
from dakd.models.encoders import import_torchvision
from dakd.models.unet import UNet, timestep_embedding

SMALL = UNetConfig(channels=(8, 16, 24), blocks_per_level=2, attention_levels=(1,), norm_groups=8)


def test_default_branch_has_113_67_million_parameters():
    with torch.device("meta"):
        net = UNet.from_config(UNetConfig(), 1, 1)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 113.67
    assert len(net.skip_channels) == 18


def test_parameter_count_equals_the_usual_unconditional_unet():
    import_torchvision()  # diffusers wants it, and on a CPU build it needs help
    from diffusers import UNet2DModel

    with torch.device("meta"):
        theirs = UNet2DModel(
            in_channels=1,
            out_channels=1,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
        )
        ours = UNet.from_config(UNetConfig(), 1, 1)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_encode_and_decode_make_the_whole():
    torch.manual_seed(0)
    net = UNet.from_config(SMALL, 2, 3)
    x, t = torch.randn(2, 2, 16, 20), torch.tensor([3, 900])
    shifts = net.embed_time(t)
    mid, skips = net.encode(x, shifts)
    assert [skip.shape[1] for skip in skips] == net.skip_channels
    assert mid.shape == (2, 24, 4, 5)
    assert torch.equal(net.decode(mid, skips, shifts), net(x, t))
    assert net(x, t).shape == (2, 3, 16, 20)


def test_output_depends_on_the_timestep():
    torch.manual_seed(0)
    net = UNet.from_config(SMALL, 1, 1)
    x = torch.randn(1, 1, 8, 8)
    assert not torch.allclose(net(x, torch.tensor([0])), net(x, torch.tensor([999])), atol=1e-3)


def test_timestep_embedding_is_cosines_then_sines():
    embedded = timestep_embedding(torch.tensor([0, 7]), 6)
    assert embedded[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert float(embedded[1, 3]) == pytest.approx(torch.sin(torch.tensor(7.0)).item())
    assert embedded.dtype == torch.float32


def test_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        UNet.from_config(SMALL, 1, 1)(torch.zeros(1, 1, 16, 18), torch.tensor([0]))


def test_every_parameter_gets_a_gradient():
    net = UNet.from_config(SMALL, 1, 1)
    net(torch.randn(1, 1, 8, 8), torch.tensor([5])).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())
