"""Class shares, greys and contrasts of a set."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dakd.data.sample import OSD_CLASSES, SOS_CLASSES, ClassTable, Sample
from dakd.data.shards import ShardSet, write_index, write_shard
from dakd.evaluate.set_statistics import SetCounts, count_set, set_statistics


@pytest.fixture
def two_images(tmp_path):
    """Sea at 100 and 120, oil at 40 in the first image; in the second only sea at 200, one pixel ignored."""
    sar = np.array([[100, 120], [40, 40]], np.uint8)
    label = np.array([[0, 0], [1, 1]], np.uint8)
    alone = Sample("b", np.full((1, 3), 200, np.uint8), label=np.array([[0, 0, 255]], np.uint8))
    write_shard(tmp_path, 0, [Sample("a", sar, label=label), alone], SOS_CLASSES)
    write_index(tmp_path, kind="real", classes=SOS_CLASSES)
    return ShardSet(tmp_path)


def test_shares_greys_and_contrasts_worked_by_hand(two_images):
    statistics = set_statistics(count_set(two_images), SOS_CLASSES)
    assert statistics["num_pixels"] == 6
    assert statistics["shares"] == {"sea": 4 / 6, "oil": 2 / 6}
    assert statistics["mean_grey"] == {"sea": 155.0, "oil": 40.0}
    assert statistics["std_grey"]["sea"] == pytest.approx(np.std([100, 120, 200, 200]))
    assert statistics["std_grey"]["oil"] == 0
    assert statistics["contrast_grey"] == 115.0
    assert statistics["contrast_db"] == pytest.approx(10 * math.log10(155 / 40))
    # The second image has no oil: its bright sea leaves the contrast within an image alone.
    assert statistics["contrast_in_image"] == 70.0 and statistics["images_with_both"] == 1


def test_ranks_sum_to_the_counts_of_the_whole(two_images):
    whole = count_set(two_images)
    parts = [count_set(two_images, rank=rank, world=2) for rank in range(2)]
    assert (parts[0].histogram + parts[1].histogram == whole.histogram).all()
    assert np.array_equal(parts[0].contrasts + parts[1].contrasts, whole.contrasts, equal_nan=True)


def test_a_class_without_pixels_has_a_share_of_zero_and_no_grey():
    histogram = np.zeros((5, 256), np.int64)
    histogram[0, 90] = 10
    statistics = set_statistics(SetCounts(histogram, np.array([np.nan])), OSD_CLASSES)
    assert statistics["shares"]["oil"] == 0 and statistics["mean_grey"]["oil"] is None
    assert statistics["contrast_grey"] is None and statistics["contrast_in_image"] is None


def test_classes_of_other_names_have_no_oil_contrast():
    classes = ClassTable(("water", "ice"), ((0, 0, 0), (255, 255, 255)))
    statistics = set_statistics(SetCounts(np.ones((2, 256), np.int64), np.array([np.nan])), classes)
    assert statistics["contrast_grey"] is None and statistics["mean_grey"]["ice"] == 127.5
