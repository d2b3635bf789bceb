"""Windows of one size from a set's images, so that sets of differently large images can be compared.

An image of that size is its own window; a larger one gives a random window (the teacher was trained on such), a smaller
one is padded first. Which windows is a function of (seed, set, number, size) alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dakd.data.sample import Sample
from dakd.data.shards import ShardSet
from dakd.data.transforms import random_crop
from dakd.runtime.runlog import progress
from dakd.runtime.seeding import Stream, numpy_rng

Place = tuple[int, int]  # an image of a set, and the how-manieth window of it


def window_size(synthetic: ShardSet) -> tuple[int, int]:
    """(height, width) of the generated images, which are of one size."""
    return synthetic.size(0)


def choose_windows(shard_set: ShardSet, size: tuple[int, int], num_windows: int, seed: int) -> list[Place]:
    """`num_windows` windows: of a random choice of the images, or of all of them as many times as it takes.

    Raises ValueError where more are wanted than there are images, and these have no room for a second window.
    """
    num_images = len(shard_set)
    if num_windows <= num_images:
        chosen = numpy_rng(seed, num_images, stream=Stream.RESAMPLE).permutation(num_images)[:num_windows]
        return [(image, 0) for image in sorted(chosen.tolist())]
    height, width = size
    if not all(rows >= 2 * height or columns >= 2 * width for rows, columns in map(shard_set.size, range(num_images))):
        raise ValueError(
            f"{num_windows} images of {height}x{width} pixels are wanted of a set of {num_images} that has images of "
            f"less than twice this size; set evaluate.fidelity.num_images to at most {num_images}"
        )
    return sorted((place % num_images, place // num_images) for place in range(num_windows))


def read_windows(
    shard_set: ShardSet,
    places: Sequence[Place],
    size: tuple[int, int],
    seed: int,
    rank: int = 0,
    world: int = 1,
    label: str = "windows",
) -> Iterator[tuple[int, Sample]]:
    """(place in `places`, window) for rank `rank` of `world`, which takes those with place % world == rank."""
    mine = range(rank, len(places), world)
    for index in progress(mine, len(mine), label):
        image, draw = places[index]
        yield index, window_of(shard_set.read(image), size, seed, image, draw)


def window_of(sample: Sample, size: tuple[int, int], seed: int, image: int, draw: int) -> Sample:
    if sample.sar.shape == size:
        return sample
    return random_crop(sample, size, numpy_rng(seed, image, draw, 0, stream=Stream.CROP))


def groups_of(places: Sequence[Place]) -> np.ndarray:
    """(n,) which image each window is of, numbered from 0: windows of one image are resampled together."""
    return np.unique([image for image, _ in places], return_inverse=True)[1]
