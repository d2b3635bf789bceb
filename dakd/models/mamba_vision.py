"""MambaVision: the hybrid convolution / state-space / attention encoder of the student.

Hatamizadeh and Kautz 2024; sizes and order of the layers as in NVlabs/MambaVision. Two stages of convolution blocks,
then two stages of windowed token blocks, of which the first half mixes by a selective scan and the rest by attention.
Parameters have the names of the public checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dakd.kernels.depthwise_conv1d import depthwise_conv1d
from dakd.kernels.selective_scan import selective_scan
from dakd.models.cpu_training import attend
from dakd.runtime.seeding import Stream, numpy_rng

# The published sizes. Windows are (8, 8, 14, 7) in all of them; the convolution stages do not use the first two.
VARIANTS: dict[str, dict] = {
    "T": dict(dim=80, in_dim=32, depths=(1, 3, 8, 4), num_heads=(2, 4, 8, 16), drop_path=0.2, layer_scale=None),
    "T2": dict(dim=80, in_dim=32, depths=(1, 3, 11, 4), num_heads=(2, 4, 8, 16), drop_path=0.2, layer_scale=None),
    "S": dict(dim=96, in_dim=64, depths=(3, 3, 7, 5), num_heads=(2, 4, 8, 16), drop_path=0.2, layer_scale=None),
    "B": dict(dim=128, in_dim=64, depths=(3, 3, 10, 5), num_heads=(2, 4, 8, 16), drop_path=0.3, layer_scale=1e-5),
    "L": dict(dim=196, in_dim=64, depths=(3, 3, 10, 5), num_heads=(4, 8, 16, 32), drop_path=0.3, layer_scale=1e-5),
}
STATE_SIZE = 8


class MambaVision(nn.Module):
    """The encoder; with `num_classes` > 0 also the classifier of the public checkpoints.

    dim: channels of the first stage, doubled by each later one.  in_dim: channels of the stem's first convolution.
    depths, num_heads, window_size: one number per stage (heads and windows act in the last two).
    drop_path: rate of the last block; rates grow linearly from 0.  layer_scale: initial value, None for no layer scale.
    num_classes: 0 leaves out the final norm and the head.
    """

    # Parameters under these names belong to the classifier: a model without one does not take them from a file.
    classifier_prefixes = ("norm.", "head.")

    def __init__(
        self,
        in_chans: int = 3,
        dim: int = 128,
        in_dim: int = 64,
        depths: Sequence[int] = (3, 3, 10, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        window_size: Sequence[int] = (8, 8, 14, 7),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.3,
        layer_scale: float | None = 1e-5,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        _check_stage_numbers(dim, depths, num_heads, window_size, drop_path)
        self.channels = tuple(dim << stage for stage in range(4))
        self.patch_embed = PatchEmbed(in_chans, in_dim, dim)
        self.levels = nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(self.channels, depths)):
            if stage < 2:
                level = ConvLevel(channels, depth)
            else:
                level = WindowLevel(channels, depth, num_heads[stage], window_size[stage], mlp_ratio, layer_scale)
            level.downsample = Downsample(channels) if stage < 3 else None
            self.levels.append(level)
        if num_classes > 0:
            self.norm = nn.BatchNorm2d(self.channels[-1])
            self.head = nn.Linear(self.channels[-1], num_classes)
        self.num_classes = num_classes
        self.drop_path = drop_path
        self.register_buffer("keep_probabilities", _keep_probabilities(self.levels, drop_path), persistent=False)
        self._branch_uniforms: Tensor | None = None
        self.apply(_init_weights)

    def forward(self, image: Tensor) -> Tensor:
        """image (B, in_chans, H, W) -> class logits (B, num_classes); RuntimeError without a classifier."""
        if self.num_classes == 0:
            raise RuntimeError("this MambaVision has no classifier; call forward_features or set num_classes")
        last = self.norm(self.forward_features(image)[-1])
        return self.head(last.mean(dim=(2, 3)))

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """image (B, in_chans, H, W) -> the stages' outputs at strides 4, 8, 16, 32, each before its downsampling."""
        x = self.patch_embed(image)
        scales = self._branch_scales(x)
        features = []
        for level in self.levels:
            scales_here, scales = _take(scales, level.num_branches)
            x = level(x, scales_here)
            features.append(x)
            if level.downsample is not None:
                x = level.downsample(x)
        return features

    def set_sample_positions(self, positions: Tensor | None, seed: int = 0) -> None:
        """Ties the next training passes' drop-path draws to (seed, global sample position), on any number of ranks.

        positions: (B,) int64 on the host, one per sample of the batch; None returns to torch's own generator.
        """
        if positions is None:
            self._branch_uniforms = None
            return
        num_branches = self.keep_probabilities.numel()
        # One draw for all branches of a sample, so that a number belongs to (seed, position, branch).
        draws = [numpy_rng(seed, position, stream=Stream.DROP_PATH).random(num_branches, np.float32)
                 for position in positions.tolist()]
        uniforms = torch.from_numpy(np.stack(draws)) if draws else torch.empty(0, num_branches)
        self._branch_uniforms = uniforms.to(self.keep_probabilities.device)

    def _branch_scales(self, x: Tensor) -> Tensor | None:
        """(B, branches): 0 where a residual branch is dropped for a sample, else 1 / keep; None where nothing is."""
        if not self.training or self.drop_path == 0:
            return None
        uniforms = self._branch_uniforms
        if uniforms is None:
            uniforms = torch.rand(x.shape[0], self.keep_probabilities.numel(), device=x.device)
        elif uniforms.shape[0] != x.shape[0]:
            raise ValueError(
                f"batch has {x.shape[0]} samples but positions of {uniforms.shape[0]} were set; "
                "call set_sample_positions with this batch's positions, or with None"
            )
        # Divided by the probability of being kept: the expected output is that of evaluation.
        return (uniforms < self.keep_probabilities) / self.keep_probabilities


