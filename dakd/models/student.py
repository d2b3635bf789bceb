"""The base class of all students, and the test of any of them at several scales."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dakd.models.caft import resize_to
from dakd.models.pretrained import load_public_checkpoint

if TYPE_CHECKING:
    from dakd.config import StudentConfig

# Strides of the encoders' coarsest maps: `encode` takes images whose sides are multiples of it.
COARSEST_STRIDE = 32


class StudentNet(nn.Module, ABC):
    """A net that segments images of any size: they are padded for the net, and its logits are cropped again.

    A subclass has an `encoder` and implements `encode` and `segment`, the latter for sides that are multiples of
    `multiple`. The methods below them are hooks, whose defaults suit most nets.
    """

    has_own_loss = False
    """Whether it is trained by `loss_of` in place of the losses of `train_saross.loss`."""

    student_config: StudentConfig | None = None
    """The settings that `build_student` made it from; they are saved with its weights."""

    def __init__(self, num_classes: int, multiple: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; expected at least 2")
        self.num_classes = num_classes
        self.multiple = multiple

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: StudentConfig, num_classes: int) -> StudentNet:
        """The net of a section `train_saross.student`, with fresh weights."""

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) of any size, ImageNet-normalised -> logits (B, num_classes, H, W)."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image has shape {tuple(image.shape)}; expected (B, 3, H, W): repeat a grey image")
        if not image.is_floating_point():
            raise ValueError(f"image is {image.dtype}; expected floating point, normalised: see dakd.Student.predict")
        height, width = image.shape[-2:]
        try:
            return self.segment(pad_to_multiple(image, self.multiple))[..., :height, :width]
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"{type(self).__name__} has a batch norm that sees one value a channel of a batch of {len(image)} "
                f"image(s) of {height} x {width}; set micro_batch to 2 or more, a larger crop, or batch_norm to frozen"
            ) from error

    @abstractmethod
    def encode(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W), both sides multiples of 32 -> the encoder's maps, finest first."""

    @abstractmethod
    def segment(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W), both sides multiples of `multiple` -> logits of the same size."""

    def load_pretrained(self, path: str | None) -> None:
        """Fills the encoder from the public checkpoint `train_saross.student.pretrained`; None leaves it as it is."""
        if path is not None:
            load_public_checkpoint(self.encoder, path)

    def set_sample_positions(self, positions: Tensor | None, seed: int = 0) -> None:
        """Ties random numbers of the next training pass to (seed, position), positions (B,) int64 on the host."""

    def loss_of(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """(B,) each: `loss`, which is trained on, and its parts. Only of nets with `has_own_loss`."""
        raise TypeError(f"{type(self).__name__} has no loss of its own; train_saross.loss trains it")

    def self_contained(self, cfg: StudentConfig) -> StudentConfig:
        """The settings `cfg` for the net's weights file: with all that rebuilds it, so that no other file is needed."""
        return cfg


def uncompiled(net: nn.Module) -> nn.Module:
    """The net itself where torch.compile has wrapped it."""
    return getattr(net, "_orig_mod", net)


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Each module of a net in eval mode, and in its own again afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) padded at the bottom and right: mirrored, or the edge repeated on a side too short to mirror."""
    height, width = image.shape[-2:]
    if height < 1 or width < 1:
        raise ValueError(f"image is {height} x {width} pixels; expected at least one pixel")
    for pad, size in (((0, -width % multiple, 0, 0), width), ((0, 0, 0, -height % multiple), height)):
        if any(pad):
            image = F.pad(image, pad, mode="reflect" if max(pad) < size else "replicate")
    return image


def checked_logits(found: object, image: Tensor) -> Tensor:
    """What a net gives for an image (B, 3, H, W).  ValueError where it is no tensor (B, K, H, W)."""
    batch, height, width = len(image), *image.shape[-2:]
    is_tensor = isinstance(found, Tensor)
    if is_tensor and found.ndim == 4 and (len(found), *found.shape[2:]) == (batch, height, width):
        return found
    what = f"logits of shape {tuple(found.shape)}" if is_tensor else f"a {type(found).__name__}"
    raise ValueError(
        f"the net gives {what}; expected one tensor ({batch}, classes, {height}, {width}) for this image: wrap it "
        "in a module that returns its logits, resized to the image"
    )


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Factors of an image's size.  ValueError where there is none, and for one that is no positive number."""
    found = tuple(scales) if isinstance(scales, Iterable) else ()
    if not found or not all(isinstance(one, Real) and 0 < one < math.inf for one in found):
        raise ValueError(f"scales are {scales!r}; expected one or more positive numbers, such as (0.5, 0.75, 1)")
    return found


def at_scales(model: nn.Module, scales: Sequence[float]) -> nn.Module:
    """The model whose logits are the largest over `scales`; the model itself for (1.0,)."""
    return model if checked_scales(scales) == (1.0,) else MultiScale(model, scales)


class MultiScale(nn.Module):
    """Any student, image (B, 3, H, W) -> logits (B, K, H, W), tested at several scales.

    The logits of every scale are resized to the image's own size, and the largest at each pixel and class is taken, as
    DeepLabv2 does with the scales 0.5, 0.75 and 1 (Chen et al. 2017).
    """

    def __init__(self, model: nn.Module, scales: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.scales = checked_scales(scales)

    def forward(self, image: Tensor) -> Tensor:
        size = image.shape[-2:]
        fused: Tensor | None = None
        for scale in self.scales:
            scaled = image if scale == 1 else self._scaled(image, scale)
            logits = resize_to(checked_logits(self.model(scaled), scaled), size)
            fused = logits if fused is None else torch.maximum(fused, logits)
        return fused

    @staticmethod
    def _scaled(image: Tensor, scale: float) -> Tensor:
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False)
