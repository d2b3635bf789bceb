"""The detector of SAM-OIL: torchvision's Faster R-CNN, or a class of the user's with the same two methods."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections import OrderedDict
from types import ModuleType
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dakd.models.encoders import import_torchvision
from dakd.shipped import extra_remedy

# torchvision's factories that take `weights` and `weights_backbone`.
DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)


@runtime_checkable
class Detector(Protocol):
    """A module that is built as `Class(num_classes, **encoder_options)`; class 0 is the background.

    The cost that `--dry-run` prints leaves out a detector that is not torchvision's.
    """

    def __call__(self, image: Tensor) -> list[dict[str, Tensor]]:
        """image (B, 3, H, W), ImageNet-normalised -> of each `boxes` (n, 4) x0 y0 x1 y1 in pixels, `labels` (n,) int64
        from 1, `scores` (n,) in (0, 1]. In eval mode."""

    def training_loss(self, image: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """(B,) losses with a gradient, of targets with `boxes` and `labels`, of which an image may have none."""


def build_detector(name: str, num_classes: int, options: dict) -> nn.Module:
    """A detector with fresh weights: one of DETECTORS, or `package.module:Class`.

    num_classes: with the background.  options: keyword arguments of torchvision's factory or of the class.
    ValueError for an unknown name; RuntimeError where torchvision is needed and not installed.
    """
    if ":" in name:
        return _users_class(name)(num_classes, **options)
    if name not in DETECTORS:
        nearest = difflib.get_close_matches(name, DETECTORS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ValueError(f"detector {name!r} is unknown; {hint}Known: {', '.join(DETECTORS)}, package.module:Class")
    return TorchvisionDetector(name, num_classes, options)


def _users_class(name: str) -> type[nn.Module]:
    # Only a module's class is ever called: the name may come from a weights file of unknown origin.
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"detector {name!r} cannot be imported: {error}; give package.module:Class") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module) and issubclass(found, Detector)):
        raise ValueError(
            f"detector {name!r} is {found!r:.100}; expected a subclass of torch.nn.Module with a method training_loss "
            "(dakd.models.rivals.sam_oil.detector.Detector describes it)"
        )
    return found


class TorchvisionDetector(nn.Module):
    """Faster R-CNN with fresh weights, on images as they are: ImageNet-normalised, at their own size.

    options: of torchvision's factory; `min_size` and `max_size` (pixels) have images resized first.
    """

    reserved_options = ("weights", "weights_backbone", "num_classes", "image_mean", "image_std")

    def __init__(self, name: str, num_classes: int, options: dict) -> None:
        super().__init__()
        if reserved := [key for key in self.reserved_options if key in options]:
            raise ValueError(f"encoder_options of {name} may not set {', '.join(reserved)}; leave them out")
        detection = import_detection()
        # torchvision would ignore an unknown option silently.
        known = [*inspect.signature(detection.FasterRCNN.__init__).parameters, "trainable_backbone_layers"]
        if unknown := [key for key in options if key not in known]:
            raise ValueError(
                f"encoder_options {', '.join(unknown)} are unknown to {name}; known: {', '.join(known[3:])}"
            )
        settings = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3} | options
        # Resizing is torchvision's default; ours is none.
        if not {"min_size", "max_size"} & set(options):
            settings["_skip_resize"] = True
        self.net = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=num_classes, **settings)

    def forward(self, image: Tensor) -> list[dict[str, Tensor]]:
        with torch.autocast(image.device.type, enabled=False):
            return self.net(list(image.float()))

    def features(self, image: Tensor) -> None:
        """The part whose cost does not depend on the objects in the image."""
        self.net.backbone(image)

    def training_loss(self, image: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """(B,): the sums of the losses of proposals and heads, computed image by image."""
        images, targets = self.net.transform(list(image), targets)
        features = self.net.backbone(images.tensors)
        losses = []
        # Boxes are in pixels; half precision rounds neighbouring ones to one number.
        with torch.autocast(image.device.type, enabled=False):
            for i, (size, target) in enumerate(zip(images.image_sizes, targets)):
                own = OrderedDict((name, feature[i : i + 1].float()) for name, feature in features.items())
                one = type(images)(images.tensors[i : i + 1], [size])
                proposals, of_proposals = self.net.rpn(one, own, [target])
                _, of_heads = self.net.roi_heads(own, proposals, [size], [target])
                losses.append(sum(of_proposals.values()) + sum(of_heads.values()))
        return torch.stack(losses)


def import_detection() -> ModuleType:
    """torchvision.models.detection, able to run also where torchvision's compiled operators do not fit this torch.

    There torchvision has no `nms`, and its `roi_align` takes seconds per image: plain PyTorch replaces both.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise RuntimeError(
            f"the detector of sam_oil needs torchvision, which is not installed; {extra_remedy('rivals')}"
        )
    import_torchvision()
    detection = importlib.import_module("torchvision.models.detection")
    if not importlib.import_module("torchvision.extension")._has_ops():
        importlib.import_module("torchvision.ops.boxes").nms = plain_nms
        importlib.import_module("torchvision.ops.poolers").roi_align = plain_roi_align
    return detection


