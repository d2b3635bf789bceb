from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dakd.models.mamba_vision import (
    VARIANTS,
    DepthwiseConv1d,
    MambaMixer,
    MambaVision,
    TokenBlock,
    WindowAttention,
    WindowLevel,
    merge_windows,
    split_windows,
)

TINY = dict(dim=8, in_dim=4, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 4), window_size=(8, 8, 4, 2))


def tiny(**options) -> MambaVision:
    torch.manual_seed(0)
    return MambaVision(**(TINY | dict(drop_path=0.0, layer_scale=None, num_classes=0) | options))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(**options) -> MambaVision:
    with torch.device("meta"):
        return MambaVision(**options)


def test_base_variant_has_the_published_number_of_parameters():
    assert count(on_meta()) == 97_685_288
    assert count(on_meta(num_classes=0)) == 96_658_240


@pytest.mark.parametrize("variant, millions", [("T", 31.79), ("T2", 35.10), ("S", 50.14), ("B", 97.69), ("L", 227.96)])
def test_every_variant_has_the_published_number_of_parameters(variant, millions):
    assert round(count(on_meta(**VARIANTS[variant])) / 1e6, 2) == millions


def test_base_variant_has_maps_of_128_to_1024_channels():
    assert on_meta(num_classes=0).channels == (128, 256, 512, 1024)


