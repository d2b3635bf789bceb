"""Small sets of shards that several tests of the data read."""

from __future__ import annotations

import numpy as np
import pytest

from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.shards import ShardSet, write_index, write_shard


def make_sample(i: int, shape=(16, 20), *, label=True, soft=False, prefix="s") -> Sample:
    """A sample whose arrays tell its number: the grey values are i, i + 1, ... along the rows."""
    rng = np.random.default_rng(i)
    height, width = shape
    sar = (i + np.arange(height * width)).reshape(shape).astype(np.uint8)
    return Sample(
        key=f"{prefix}{i:03d}",
        sar=sar,
        label=(sar % 5).astype(np.uint8) if label else None,
        soft_label=rng.normal(0, 3, (5, *shape)).astype(np.float16) if soft else None,
        meta={"number": i},
    )


def make_set(folder, count: int, shard_size: int = 5, codec=None, **options) -> ShardSet:
    samples = [make_sample(i, **options) for i in range(count)]
    for shard in range(-(-count // shard_size)):
        part = samples[shard * shard_size : (shard + 1) * shard_size]
        write_shard(folder, shard, part, OSD_CLASSES, codec=codec)
    write_index(folder, OSD_CLASSES, kind="synthetic" if codec else "real", codec=codec)
    return ShardSet(folder)


@pytest.fixture(scope="session")
def real_set(tmp_path_factory) -> ShardSet:
    """13 labelled samples of 16 x 20 in three shards."""
    return make_set(tmp_path_factory.mktemp("real"), 13)


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory) -> ShardSet:
    """10 soft-labelled samples of 8 x 8, without labels, in two shards."""
    folder = tmp_path_factory.mktemp("synthetic")
    return make_set(folder, 10, codec="fp16", shape=(8, 8), label=False, soft=True, prefix="g")
