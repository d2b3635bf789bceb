"""GroupNorm and attention of trainings in bf16 on a CPU: computed in fp32, and torch's own everywhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dakd.models.cpu_training import GroupNorm, attend


def norm_and_input(dtype: torch.dtype) -> tuple[GroupNorm, torch.Tensor]:
    torch.manual_seed(0)
    norm = GroupNorm(4, 12)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    h = torch.randn(3, 12, 9, 7).to(dtype=dtype, memory_format=torch.channels_last)
    return norm.to(dtype), h.requires_grad_()


def test_a_norm_in_bf16_has_the_result_and_gradients_of_fp32_rounded_once():
    norm, h = norm_and_input(torch.bfloat16)
    dout = torch.randn(h.shape).bfloat16()
    norm(h).backward(dout)
    wide = h.detach().float().requires_grad_()
    weight, bias = (p.detach().float().requires_grad_() for p in (norm.weight, norm.bias))
    F.group_norm(wide, 4, weight, bias, norm.eps).backward(dout.float())
    for ours, theirs in ((h, wide), (norm.weight, weight), (norm.bias, bias)):
        assert ours.grad.dtype == torch.bfloat16 and torch.equal(ours.grad, theirs.grad.bfloat16())


def test_a_norm_without_gradients_or_in_fp32_is_torchs_own():
    for dtype in (torch.bfloat16, torch.float32):
        norm, h = norm_and_input(dtype)
        own = nn.GroupNorm(4, 12).to(dtype)
        own.load_state_dict(norm.state_dict())
        with torch.no_grad():
            assert torch.equal(norm(h), own(h))
    assert torch.equal(norm(h), own(h))


@pytest.mark.parametrize("is_autocast", [False, True])
def test_attention_in_bf16_has_the_result_and_gradients_of_fp32_rounded_once(is_autocast):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 8).bfloat16().requires_grad_() for _ in range(3))
    dout = torch.randn(q.shape).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        out = attend(q, k, v)
    out.backward(dout)
    wide = [one.detach().float().requires_grad_() for one in (q, k, v)]
    exact = F.scaled_dot_product_attention(*wide)
    exact.backward(dout.float())
    assert torch.equal(out, exact.bfloat16())
    for ours, theirs in zip((q, k, v), wide):
        assert torch.equal(ours.grad, theirs.grad.bfloat16())
