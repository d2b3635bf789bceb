"""What the rivals of SAROSS-Net share: images of any size, padded for the net and cropped again."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from dakd.models.saross import pad_to_multiple


class Student(nn.Module, ABC):
    """A net that segments images of any size.

    A subclass has an `encoder` and implements `encode` and `segment` for sides that are multiples of `multiple`.
    """

    def __init__(self, num_classes: int, multiple: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; wanted at least 2")
        self.num_classes, self.multiple = num_classes, multiple

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

    @abstractmethod
    def encode(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W), both sides multiples of 32 -> the encoder's maps, finest first."""

    @abstractmethod
    def segment(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W), both sides multiples of `multiple` -> logits of the same size."""