def plain_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """(m,) int64: the boxes that remain, by falling score, when each removes the later ones that overlap it more.

    boxes: (n, 4) x0 y0 x1 y1.  scores: (n,).  iou_threshold: of the boxes' intersection over union.
    """
    order = scores.argsort(descending=True, stable=True)
    x0, y0, x1, y1 = boxes[order].detach().double().cpu().numpy().T
    area = (x1 - x0) * (y1 - y0)
    is_removed, kept = np.zeros(len(order), bool), []
    for i in range(len(order)):
        if is_removed[i]:
            continue
        kept.append(i)
        width = np.minimum(x1[i], x1[i + 1 :]) - np.maximum(x0[i], x0[i + 1 :])
        height = np.minimum(y1[i], y1[i + 1 :]) - np.maximum(y0[i], y0[i + 1 :])
        shared = width.clip(min=0) * height.clip(min=0)
        is_removed[i + 1 :] |= shared > iou_threshold * (area[i] + area[i + 1 :] - shared)
    return order[torch.as_tensor(kept, dtype=torch.int64, device=order.device)]


def plain_roi_align(
    input: Tensor,
    boxes: list[Tensor] | Tensor,
    output_size: tuple[int, int] | int,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """torchvision's `roi_align` of boxes that lie within their images, with `sampling_ratio`^2 samples a bin.

    input: (N, C, h, w).  boxes: N of (n_i, 4), or (n, 5) with the image's index first.  Result: (n, C, *output_size).
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    rois = boxes if isinstance(boxes, Tensor) else torch.cat(
        [torch.cat([own.new_full((len(own), 1), i), own], dim=1) for i, own in enumerate(boxes)]
    )
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    x = _sample_places(corners[:, 0], corners[:, 2], width, sampling_ratio, aligned)
    y = _sample_places(corners[:, 1], corners[:, 3], height, sampling_ratio, aligned)
    # Pixel i's centre is at i here, and at (2 i + 1) / size - 1 for grid_sample, which repeats the edge as this does.
    x, y = (2 * x + 1) / input.shape[3] - 1, (2 * y + 1) / input.shape[2] - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    pooled = input.new_zeros(len(rois), input.shape[1], height, width)
    for i, image in enumerate(input):
        own = (rois[:, 0] == i).nonzero()[:, 0]
        if not len(own):
            continue
        samples = F.grid_sample(
            image[None], grid[own].flatten(0, 1)[None].to(input.dtype), padding_mode="border", align_corners=False
        )
        samples = samples[0].unflatten(1, (len(own), height * sampling_ratio)).transpose(0, 1)
        pooled = pooled.index_copy(0, own, F.avg_pool2d(samples, sampling_ratio))
    return pooled


def _sample_places(start: Tensor, end: Tensor, num_bins: int, sampling_ratio: int, aligned: bool) -> Tensor:
    """(n, num_bins * sampling_ratio): evenly spread samples, the middles of equal parts of a side."""
    length = end - start if aligned else (end - start).clamp(min=1)
    count = num_bins * sampling_ratio
    places = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    return start[:, None] + length[:, None] * places
