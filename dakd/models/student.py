"""The base class of all students: images of any size are padded for the net and cropped again, with optional hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from dakd.models.pretrained import load_public_checkpoint

if TYPE_CHECKING:
    from dakd.config import StudentConfig

# Strides of the encoders' coarsest maps: `encode` takes images whose sides are multiples of it.
COARSEST_STRIDE = 32


class StudentNet(nn.Module):
    """A net that segments images of any size.

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
            raise ValueError(f"num_classes is {num_classes}; wanted at least 2")
        self.num_classes = num_classes
        self.multiple = multiple

    @classmethod
    def from_config(cls, cfg: StudentConfig, num_classes: int) -> StudentNet:
        """The net of a section `train_saross.student`, with fresh weights."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) of any size, ImageNet-normalised -> logits (B, num_classes, H, W)."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image has shape {tuple(image.shape)}; wanted (B, 3, H, W), a grey image repeated thrice")
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

    def encode(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W), both sides multiples of 32 -> the encoder's maps, finest first."""
        raise NotImplementedError

    def segment(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W), both sides multiples of `multiple` -> logits of the same size."""
        raise NotImplementedError

    def load_pretrained(self, path: str | None) -> None:
        """Fills the encoder from the public checkpoint `train_saross.student.pretrained`; None leaves it as it is."""
        if path is not None:
            load_public_checkpoint(self.encoder, path)

    def set_sample_positions(self, positions: Tensor | None, seed: int = 0) -> None:
        """Ties random numbers of the next training pass to (seed, position), positions (B,) int64 on the host."""

    def loss_of(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """(B,) each: `loss`, which is trained on, and its parts. Only of nets with `has_own_loss`."""
        raise NotImplementedError

    def self_contained(self, cfg: StudentConfig) -> StudentConfig:
        """The settings `cfg` for the net's weights file: with all that rebuilds it, so that no other file is needed."""
        return cfg


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) padded at the bottom and right: mirrored, or the edge repeated on a side too short to mirror."""
    height, width = image.shape[-2:]
    if height < 1 or width < 1:
        raise ValueError(f"image is {height} x {width} pixels; wanted at least one pixel")
    for pad, size in (((0, -width % multiple, 0, 0), width), ((0, 0, 0, -height % multiple), height)):
        if any(pad):
            image = F.pad(image, pad, mode="reflect" if max(pad) < size else "replicate")
    return image
