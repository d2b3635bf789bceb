"""The grid of tiles that a scene is classified in. It is part of the result's definition.

A student is not local: MambaVision's windows are anchored at a tile's origin, and CAFT sums over the whole tile. So no
overlap makes tiles equal to the whole image. The grid is therefore fixed: tiles of one side, a fixed stride, anchored
at the pixel (0, 0); tiles that reach beyond the scene are filled up by reflection. The result is then a function of
(scene, student, tile, stride) alone. Logits of overlapping tiles are blended with weights that are above 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakd.models.student import COARSEST_STRIDE
from dakd.runtime.whole import as_whole

DEFAULT_TILE = 256  # where a student's file states no crop
_LEAST_WEIGHT = 1e-3
_WINDOW_STRIDES = (16, 32)  # of MambaVision's stages with windows


@dataclass(frozen=True)
class Grid:
    """Tiles of (tile, tile) pixels at multiples of `stride`, over a raster of (height, width) pixels."""

    height: int
    width: int
    tile: int
    stride: int

    @property
    def num_rows(self) -> int:
        return _count(self.height, self.tile, self.stride)

    @property
    def num_columns(self) -> int:
        return _count(self.width, self.tile, self.stride)

    @property
    def num_bands(self) -> int:
        """Bands of `stride` rows of the result; the last one may be higher, and ends with the raster."""
        return self.num_rows

    def band(self, number: int) -> tuple[int, int]:
        """The first row of a band, and the row after its last one."""
        top = number * self.stride
        return top, self.height if number == self.num_bands - 1 else top + self.stride

    def tile_rows_of(self, top: int, bottom: int) -> range:
        """The numbers of the tile rows that reach into rows `top` to `bottom`."""
        return _reaching(top, bottom, self.tile, self.stride, self.num_rows)

    def tile_columns_of(self, left: int, right: int) -> range:
        return _reaching(left, right, self.tile, self.stride, self.num_columns)

    def weights(self) -> np.ndarray:
        """(tile,) float32: a raised cosine, above 0 everywhere."""
        places = (np.arange(self.tile) + 0.5) / self.tile
        return (_LEAST_WEIGHT + (1 - _LEAST_WEIGHT) * np.sin(np.pi * places) ** 2).astype(np.float32)

    def sums(self, start: int, stop: int, num_tiles: int) -> np.ndarray:
        """(stop - start,) float32: the weights of all tiles at these places of an axis with so many tiles."""
        weights, total = self.weights(), np.zeros(stop - start, np.float32)
        for number in _reaching(start, stop, self.tile, self.stride, num_tiles):
            origin = number * self.stride
            low, high = max(start, origin), min(stop, origin + self.tile)
            total[low - start : high - start] += weights[low - origin : high - origin]
        return total


def _count(side: int, tile: int, stride: int) -> int:
    return 1 if side <= tile else -(-(side - tile) // stride) + 1


def _reaching(start: int, stop: int, tile: int, stride: int, count: int) -> range:
    first = max(0, -(-(start - tile + 1) // stride))
    return range(min(first, count - 1), min(count, (stop - 1) // stride + 1))


def default_tile(facts: Mapping[str, Any]) -> int:
    """The side of a student's training crop, its longer one, as a multiple of 32."""
    crop = facts.get("crop")
    if not isinstance(crop, list) or not all(isinstance(one, int) and 0 < one <= 1 << 14 for one in crop) or not crop:
        return DEFAULT_TILE
    return max(2 * COARSEST_STRIDE, -(-max(crop) // COARSEST_STRIDE) * COARSEST_STRIDE)


def window_period(facts: Mapping[str, Any]) -> int:
    """Pixels after which the windows of a student's encoder begin again; 32 for one without windows."""
    student = facts.get("student") or {}
    encoder, options = str(student.get("encoder") or ""), student.get("encoder_options") or {}
    if not encoder.startswith("mamba_vision"):
        return COARSEST_STRIDE
    windows = options.get("window_size", (8, 8, 14, 7))
    try:
        return int(np.lcm.reduce([stride * int(size) for stride, size in zip(_WINDOW_STRIDES, windows[-2:])]))
    except (TypeError, ValueError):
        return COARSEST_STRIDE


def default_stride(tile: int, facts: Mapping[str, Any]) -> int:
    """The largest multiple of the windows' period that leaves an overlap of at least an eighth; else half a tile."""
    period = window_period(facts)
    found = tile * 7 // 8 // period * period
    return found or max(COARSEST_STRIDE, tile // 2 // COARSEST_STRIDE * COARSEST_STRIDE)


def checked_tile(tile: Any) -> int:
    """The side of a tile; ValueError for anything but a multiple of 32 from 64 to 4096."""
    found = as_whole(tile)
    if found is None or not 2 * COARSEST_STRIDE <= found <= 4096 or found % COARSEST_STRIDE:
        raise ValueError(f"tile is {tile!r}; expected a multiple of {COARSEST_STRIDE} from 64 to 4096: change it")
    return found


def checked_stride(stride: Any, tile: int) -> int:
    """The stride of tiles of that side; ValueError for anything but a multiple of 32 up to it."""
    found = as_whole(stride)
    if found is None or not 0 < found <= tile or found % COARSEST_STRIDE:
        raise ValueError(
            f"stride is {stride!r}; expected a multiple of {COARSEST_STRIDE}, at most the tile's {tile}: change it"
        )
    return found
