from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dakd.models.caft import CAFT, ConvSkip, PlainSkip, build_skip_module, resize_to


def naive_caft(node: CAFT, f_hr: torch.Tensor, f_lr: torch.Tensor) -> torch.Tensor:
    """The block as the paper draws it: upsampling first, then the convolutions, then one head after the other."""
    upsampled = F.interpolate(f_lr, size=f_hr.shape[-2:], mode="bilinear", align_corners=False)
    q = node.q_local(node.q_proj(upsampled)).flatten(2)
    k = node.k_local(node.k_proj(f_hr)).flatten(2)
    v = node.v_local(node.v_proj(f_hr)).flatten(2)
    width = q.shape[1] // node.num_heads
    heads = []
    for head in range(node.num_heads):
        q_h, k_h, v_h = (x[:, head * width : (head + 1) * width] for x in (q, k, v))
        q_h = q_h / q_h.norm(dim=2, keepdim=True)
        k_h = k_h / k_h.norm(dim=2, keepdim=True)
        attention = torch.softmax(node.temperature[head] * torch.einsum("bin,bjn->bij", q_h, k_h), dim=-1)
        heads.append(torch.einsum("bij,bjn->bin", attention, v_h))
    mixed = torch.cat(heads, dim=1).unflatten(2, f_hr.shape[-2:])
    return f_hr + torch.einsum("cr,brhw->bchw", node.out_weight, mixed)


def caft(c_hr: int = 12, c_lr: int = 20, inner: int = 8, num_heads: int = 2) -> CAFT:
    torch.manual_seed(0)
    node = CAFT(c_hr, c_lr, inner, num_heads).double()
    with torch.no_grad():
        node.temperature.copy_(torch.linspace(0.5, 3.0, num_heads))
    return node


@torch.no_grad()
@pytest.mark.parametrize("lr_size", [(5, 7), (3, 4), (9, 13)])
def test_caft_equals_the_block_as_drawn(lr_size):
    node = caft()
    f_hr = torch.randn(2, 12, 9, 13, dtype=torch.float64)
    f_lr = torch.randn(2, 20, *lr_size, dtype=torch.float64)
    torch.testing.assert_close(node(f_hr, f_lr), naive_caft(node, f_hr, f_lr), rtol=1e-9, atol=1e-11)


def test_caft_gradients_equal_those_of_the_block_as_drawn():
    node = caft()
    f_hr = torch.randn(1, 12, 6, 8, dtype=torch.float64, requires_grad=True)
    f_lr = torch.randn(1, 20, 3, 4, dtype=torch.float64, requires_grad=True)
    wanted = [f_hr, f_lr, *node.parameters()]
    dout = torch.randn(1, 12, 6, 8, dtype=torch.float64)
    got = torch.autograd.grad(node(f_hr, f_lr), wanted, dout)
    expected = torch.autograd.grad(naive_caft(node, f_hr, f_lr), wanted, dout)
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_caft_is_the_identity_on_the_high_resolution_feature_when_its_output_weight_is_zero():
    node = caft()
    torch.nn.init.zeros_(node.out_weight)
    f_hr = torch.randn(2, 12, 8, 8, dtype=torch.float64)
    assert torch.equal(node(f_hr, torch.randn(2, 20, 4, 4, dtype=torch.float64)), f_hr)


def test_caft_has_no_bias_and_the_counted_number_of_weights():
    node = CAFT(128, 256, 64, 2)
    assert sum(p.numel() for p in node.parameters()) == 64 * (256 + 3 * 128 + 27) + 2
    assert not any(name.endswith("bias") for name, _ in node.named_parameters())
    assert torch.equal(node.temperature, torch.ones(2))


@torch.no_grad()
def test_conv_skip_convolves_both_features_side_by_side():
    torch.manual_seed(1)
    node = ConvSkip(4, 6)
    f_hr, f_lr = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)
    both = torch.cat([f_hr, F.interpolate(f_lr, scale_factor=2, mode="bilinear", align_corners=False)], dim=1)
    torch.testing.assert_close(node(f_hr, f_lr), F.conv2d(both, node.conv.weight, padding=1))
    assert sum(p.numel() for p in node.parameters()) == 9 * 10 * 4


def test_no_module_gives_the_high_resolution_feature_itself():
    f_hr = torch.randn(1, 4, 8, 8)
    assert PlainSkip()(f_hr, torch.randn(1, 6, 4, 4)) is f_hr


def test_resize_to_the_same_size_costs_nothing():
    x = torch.randn(1, 2, 5, 7)
    assert resize_to(x, (5, 7)) is x


def test_skip_modules_are_built_by_name():
    assert isinstance(build_skip_module("conv3x3", 8, 8, ratio=0.5, num_heads=1), ConvSkip)
    assert isinstance(build_skip_module("none", 8, 8, ratio=0.5, num_heads=1), PlainSkip)
    assert build_skip_module("caft", 8, 6, ratio=0.5, num_heads=2).out_weight.shape == (8, 4)
    with pytest.raises(ValueError, match="expected one of caft, conv3x3, none"):
        build_skip_module("cafe", 8, 8, ratio=0.5, num_heads=1)


def test_heads_that_do_not_divide_the_inner_width_are_refused():
    with pytest.raises(ValueError, match="inner width 6 does not divide into 4 heads"):
        CAFT(12, 12, 6, 4)
