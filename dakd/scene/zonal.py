"""What the rasters hold within an outline, and in a ring around it; in blocks of rows, whatever the outline's size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from dakd.scene.engine import NO_DATA, PROBABILITY_STEPS
from dakd.scene.grey_scene import LEVELS_PER_DB
from dakd.scene.packages import need
from dakd.scene.polygons import Outline
from dakd.scene.rasters_out import LABEL, LEVEL, PROBABILITY, Scratch

RING = (3, 10)  # pixels from the outline: its inner and its outer edge
_PIXELS_AT_ONCE = 1 << 20
_ENTROPY_PARTS = np.array([0.0] + [-p * np.log(p) for p in np.arange(1, PROBABILITY_STEPS + 1) / PROBABILITY_STEPS]
                          + [0.0] * (255 - PROBABILITY_STEPS))  # fmt: skip


@dataclass
class Zone:
    """Sums over an outline's pixels.

    histograms: (K, 251) how often a class has each probability, in 250ths.  entropy: sum of the pixels' entropies, in
    nats.  inside, outside: (number, sum, sum of squares) of linear power, the latter of sea pixels in the ring.
    touches_nodata: whether a neighbour has no data.
    """

    histograms: np.ndarray
    entropy: float = 0.0
    inside: np.ndarray = field(default_factory=lambda: np.zeros(3))
    outside: np.ndarray = field(default_factory=lambda: np.zeros(3))
    touches_nodata: bool = False

    @property
    def num_pixels(self) -> int:
        return int(self.histograms[0].sum())


class ZoneReader:
    """The zones of outlines; a context that holds the rasters open."""

    def __init__(self, scratch: Scratch, has_db: bool) -> None:
        self._scratch, self._has_db = scratch, has_db
        self._stack = ExitStack()

    def __enter__(self) -> ZoneReader:
        self._label, self._probability, self._level = (
            self._stack.enter_context(self._scratch.open(name)) for name in (LABEL, PROBABILITY, LEVEL)
        )
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def of(self, outline: Outline) -> Zone:
        """The zone of an outline."""
        zone = Zone(np.zeros((self._probability.count, PROBABILITY_STEPS + 1), np.int64))
        for top, bottom, left, right in self._blocks(outline):
            self._add(zone, outline, top, bottom, left, right)
        return zone

    def _blocks(self, outline: Outline) -> Iterator[tuple[int, int, int, int]]:
        """Rows and columns around an outline, its ring included."""
        west, north, east, south = (int(one) for one in outline.geometry.bounds)
        height, width = self._label.shape
        left, right = max(0, west - RING[1]), min(width, east + RING[1])
        first, last = max(0, north - RING[1]), min(height, south + RING[1])
        step = max(1, _PIXELS_AT_ONCE // (right - left))
        for top in range(first, last, step):
            yield top, min(top + step, last), left, right

    def _add(self, zone: Zone, outline: Outline, top: int, bottom: int, left: int, right: int) -> None:
        rasterio, features = need("rasterio"), need("rasterio.features")
        # Rows beyond the block that its ring may come from.
        first, last = top - RING[1], bottom + RING[1]
        mask = features.rasterize(
            [(outline.geometry, 1)], (last - first, right - left), transform=rasterio.Affine.translation(left, first),
            dtype="uint8",
        )  # fmt: skip
        own = slice(top - first, bottom - first)
        window = rasterio.windows.Window(left, top, right - left, bottom - top)
        label = self._label.read(1, window=window)
        inside = mask[own] > 0
        zone.touches_nodata |= bool((label[dilated(mask, 1)[own]] == NO_DATA).any())
        if inside.any():
            shares = self._probability.read(window=window)[:, inside]
            for histogram, one in zip(zone.histograms, shares):
                histogram += np.bincount(one, minlength=256)[: PROBABILITY_STEPS + 1]
            zone.entropy += float(_ENTROPY_PARTS[shares].sum())
        if not self._has_db:
            return
        ring = dilated(mask, RING[1])[own] & ~dilated(mask, RING[0] - 1)[own] & (label == 0)
        power = 10 ** (self._level.read(1, window=window).astype(np.float64) / (10 * LEVELS_PER_DB))
        for sums, chosen in ((zone.inside, inside), (zone.outside, ring)):
            found = power[chosen]
            sums += (len(found), found.sum(), (found**2).sum())


def dilated(mask: np.ndarray, by: int) -> np.ndarray:
    """(H, W) bool: pixels at most so many rows and columns from one of the mask, (H, W) uint8."""
    grown = mask.astype(np.int32)
    for axis in (0, 1):
        sums = np.cumsum(grown, axis=axis, dtype=np.int32)
        side = mask.shape[axis]
        last = np.minimum(np.arange(side) + by, side - 1)
        before = np.arange(side) - by - 1
        upper = sums.take(last, axis=axis)
        lower = sums.take(np.maximum(before, 0), axis=axis)
        shape = (-1, 1) if axis == 0 else (1, -1)
        grown = ((upper - np.where((before < 0).reshape(shape), 0, lower)) > 0).astype(np.int32)
    return grown > 0


def rectangle(points: np.ndarray) -> tuple[float, float, float]:
    """Length, width and direction of the least rectangle around points (N, 2) of x and y; degrees from y clockwise."""
    shapely = need("shapely")
    corners = np.array(shapely.get_coordinates(shapely.minimum_rotated_rectangle(shapely.MultiPoint(points))))
    if len(corners) < 4:
        return 0.0, 0.0, 0.0
    sides = np.diff(corners[:3], axis=0)
    lengths = np.hypot(sides[:, 0], sides[:, 1])
    longest: Any = sides[int(lengths.argmax())]
    return float(lengths.max()), float(lengths.min()), float(np.degrees(np.arctan2(longest[0], longest[1])) % 180)
