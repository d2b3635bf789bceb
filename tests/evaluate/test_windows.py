"""Windows of sets with larger images: seeded, of one size, and never more than there is room for."""

from __future__ import annotations

import numpy as np
import pytest
from evaluate_worlds import write_images

from dakd.data.shards import ShardSet
from dakd.evaluate.windows import RandomWindow, choose_windows, cut_windows, groups_of

SIZE = (16, 16)


def large_images(folder, count: int = 3, size: tuple[int, int] = (40, 50)) -> ShardSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *size), dtype=np.uint8)
    return write_images(folder, [(image, (image > 128).astype(np.uint8)) for image in images])


def windows(shard_set: ShardSet, num_windows: int, seed: int, **place) -> dict[int, np.ndarray]:
    places = choose_windows(shard_set, SIZE, num_windows, seed)
    return {index: one.sar for index, one in cut_windows(shard_set, places, SIZE, seed, **place)}


def test_windows_are_a_function_of_the_seed_and_ranks_share_them(tmp_path):
    shard_set = large_images(tmp_path)
    whole = windows(shard_set, 7, seed=1)
    assert list(whole) == list(range(7)) and {one.shape for one in whole.values()} == {SIZE}
    parts = windows(shard_set, 7, seed=1, rank=0, world=2) | windows(shard_set, 7, seed=1, rank=1, world=2)
    assert all(np.array_equal(parts[index], one) for index, one in whole.items())
    other = windows(shard_set, 7, seed=2)
    assert not all(np.array_equal(other[index], one) for index, one in whole.items())


def test_every_image_gives_as_many_windows_and_these_differ_and_lie_in_their_image(tmp_path):
    shard_set = large_images(tmp_path)
    places = choose_windows(shard_set, SIZE, 7, 0)
    assert groups_of(places).tolist() == [0, 0, 0, 1, 1, 2, 2]
    found = windows(shard_set, 7, seed=0)
    assert not np.array_equal(found[0], found[1])
    within = np.lib.stride_tricks.sliding_window_view(shard_set.read(1).sar, SIZE).reshape(-1, *SIZE)
    assert (within == found[3]).all(axis=(1, 2)).any()


def test_an_image_of_the_size_is_its_own_window_and_labels_go_along(tmp_path):
    shard_set = large_images(tmp_path, size=SIZE)
    (_, window), *_ = cut_windows(shard_set, [RandomWindow(2, 0)], SIZE, seed=5)
    assert np.array_equal(window.sar, shard_set.read(2).sar) and np.array_equal(window.label, window.sar > 128)


def test_fewer_windows_than_images_are_of_a_random_choice(tmp_path):
    shard_set = large_images(tmp_path, count=20, size=SIZE)
    chosen = [tuple(image for image, _ in choose_windows(shard_set, SIZE, 8, seed)) for seed in range(3)]
    assert all(len(set(one)) == 8 for one in chosen) and len(set(chosen)) == 3


def test_more_windows_than_images_without_room_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"4 windows of 16x16 pixels were requested of a set of 3 .*at most 3"):
        choose_windows(large_images(tmp_path, size=(20, 20)), SIZE, 4, 0)
