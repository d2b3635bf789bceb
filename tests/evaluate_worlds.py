"""Sets of shards for the tests of what evaluate measures of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dakd.data.sample import SOS_CLASSES, Sample
from dakd.data.shards import ShardSet, write_index, write_shard


def write_images(folder: Path, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> ShardSet:
    """A set of images and labels (ids of sea and oil)."""
    samples = [Sample(f"image-{number:04d}", sar, label=label) for number, (sar, label) in enumerate(pairs)]
    write_shard(folder, 0, samples, SOS_CLASSES)
    write_index(folder, kind="real", classes=SOS_CLASSES)
    return ShardSet(folder)


def slick(
    seed: int, size: int = 64, looks: float = 8.0, sea: float = 110.0, step: float = 50.0, blur: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Sea under gamma speckle, an ellipse of oil darker by `step` greys somewhere in it, and its label.

    blur: the speckle is averaged over 2x2 pixels, and stretched so that it keeps its looks.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    centre, radii = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.15, 0.25, 2) * size
    label = (((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1).astype(np.uint8)
    speckle = rng.gamma(looks, 1 / looks, (size + 1, size + 1)) - 1
    if blur:
        speckle = (speckle[1:, 1:] + speckle[:-1, 1:] + speckle[1:, :-1] + speckle[:-1, :-1]) / 2
    speckle = speckle[:size, :size] + 1
    return np.clip((sea - step * label) * speckle, 0, 255).round().astype(np.uint8), label
