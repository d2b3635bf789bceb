"""Boundary IoU against the paper's definition, pixel by pixel, scipy's erosion, and bands drawn by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from dakd.metrics.boundary import BoundaryCounts, band


def eroded_band(mask: np.ndarray, distance: int, frame: bool) -> np.ndarray:
    """As the authors' code does it: the mask without its erosion by a square; all beyond the frame is 0 there."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=int(not frame))


def boundary_iou_by_definition(truth: np.ndarray, guess: np.ndarray, share: float = 0.02) -> float:
    """Cheng et al. 2021, Eq. 1: |(G_d and G) and (P_d and P)| / |(G_d and G) or (P_d and P)|, from pixel coordinates.

    G_d: the pixels within d of G's contour, the edge between its pixels and all others, those beyond the image too.
    """
    distance = max(1, round(share * math.hypot(*truth.shape)))

    def near(mask: np.ndarray) -> set[tuple[int, int]]:
        inside = set(zip(*map(list, np.nonzero(mask))))
        steps = [(i, j) for i in range(-distance, distance + 1) for j in range(-distance, distance + 1)]
        return {(y, x) for y, x in inside if any((y + i, x + j) not in inside for i, j in steps)}

    of_truth, of_guess = near(truth), near(guess)
    return len(of_truth & of_guess) / len(of_truth | of_guess)


@pytest.mark.parametrize("size", [(40, 60), (90, 50), (64, 64)])
def test_boundary_iou_is_the_papers_with_slicks_that_the_frame_cuts(size):
    rng = np.random.default_rng(size[0])
    smooth = [ndimage.gaussian_filter(rng.normal(size=size), 6) for _ in range(2)]
    truth, guess = smooth[0] > 0, smooth[0] + 0.5 * smooth[1] > 0
    assert truth[0].any() and not truth[0].all()
    labels = [torch.as_tensor(one[None].astype(np.uint8)) for one in (guess, truth)]
    found = BoundaryCounts(2).update(*labels).to_dict(("sea", "oil"))["per_class"]
    assert found["oil"] == boundary_iou_by_definition(truth, guess)
    assert found["sea"] == boundary_iou_by_definition(~truth, ~guess)
    inner = BoundaryCounts(2, frame=False).update(*labels).to_dict(("sea", "oil"))["per_class"]
    assert inner["oil"] != found["oil"]


@pytest.mark.parametrize("frame", [True, False])
@pytest.mark.parametrize("distance", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (24, 31)])
def test_bands_are_what_erosion_leaves(shape, distance, frame):
    rng = np.random.default_rng(0)
    masks = np.stack([ndimage.uniform_filter(rng.random(shape), 5) > 0.5 - shift for shift in (0.0, 0.05, 0.1, 0.6)])
    expected = np.stack([eroded_band(mask, distance, frame) for mask in masks])
    assert (band(torch.as_tensor(masks), distance, frame=frame).numpy() == expected).all()
    assert expected[3].any() == frame and (min(shape) == 1 or expected[1].any())


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
            [eroded_band(one == class_id, distance, True) for one in pair] for pair in zip(truth, guess)
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
    everywhere, names = torch.zeros(1, 8, 8, dtype=torch.uint8), ("sea", "oil", "ship")
    table = BoundaryCounts(3).update(everywhere, everywhere).to_dict(names)
    assert table["absent"] == ["oil", "ship"] and table["per_class"] == {"sea": 1.0}  # along the frame
    table = BoundaryCounts(3, frame=False).update(everywhere, everywhere).to_dict(names)
    assert table["absent"] == ["sea", "oil", "ship"] and table["mean"] is None and table["per_class"] == {}


def test_unknown_pixels_are_neither_counted_nor_a_contour():
    truth = torch.zeros(1, 12, 12, dtype=torch.uint8)
    truth[0, :, 6:], truth[0, :, 8:] = 1, 255
    guess = torch.zeros(1, 12, 12, dtype=torch.uint8)
    guess[0, :, 6:] = 1
    guess[0, 3, 10] = 0
    counts = BoundaryCounts(2, frame=False).update(guess, truth).counts
    assert counts.tolist() == [[12, 12], [12, 12]]  # one column on either side of the true contour


def test_bad_settings_and_shapes_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        BoundaryCounts(2, width=0)
    with pytest.raises(ValueError, match=r"expected \(B, H, W\)"):
        BoundaryCounts(2).update(torch.zeros(3, 3), torch.zeros(3, 3))


def test_floats_and_ids_beyond_the_classes_are_refused():
    ids = torch.arange(12).reshape(1, 3, 4) % 3
    with pytest.raises(ValueError, match=r"prediction is torch\.float32; expected integer"):
        BoundaryCounts(3).update(ids + 0.9, ids)
    with pytest.raises(ValueError, match="target has class ids from 0 to 2; expected 0 to 1"):
        BoundaryCounts(2).update(ids % 2, ids)
    with pytest.raises(ValueError, match="prediction has class ids from 0 to 2"):
        BoundaryCounts(2).update(ids, ids % 2)
    BoundaryCounts(2).update(ids, torch.where(ids == 2, 255, ids))  # beside the unknown ones
