"""Crop, flip and normalisation, applied to the image, the label and the soft label together.

Random draws come from a generator that the caller keys by (seed, global position).
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dakd.data.sample import IGNORE_INDEX, Sample
from dakd.runtime.seeding import Stream, numpy_rng

# The statistics of ImageNet: weights that were trained on it expect them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def crop_and_flip(sample: Sample, size: tuple[int, int], flip: bool, seed: int, *ids: int) -> Sample:
    """Crop and flip, drawn by (seed, ids): the global position, and the tile in a mosaic."""
    if sample.sar.shape != size:
        sample = random_crop(sample, size, numpy_rng(seed, *ids, stream=Stream.CROP))
    return random_flip(sample, numpy_rng(seed, *ids, stream=Stream.FLIP)) if flip else sample


def random_crop(sample: Sample, size: tuple[int, int], rng: np.random.Generator) -> Sample:
    """A window of `size` (h, w) pixels at a uniformly random place; a smaller sample is padded first (see `pad`)."""
    sample = pad(sample, size)
    (height, width), (h, w) = sample.sar.shape, size
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return _each(sample, lambda array: array[..., top : top + h, left : left + w])


def random_flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """Mirrored up-down and left-right, each with probability one half."""
    down, right = rng.integers(2, size=2)
    if down:
        sample = _each(sample, lambda array: array[..., ::-1, :])
    if right:
        sample = _each(sample, lambda array: array[..., ::-1])
    return sample


def pad(sample: Sample, size: tuple[int, int]) -> Sample:
    """At least `size` (h, w), grown below and right: image and soft label are reflected, the label is ignored there."""
    bottom, right = (max(0, want - have) for want, have in zip(size, sample.sar.shape))
    if not bottom and not right:
        return sample
    edges = ((0, bottom), (0, right))
    label, soft = sample.label, sample.soft_label
    return replace(
        sample,
        sar=np.pad(sample.sar, edges, mode="reflect"),
        label=None if label is None else np.pad(label, edges, constant_values=IGNORE_INDEX),
        soft_label=None if soft is None else np.pad(soft, ((0, 0), *edges), mode="reflect"),
    )


def to_teacher(image: Tensor) -> Tensor:
    """uint8 grey values of any shape to float32 in [-1, 1]: g / 127.5 - 1."""
    return image.to(torch.float32) / 127.5 - 1.0


def to_student(image: Tensor) -> Tensor:
    """(B, 1, H, W) uint8 to (B, 3, H, W) float32: grey repeated, normalised by ImageNet's mean and deviation."""
    if image.ndim != 4 or image.shape[1] != 1:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (B, 1, H, W)")
    # torch.compile keeps constants itself, and would warn of the cache.
    statistics = _imagenet_statistics if torch.compiler.is_compiling() else _kept_statistics
    mean, std = statistics(image.device, torch.float32)
    return (image.to(torch.float32) / 255.0 - mean) / std


def _imagenet_statistics(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation, (1, 3, 1, 1) each."""
    mean, std = (torch.tensor(values, dtype=dtype, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)


@functools.cache
def _kept_statistics(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same, made once a device: a copy from the host would make the GPU wait each time."""
    # Ordinary tensors also where an evaluation asks first: a training may use them next.
    with torch.inference_mode(False):
        return _imagenet_statistics(device, dtype)


def _each(sample: Sample, change) -> Sample:
    arrays = {"sar": sample.sar, "label": sample.label, "soft_label": sample.soft_label}
    return replace(sample, **{name: change(array) for name, array in arrays.items() if array is not None})
