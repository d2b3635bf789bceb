"""A large image in overlapping tiles, whose probabilities are blended into one map.

At the rim of a tile a net sees the least of the surroundings. So the outer quarter of an overlap has weight 0, the
weight passes from one tile to the other over its middle half, and a net whose receptive field reaches no further than
a quarter of the overlap gives, up to rounding, the numbers that it gives for the whole image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dakd.runtime.whole import as_whole

TILE, OVERLAP = 1024, 256  # pixels
ALIGNMENT = 32  # pixels: tiles start where the coarsest maps of the encoders have their grid


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether an image of (height, width) pixels is taken in tiles by default."""
    return shape[0] * shape[1] > 1.5 * TILE * TILE


def tiled(
    probabilities_of: Callable[[np.ndarray], np.ndarray], sar: np.ndarray, tile: int = TILE, overlap: int | None = None
) -> np.ndarray:
    """(K, H, W) float32 probabilities of an image (H, W), from those of its tiles.

    probabilities_of: (h, w) -> (K, h, w).  tile: side in pixels, a multiple of 32.  overlap: of neighbours in pixels, a
    multiple of 32 and at most half of the tile; None takes a quarter of the tile.
    Raises ValueError for another tile or overlap.
    """
    tile, overlap = checked_tile(tile), checked_overlap(tile, overlap)
    rows, columns = (windows(side, tile, overlap) for side in sar.shape)
    blended: np.ndarray | None = None
    for top, bottom in rows:
        row_weights = _weights(top, bottom, sar.shape[0], overlap)
        for left, right in columns:
            found = probabilities_of(sar[top:bottom, left:right])
            if blended is None:
                blended = np.zeros((len(found), *sar.shape), np.float32)
            weights = np.outer(row_weights, _weights(left, right, sar.shape[1], overlap))
            blended[:, top:bottom, left:right] += found * weights
    assert blended is not None  # an image has a pixel
    # The windows form a grid, so the sums of their weights are an outer product too.
    sums = [sum_of_weights(side, found, overlap) for side, found in zip(sar.shape, (rows, columns))]
    blended /= np.outer(*sums)
    return blended


def windows(side: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """(start, stop) of the tiles along a side of so many pixels, in order; the last one ends at the side's end."""
    starts = list(range(0, max(1, side - overlap), tile - overlap))
    if side > tile:
        # No narrow rest: the last tile moves back to nearly its full size, and stays on the grid.
        starts[-1] = -(-(side - tile) // ALIGNMENT) * ALIGNMENT
    return [(start, min(side, start + tile)) for start in starts]


def sum_of_weights(side: int, found: list[tuple[int, int]], overlap: int) -> np.ndarray:
    """(side,) float32: the weights of all windows at each pixel, above 0 everywhere."""
    total = np.zeros(side, np.float32)
    for start, stop in found:
        total[start:stop] += _weights(start, stop, side, overlap)
    return total


def _weights(start: int, stop: int, side: int, overlap: int) -> np.ndarray:
    """(stop - start,) float32: 0 at the rim, a ramp over the middle half of the overlap, 1 within; 1 at image ends."""
    margin = overlap // 4
    places = np.arange(stop - start, dtype=np.float32) + 0.5
    rising = np.clip((places - margin) / (overlap - 2 * margin), 0, 1)
    weights = np.ones(stop - start, np.float32)
    if start > 0:
        weights *= rising
    if stop < side:
        weights *= rising[::-1]
    return weights


def checked_tile(tile: int) -> int:
    """The side of a tile; ValueError for another than `tiled` takes."""
    found = as_whole(tile)
    if found is None or found < 2 * ALIGNMENT or found % ALIGNMENT:
        raise ValueError(
            f"tile is {tile!r}; expected a multiple of {ALIGNMENT} as a whole number of pixels, at least "
            f"{2 * ALIGNMENT}"
        )
    return found


def checked_overlap(tile: int, overlap: int | None = None) -> int:
    """The overlap of tiles of that side, None taken as `tiled` takes it; ValueError for another than it takes."""
    tile = checked_tile(tile)
    if overlap is None:
        return max(ALIGNMENT, tile // 4 // ALIGNMENT * ALIGNMENT)
    found = as_whole(overlap)
    if found is None or not 0 < found <= tile // 2 or found % ALIGNMENT:
        raise ValueError(
            f"overlap is {overlap!r}; expected a multiple of {ALIGNMENT} as a whole number of pixels, above 0 and at "
            f"most half a tile, {tile // 2}"
        )
    return found
