"""The classes of a scene in bands of rows: tiles of a fixed grid, their logits blended in a fixed order in fp32.

Each pixel sums its tiles from the top left to the bottom right, whatever band, column range or process it is made in.
So the result is bit-equal for any of them. Memory holds one row of tiles, whatever the scene's height.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dakd.scene.grey_scene import GreyScene, Rows
from dakd.scene.grid import Grid
from dakd.scene.tile_net import Batch, TileNet

NO_DATA = 255  # of classes and probabilities
PROBABILITY_STEPS = 250  # of a stored probability of 1


@dataclass(frozen=True)
class Band:
    """Rows `top` to `bottom` and columns `left` to `right` of the result.

    label: (h, w) uint8 class ids.  probability: (K, h, w) uint8, in 250ths.  Both are NO_DATA where a pixel is not
    valid.  level, grey: as in `Rows`.
    """

    number: int
    top: int
    bottom: int
    left: int
    right: int
    label: np.ndarray
    probability: np.ndarray
    level: np.ndarray
    grey: np.ndarray


def classify(
    scene: GreyScene, net: TileNet, grid: Grid, bands: range, columns: tuple[int, int], temperature: float = 1.0
) -> Iterator[Band]:
    """The bands of these numbers, in order.

    columns: the first column of the result, and the one after its last.  temperature: what the blended logits are
    divided by for the probabilities; it changes no class.
    """
    if not bands:
        return
    rows = range(grid.tile_rows_of(*grid.band(bands[0])).start, bands[-1] + 1)
    blend, plan = _Blend(grid, net.num_classes, columns, rows.start), _Plan(scene, grid, columns, net.batch)
    with net.running() as run:
        for batch, logits in run(plan.batches(rows)):
            yield from _finished(blend, plan, bands, batch.row, temperature)
            for column in batch.columns:
                blend.add(column, logits[column % net.batch])
        yield from _finished(blend, plan, bands, rows.stop, temperature)


def _finished(blend: _Blend, plan: _Plan, bands: range, row: int, temperature: float) -> Iterator[Band]:
    """The bands above a row of tiles that are not given yet."""
    while blend.row < row:
        shown = plan.take(blend.row)
        if blend.row in bands:
            yield blend.band(shown, temperature)
        blend.next_row()


class _Plan:
    """Rows of tiles as batches, in order. Rows of a scene that two of them share are read once."""

    def __init__(self, scene: GreyScene, grid: Grid, columns: tuple[int, int], batch: int) -> None:
        self._scene, self._grid, self._columns, self._batch = scene, grid, columns, batch
        self._tiles = grid.tile_columns_of(*columns)
        self._shown: dict[int, Rows] = {}  # the rows of each band to come

    def batches(self, rows: range) -> Iterator[Batch]:
        """The batches of these rows of tiles; tiles without a valid pixel are left out.

        A row of none but these is a batch of no tiles, so that the rows read do not pile up beneath it.
        """
        read: Rows | None = None
        for row in rows:
            read = self._read(row, read)
            self._shown[row] = read.cut(0, self._band_height(row), *self._columns)
            if not read.valid.any():
                yield Batch(row, (), np.zeros((0, self._grid.tile, self._grid.tile), np.uint8))
                continue
            for first in range(self._tiles.start // self._batch * self._batch, self._tiles.stop, self._batch):
                places = [one for one in range(first, first + self._batch) if one in self._tiles]
                chosen = tuple(one for one in places if self._part(read.valid, one).any())
                if chosen:
                    yield Batch(row, chosen, self._tiles_of(read, chosen))

    def _tiles_of(self, read: Rows, columns: tuple[int, ...]) -> np.ndarray:
        """(B, T, T) uint8: a tile's slot is that of its column on the scene's grid; the slots of others are black.

        So a tile is computed at the same slot of a batch of the same shape, whatever is computed with it.
        """
        side = self._grid.tile
        tiles = np.zeros((self._batch, side, side), np.uint8)
        for one in columns:
            tiles[one % self._batch] = _tile(self._part(read.grey, one), self._part(read.valid, one), side)
        return tiles

    def take(self, row: int) -> Rows:
        """The rows and columns of the result in a band."""
        return self._shown.pop(row)

    def _read(self, row: int, above: Rows | None) -> Rows:
        """The scene's rows under a row of tiles.  above: those of the row of tiles before it."""
        top = row * self._grid.stride
        bottom = min(top + self._grid.tile, self._grid.height)
        if above is None:
            return self._scene.rows(top, bottom)
        kept = above.cut(self._grid.stride, None)
        start = top + len(kept.grey)
        return kept.joined(self._scene.rows(start, bottom)) if start < bottom else kept

    def _band_height(self, row: int) -> int:
        top, bottom = self._grid.band(row)
        return bottom - top

    def _part(self, array: np.ndarray, column: int) -> np.ndarray:
        left = column * self._grid.stride
        return array[:, left : left + self._grid.tile]