def test_parameters_bear_the_names_of_the_public_checkpoints():
    names = set(tiny(layer_scale=1e-5, num_classes=3).state_dict())
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    wanted = {f"patch_embed.conv_down.{i}.weight" for i in (0, 3)}
    wanted |= {f"patch_embed.conv_down.{i}.{part}" for i in (1, 4) for part in norm}
    for level in (0, 1):
        block = f"levels.{level}.blocks.0"
        wanted |= {f"{block}.conv{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
        wanted |= {f"{block}.norm{i}.{part}" for i in (1, 2) for part in norm}
    scan = ["in_proj.weight", "conv1d_x.weight", "conv1d_z.weight", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"]
    scan += ["A_log", "D", "out_proj.weight"]
    attention = ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    for block, mixer in (("levels.2.blocks.0", scan), ("levels.2.blocks.1", attention), ("levels.3.blocks.0", scan)):
        wanted |= {f"{block}.mixer.{name}" for name in mixer}
        wanted |= {f"{block}.{name}.{part}" for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2") for part in norm[:2]}
        wanted |= {f"{block}.gamma_1", f"{block}.gamma_2"}
    wanted |= {f"levels.{level}.downsample.reduction.0.weight" for level in (0, 1, 2)}
    wanted |= {f"norm.{part}" for part in norm} | {"head.weight", "head.bias"}
    assert names == wanted


def test_first_half_of_a_windowed_stage_scans_and_an_odd_depth_scans_once_more():
    kinds = [type(block.mixer) for block in on_meta(num_classes=0).levels[2].blocks]
    assert kinds == [MambaMixer] * 5 + [WindowAttention] * 5
    kinds = [type(block.mixer) for block in on_meta(num_classes=0).levels[3].blocks]
    assert kinds == [MambaMixer] * 3 + [WindowAttention] * 2


def naive_mixer(mixer: MambaMixer, tokens: torch.Tensor, *, second_bias: bool = True) -> torch.Tensor:
    """The mixer token by token and channel by channel, from the equations."""
    num_tokens, channels = tokens.shape
    inner, rank = channels // 2, math.ceil(channels / 16)
    projected = tokens @ mixer.in_proj.weight.T

    def convolve(values, weight):
        out = torch.zeros_like(values)
        for position in range(num_tokens):
            for tap in range(3):
                if 0 <= position + tap - 1 < num_tokens:
                    out[position] += weight[:, 0, tap] * values[position + tap - 1]
        return out / (1 + torch.exp(-out))

    x = convolve(projected[:, :inner], mixer.conv1d_x.weight)
    z = convolve(projected[:, inner:], mixer.conv1d_z.weight)
    y = torch.zeros_like(x)
    state = torch.zeros(inner, 8, dtype=tokens.dtype)
    for position in range(num_tokens):
        parts = mixer.x_proj.weight @ x[position]
        dt, b, c = parts[:rank], parts[rank : rank + 8], parts[rank + 8 :]
        step = mixer.dt_proj.weight @ dt + mixer.dt_proj.bias
        if second_bias:
            step = step + mixer.dt_proj.bias
        step = torch.log1p(torch.exp(step))
        for channel in range(inner):
            for n in range(8):
                decay = torch.exp(-step[channel] * torch.exp(mixer.A_log[channel, n]))
                state[channel, n] = decay * state[channel, n] + step[channel] * b[n] * x[position, channel]
            y[position, channel] = (c * state[channel]).sum() + mixer.D[channel] * x[position, channel]
    return torch.cat([y, z], dim=1) @ mixer.out_proj.weight.T


@torch.no_grad()
def test_mixer_equals_its_equations_with_the_step_bias_entering_twice():
    torch.manual_seed(1)
    mixer = MambaMixer(20).double()
    for parameter in mixer.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.5)
    tokens = torch.randn(2, 7, 20, dtype=torch.float64)
    expected = torch.stack([naive_mixer(mixer, sequence) for sequence in tokens])
    once = torch.stack([naive_mixer(mixer, sequence, second_bias=False) for sequence in tokens])
    torch.testing.assert_close(mixer(tokens), expected, rtol=1e-10, atol=1e-12)
    assert (once - expected).abs().max() > 1e-2


@torch.no_grad()
def test_attention_equals_its_equation():
    torch.manual_seed(2)
    attention = WindowAttention(12, 3).double()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = (attention.qkv(tokens)[..., i * 12 : (i + 1) * 12] for i in range(3))
    heads = []
    for head in range(3):
        part = slice(head * 4, head * 4 + 4)
        weights = torch.softmax(torch.einsum("bic,bjc->bij", q[..., part], k[..., part]) / 2.0, dim=-1)
        heads.append(weights @ v[..., part])
    torch.testing.assert_close(attention(tokens), attention.proj(torch.cat(heads, dim=-1)))


@torch.no_grad()
def test_token_block_adds_scaled_mixer_then_scaled_mlp():
    torch.manual_seed(3)
    block = TokenBlock(8, WindowAttention(8, 2), mlp_ratio=2.0, layer_scale=0.5)
    tokens = torch.randn(1, 4, 8)
    middle = tokens + 0.5 * block.mixer(block.norm1(tokens))
    torch.testing.assert_close(block(tokens), middle + 0.5 * block.mlp(block.norm2(middle)))


@pytest.mark.parametrize("height, width, size", [(8, 8, 4), (5, 9, 4), (1, 1, 7), (13, 3, 5)])
def test_windows_come_apart_and_together_again(height, width, size):
    x = torch.randn(2, 3, height, width)
    tokens = split_windows(x, size)
    num_windows = -(-height // size) * -(-width // size)
    assert tokens.shape == (2 * num_windows, size * size, 3)
    assert torch.equal(merge_windows(tokens, size, height, width), x)
    # A window is a square of the image, row by row; what it has beyond the image is zero.
    corner = torch.zeros(3, size, size)
    corner[:, : min(size, height), : min(size, width)] = x[1, :, :size, :size]
    assert torch.equal(tokens[num_windows], corner.flatten(1).T)


@torch.no_grad()
def test_a_windowed_stage_keeps_windows_apart():
    torch.manual_seed(4)
    level = WindowLevel(8, 2, 2, 4, 2.0, None).eval()
    x = torch.randn(1, 8, 6, 8)
    changed = x.clone()
    changed[0, :, 1, 2] = torch.randn(8)
    difference = (level(changed) - level(x)).abs().amax(dim=(0, 1)) > 0
    assert difference[:4, :4].all() and not difference[4:].any() and not difference[:, 4:].any()


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(64, 64), (65, 97), (32, 40)])
def test_features_have_strides_4_to_32_at_any_size(height, width):
    features = tiny().eval().forward_features(torch.randn(2, 3, height, width))
    shapes = [(2, 8 << i, -(-height // (4 << i)), -(-width // (4 << i))) for i in range(4)]
    assert [tuple(feature.shape) for feature in features] == shapes


@torch.no_grad()
def test_features_are_taken_before_the_downsampling():
    model = tiny().eval()
    image = torch.randn(1, 3, 64, 64)
    features = model.forward_features(image)
    x = model.patch_embed(image)
    for level, feature in zip(model.levels, features):
        torch.testing.assert_close(level(x), feature)
        x = feature if level.downsample is None else level.downsample(feature)


def test_classifier_averages_the_normalised_last_map():
    model = tiny(num_classes=5).eval()
    image = torch.randn(2, 3, 64, 64)
    last = model.forward_features(image)[-1]
    torch.testing.assert_close(model(image), model.head(model.norm(last).flatten(2).mean(dim=2)))
    with pytest.raises(RuntimeError, match="no classifier"):
        tiny()(image)


def test_initial_values_are_those_of_the_source_work():
    model = tiny(dim=16, layer_scale=1e-5)
    mixer = model.levels[2].blocks[0].mixer
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 9.0).expand(32, 8))
    assert torch.equal(mixer.D, torch.ones(32)) and torch.equal(mixer.dt_proj.bias, torch.zeros(32))
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Linear)])
    assert abs(weights.std().item() - 0.02) < 5e-4 and abs(weights.mean().item()) < 5e-4
    assert torch.equal(model.levels[3].blocks[0].gamma_1, torch.full((128,), 1e-5))
    bound = 1 / math.sqrt(3)
    assert 0.9 * bound < DepthwiseConv1d(256).weight.abs().max() <= bound


