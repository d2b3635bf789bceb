"""Nets take plain numbers, with the defaults of the configuration; `from_config` takes its section."""

from __future__ import annotations

import inspect

import pytest
import torch

from dakd.config import SamOilConfig, StudentConfig, UNetConfig
from dakd.models.jointnet import SARJointNet
from dakd.models.rivals.ddpm import DDPM
from dakd.models.rivals.sam_oil.net import SamOil
from dakd.models.saross import SAROSSNet
from dakd.models.unet import UNet, UNetSizes

SIZES = dict(channels=(8, 16), blocks_per_level=1, attention_levels=(1,), norm_groups=4)


def defaults_of(function) -> dict:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_defaults_of_the_nets_are_those_of_the_configuration():
    assert defaults_of(UNet) == dict(UNetConfig()) and set(UNetSizes.__annotations__) == set(dict(UNetConfig()))
    sam_oil = {key: value for key, value in dict(SamOilConfig()).items() if key != "sam_config"}
    assert sam_oil and sam_oil.items() <= defaults_of(SamOil).items()
    assert defaults_of(SamOil)["detector"] == StudentConfig(name="sam_oil").encoder
    student, saross = StudentConfig(), defaults_of(SAROSSNet)
    assert saross["decoder_channels"] == student.decoder_channels and saross["num_heads"] == student.caft_heads
    assert saross["caft_ratio"] == student.caft_ratio and saross["skip_module"] == student.skip_module


@pytest.mark.parametrize("plain, from_config", [
    (lambda: UNet(2, 3, **SIZES), lambda cfg: UNet.from_config(cfg, 2, 3)),
    (lambda: SARJointNet(3, **SIZES), lambda cfg: SARJointNet.from_config(cfg, 3)),
    (lambda: DDPM(3, **SIZES), lambda cfg: DDPM.from_config(cfg, 3)),
])  # fmt: skip
def test_plain_numbers_make_the_net_of_the_section_bit_for_bit(plain, from_config):
    torch.manual_seed(0)
    ours = plain().state_dict()
    torch.manual_seed(0)
    configured = from_config(UNetConfig(**SIZES)).state_dict()
    assert list(ours) == list(configured)
    assert all(torch.equal(ours[name], configured[name]) for name in ours)


@pytest.mark.parametrize("sizes", [dict(channels=()), dict(channels=(8, 16), attention_levels=(2,))])
def test_a_unet_without_levels_or_with_attention_on_a_missing_one_is_refused(sizes):
    with pytest.raises(ValueError, match="expected at least one level"):
        UNet(1, 1, **sizes)
