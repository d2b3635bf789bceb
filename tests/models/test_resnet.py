from __future__ import annotations

import torch

from dakd.models.resnet import ResNet34


def test_encoder_has_the_parameters_of_resnet34_without_classifier():
    with torch.device("meta"):
        model = ResNet34()
    assert sum(p.numel() for p in model.parameters()) == 21_284_672


@torch.no_grad()
def test_features_are_the_four_layers_at_strides_4_to_32():
    features = ResNet34().eval().forward_features(torch.randn(1, 3, 64, 96))
    shapes = [tuple(feature.shape) for feature in features]
    assert shapes == [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]


def test_parameters_bear_the_names_of_the_public_checkpoints():
    with torch.device("meta"):
        names = set(ResNet34().state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.2.conv2.weight", "layer2.0.downsample.0.weight"} <= names
    assert {"layer2.0.downsample.1.bias", "layer3.5.bn2.weight", "layer4.2.bn1.num_batches_tracked"} <= names
    assert not any(name.startswith(("layer1.0.downsample", "layer2.1.downsample", "fc")) for name in names)
