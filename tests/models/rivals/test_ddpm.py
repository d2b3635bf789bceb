"""DDPM of pairs: one net that receives both modalities, in the joint net's interface."""

from __future__ import annotations

import pytest
import torch

from dakd.config import UNetConfig
from dakd.diffusion.label_reading import bit_reading
from dakd.diffusion.sampler import PairSampler, start_noise
from dakd.diffusion.schedule import CosineSchedule
from dakd.models.rivals.ddpm import DDPM

CFG = UNetConfig(channels=(8, 16), blocks_per_level=1, attention_levels=(1,), norm_groups=4)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return DDPM.from_config(CFG, 3).eval()


def test_both_outputs_depend_on_both_inputs(net):
    x, y, t = torch.randn(2, 1, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([3, 800])
    x_hat, y_hat = net(x, y, t)
    assert x_hat.shape == x.shape and y_hat.shape == y.shape
    for moved in (net(x + 1, y, t), net(x, y + 1, t), net(x, y, t.flip(0))):
        assert not torch.allclose(moved[0], x_hat) and not torch.allclose(moved[1], y_hat)


def test_only_the_first_and_last_convolution_grow_with_the_labels_channels():
    sizes = [sum(p.numel() for p in DDPM.from_config(CFG, channels).parameters()) for channels in (1, 2, 3)]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == 2 * 9 * CFG.channels[0] + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_with_tabulated_time_changes_no_bit(net, dtype):
    net = net.to(dtype, memory_format=torch.channels_last)
    x, y = start_noise(0, range(3), (16, 16), 3)
    plain, tabulated = (
        PairSampler(net, CosineSchedule(), 6, b=1.0, reading=bit_reading(5), dtype=dtype, tabulate_time=on)(x, y)
        for on in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, tabulated))
    assert plain[1].shape == (3, 5, 16, 16)
    torch.testing.assert_close(plain[1].exp().sum(1), torch.ones(3, 16, 16))
