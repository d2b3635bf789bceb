"""Boundary IoU against scipy's erosion and bands drawn by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from dakd.metrics.boundary import BoundaryCounts, band


def eroded_band(mask: np.ndarray, distance: int) -> np.ndarray:
    """As the authors do it, the frame apart: the mask without its erosion by a square, pixel by pixel."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=1)


@pytest.mark.parametrize("distance", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (24, 31)])
def test_bands_are_what_erosion_leaves(shape, distance):
    rng = np.random.default_rng(0)
    masks = np.stack([ndimage.uniform_filter(rng.random(shape), 5) > 0.5 - shift for shift in (0.0, 0.05, 0.1, 0.6)])
    expected = np.stack([eroded_band(mask, distance) for mask in masks])
    assert (band(torch.as_tensor(masks), distance).numpy() == expected).all()
    assert not expected[3].any() and (min(shape) == 1 or expected[1].any())


def test_pooled_counts_follow_from_scipys_bands():
    rng = np.random.default_rng(1)
    truth, guess = rng.integers(0, 3, (2, 4, 5, 6)).repeat(6, axis=2).repeat(7, axis=3)
    counts = BoundaryCounts(3, width=0.05)
    counts.update(torch.as_tensor(guess[:1]), torch.as_tensor(truth[:1]))
    counts.update(torch.as_tensor(guess[1:]), torch.as_tensor(truth[1:]))
    distance = round(0.05 * math.hypot(30, 42))
    assert distance == 3
    for class_id in range(3):
        pairs = [
            (eroded_band(t == class_id, distance), eroded_band(g == class_id, distance)) for t, g in zip(truth, guess)
        ]
        assert counts.counts[class_id].tolist() == [
            sum((a & b).sum() for a, b in pairs),
            sum((a | b).sum() for a, b in pairs),
        ]


def test_a_square_worked_by_hand():
    truth, guess = torch.zeros(1, 10, 10, dtype=torch.uint8), torch.zeros(1, 10, 10, dtype=torch.int64)
    truth[0, 2:7, 2:7] = 1  # a ring of 16 pixels one wide
    guess[0, 2:7, 3:8] = 1  # the same, one to the right: 4 + 4 of the two long sides meet
    table = BoundaryCounts(2, width=0.02).update(guess, truth).to_dict(("sea", "oil"))
    common = len({(y, x) for y in (2, 6) for x in range(3, 7)})
    assert table["per_class"]["oil"] == common / (16 + 16 - common)
    assert table["mean"] == pytest.approx(sum(table["per_class"].values()) / 2)


def test_an_error_at_the_rim_costs_more_than_in_plain_iou():
    truth, guess = torch.zeros(1, 64, 64, dtype=torch.uint8), torch.zeros(1, 64, 64, dtype=torch.uint8)
    truth[0, 10:50, 10:50], guess[0, 11:49, 11:49] = 1, 1
    boundary = BoundaryCounts(2).update(guess, truth).to_dict(("sea", "oil"))["per_class"]["oil"]
    assert boundary < 0.5 < 0.9 < 38**2 / 40**2


def test_classes_without_a_contour_are_named_and_left_out():
    table = BoundaryCounts(3).update(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)).to_dict(("sea", "oil", "ship"))
    assert table["absent"] == ["sea", "oil", "ship"] and table["mean"] is None and table["per_class"] == {}


def test_unknown_pixels_are_neither_counted_nor_a_contour():
    truth = torch.zeros(1, 12, 12, dtype=torch.uint8)
    truth[0, :, 6:], truth[0, :, 8:] = 1, 255
    guess = torch.zeros(1, 12, 12, dtype=torch.uint8)
    guess[0, :, 6:] = 1
    guess[0, 3, 10] = 0
    counts = BoundaryCounts(2).update(guess, truth).counts
    assert counts.tolist() == [[12, 12], [12, 12]]  # one column on either side of the true contour


def test_bad_settings_and_shapes_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        BoundaryCounts(2, width=0)
    with pytest.raises(ValueError, match=r"expected \(B, H, W\)"):
        BoundaryCounts(2).update(torch.zeros(3, 3), torch.zeros(3, 3))
