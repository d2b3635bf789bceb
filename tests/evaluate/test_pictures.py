"""Which images a report shows."""

from __future__ import annotations

import numpy as np
from evaluate_worlds import scene, write_set
from PIL import Image

from dakd.data.shards import ShardSet
from dakd.evaluate.pictures import MAX_SIDE, ShownImage, choose_images, draw_overlays, draw_predictions

MIXED, PLAIN = np.array([[3, 1], [1, 3]]), np.array([[8, 0], [0, 0]])


def test_held_out_images_lie_at_even_distances():
    choices = choose_images(np.stack([PLAIN] * 9), np.full(9, np.nan), 3)
    assert choices == [ShownImage("held-out", index) for index in (0, 4, 8)]


def test_images_of_a_single_class_are_neither_best_nor_worst():
    per_image = np.stack([PLAIN, MIXED, MIXED, MIXED, PLAIN])
    choices = choose_images(per_image, np.array([1.0, 0.5, 0.7, 0.6, 0.1]), 1)
    assert choices[1:] == [ShownImage("best", 2), ShownImage("worst", 1)]


def test_without_mixed_images_the_plain_ones_are_ranked():
    choices = choose_images(np.stack([PLAIN] * 2), np.array([0.2, 0.9]), 1)
    assert choices[1:] == [ShownImage("best", 1), ShownImage("worst", 0)]


def test_no_pictures_can_be_asked_for(tmp_path, run_dir):
    assert choose_images(np.stack([PLAIN]), np.array([1.0]), 0) == []
    held_out = ShardSet(run_dir / "prepare" / "test")
    assert draw_predictions(tmp_path, held_out, [], {"real": np.zeros(5)}, lambda name: None, "cpu") == []


def test_large_pictures_are_shrunk_and_keep_their_shape(tmp_path):
    shard_set = write_set(tmp_path / "set", [scene("one", 0, (2 * MAX_SIDE, MAX_SIDE))])
    (record,) = draw_overlays(tmp_path, "real", shard_set)
    for file in record["files"].values():
        assert Image.open(tmp_path / file).size == (MAX_SIDE // 2, MAX_SIDE)
