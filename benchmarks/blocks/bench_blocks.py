"""More than one op: a whole CAFT node, MambaVision's mixer, GroupNorm with SiLU, the U-Net's block, the encoder."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import roofline
import torch
import torch.nn.functional as F
from lib.calls import compile_with, count_launches, make_call, saved_bytes
from lib.nets import unet_config
from lib.race import Races, parse
from lib.table import COMPILED, EAGER, Row
from torch import Tensor, nn

from dakd.models.caft import CAFT, resize_to
from dakd.models.mamba_vision import STATE_SIZE, MambaMixer
from dakd.testing import plain

_DTYPE = torch.bfloat16
_SETS = 4


class PlainCAFT(CAFT):
    """The node with its core in plain torch."""

    def forward(self, f_hr: Tensor, f_lr: Tensor) -> Tensor:
        q = self.q_local(resize_to(self.q_proj(f_lr), f_hr.shape[-2:]))
        k, v = self.k_local(self.k_proj(f_hr)), self.v_local(self.v_proj(f_hr))
        return plain.transposed_attention(q, k, v, self.temperature, self.out_weight, f_hr, num_heads=self.num_heads)


class PublishedMixer(MambaMixer):
    """The mixer as NVlabs/MambaVision runs it: transposed to (B, C, L) for torch's convolutions and for the scan."""

    scan: Callable = staticmethod(plain.selective_scan)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x, z = self.in_proj(tokens).transpose(1, 2).contiguous().chunk(2, dim=1)
        x, z = (F.silu(F.conv1d(h, conv.weight.to(h.dtype), padding="same", groups=h.shape[1]))
                for h, conv in ((x, self.conv1d_x), (z, self.conv1d_z)))  # fmt: skip
        flat = self.x_proj(x.transpose(1, 2).reshape(-1, x.shape[1]))
        dt, B, C = flat.split([self.dt_rank, STATE_SIZE, STATE_SIZE], dim=-1)
        dt = self.dt_proj(dt).unflatten(0, (-1, length)).transpose(1, 2).contiguous()
        B, C = (part.unflatten(0, (-1, length)).transpose(1, 2).contiguous() for part in (B, C))
        y = self.scan(x, dt, -torch.exp(self.A_log.float()), B, C, self.D.float(), self.dt_proj.bias.float())
        return self.out_proj(torch.cat([y, z], dim=1).transpose(1, 2))