def _tile(grey: np.ndarray, valid: np.ndarray, side: int) -> np.ndarray:
    """(side, side) uint8: pixels without data get the median of the others; what lies beyond the scene is reflected."""
    if not valid.all():
        grey = np.where(valid, grey, np.uint8(np.median(grey[valid])))
    height, width = grey.shape
    for axis, (have, pad) in enumerate(((height, side - height), (width, side - width))):
        if pad:
            edges = [(0, 0), (0, 0)]
            edges[axis] = (0, pad)
            grey = np.pad(grey, edges, mode="reflect" if have > 1 else "edge")
    return grey


class _Blend:
    """The weighted sums of logits under one row of tiles, whose upper rows become a band."""

    def __init__(self, grid: Grid, num_classes: int, columns: tuple[int, int], row: int) -> None:
        self._grid, self._columns, self.row = grid, columns, row
        self._tiles = grid.tile_columns_of(*columns)
        self._left = self._tiles.start * grid.stride
        width = (len(self._tiles) - 1) * grid.stride + grid.tile
        self._sums = np.zeros((num_classes, grid.tile, width), np.float32)
        self._column_sums = grid.sums(*columns, grid.num_columns)

    def add(self, column: int, logits: np.ndarray) -> None:
        """logits: (K, T, T) of a tile, times its weights. A product and a sum, each rounded by itself."""
        left = column * self._grid.stride - self._left
        self._sums[:, :, left : left + self._grid.tile] += logits

    def band(self, shown: Rows, temperature: float) -> Band:
        top, bottom = self._grid.band(self.row)
        left, right = self._columns
        sums = self._sums[:, : bottom - top, left - self._left : right - self._left]
        weights = np.outer(self._grid.sums(top, bottom, self._grid.num_rows), self._column_sums)
        logits = sums / weights
        label = np.where(shown.valid, _likeliest(logits), np.uint8(NO_DATA))
        probability = _probability(logits, temperature)
        probability[:, ~shown.valid] = NO_DATA
        return Band(self.row, top, bottom, left, right, label, probability, shown.level, shown.grey)

    def next_row(self) -> None:
        step = self._grid.stride
        self._sums[:, : self._grid.tile - step] = self._sums[:, step:]
        self._sums[:, self._grid.tile - step :] = 0
        self.row += 1


def _likeliest(logits: np.ndarray) -> np.ndarray:
    """(h, w) uint8: the class of the largest logit (K, h, w), the first of several. numpy's argmax takes ten times it.
    """
    best, label = logits[0].copy(), np.zeros(logits.shape[1:], np.uint8)
    for class_id in range(1, len(logits)):
        is_larger = logits[class_id] > best
        label[is_larger] = class_id
        np.maximum(best, logits[class_id], out=best)
    return label


def _probability(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(K, h, w) uint8, in 250ths: the softmax of logits (K, h, w), which are changed."""
    logits -= logits.max(axis=0)
    if temperature != 1:
        logits /= np.float32(temperature)
    np.exp(logits, out=logits)
    total = np.zeros(logits.shape[1:], np.float32)
    for one in logits:
        total += one
    logits *= np.float32(PROBABILITY_STEPS) / total
    return np.rint(logits, out=logits).astype(np.uint8)
