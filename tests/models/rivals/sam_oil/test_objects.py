from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from dakd.data.sample import IGNORE_INDEX
from dakd.models.rivals.sam_oil.objects import connected_components, objects_of


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (37, 41)])
def test_components_are_those_of_scipy(share, size):
    for seed in range(4):
        mask = np.random.default_rng(seed).random(size) < share
        ours, count = connected_components(mask)
        theirs, wanted = ndimage.label(mask, structure=np.ones((3, 3)))
        assert count == wanted
        np.testing.assert_array_equal(ours, theirs)


def test_components_join_at_corners_and_around_a_u():
    u = np.array([[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    components, count = connected_components(u)
    assert count == 2 and components.tolist() == [[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 2]]
    assert connected_components(np.zeros((3, 4), bool))[1] == 0


def test_objects_have_boxes_classes_and_places():
    label = np.zeros((6, 8), np.uint8)
    label[1:3, 2:5] = 2
    label[0, 0] = 2  # one pixel
    label[4:6, 5:8] = 1
    label[5, 5] = 7  # of no class
    label[3, :2] = IGNORE_INDEX
    objects = objects_of(label, 3, min_pixels=2)
    assert objects.boxes.tolist() == [[5, 4, 8, 6], [2, 1, 5, 3]] and objects.boxes.dtype == np.float32
    assert objects.classes.tolist() == [1, 2]
    np.testing.assert_array_equal(objects.places == 1, label == 1)
    np.testing.assert_array_equal(objects.places == 2, (label == 2) & (np.arange(8) > 0))
    assert objects_of(label, 3).classes.tolist() == [1, 2, 2]
    assert objects_of(label, 3, max_objects=1).boxes.tolist() == [[2, 1, 5, 3]]


def test_a_label_without_objects_has_none():
    objects = objects_of(np.full((4, 4), IGNORE_INDEX, np.uint8), 5)
    assert objects.boxes.shape == (0, 4) and objects.classes.shape == (0,) and not objects.places.any()