class PatchEmbed(nn.Module):
    """The stem: two convolutions of stride 2, (B, in_chans, H, W) -> (B, dim, H/4, W/4)."""

    def __init__(self, in_chans: int, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv_down = nn.Sequential(
            nn.Conv2d(in_chans, in_dim, 3, 2, 1, bias=False),
            nn.BatchNorm2d(in_dim, eps=1e-4),
            nn.ReLU(),
            nn.Conv2d(in_dim, dim, 3, 2, 1, bias=False),
            nn.BatchNorm2d(dim, eps=1e-4),
            nn.ReLU(),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.conv_down(image)


class Downsample(nn.Module):
    """Halves the grid and doubles the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(x)


class ConvLevel(nn.Module):
    """A stage of convolution blocks; (B, C, H, W) to the same shape."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(channels) for _ in range(depth))
        self.num_branches = depth

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            scale, scales = _take(scales, 1)
            x = block(x, scale)
        return x


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norms, a GELU between them, and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        branch = F.gelu(self.norm1(self.conv1(x)), approximate="tanh")
        return x + _scaled(self.norm2(self.conv2(branch)), scale)


class WindowLevel(nn.Module):
    """A stage of token blocks that see one window each; (B, C, H, W) to the same shape.

    The first half of the blocks (one more at odd depth) mixes by a selective scan, the rest by attention.
    """

    def __init__(
        self, channels: int, depth: int, num_heads: int, window_size: int, mlp_ratio: float, layer_scale: float | None
    ) -> None:
        super().__init__()
        num_scans = (depth + 1) // 2
        self.blocks = nn.ModuleList()
        for index in range(depth):
            mixer = MambaMixer(channels) if index < num_scans else WindowAttention(channels, num_heads)
            self.blocks.append(TokenBlock(channels, mixer, mlp_ratio, layer_scale))
        self.num_branches = 2 * depth
        self.window_size = window_size

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        tokens = split_windows(x, self.window_size)
        if scales is not None:
            # `split_windows` makes a sample's windows neighbours in the batch; they are dropped together.
            scales = scales.repeat_interleave(tokens.shape[0] // x.shape[0], dim=0)
        for block in self.blocks:
            scale, scales = _take(scales, 2)
            tokens = block(tokens, scale)
        return merge_windows(tokens, self.window_size, height, width)


class TokenBlock(nn.Module):
    """Mixer and MLP, each behind a layer norm, with layer scale where asked, and a residual. Tokens (B, L, C)."""

    def __init__(self, channels: int, mixer: nn.Module, mlp_ratio: float, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.gamma_1 = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
        self.gamma_2 = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        mix_scale, mlp_scale = _take(scale, 1)
        branch = self.mixer(self.norm1(tokens))
        tokens = tokens + _scaled(branch if self.gamma_1 is None else self.gamma_1 * branch, mix_scale)
        branch = self.mlp(self.norm2(tokens))
        return tokens + _scaled(branch if self.gamma_2 is None else self.gamma_2 * branch, mlp_scale)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class WindowAttention(nn.Module):
    """Multi-head self-attention over the tokens of a window; (B, L, C) to the same shape."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels do not divide into {num_heads} heads; change dim or num_heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class MambaMixer(nn.Module):
    """MambaVision's mixer: half the channels go through a selective scan, half through a convolution only.

    Tokens (B, L, C) to the same shape. The convolutions are symmetric (Mamba's own are causal), so that a token sees
    its neighbours on both sides.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, self.dt_rank = channels // 2, math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, channels, bias=False)
        self.conv1d_x = DepthwiseConv1d(inner)
        self.conv1d_z = DepthwiseConv1d(inner)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * STATE_SIZE, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        # A starts at -1 .. -N in each channel, as in Mamba (S4D-real).
        self.A_log = nn.Parameter(torch.arange(1.0, STATE_SIZE + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(channels, channels, bias=False)
        # Decay would pull every A towards -1 and D towards 0.
        self.A_log._no_weight_decay = True
        self.D._no_weight_decay = True

    def forward(self, tokens: Tensor) -> Tensor:
        # Everything below lies in memory as the tokens do, (B, L, C); the ops see it as (B, C, L).
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        x, z = self.conv1d_x(x), self.conv1d_z(z)
        dt, B, C = self.x_proj(x.transpose(1, 2)).split([self.dt_rank, STATE_SIZE, STATE_SIZE], dim=-1)
        # In fp32 at least: a rounded A changes the decay of every step.
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        y = selective_scan(
            x,
            self.dt_proj(dt).transpose(1, 2),
            A,
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D,
            # The bias enters twice, in dt_proj and here: the public weights were trained so (NVlabs/MambaVision).
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
        )
        return self.out_proj(torch.cat([y.transpose(1, 2), z.transpose(1, 2)], dim=-1))


class DepthwiseConv1d(nn.Module):
    """Symmetric depthwise convolution of three taps, then SiLU; (B, C, L) to the same shape. No bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 3))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv1d(x, self.weight.squeeze(1), activation="silu")


def split_windows(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B * windows, size * size, C), zero-padded at the bottom and right; a sample's windows adjoin."""
    x = x.permute(0, 2, 3, 1)
    batch, height, width, channels = x.shape
    # Padded zeros are tokens like others: they enter the scan and the attention, as in the public code.
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = x.shape[1] // size, x.shape[2] // size
    # (B, rows, y in window, columns, x in window, C), then both window axes before both pixel axes
    x = x.reshape(batch, rows, size, columns, size, channels).transpose(2, 3)
    return x.reshape(batch * rows * columns, size * size, channels)


def merge_windows(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`: (B * windows, size * size, C) -> (B, C, height, width), the padding cut off."""
    rows, columns = -(-height // size), -(-width // size)
    channels = tokens.shape[-1]
    x = tokens.reshape(tokens.shape[0] // (rows * columns), rows, columns, size, size, channels).transpose(2, 3)
    x = x.reshape(-1, rows * size, columns * size, channels)[:, :height, :width]
    return x.permute(0, 3, 1, 2)


def _take(scales: Tensor | None, count: int) -> tuple[Tensor | None, Tensor | None]:
    """The first `count` columns and the rest; None for both where there is no drop-path."""
    return (None, None) if scales is None else (scales[:, :count], scales[:, count:])


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    """`branch` times its sample's drop-path scale, (B, 1)."""
    if scale is None:
        return branch
    return branch * scale.reshape(-1, *[1] * (branch.ndim - 1)).to(branch.dtype)


def _keep_probabilities(levels: nn.ModuleList, drop_path: float) -> Tensor:
    """(branches,): one number per residual branch, falling linearly over the blocks from 1 to 1 - drop_path."""
    branches_per_block = [level.num_branches // len(level.blocks) for level in levels for _ in level.blocks]
    last = len(branches_per_block) - 1
    return torch.tensor([1 - drop_path * i / last for i, count in enumerate(branches_per_block) for _ in range(count)])


def _init_weights(module: nn.Module) -> None:
    """Linear layers start at a truncated normal of 0.02 with zero biases (dt_proj's too); the rest keeps its own."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_stage_numbers(
    dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: Sequence[int], drop_path: float
) -> None:
    for name, numbers in (("depths", depths), ("num_heads", num_heads), ("window_size", window_size)):
        if len(numbers) != 4 or min(numbers) < 1:
            raise ValueError(f"{name} is {tuple(numbers)}; expected four numbers of at least 1, one per stage")
    if dim < 1:
        raise ValueError(f"dim is {dim}; expected at least 1 channel")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path is {drop_path}; expected a rate in [0, 1)")
