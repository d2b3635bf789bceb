from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from dakd.models.rivals.sam_oil.detector import build_detector, import_detection, plain_nms, plain_roi_align

TINY = {"box_batch_size_per_image": 8, "rpn_pre_nms_top_n_train": 20, "rpn_post_nms_top_n_train": 10}
NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"


class Blobs(nn.Module):
    """Stands in for a user's detector."""

    def __init__(self, num_classes: int, size: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, size))

    def forward(self, image):
        return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)} for _ in image]

    def training_loss(self, image, targets):
        return self.weight.sum() * torch.ones(len(image))


class NoLoss(nn.Module):
    pass


def random_boxes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(count, 2, generator=generator) * 20, 1 + torch.rand(count, 2, generator=generator) * 15
    return torch.cat([corner, corner + size], 1), torch.rand(count, generator=generator)


def test_nms_keeps_by_hand_what_overlaps_less_than_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.1])
    # Against the second: IoU 0.9 of the first, 5/9 of the third.
    assert plain_nms(boxes, scores, 0.5).tolist() == [1, 3]
    assert plain_nms(boxes, scores, 0.6).tolist() == [1, 2, 3]
    assert plain_nms(boxes, scores, 0.95).tolist() == [1, 2, 0, 3]
    assert plain_nms(boxes[:0], scores[:0], 0.5).tolist() == []


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_what_nms_keeps_overlaps_no_more_and_what_it_drops_does(threshold):
    import_detection()
    from torchvision.ops import box_iou

    boxes, scores = random_boxes(120, seed=1)
    kept = plain_nms(boxes, scores, threshold)
    overlap = box_iou(boxes, boxes)
    assert (scores[kept].diff() <= 0).all()
    assert (overlap[kept][:, kept].fill_diagonal_(0) <= threshold).all()
    for dropped in set(range(120)) - set(kept.tolist()):
        better = kept[scores[kept] > scores[dropped]]
        assert (overlap[dropped, better] > threshold).any()


def test_nms_is_torchvisions_where_that_is_there():
    import_detection()
    from torchvision import extension

    if not extension._has_ops():
        pytest.skip("this torchvision has no compiled operators")
    from torchvision.ops import nms

    for seed in range(5):
        boxes, scores = random_boxes(200, seed)
        assert torch.equal(plain_nms(boxes, scores, 0.5), nms(boxes, scores, 0.5))


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_is_that_of_torchvision_forward_and_backward(aligned):
    import_detection()
    definition = sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 16, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    corner = torch.rand(9, 2, generator=generator) * torch.tensor([30.0, 40.0])
    end = corner + torch.rand(9, 2, generator=generator) * (torch.tensor([48.0, 64.0]) - corner)
    boxes = torch.cat([corner, end], 1).double()
    boxes[0] = torch.tensor([0.0, 0, 48, 64])
    boxes[1] = torch.tensor([47.0, 63, 48, 64])
    rois = torch.cat([torch.tensor([0, 1, 1, 0, 0, 1, 0, 0, 1])[:, None].double(), boxes], 1)
    weight = torch.randn(9, 3, 7, 5, generator=generator, dtype=torch.float64)
    results = []
    for function in (plain_roi_align, lambda f, r, size, *rest: definition(f, r, rest[0], *size, *rest[1:])):
        pooled = function(features, rois, (7, 5), 0.25, 2, aligned)
        results.append((pooled, *torch.autograd.grad((pooled * weight).sum(), features)))
    torch.testing.assert_close(results[0], results[1])
    split = [boxes[rois[:, 0] == i] for i in range(2)]
    by_image = plain_roi_align(features, split, (7, 5), 0.25, 2, aligned)
    torch.testing.assert_close(by_image[:5], results[0][0][rois[:, 0] == 0])
    assert plain_roi_align(features, [boxes[:0]] * 2, 7, 0.25, 2).shape == (0, 3, 7, 7)


def test_the_loss_is_by_sample_and_that_of_torchvision_and_falls():
    torch.manual_seed(0)
    detector = build_detector(NAME, 3, TINY)
    for module in detector.modules():  # so that a sample does not depend on the others
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    image = torch.randn(2, 3, 64, 64)
    image[0, :, 10:30, 20:50] += 4
    targets = [
        {"boxes": torch.tensor([[20.0, 10, 50, 30]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    torch.manual_seed(1)
    losses = detector.training_loss(image, targets)
    torch.manual_seed(1)
    whole = detector.net(list(image[:1]), targets[:1])
    assert losses.shape == (2,)
    torch.testing.assert_close(losses[0], sum(whole.values()))
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-3)
    start = losses.sum().item()
    for _ in range(4):
        optimizer.zero_grad()
        losses = detector.training_loss(image, targets).sum()
        losses.backward()
        optimizer.step()
    assert losses.item() < 0.9 * start


def test_images_keep_their_size_unless_one_is_asked_for():
    for options, side in ({}, 64), ({"min_size": 96, "max_size": 96}, 96):
        detector = build_detector(NAME, 3, TINY | options)
        image = torch.randn(1, 3, 64, 64)
        images, _ = detector.net.transform(list(image))
        assert images.image_sizes == [(side, side)]
        if side == 64:
            torch.testing.assert_close(images.tensors, image)


def test_a_users_class_is_built_by_its_name():
    detector = build_detector(f"{__name__}:Blobs", 5, {"size": 3})
    assert type(detector).__name__ == "Blobs" and detector.weight.shape == (5, 3)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("fasterrcnn_resnet50", {}, "did you mean fasterrcnn_resnet50_fpn"),
        ("nowhere.at.all:Net", {}, "cannot be imported"),
        ("os:system", {}, "expected a subclass of torch.nn.Module"),
        ("HERE:NoLoss", {}, "with a method training_loss"),
        ("HERE:Missing", {}, "cannot be imported"),
        (NAME, {"num_classes": 3}, "may not set num_classes"),
        (NAME, {"colour": 3}, "colour are unknown"),
    ],
)
def test_what_is_no_detector_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_detector(name.replace("HERE", __name__), 5, options)


def test_a_missing_torchvision_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(RuntimeError, match=r"needs torchvision.*pip install -e '\.\[rivals\]'"):
        build_detector(NAME, 5, {})
