"""ResNet-34 as a pyramid encoder (He et al. 2016), its parameters named as in the public ImageNet files."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet34(nn.Module):
    """The encoder without its classifier: 21,284,672 parameters, features of 64, 128, 256, 512 channels."""

    channels = (64, 128, 256, 512)
    # Parameters under these names belong to the classifier: they are not taken from a public file.
    classifier_prefixes = ("fc.",)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(64, 64, num_blocks=3, stride=1)
        self.layer2 = _layer(64, 128, num_blocks=4, stride=2)
        self.layer3 = _layer(128, 256, num_blocks=6, stride=2)
        self.layer4 = _layer(256, 512, num_blocks=3, stride=2)
        self.apply(_init_weights)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W) -> the outputs of the four layers, at strides 4, 8, 16, 32."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 2, 1)
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms and a residual; a 1x1 on the residual where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(branch + (x if self.downsample is None else self.downsample(x)))


def _layer(c_in: int, c_out: int, *, num_blocks: int, stride: int) -> nn.Sequential:
    blocks = [BasicBlock(c_in, c_out, stride)]
    blocks += [BasicBlock(c_out, c_out, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
