"""A large image in tiles: the windows cover it, the blend has no seams, and a short-sighted net sees no difference."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dakd.predict.tiles import OVERLAP, TILE, is_large, sum_of_weights, tiled, windows


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=0))
    return (weights / weights.sum(axis=0)).astype(np.float32)


def net_that_sees(radius: int):
    """Oil where the mean grey of the pixels up to `radius` away, and of zeros beyond the image, is low."""
    box = torch.ones(1, 1, 2 * radius + 1, 2 * radius + 1) / (2 * radius + 1) ** 2

    def probabilities_of(sar: np.ndarray) -> np.ndarray:
        mean = F.conv2d(torch.as_tensor(sar, dtype=torch.float32)[None, None], box, padding=radius)[0].numpy()
        return softmax(np.concatenate([mean - 127, 127 - mean]) / 8)

    return probabilities_of


@pytest.mark.parametrize("side", [1, 31, 64, 65, 96, 97, 127, 128, 129, 500, 1000])
@pytest.mark.parametrize("tile, overlap", [(64, 32), (128, 32), (128, 64)])
def test_windows_cover_a_side_in_order_without_narrow_rests(side, tile, overlap):
    found = windows(side, tile, overlap)
    assert found[0][0] == 0 and found[-1][1] == side and all(start % 32 == 0 for start, _ in found)
    assert all(a[0] < b[0] and a[1] - b[0] >= overlap for a, b in pairwise(found))
    assert all(tile - 32 < stop - start <= tile for start, stop in found) or side <= tile
    weights = sum_of_weights(side, found, overlap)
    assert (weights > 0).all()


def test_neighbours_change_places_within_the_middle_half_of_their_overlap():
    side, overlap = 224, 64
    found = windows(side, 128, overlap)
    assert found == [(0, 128), (64, 192), (96, 224)]
    assert np.allclose(sum_of_weights(192, windows(192, 128, overlap), overlap), 1)


@pytest.mark.parametrize("shape", [(200, 333), (64, 500), (97, 97)])
def test_a_net_that_looks_no_further_than_a_quarter_of_the_overlap_sees_no_difference(shape):
    sar = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    whole, in_tiles = net_that_sees(8)(sar), tiled(net_that_sees(8), sar, 96, 32)
    assert in_tiles.dtype == np.float32 and in_tiles.shape == whole.shape
    assert np.abs(in_tiles - whole).max() < 1e-6
    # One that looks further does: the comparison can fail.
    assert np.abs(tiled(net_that_sees(20), sar, 96, 32) - net_that_sees(20)(sar)).max() > 1e-3


def test_probabilities_of_tiles_that_disagree_still_sum_to_one_and_change_without_a_jump():
    calls = []

    def probabilities_of(sar):
        calls.append(sar.shape)
        oil = float(len(calls) % 2)
        return np.stack([np.full(sar.shape, 1 - oil), np.full(sar.shape, oil)]).astype(np.float32)

    blended = tiled(probabilities_of, np.zeros((96, 160), np.uint8), 96, 32)
    assert calls == [(96, 96), (96, 96)] and np.allclose(blended.sum(axis=0), 1, atol=1e-6)
    assert np.abs(np.diff(blended[1], axis=1)).max() <= 1 / 16 + 1e-6


@pytest.mark.parametrize("tile, overlap", [(100, 32), (32, 32), (128, 0), (128, 96), (128, 40), (0, 0), (64.0, 32),
                                           ("big", 32), (128, 32.0), (128, "32"), ("128", 32), (True, 32)])  # fmt: skip
def test_an_impossible_tile_or_overlap_is_refused(tile, overlap):
    with pytest.raises(ValueError, match="expected a multiple of 32"):
        tiled(net_that_sees(1), np.zeros((8, 8), np.uint8), tile, overlap)


def test_images_of_the_training_sets_are_taken_whole_and_scenes_in_tiles():
    assert not is_large((650, 1250)) and not is_large((TILE, TILE)) and is_large((2000, 3000))
    assert OVERLAP == TILE // 4
