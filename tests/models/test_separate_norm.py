"""Batch norm with statistics of its own for synthetic samples: each part is that of a plain one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dakd.config import StudentConfig
from dakd.models.encoders import import_timm
from dakd.models.registry import build_student
from dakd.models.separate_norm import AUXILIARY, SeparateNorm, separate_batch_norm, separate_norms, without_auxiliary

STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def plain(kind: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A batch norm of six channels in the middle of its training."""
    torch.manual_seed(0)
    norm = kind(6, eps=1e-4, momentum=0.3)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data.uniform_(0.5, 1.5)
    return norm.train()


def separate(norm: nn.BatchNorm2d, *rows: int) -> SeparateNorm:
    found = separate_batch_norm(copy.deepcopy(norm)).train()
    found.rows = rows
    return found


def run(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the input's gradient under a loss that weighs every value differently."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
    out = norm(x)
    (out * torch.linspace(-1, 2, x.numel()).view(x.shape)).sum().backward()
    return out.detach(), x.grad


def maps(batch: int, size: tuple[int, int] = (5, 7), memory_format: torch.memory_format = torch.contiguous_format):
    torch.manual_seed(1)
    return (torch.randn(batch, 6, *size) * 3 + 2).to(memory_format=memory_format)


def timm_norm() -> type[nn.BatchNorm2d]:
    """With a ReLU of its own, and a forward pass that does not call torch's."""
    import_timm()
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", [lambda: nn.BatchNorm2d, timm_norm], ids=["torch", "timm"])
def test_each_part_is_normalised_as_by_a_batch_norm_of_its_own(kind, memory_format):
    norm, x = plain(kind()), maps(5, memory_format=memory_format)
    both = separate(norm, 3, 2)
    out, grad = run(both, x)
    assert out.is_contiguous(memory_format=memory_format)
    # The weights of the loss of the second part are those of the whole.
    weights = torch.linspace(-1, 2, x.numel()).view(x.shape)
    for part, ours in ((slice(0, 3), both), (slice(3, 5), both.get_submodule(AUXILIARY))):
        theirs, piece = copy.deepcopy(norm), x[part].detach().clone(memory_format=torch.preserve_format)
        piece.requires_grad_(True)
        wanted = theirs(piece)
        (wanted * weights[part]).sum().backward()
        assert torch.equal(out[part], wanted) and torch.equal(grad[part], piece.grad)
        for name in STATE:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert torch.equal(ours.weight.grad, theirs.weight.grad) and torch.equal(ours.bias.grad, theirs.bias.grad)
    # Else the test would pass where the parts are normalised together.
    assert not torch.allclose(norm(x), out, atol=1e-2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("rows", [(4, 0), (0, 4)], ids=["real", "synthetic"])
def test_a_batch_of_one_kind_is_that_of_a_plain_one_and_the_other_has_gradients_of_zero(rows, memory_format):
    norm, x = plain(), maps(4, memory_format=memory_format)
    both, wanted = separate(norm, *rows), run(norm, x)
    out, grad = run(both, x)
    assert torch.equal(out, wanted[0]) and torch.equal(grad, wanted[1])
    assert out.is_contiguous(memory_format=memory_format)
    used, idle = (both, both.get_submodule(AUXILIARY))[:: 1 if rows[0] else -1]
    assert all(torch.equal(getattr(used, name), getattr(norm, name)) for name in STATE)
    assert torch.equal(used.weight.grad, norm.weight.grad)
    before = plain()
    assert all(torch.equal(getattr(idle, name), getattr(before, name)) for name in STATE)
    assert torch.equal(idle.weight.grad, torch.zeros(6)) and torch.equal(idle.bias.grad, torch.zeros(6))


def test_one_value_a_channel_is_normalised_by_the_running_statistics_which_it_leaves_as_they_are():
    norm, x = plain(), maps(3, size=(1, 1))
    both = separate(norm, 2, 1)
    out, _ = run(both, x)
    assert torch.equal(out[:2], copy.deepcopy(norm)(x[:2]))
    assert torch.equal(out[2:], copy.deepcopy(norm).eval()(x[2:]))
    twin = both.get_submodule(AUXILIARY)
    assert torch.equal(twin.running_mean, norm.running_mean) and int(twin.num_batches_tracked) == 0
    assert int(both.num_batches_tracked) == 1 and both.training and twin.training
    assert torch.isfinite(twin.weight.grad).all() and twin.weight.grad.abs().min() > 0


def test_evaluation_uses_the_main_one_alone():
    norm, x = plain(), maps(4)
    both = separate(norm, 2, 2)
    for value in both.get_submodule(AUXILIARY).state_dict().values():
        value.fill_(7)
    assert torch.equal(both.eval()(x), norm.eval()(x))


@pytest.mark.parametrize("rows", [(2, 2), (4, 0)])
def test_autocast_and_bf16_keep_their_dtypes(rows):
    x = maps(4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = separate(plain(), *rows)(x)
    assert out.dtype == torch.bfloat16
    assert separate(plain().bfloat16(), *rows)(x).dtype == torch.bfloat16


def test_rows_that_are_no_samples_are_refused():
    with pytest.raises(ValueError, match=r"sees 8 rows of a batch of 4 samples.*batch_norm to local"):
        separate(plain(), 2, 2)(maps(8))


def test_a_net_keeps_its_names_and_its_state_without_the_twins_is_that_of_the_plain_net():
    options = {"dim": 8, "in_dim": 8, "depths": [1, 1, 2, 2], "num_heads": [1, 1, 2, 4]}
    cfg = StudentConfig(encoder="mamba_vision", encoder_options=options, decoder_channels=(16, 16, 16, 8))
    net = build_student(cfg, 3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    num_norms = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert separate_batch_norm(net) is net and len(separate_norms(net)) == num_norms > 10
    after = net.state_dict()
    assert len(after) == len(before) + 5 * num_norms
    mains = without_auxiliary(after)
    assert mains.keys() == before.keys() and all(torch.equal(mains[name], value) for name, value in before.items())
    for name in set(after) - set(before):
        assert torch.equal(after[name], before[name.replace(f".{AUXILIARY}", "")])