def test_state_matrices_and_skips_alone_are_marked_against_weight_decay():
    marked = {n for n, p in tiny().named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {f"levels.{level}.blocks.0.mixer.{name}" for level in (2, 3) for name in ("A_log", "D")}


def test_gradient_reaches_every_parameter():
    model = tiny(num_classes=3, layer_scale=0.1).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_drop_path_follows_the_position_and_not_the_place_in_the_batch():
    model = tiny(drop_path=0.5).train()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()
    images = torch.randn(4, 3, 32, 32)
    positions = torch.tensor([11, 5, 7, 1 << 40])
    model.set_sample_positions(positions, seed=3)
    together = model.forward_features(images)[-1]
    assert torch.equal(together, model.forward_features(images)[-1])
    model.set_sample_positions(positions[[3, 1]], seed=3)
    torch.testing.assert_close(model.forward_features(images[[3, 1]])[-1], together[[3, 1]])
    model.set_sample_positions(positions, seed=4)
    assert not torch.allclose(model.forward_features(images)[-1], together)


def test_drop_path_drops_at_its_rate_and_keeps_the_mean():
    model = tiny(drop_path=0.4).train()
    # Five blocks: two with one residual branch each, three with two.
    keep = torch.tensor([1.0, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6])
    torch.testing.assert_close(model.keep_probabilities, keep)
    batch = torch.empty(4000, 1)
    model.set_sample_positions(torch.arange(4000), seed=1)
    by_position = model._branch_scales(batch)
    model.set_sample_positions(None)
    for scales in (by_position, model._branch_scales(batch)):
        torch.testing.assert_close((scales > 0).float().mean(dim=0), keep, atol=0.03, rtol=0)
        torch.testing.assert_close(scales.mean(dim=0), torch.ones(8), atol=0.05, rtol=0)
    assert model.eval()._branch_scales(batch) is None


@torch.no_grad()
def test_a_dropped_branch_leaves_its_sample_as_it_was():
    level = WindowLevel(8, 1, 2, 2, 2.0, None)
    x = torch.randn(2, 8, 4, 4)
    out = level(x, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1:], level(x[1:]))


def test_positions_of_another_batch_are_refused():
    model = tiny(drop_path=0.5).train()
    model.set_sample_positions(torch.arange(3), seed=0)
    with pytest.raises(ValueError, match="batch has 2 samples but positions of 3"):
        model.forward_features(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(depths=(1, 1, 1)), "four numbers"),
        (dict(drop_path=1.0), "rate in"),
        (dict(num_heads=(1, 1, 3, 4)), "do not divide into 3 heads"),
        (dict(dim=0), "at least 1 channel"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)
