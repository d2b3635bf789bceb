"""Speckle of an image in homogeneous regions: its strength (equivalent number of looks) and its correlation."""

from __future__ import annotations

import numpy as np

# The variance of rounding to whole grey values: an image cannot be known to be smoother.
_ROUNDING_VARIANCE = 1 / 12
# Of an ENL: the side of a window in pixels, and the fewest windows that give one. The gate, the audit and the physics
# of the report measure alike.
LOOKS_WINDOW, LOOKS_MIN_WINDOWS = 8, 4
MAX_LAG = 4  # pixels
# (rows, columns) of each element of an autocorrelation: along the rows first, then down the columns.
LAGS = (*((0, lag) for lag in range(1, MAX_LAG + 1)), *((lag, 0) for lag in range(1, MAX_LAG + 1)))


def equivalent_looks(sar: np.ndarray, region: np.ndarray, window: int, min_windows: int) -> float | None:
    """The equivalent number of looks: the median of mean^2 / variance over windows that lie wholly in a region.

    sar: (H, W) uint8.  region: (H, W) bool.  The windows are the squares of `window` pixels of a grid from the upper
    left corner; the variance is the unbiased one of a window, at least that of rounding (1/12). The median
    is robust against windows with a structure in them. None where fewer than `min_windows` lie in the region.

    Looks in the sense of speckle statistics follow only where grey values are proportional to intensity. Of other
    images it is a measure of graininess, to be compared with that of training images.
    """
    blocks = _windows_within(sar, region, window)
    if len(blocks) < min_windows:
        return None
    greys = blocks.astype(np.float64)
    return float(np.median(greys.mean(axis=1) ** 2 / np.maximum(greys.var(axis=1, ddof=1), _ROUNDING_VARIANCE)))


def speckle_autocorrelation(sar: np.ndarray, region: np.ndarray, window: int, min_windows: int) -> np.ndarray | None:
    """(8,) normalised autocovariance of log(1 + grey) at the lags of `LAGS`, the median over windows of a region.

    sar, region, window, min_windows: as in `equivalent_looks`. The logarithm makes multiplicative speckle additive;
    each window's fitted plane is taken off first, so that a slow change of the sea does not count as correlation; that
    costs about 3 A / window^2 where speckle correlates over an area of A pixels. Windows of one grey are left out.
    """
    blocks = np.log1p(_windows_within(sar, region, window).astype(np.float64))
    blocks = _without_plane(blocks, window)
    power = (blocks**2).mean(axis=1)
    # A constant window keeps only rounding errors.
    blocks, power = blocks[power > 1e-12], power[power > 1e-12]
    if len(blocks) < min_windows:
        return None
    squares = blocks.reshape(-1, window, window)
    correlations = [
        (squares[:, down:, right:] * squares[:, : window - down, : window - right]).mean(axis=(1, 2)) / power
        for down, right in LAGS
    ]
    return np.median(correlations, axis=1)


def _windows_within(sar: np.ndarray, region: np.ndarray, window: int) -> np.ndarray:
    """(n, window^2) pixels of the grid's windows that lie wholly in the region."""
    rows, columns = sar.shape[0] // window, sar.shape[1] // window
    return _windows(sar, rows, columns, window)[_windows(region, rows, columns, window).all(axis=1)]


def _windows(image: np.ndarray, rows: int, columns: int, side: int) -> np.ndarray:
    """(rows * columns, side^2) from the upper left part of (H, W)."""
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return cut.swapaxes(1, 2).reshape(rows * columns, side * side)


def _without_plane(blocks: np.ndarray, side: int) -> np.ndarray:
    """Windows (n, side^2) less the plane that fits each best in squares."""
    rows, columns = np.divmod(np.arange(side * side), side)
    basis, _ = np.linalg.qr(np.stack([np.ones(side * side), rows, columns], axis=1))
    return blocks - (blocks @ basis) @ basis.T
