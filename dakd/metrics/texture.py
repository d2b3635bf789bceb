"""Measures of a whole image: its radial power spectrum, and whether its edges lie on the boundaries of its label."""

from __future__ import annotations

import numpy as np

from dakd.data.sample import IGNORE_INDEX

_SMOOTHING = np.array([1, 4, 6, 4, 1]) / 16  # binomial, a standard deviation of one pixel
EDGE_MARGIN = 4  # pixels from a boundary within which an image's edge may belong to it


def radial_frequencies(size: tuple[int, int]) -> np.ndarray:
    """(F,) cycles a pixel at the middle of each ring of `radial_spectrum`, from one cycle an image up to 1/2."""
    return np.arange(1, min(size) // 2 + 1) / min(size)


def radial_spectrum(image: np.ndarray) -> np.ndarray:
    """(F,) mean power of the rings of a frequency plane, F = min(H, W) // 2; white noise of variance v gives v.

    image: (H, W), grey values; its mean is taken off and it fades towards its borders (Hann), so that these make no
    cross in the plane. Rings are as wide as the lowest frequency, 1 / min(H, W) cycles a pixel; see
    `radial_frequencies`.
    """
    fade = np.outer(*(np.hanning(side + 1)[:-1] for side in image.shape))  # periodic, as for a spectrum
    # The mean as the window weighs it: any other would leave a constant, which leaks into the lowest ring.
    centred = (image - (image * fade).sum() / fade.sum()) * fade
    power = np.abs(np.fft.rfft2(centred)) ** 2 / (fade**2).sum()
    rings, weights = _rings(image.shape)
    count = min(image.shape) // 2
    sums = np.bincount(rings, (weights * power).ravel(), minlength=count + 1)[1 : count + 1]
    return sums / np.bincount(rings, weights.ravel(), minlength=count + 1)[1 : count + 1]


def edge_agreement(sar: np.ndarray, label: np.ndarray, min_pixels: int) -> float | None:
    """Mean gradient of the smoothed image on the label's boundaries over that away from them.

    sar: (H, W) uint8.  label: (H, W) class ids, ignored pixels (255) apart. A pixel is on a boundary where one of its
    four neighbours has another class, and away from all where none lies within `EDGE_MARGIN` pixels. 1 where
    boundaries lie anywhere, more where they follow the image. None with fewer than `min_pixels` of either kind, and
    where the image is flat away from the boundaries.
    """
    boundary = label_boundary(label)
    away = ~_grown(boundary | (label == IGNORE_INDEX), EDGE_MARGIN)
    if min(boundary.sum(), away.sum()) < min_pixels:
        return None
    steepness = np.hypot(*np.gradient(_smoothed(sar)))
    elsewhere = steepness[away].mean()
    return float(steepness[boundary].mean() / elsewhere) if elsewhere > 0 else None


def label_boundary(label: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels with a neighbour above, below, left or right of another class; ignored ones have none."""
    boundary = np.zeros(label.shape, bool)
    for before, after in (((slice(-1), slice(None)), (slice(1, None), slice(None))),
                          ((slice(None), slice(-1)), (slice(None), slice(1, None)))):  # fmt: skip
        one, other = label[before], label[after]
        differs = (one != other) & (one != IGNORE_INDEX) & (other != IGNORE_INDEX)
        boundary[before] |= differs
        boundary[after] |= differs
    return boundary


def _rings(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The ring of each coefficient of rfft2, flattened; and how often the whole plane has it, (H, W // 2 + 1)."""
    height, width = size
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    weights = np.full(radius.shape, 2.0)
    weights[:, 0] = 1
    if width % 2 == 0:
        weights[:, -1] = 1
    return np.rint(radius * min(size)).astype(np.int64).ravel(), weights


def _smoothed(image: np.ndarray) -> np.ndarray:
    image, reach = image.astype(np.float64), len(_SMOOTHING) // 2
    for axis in (0, 1):
        edges = [(reach, reach) if axis == one else (0, 0) for one in (0, 1)]
        padded = np.pad(image, edges, mode="symmetric")
        stop = image.shape[axis]
        image = sum(
            weight * (padded[shift : shift + stop] if axis == 0 else padded[:, shift : shift + stop])
            for shift, weight in enumerate(_SMOOTHING)
        )
    return image


def _grown(mask: np.ndarray, reach: int) -> np.ndarray:
    """Pixels within `reach` rows and columns of a set one."""
    padded = np.pad(mask.astype(np.int32), ((reach + 1, reach), (reach + 1, reach))).cumsum(axis=0).cumsum(axis=1)
    side = 2 * reach + 1
    return padded[side:, side:] - padded[:-side, side:] - padded[side:, :-side] + padded[:-side, :-side] > 0