def caft_block(races: Races) -> None:
    shapes = ((1, 16, 8, 8),) if races.is_tiny else ((16, 128, 128, 128), (1, 128, 168, 320))
    for size, channels, height, width in shapes:
        nets = {EAGER: PlainCAFT, COMPILED: PlainCAFT, "dakd": CAFT}
        made = {name: _made(races, lambda kind=kind: kind(channels, 2 * channels, channels // 2, 1))  # noqa: B023
                for name, kind in nets.items()}  # fmt: skip
        inputs = [
            dict(f_hr=_map(races, size, channels, height, width),
                 f_lr=_map(races, size, 2 * channels, height // 2, width // 2))
            for _ in range(_SETS)
        ]  # fmt: skip
        least = roofline.caft_block(size, channels, height, width).forward_bytes
        _race(races, "caft_block", (size, channels, height, width), made, inputs, ("f_hr", "f_lr"), least)


def mixer(races: Races) -> None:
    for size, length, channels in ((2, 9, 32),) if races.is_tiny else ((144, 196, 512), (144, 49, 1024)):
        kinds = {EAGER: PublishedMixer, "dakd": MambaMixer}
        made = {name: _made(races, lambda kind=kind: kind(channels)) for name, kind in kinds.items()}  # noqa: B023
        peer = _mamba_ssm_scan()
        if peer is not None:
            made["published+mamba_ssm"] = _made(races, lambda: PublishedMixer(channels))  # noqa: B023
            made["published+mamba_ssm"].scan = peer
        inputs = [dict(tokens=torch.randn(size, length, channels, device=races.device, dtype=_DTYPE))
                  for _ in range(_SETS)]  # fmt: skip
        _race(races, "mixer", (size, length, channels), made, inputs, ("tokens",), None)


def gn_silu(races: Races, shapes: Sequence[tuple[int, int, int, int]] = ()) -> list[Row]:
    rows = []
    for shape in shapes or (((2, 8, 8, 8),) if races.is_tiny else roofline.NORMS):
        groups = min(32, shape[1])
        weight, bias = (torch.randn(shape[1], device=races.device, dtype=_DTYPE) for _ in range(2))

        def norm(x: Tensor, groups=groups, weight=weight, bias=bias) -> Tensor:
            return F.silu(F.group_norm(x, groups, weight, bias))

        made = {EAGER: norm, COMPILED: norm}
        inputs = [dict(x=_map(races, *shape)) for _ in range(_SETS)]
        work = roofline.group_norm_silu(*shape)
        rows += _race(races, "gn_silu", shape, made, inputs, ("x",), work.forward_bytes,
                      work.bytes("forward+backward"))  # fmt: skip
    return rows


def gn_silu_candidate(races: Races) -> list[Row]:
    """The forward pass of blocks/fused_norm.py against eager torch, on a GPU."""
    from blocks import fused_norm

    rows = []
    for shape in ((2, 8, 8, 8),) if races.is_tiny else roofline.NORMS:
        norm = _made(races, lambda: nn.GroupNorm(min(32, shape[1]), shape[1]))  # noqa: B023
        inputs = [_map(races, *shape) for _ in range(_SETS)]
        made = {EAGER: lambda x, norm=norm: F.silu(norm(x)),
                "fused": lambda x, norm=norm: fused_norm.norm_silu(x, norm)}  # fmt: skip
        calls = {name: [make_call(call, dict(x=x), ("x",), "forward") for x in inputs] for name, call in made.items()}
        least = roofline.group_norm_silu(*shape).forward_bytes
        rows += races.race("gn_silu", str(shape), "bf16", "forward", calls, least_bytes=least,
                           facts=lambda *_: dict(layout="channels_last"))  # fmt: skip
    return rows


def residual_block(races: Races, shape: tuple[int, int, int, int] | None = None) -> list[Row]:
    """The U-Net's block at its widest level, compiled on its own, as a user would compile a net by regions."""
    from dakd.models.unet import ResBlock

    shape = shape or ((2, 8, 8, 8) if races.is_tiny else (16, 128, 256, 256))
    norm_groups = unet_config(races.is_tiny).norm_groups
    block = _made(races, lambda: ResBlock(shape[1], shape[1], 4 * shape[1], norm_groups))
    made = {EAGER: block, "channels_last": copy.deepcopy(block).to(memory_format=torch.channels_last)}
    made[COMPILED] = made["channels_last"]
    shift = torch.randn(shape[0], shape[1], device=races.device, dtype=_DTYPE)
    inputs = [dict(h=_map(races, *shape), shift=shift) for _ in range(2)]
    return _race(races, "res_block", shape, made, inputs, ("h",), None)


def encoder(races: Races) -> list[Row]:
    """MambaVision-B's classifier as published: images of 224 x 224, a batch of 128, inference (goal G14)."""
    from dakd.models.mamba_vision import VARIANTS, MambaVision

    size, side = (2, 32) if races.is_tiny else (128, 224)
    options = dict(VARIANTS["B"])
    if races.is_tiny:
        options = dict(dim=24, in_dim=16, depths=[1, 1, 2, 2], num_heads=[1, 2, 4, 8], window_size=[8, 8, 4, 2])
    net = _made(races, lambda: MambaVision(num_classes=1000, **options)).eval().to(memory_format=torch.channels_last)
    image = _map(races, size, 3, side, side)

    @torch.no_grad()
    def forward() -> object:
        return net(image)

    calls = {EAGER: [forward]}
    if races.is_gpu:
        calls["dakd"] = [captured(forward)]
    flop = None if races.is_tiny else 2 * 15.0e9 * size  # 15.0 GMAC an image, as published

    def facts(name: str, timing) -> dict:
        return dict(
            images_per_s=size / timing.best_us * 1e6,
            layout="channels_last",
            note="one captured graph" if name == "dakd" else "",
        )

    what = f"MambaVision-B, {size} x 3 x {side} x {side}"
    return races.race("encoder", what, "bf16", "forward", calls, flop=flop, facts=facts)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph, which is captured when it is first asked for: if that fails, the others are timed."""
    graphs: list[Callable[[], None]] = []

    def replay() -> None:
        from dakd.diffusion.sampler import capture_graph

        if not graphs:
            graphs.append(capture_graph(call, lambda: None, torch.device("cuda")))
        graphs[0]()

    return replay


def _race(races: Races, op: str, shape: tuple, made: dict[str, Callable], inputs: list[dict],
          differentiable: tuple[str, ...], least: int | None, least_both: int | None = None) -> list[Row]:  # fmt: skip
    rows = []
    parameters = {name: list(net.parameters()) if isinstance(net, nn.Module) else [] for name, net in made.items()}
    made = {name: compile_with(net, races.compile_mode()) if name == COMPILED else net for name, net in made.items()}
    for what, count in (("forward", least), ("forward+backward", least_both)):
        calls = {
            name: [make_call(net, given, differentiable, what, parameters[name]) for given in inputs]
            for name, net in made.items()
        }

        def facts(name: str, _timing, calls=calls, what=what) -> dict:
            found = dict(peak_gb=races.peak_gb(calls[name][0]))
            if races.is_gpu:
                found["launches"] = count_launches(calls[name][0])
            if what == "forward+backward":
                found["saved_mb"] = saved_bytes(made[name], inputs[0], differentiable, parameters[name]) / 1e6
            return found

        rows += races.race(op, str(shape), "bf16", what, calls, least_bytes=count, facts=facts)
    return rows


def _made(races: Races, make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(races.device):
        return make().to(dtype=_DTYPE)


def _map(races: Races, size: int, channels: int, height: int, width: int) -> Tensor:
    made = torch.randn(size, channels, height, width, device=races.device, dtype=_DTYPE)
    return made.to(memory_format=torch.channels_last)


def _mamba_ssm_scan() -> Callable | None:
    from dakd.kernels import backend
    from dakd.kernels.selective_scan import selective_scan

    if backend.why_not("selective_scan", "mamba_ssm", "cuda") is not None:
        return None
    return lambda *inputs: selective_scan(*inputs, backend="mamba_ssm")


BENCHES = {"caft_block": caft_block, "mixer": mixer, "gn_silu": gn_silu, "res_block": residual_block,
            "encoder": encoder}  # fmt: skip


def main() -> None:
    options = parse(__doc__, choices=tuple(BENCHES))
    races = Races.of(options)
    for name in options.only or BENCHES:
        BENCHES[name](races)


if __name__ == "__main__":
    main()
