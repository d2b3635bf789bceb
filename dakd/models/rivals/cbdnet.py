"""CBD-Net (Zhu et al. 2022): a ResNet with scSE gates, a chain of dilated convolutions, and a decoder of added skips.

    image -> stem -> [layer -> scSE] x 4 -> dilated centre -> block (+ map 3) -> block (+ map 2) -> block (+ map 1)
          -> block -> head -> logits

Its boundary term is `train_saross.loss.boundary`, which any student may have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dakd.models.resnet import RESNETS, BasicResNet, build_resnet
from dakd.models.student import StudentNet

if TYPE_CHECKING:
    from dakd.config import StudentConfig

# Mean and standard deviation of the students' images (data/transforms.py, to_student); a test compares the two.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Its images are g / 255 * 3.2 - 1.6 (public code of CBD-Net).
_SCALE, _SHIFT = 3.2, -1.6
_HEAD_CHANNELS = 32


class CBDNet(StudentNet):
    """The net around a ResNet of basic blocks; its own is ResNet-34."""

    def __init__(self, encoder: BasicResNet, num_classes: int) -> None:
        super().__init__(num_classes, multiple=32)
        c1, c2, c3, c4 = encoder.channels
        self.encoder = encoder
        self.gates = nn.ModuleList(SCSE(channels) for channels in encoder.channels)
        self.centre = DilatedCentre(c4)
        self.decoder = nn.ModuleList(DecoderBlock(*pair) for pair in ((c4, c3), (c3, c2), (c2, c1), (c1, c1)))
        self.head = nn.Sequential(
            nn.ConvTranspose2d(c1, _HEAD_CHANNELS, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(_HEAD_CHANNELS, _HEAD_CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_HEAD_CHANNELS, num_classes, 3, padding=1),
        )
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in _IMAGENET)
        self.register_buffer("image_scale", _SCALE * std, persistent=False)
        self.register_buffer("image_shift", _SCALE * mean + _SHIFT, persistent=False)

    @classmethod
    def from_config(cls, cfg: StudentConfig, num_classes: int) -> CBDNet:
        if cfg.encoder not in RESNETS:
            raise ValueError(f"encoder of cbdnet is {cfg.encoder!r}; expected {' or '.join(RESNETS)}")
        return cls(build_resnet(cfg.encoder, cfg.encoder_options), num_classes)

    def rescale(self, image: Tensor) -> Tensor:
        """ImageNet-normalised (B, 3, H, W) to CBD-Net's own -1.6 to 1.6."""
        return image * self.image_scale + self.image_shift

    def encode(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W), both sides multiples of 32 -> the four gated maps at strides 4, 8, 16, 32."""
        x = self.encoder.stem(self.rescale(image))
        maps = []
        for layer, gate in zip(self.encoder.layers, self.gates):
            x = gate(layer(x))
            maps.append(x)
        return maps

    def segment(self, image: Tensor) -> Tensor:
        *skips, x = self.encode(image)
        x = self.centre(x)
        for block in self.decoder:
            x = block(x)
            x = x + skips.pop() if skips else x
        return self.head(x)


class SCSE(nn.Module):
    """Concurrent channel and spatial gates, each between 0 and 1, summed: x (c(x) + s(x)) (Roy et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.excite = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.spatial = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        channel_gate = self.excite(self.squeeze(x.mean(dim=(2, 3), keepdim=True))).sigmoid()
        return x * (channel_gate + self.spatial(x).sigmoid())


class DilatedCentre(nn.Module):
    """Four 3x3 convolutions in a chain, dilated by 1, 2, 4, 8: the sum of the input and of all outputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation) for dilation in (1, 2, 4, 8)
        )
        for convolution in self.convolutions:
            nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        total = x
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
            total = total + x
        return total


class DecoderBlock(nn.Sequential):
    """1x1 to a quarter of the channels, a transposed 3x3 that doubles the size, and 1x1; batch norm and ReLU each."""

    def __init__(self, c_in: int, c_out: int) -> None:
        narrow = c_in // 4
        super().__init__(
            nn.Conv2d(c_in, narrow, 1),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.ConvTranspose2d(narrow, narrow, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, c_out, 1),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        )
