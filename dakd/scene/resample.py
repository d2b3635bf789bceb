"""Area means: a raster at another pixel spacing, each new pixel the mean over the area that it covers.

Multi-looking as it should be done takes the mean of linear power, not of dB: who calls this converts. Each output row
is made of its own source rows in a fixed order, so that it does not depend on how many rows are made at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LEAST_COVER = 0.5  # of a new pixel's area that has to be valid


@dataclass(frozen=True)
class Axis:
    """The weights along one axis.

    first: (N,) the first source pixel of each new one.  weights: (N, taps) float32 of it and the next ones; they sum to
    1. Taps beyond the end have weight 0 and are clipped.
    """

    first: np.ndarray
    weights: np.ndarray

    @classmethod
    def between(cls, source: int, target: int) -> Axis:
        """Of `target` new pixels that cover `source` pixels exactly."""
        step = source / target
        edges = np.arange(target + 1) * step
        edges[-1] = source
        first = np.minimum(np.floor(edges[:-1] + 1e-9).astype(np.int64), source - 1)
        taps = int(np.ceil(step - 1e-9)) + 1
        places = first[:, None] + np.arange(taps)
        low, high = np.maximum(places, edges[:-1, None]), np.minimum(places + 1, edges[1:, None])
        covered = np.clip(high - low, 0, None) * (places < source)
        return cls(first, (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32))

    @property
    def taps(self) -> int:
        return self.weights.shape[1]

    def rows_for(self, top: int, bottom: int, source: int) -> tuple[int, int]:
        """The source rows that the new rows `top` to `bottom` are made of."""
        return int(self.first[top]), min(source, int(self.first[bottom - 1]) + self.taps)


def area_mean(
    values: np.ndarray, valid: np.ndarray, offset: int, top: int, bottom: int, rows: Axis, columns: Axis
) -> tuple[np.ndarray, np.ndarray]:
    """New rows `top` to `bottom`: (h, w) float32 means of the valid pixels, and whether half of the area is valid.

    values, valid: source rows from number `offset` on, as `Axis.rows_for` asks; values that are not valid are 0.
    """
    total = _along_columns(_along_rows(values, offset, top, bottom, rows), columns)
    if valid.all():  # the same sums in the same order, of one column of ones
        cover = _along_rows(np.ones((len(valid), 1), np.float32), offset, top, bottom, rows)
        cover = _along_columns(np.broadcast_to(cover, (len(cover), values.shape[1])), columns)
    else:
        cover = _along_columns(_along_rows(valid.astype(np.float32), offset, top, bottom, rows), columns)
    is_valid = cover >= np.float32(_LEAST_COVER)
    return np.where(is_valid, total / np.maximum(cover, np.float32(1e-6)), np.float32(0)), is_valid


def _along_rows(values: np.ndarray, offset: int, top: int, bottom: int, axis: Axis) -> np.ndarray:
    first, weights = axis.first[top:bottom] - offset, axis.weights[top:bottom]
    total = np.zeros((bottom - top, values.shape[1]), np.float32)
    for tap in range(axis.taps):
        total += weights[:, tap, None] * values[np.minimum(first + tap, len(values) - 1)]
    return total


def _along_columns(values: np.ndarray, axis: Axis) -> np.ndarray:
    total = np.zeros((len(values), len(axis.first)), np.float32)
    for tap in range(axis.taps):
        total += axis.weights[:, tap] * values[:, np.minimum(axis.first + tap, values.shape[1] - 1)]
    return total
