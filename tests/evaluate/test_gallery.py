"""Which images a report shows."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dakd.data.shards import ShardSet
from dakd.evaluate.gallery import MAX_SIDE, Choice, choose_images, write_gallery, write_overlays

MIXED, PLAIN = np.array([[3, 1], [1, 3]]), np.array([[8, 0], [0, 0]])


def test_held_out_images_lie_at_even_distances():
    choices = choose_images(np.stack([PLAIN] * 9), np.full(9, np.nan), 3)
    assert choices == [Choice("held-out", index) for index in (0, 4, 8)]


def test_images_of_a_single_class_are_neither_best_nor_worst():
    per_image = np.stack([PLAIN, MIXED, MIXED, MIXED, PLAIN])
    choices = choose_images(per_image, np.array([1.0, 0.5, 0.7, 0.6, 0.1]), 1)
    assert choices[1:] == [Choice("best", 2), Choice("worst", 1)]


def test_without_mixed_images_the_plain_ones_are_ranked():
    choices = choose_images(np.stack([PLAIN] * 2), np.array([0.2, 0.9]), 1)
    assert choices[1:] == [Choice("best", 1), Choice("worst", 0)]


def test_no_pictures_can_be_asked_for(tmp_path, run_dir):
    assert choose_images(np.stack([PLAIN]), np.array([1.0]), 0) == []
    held_out = ShardSet(run_dir / "prepare" / "test")
    assert write_gallery(tmp_path, held_out, [], {"real": np.zeros(5)}, lambda name: None, "cpu") == []


def test_large_pictures_are_shrunk_and_keep_their_shape(tmp_path, write_shards):
    write_shards(tmp_path / "set", size=(2 * MAX_SIDE, MAX_SIDE))
    (record,) = write_overlays(tmp_path, "real", ShardSet(tmp_path / "set"))
    for file in record["files"].values():
        assert Image.open(tmp_path / file).size == (MAX_SIDE // 2, MAX_SIDE)
