"""The bridges: no effect at the start, an effect once trained; the weights that stage 2 copies, freezes and trains."""

from __future__ import annotations

import pytest
import torch

from dakd.config import UNetConfig
from dakd.models.jointnet import SARJointNet
from dakd.train.jointnet import freeze_for_stage

SMALL = UNetConfig(channels=(8, 16, 24), blocks_per_level=1, attention_levels=(2,), norm_groups=8)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SARJointNet.from_config(SMALL, 3)


def pair(size=16):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 1, size, size, generator=generator),
        torch.randn(2, 3, size, size, generator=generator),
        torch.tensor([10, 800]),
    )


def let_bridges_speak(net):
    for bridge in (net.sar_bridge, net.label_bridge):
        for parameter in bridge.parameters():
            torch.nn.init.normal_(parameter, std=0.1)


def test_paper_size_has_231_5_million_parameters():
    with torch.device("meta"):
        net = SARJointNet.from_config(UNetConfig(), 5)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert round(count(net) / 1e6, 1) == 231.5
    assert round(count(net.sar_bridge) / 1e6, 2) == 2.09 and round(count(net.label_bridge) / 1e6, 2) == 2.09
    assert len(net.sar_bridge.send_skips) == 18


def test_at_the_start_the_joint_net_is_two_separate_nets_bit_for_bit(net):
    x, y, t = pair()
    x_hat, logits = net(x, y, t)
    assert torch.equal(x_hat, net.sar_net(x, t))
    assert torch.equal(logits, net.label_net(y, t))


@pytest.mark.parametrize("spoken", ["hear_input", "send_skips", "send_mid"])
def test_each_kind_of_bridge_is_heard_by_the_other_branch(net, spoken):
    x, y, t = pair()
    silent_x, silent_logits = net(x, y, t)
    for bridge in (net.sar_bridge, net.label_bridge):
        for parameter in getattr(bridge, spoken).parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    x_hat, logits = net(x, y, t)
    assert not torch.allclose(x_hat, silent_x) and not torch.allclose(logits, silent_logits)


def test_features_are_exchanged_once_between_encoder_and_decoder(net):
    """Only the input bridge reaches the other encoder: with it silent, encoders ignore the other branch."""
    let_bridges_speak(net)
    for bridge in (net.sar_bridge, net.label_bridge):
        torch.nn.init.zeros_(bridge.hear_input.weight)
        torch.nn.init.zeros_(bridge.hear_input.bias)
    seen = []
    net.sar_net.mid_block2.register_forward_hook(lambda _, __, output: seen.append(output))
    x, y, t = pair()
    net(x, y, t)
    net(x, torch.randn_like(y), t)
    assert torch.equal(seen[0], seen[1])


def test_label_net_starts_as_sar_net_but_for_its_first_and_last_convolution(net):
    before = {name: value.clone() for name, value in net.label_net.state_dict().items()}
    net.start_label_net_from_sar_net()
    sar = net.sar_net.state_dict()
    for name, value in net.label_net.state_dict().items():
        own = name.startswith(("conv_in.", "conv_out."))
        assert torch.equal(value, before[name] if own else sar[name]), name
    net.label_net.mid_block1.conv1.weight.data.zero_()
    assert net.sar_net.mid_block1.conv1.weight.any()  # a copy, not the same tensor


def test_stage_2_trains_label_net_and_all_bridges_and_nothing_else(net):
    freeze_for_stage(net, 2)
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert trained == {"label_net", "sar_bridge", "label_bridge"} and frozen == {"sar_net"}
    freeze_for_stage(net, 3)
    assert all(p.requires_grad for p in net.parameters())


def test_gradient_of_the_image_loss_reaches_label_net_through_the_frozen_sar_net(net):
    let_bridges_speak(net)
    freeze_for_stage(net, 2)
    x, y, t = pair()
    net(x, y, t)[0].square().sum().backward()
    assert net.label_net.conv_in.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in net.sar_net.parameters())
