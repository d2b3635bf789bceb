"""Operands of every op, by op and by shape: the one source for tests and benchmarks.

`operands(op, shape)` returns the keyword arguments of the public function, seeded: two calls give equal tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The inputs of each op that have a gradient.
DIFFERENTIABLE = {
    "transposed_attention": ("q", "k", "v", "temperature", "out_weight", "residual"),
    "selective_scan": ("u", "delta", "A", "B", "C", "D", "delta_bias"),
    "depthwise_conv1d": ("x", "weight", "bias"),
    "seg_loss": ("logits",),
    "ddim_step": (),
    "joint_noising": (),
}

LAYOUTS = ("contiguous", "channels_last", "tokens")
# Outputs of a net, which have its memory layout: maps are channels_last, a mixer's sequences lie as (B, L, D).
# The sampler's state, the loader's images and the shards' soft labels are contiguous.
FEATURES = {
    "transposed_attention": ("q", "k", "v", "residual"),
    "ddim_step": ("x0_pred", "logits", "x0_before", "logits_before"),
    "joint_noising": (),
    "seg_loss": ("logits",),
    "selective_scan": ("u", "delta", "B", "C"),
    "depthwise_conv1d": ("x",),
}
# The layout in which the models call each op.
MODEL_LAYOUT = {
    "transposed_attention": "channels_last",
    "ddim_step": "channels_last",
    "joint_noising": "contiguous",
    "seg_loss": "channels_last",
    "selective_scan": "tokens",
    "depthwise_conv1d": "tokens",
}

# Numbers that a shape may have besides those of its named ones. order: 2 for a step of a solver of second order.
OPTIONAL_SIZES = {"ddim_step": {"order"}}

# Named shapes; the numbers are the keyword arguments of the op's builder below.
SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "depthwise_conv1d": {
        "tiny": dict(batch=2, channels=3, length=5),
        "one": dict(batch=1, channels=1, length=1),
        "odd": dict(batch=3, channels=63, length=129),
        "empty": dict(batch=0, channels=4, length=7),
        "small": dict(batch=16, channels=64, length=196),
        "main": dict(batch=144, channels=256, length=196),
    },
    "selective_scan": {
        "tiny": dict(batch=2, channels=3, states=2, length=5),
        "one": dict(batch=1, channels=1, states=1, length=1),
        "odd": dict(batch=2, channels=63, states=3, length=129),
        "empty": dict(batch=0, channels=4, states=2, length=7),
        "small": dict(batch=16, channels=64, states=8, length=49),
        "l196": dict(batch=4, channels=320, states=8, length=196),
        "l1024": dict(batch=1, channels=320, states=8, length=1024),
        "l3136": dict(batch=1, channels=320, states=8, length=3136),
        "main": dict(batch=144, channels=256, states=8, length=196),
    },
    "transposed_attention": {
        "tiny": dict(batch=2, inner=4, channels=3, height=2, width=3, num_heads=2),
        "one": dict(batch=1, inner=1, channels=1, height=1, width=1, num_heads=1),
        "odd": dict(batch=2, inner=63, channels=129, height=7, width=9, num_heads=3),
        "empty": dict(batch=0, inner=4, channels=3, height=2, width=3, num_heads=2),
        "small": dict(batch=2, inner=64, channels=128, height=32, width=32, num_heads=1),
        "osd": dict(batch=1, inner=64, channels=128, height=160, width=312, num_heads=1),
        "sos": dict(batch=4, inner=64, channels=128, height=64, width=64, num_heads=1),
        "main": dict(batch=16, inner=64, channels=128, height=128, width=128, num_heads=1),
    },
    "joint_noising": {
        "tiny": dict(batch=2, num_classes=3, height=2, width=3),
        "one": dict(batch=1, num_classes=2, height=1, width=1),
        "odd": dict(batch=3, num_classes=5, height=63, width=43),
        "empty": dict(batch=0, num_classes=2, height=4, width=4),
        "small": dict(batch=4, num_classes=5, height=64, width=64),
        "main": dict(batch=16, num_classes=5, height=256, width=256),
    },
    "seg_loss": {
        "tiny": dict(batch=3, synthetic=1, num_classes=3, height=2, width=3),
        "one": dict(batch=1, synthetic=0, num_classes=2, height=1, width=1),
        "odd": dict(batch=4, synthetic=2, num_classes=5, height=63, width=43),
        "empty": dict(batch=0, synthetic=0, num_classes=2, height=4, width=4),
        "small": dict(batch=4, synthetic=2, num_classes=5, height=64, width=64),
        "main": dict(batch=16, synthetic=8, num_classes=5, height=512, width=512),
    },
    "ddim_step": {
        "tiny": dict(batch=2, num_classes=3, height=2, width=3),
        "one": dict(batch=1, num_classes=2, height=1, width=1),
        "odd": dict(batch=3, num_classes=8, height=63, width=43),
        "empty": dict(batch=0, num_classes=2, height=4, width=4),
        "small": dict(batch=4, num_classes=5, height=64, width=64),
        "main": dict(batch=16, num_classes=5, height=256, width=256),
    },
}


def operands(
    op: str,
    shape: str | dict[str, int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    drawn_on: str = "cpu",
) -> dict:
    """Keyword arguments for `op` at a named shape or at one given by its numbers; feature tensors have `dtype`.

    drawn_on: "cuda" draws hundreds of millions of numbers in no time; they are other numbers than those of "cpu".
    """
    sizes = SHAPES[op][shape] if isinstance(shape, str) else shape
    generator = torch.Generator(drawn_on).manual_seed(seed)
    arguments = _BUILDERS[op](generator, **sizes)
    return {name: _place(value, dtype, device) for name, value in arguments.items()}


def laid_out(op: str, inputs: dict, layout: str) -> dict:
    """The op's operands with its features laid out as `layout`: one of LAYOUTS, or "model", the models' own."""
    layout = MODEL_LAYOUT[op] if layout == "model" else layout
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; expected one of model, {', '.join(LAYOUTS)}")
    return inputs | {name: _lay(inputs[name], layout) for name in FEATURES[op] if isinstance(inputs.get(name), Tensor)}


def _lay(tensor: Tensor, layout: str) -> Tensor:
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.mT.contiguous().mT if layout == "tokens" and tensor.dim() == 3 else tensor


def sliced(tensor: Tensor) -> Tensor:
    """The same values as a view into a larger tensor: not contiguous in its last dimension, with an offset."""
    larger = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
    view = larger[..., 1::2]
    view.copy_(tensor)
    return view


def _place(value, dtype: torch.dtype, device: str | torch.device):
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device=_device(generator))


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64, device=_device(generator))


def _device(generator: torch.Generator) -> torch.device | None:
    """None on a CPU, so that a caller's `with torch.device("meta")` holds."""
    return None if generator.device.type == "cpu" else generator.device


