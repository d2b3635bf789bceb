"""DeepLabv2 (Chen et al. 2017): a ResNet of output stride 8 and four parallel dilated classifiers, summed.

Its multi-scale test is `evaluate.scales` (models/student.py). The CRF of its paper is left out, as in
the tables of our paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dakd.models.caft import resize_to
from dakd.models.rivals.smp_nets import build_smp_encoder, encoder_maps, load_smp_encoder
from dakd.models.student import StudentNet

if TYPE_CHECKING:
    from dakd.config import StudentConfig


class DeepLabV2(StudentNet):
    """encoder: any of smp's that can be dilated.  rates: dilations of the classifiers.  output_stride: 8, 16 or 32."""

    def __init__(
        self,
        encoder: str,
        num_classes: int,
        rates: Sequence[int] = (6, 12, 18, 24),
        output_stride: int = 8,
    ) -> None:
        super().__init__(num_classes, output_stride)
        if not rates or any(not isinstance(rate, int) or rate < 1 for rate in rates):
            raise ValueError(f"rates of deeplabv2 are {rates}; expected whole numbers of at least 1")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride of deeplabv2 is {output_stride}; expected 8, 16 or 32")
        self.encoder = build_smp_encoder(encoder, output_stride, "deeplabv2")
        channels = self.encoder.out_channels[-1]
        self.classifiers = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        )
        for classifier in self.classifiers:
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)

    @classmethod
    def from_config(cls, cfg: StudentConfig, num_classes: int) -> DeepLabV2:
        known = ("rates", "output_stride")
        if unknown := [key for key in cfg.encoder_options if key not in known]:
            raise ValueError(
                f"encoder_options {', '.join(unknown)} are unknown to deeplabv2; known: {', '.join(known)}"
            )
        return cls(cfg.encoder, num_classes, **cfg.encoder_options)

    def encode(self, image: Tensor) -> list[Tensor]:
        return encoder_maps(self.encoder, image)

    def segment(self, image: Tensor) -> Tensor:
        coarsest = self.encoder(image)[-1]
        scores = sum(classifier(coarsest) for classifier in self.classifiers)
        return resize_to(scores, image.shape[-2:])

    def load_pretrained(self, path: str | None) -> None:
        load_smp_encoder(self.encoder, path)
