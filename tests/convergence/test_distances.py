"""Distances of pairs to pairs, against numbers that are known or computed another way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dakd.convergence.distances import Pairs, compare, measure_pairs, physics_distances, whole
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES
from dakd.evaluate.physics import compare_physics


def some_pairs(seed: int, num: int = 6, num_classes: int = 5, size: int = 48) -> Pairs:
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (num, size, size)).astype(np.float32)
    return Pairs(image, rng.normal(size=(num, num_classes, size, size)).astype(np.float32))


def test_pairs_are_no_distance_from_themselves():
    pairs = some_pairs(0)
    assert compare(pairs, pairs) == {"rms": 0.0, "agreement": 1.0, "miou": 1.0, "kl": 0.0}
    summary = whole(measure_pairs(pairs, OSD_CLASSES))
    found = physics_distances(summary, summary, OSD_CLASSES)
    assert found["spectrum"] == found["greys"] == found["shares"] == 0.0
    assert {value for value in found.values() if value is not None} == {0.0}


def test_the_distances_of_a_plain_case_are_those_by_hand():
    """Two classes on four pixels: the images differ by 0.5 on one pixel, the labels on another one."""
    image = np.zeros((1, 2, 2), np.float32)
    logits = np.zeros((1, 2, 2, 2), np.float32)
    logits[0, 1, 0] = math.log(3)  # class 1 with 3/4 in the first row, class 0 (the first of equals) in the second
    other = Pairs(image.copy(), logits.copy())
    image[0, 0, 0] = 0.5
    logits[0, 1, 0, 0] = -math.log(3)  # class 0 with 3/4
    found = compare(Pairs(image, logits), other)
    assert found["rms"] == pytest.approx(math.sqrt(0.25 / 4))
    assert found["agreement"] == 0.75
    assert found["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # KL((1/4, 3/4) || (3/4, 1/4)) on one pixel of four.
    assert found["kl"] == pytest.approx((0.25 * math.log(1 / 3) + 0.75 * math.log(3)) / 4, rel=1e-6)


def test_kl_is_of_the_other_pairs_from_these():
    sharp, flat = (np.zeros((1, 2, 1, 1), np.float32) for _ in range(2))
    sharp[0, 0] = math.log(9)
    image = np.zeros((1, 1, 1), np.float32)
    found = compare(Pairs(image, flat), Pairs(image, sharp))["kl"]
    assert found == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-6)


@pytest.mark.parametrize("classes", [OSD_CLASSES, SOS_CLASSES], ids=["osd", "sos"])
def test_physics_distances_are_those_of_the_comparison_of_sets(classes):
    """`compare_physics` rounds to six digits; measures that neither set has are absent in both."""
    ours, theirs = (measure_pairs(some_pairs(seed, num_classes=classes.num_classes), classes) for seed in (1, 2))
    expected = compare_physics(ours, theirs, classes, (48, 48), seed=0, num_resamples=1)["measures"]
    found = physics_distances(whole(ours), whole(theirs), classes)
    assert list(found) == list(expected) and found["spectrum"] > 0
    for key, value in found.items():
        assert value == (None if expected[key]["distance"] is None else pytest.approx(expected[key]["distance"], 1e-5))
