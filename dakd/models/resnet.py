"""ResNet-18 and -34 as pyramid encoders (He et al. 2016), their parameters named as in the public ImageNet files."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


class BasicResNet(nn.Module):
    """A ResNet of basic blocks without its classifier.

    num_blocks: of the four layers.  width: channels of the first; each further layer has twice those of the one before.
    """

    # Parameters under these names belong to the classifier: they are not taken from a public file.
    classifier_prefixes = ("fc.",)

    def __init__(self, num_blocks: tuple[int, int, int, int], width: int = 64) -> None:
        super().__init__()
        self.channels = (width, 2 * width, 4 * width, 8 * width)
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _layer(width, width, num_blocks=num_blocks[0], stride=1)
        self.layer2 = _layer(width, 2 * width, num_blocks=num_blocks[1], stride=2)
        self.layer3 = _layer(2 * width, 4 * width, num_blocks=num_blocks[2], stride=2)
        self.layer4 = _layer(4 * width, 8 * width, num_blocks=num_blocks[3], stride=2)
        self.apply(_init_weights)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def stem(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) -> the input of the first layer, at stride 4."""
        return F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 2, 1)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W) -> the outputs of the four layers, at strides 4, 8, 16, 32."""
        x = self.stem(image)
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features


class ResNet18(BasicResNet):
    """11,176,512 parameters, features of 64, 128, 256, 512 channels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__((2, 2, 2, 2), width)


class ResNet34(BasicResNet):
    """21,284,672 parameters, features of 64, 128, 256, 512 channels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__((3, 4, 6, 3), width)


RESNETS = {"resnet18": ResNet18, "resnet34": ResNet34}


def build_resnet(name: str, options: Mapping[str, int]) -> BasicResNet:
    """A ResNet by name.  options: `width`; ValueError for others."""
    if unknown := [key for key in options if key != "width"]:
        raise ValueError(f"encoder_options {', '.join(unknown)} are unknown to {name}; known: width")
    return RESNETS[name](**options)


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
