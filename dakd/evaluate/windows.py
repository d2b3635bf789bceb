"""Windows of one size from a set's images, so that sets of differently large images can be compared.

An image of that size is its own window; a larger one gives a random window (the teacher was trained on such), a smaller
one is padded first. The windows are a function of (seed, set, number, size).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dakd.data.sample import Sample
from dakd.data.shards import ShardSet
from dakd.data.transforms import random_crop
from dakd.runtime.runlog import progress
from dakd.runtime.seeding import Stream, numpy_rng


class RandomWindow(NamedTuple):
    """image: its index in the set.  number: of the window among those of the image, from 0."""

    image: int
    number: int


def choose_windows(shard_set: ShardSet, size: tuple[int, int], num_windows: int, seed: int) -> list[RandomWindow]:
    """One window of each of `num_windows` images drawn at random; of a set of fewer images, several of each.

    Raises ValueError where several are needed and an image has no room for a second one.
    """
    num_images = len(shard_set)
    if num_windows <= num_images:
        chosen = numpy_rng(seed, num_images, stream=Stream.RESAMPLE).permutation(num_images)[:num_windows]
        return [RandomWindow(image, 0) for image in sorted(chosen.tolist())]
    height, width = size
    if not all(rows >= 2 * height or columns >= 2 * width for rows, columns in map(shard_set.size, range(num_images))):
        raise ValueError(
            f"{num_windows} windows of {height}x{width} pixels were requested of a set of {num_images} images, some of "
            f"less than twice this size; set evaluate.fidelity.num_images to at most {num_images}"
        )
    return sorted(RandomWindow(index % num_images, index // num_images) for index in range(num_windows))


def cut_windows(
    shard_set: ShardSet,
    windows: Sequence[RandomWindow],
    size: tuple[int, int],
    seed: int,
    rank: int = 0,
    world: int = 1,
    label: str = "windows",
) -> Iterator[tuple[int, Sample]]:
    """(index in `windows`, cut sample) for rank `rank` of `world`, which takes those with index % world == rank."""
    mine = range(rank, len(windows), world)
    for index in progress(mine, len(mine), label):
        yield index, _cut(shard_set.read(windows[index].image), windows[index], size, seed)


def groups_of(windows: Sequence[RandomWindow]) -> np.ndarray:
    """(n,) the image of each window, numbered from 0: windows of one image are resampled together."""
    return np.unique([window.image for window in windows], return_inverse=True)[1]


def _cut(sample: Sample, window: RandomWindow, size: tuple[int, int], seed: int) -> Sample:
    if sample.sar.shape == size:
        return sample
    return random_crop(sample, size, numpy_rng(seed, *window, 0, stream=Stream.CROP))