def _depthwise_conv1d(generator: torch.Generator, *, batch: int, channels: int, length: int) -> dict:
    return dict(
        x=_normal(generator, batch, channels, length),
        weight=_normal(generator, channels, 3),
        bias=_normal(generator, channels),
    )


def _selective_scan(generator: torch.Generator, *, batch: int, channels: int, states: int, length: int) -> dict:
    return dict(
        u=_normal(generator, batch, channels, length),
        delta=_normal(generator, batch, channels, length),
        A=-0.1 - torch.arange(1, states + 1, device=_device(generator)) * _uniform(generator, channels, states),
        B=_normal(generator, batch, states, length),
        C=_normal(generator, batch, states, length),
        D=_normal(generator, channels),
        delta_bias=_normal(generator, channels) - 2,
    )


def _transposed_attention(
    generator: torch.Generator, *, batch: int, inner: int, channels: int, height: int, width: int, num_heads: int
) -> dict:
    return dict(
        q=_normal(generator, batch, inner, height, width),
        k=_normal(generator, batch, inner, height, width),
        v=_normal(generator, batch, inner, height, width),
        temperature=1 + _uniform(generator, num_heads),
        out_weight=_normal(generator, channels, inner) / inner**0.5,
        residual=_normal(generator, batch, channels, height, width),
        num_heads=num_heads,
    )


def _joint_noising(generator: torch.Generator, *, batch: int, num_classes: int, height: int, width: int) -> dict:
    num_timesteps = 1000
    alpha_bar = torch.linspace(0.9999, 1e-4, num_timesteps, dtype=torch.float64)
    return dict(
        image=torch.randint(0, 256, (batch, 1, height, width), generator=generator, dtype=torch.uint8,
                            device=_device(generator)),
        label=_labels(generator, batch, num_classes, height, width),
        positions=torch.arange(batch) + 2**33,
        tables=torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()], dim=1),
        b=0.528,
        num_classes=num_classes,
        seed=3,
    )


def _ddim_step(
    generator: torch.Generator, *, batch: int, num_classes: int, height: int, width: int, order: int = 1
) -> dict:
    inputs = dict(
        x=_normal(generator, batch, 1, height, width),
        y=_normal(generator, batch, num_classes, height, width),
        x0_pred=_normal(generator, batch, 1, height, width),
        logits=4 * _normal(generator, batch, num_classes, height, width),
        coefficients=_uniform(generator, 20, 4),
        step=torch.tensor([7]),
        b=0.528,
        seed=3,
        sample_ids=torch.arange(batch) + 2**33,
    )
    if order == 2:
        inputs["x0_before"] = _normal(generator, batch, 1, height, width)
        inputs["logits_before"] = 4 * _normal(generator, batch, num_classes, height, width)
    return inputs


def _seg_loss(
    generator: torch.Generator, *, batch: int, synthetic: int, num_classes: int, height: int, width: int
) -> dict:
    """The last `synthetic` samples are synthetic; their rows in the teacher's logits run backwards."""
    rows = torch.full((batch,), -1, dtype=torch.int64)
    rows[batch - synthetic :] = torch.arange(synthetic - 1, -1, -1)
    return dict(
        logits=3 * _normal(generator, batch, num_classes, height, width),
        labels=_labels(generator, batch, num_classes, height, width),
        teacher=3 * _normal(generator, synthetic, num_classes, height, width),
        teacher_row=rows,
    )


def _labels(generator: torch.Generator, batch: int, num_classes: int, height: int, width: int) -> Tensor:
    """(B, H, W) uint8 ids, a tenth of them 255 (ignored)."""
    labels = torch.randint(0, num_classes, (batch, height, width), generator=generator, dtype=torch.uint8,
                           device=_device(generator))  # fmt: skip
    return labels.masked_fill(_uniform(generator, batch, height, width) < 0.1, 255)


_BUILDERS = {
    "joint_noising": _joint_noising,
    "ddim_step": _ddim_step,
    "seg_loss": _seg_loss,
    "depthwise_conv1d": _depthwise_conv1d,
    "selective_scan": _selective_scan,
    "transposed_attention": _transposed_attention,
}
