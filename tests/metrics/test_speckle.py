"""Looks and autocorrelation of speckle, against simulated fields whose statistics are known."""

from __future__ import annotations

import numpy as np
import pytest

from dakd.metrics.speckle import LAGS, equivalent_looks, speckle_autocorrelation


def gamma_speckle(looks: float, size: int = 256, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.gamma(looks, 100 / looks, (size, size)), 0, 255).round().astype(np.uint8)


def noise_of_correlation(kernel: np.ndarray, size: int = 256, seed: int = 0) -> np.ndarray:
    """White noise filtered by `kernel` (rows, columns), of mean 120 and deviation 10: log(1 + g) is nearly linear."""
    rows, columns = kernel.shape
    white = np.random.default_rng(seed).standard_normal((size + rows - 1, size + columns - 1))
    shifts = ((row, column) for row in range(rows) for column in range(columns))
    field = sum(kernel[row, column] * white[row : row + size, column : column + size] for row, column in shifts)
    return np.clip(120 + 10 * field / np.sqrt((kernel**2).sum()), 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("looks", [4, 16, 60])
def test_enl_of_gamma_speckle_is_its_number_of_looks(looks):
    everywhere = np.ones((256, 256), bool)
    found = equivalent_looks(gamma_speckle(looks), everywhere, window=8, min_windows=4)
    assert found == pytest.approx(looks, rel=0.08)


def test_enl_looks_at_windows_of_the_region_alone_and_says_nothing_of_too_few():
    region = np.zeros((64, 64), bool)
    region[:, :32] = True
    one = gamma_speckle(10, 64)
    other = one.copy()
    other[:, 32:] = 255
    assert equivalent_looks(one, region, 8, 4) == equivalent_looks(other, region, 8, 4)
    assert equivalent_looks(one, region, 8, 33) is None  # 8 x 4 windows
    region[::8] = False
    assert equivalent_looks(one, region, 8, 1) is None
    assert equivalent_looks(np.full((16, 16), 7, np.uint8), np.ones((16, 16), bool), 8, 4) == 49 * 12


def test_white_noise_has_no_autocorrelation():
    found = speckle_autocorrelation(noise_of_correlation(np.ones((1, 1))), np.ones((256, 256), bool), 16, 2)
    assert found == pytest.approx(-3 / 16**2, abs=0.02)


@pytest.mark.parametrize("axis", [0, 1])
def test_autocorrelation_of_a_moving_mean_is_a_triangle_along_its_axis_alone(axis):
    # A mean of three pixels in a row: 2/3, 1/3, 0, 0 along it, 0 across.
    kernel = np.ones((3, 1) if axis == 0 else (1, 3))
    found = dict(zip(LAGS, speckle_autocorrelation(noise_of_correlation(kernel), np.ones((256, 256), bool), 16, 2)))
    along = [found[(lag, 0) if axis == 0 else (0, lag)] for lag in range(1, 5)]
    across = [found[(0, lag) if axis == 0 else (lag, 0)] for lag in range(1, 5)]
    assert along == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.05)
    assert across == pytest.approx([0] * 4, abs=0.05)


def test_multiplicative_speckle_correlates_alike_on_dark_and_on_bright_sea_and_under_a_slope():
    # Filtered looks: the correlation is the kernel's, whatever the backscatter is.
    field = noise_of_correlation(np.ones((2, 2))) / 120.0
    everywhere = np.ones((256, 256), bool)
    slope = np.linspace(40, 200, 256)[:, None]
    images = [np.clip(field * level, 0, 255).round().astype(np.uint8) for level in (80, 160, slope)]
    found = [speckle_autocorrelation(image, everywhere, 16, 2) for image in images]
    assert found[1] == pytest.approx([0.5, 0, 0, 0] * 2, abs=0.07)
    assert found[0] == pytest.approx(found[1], abs=0.02) and found[2] == pytest.approx(found[1], abs=0.03)


def test_autocorrelation_is_that_of_the_logarithm():
    # Log-normal speckle of log-deviation 1: of the greys themselves, lag 1 would have (e^(2/3) - 1) / (e - 1) = 0.55.
    field = (noise_of_correlation(np.ones((1, 3))) - 120.0) / 10
    image = np.clip(20 * np.exp(field), 0, 255).round().astype(np.uint8)
    found = speckle_autocorrelation(image, np.ones((256, 256), bool), 16, 2)
    assert found[:4] == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.05)


def test_autocorrelation_wants_windows_of_the_region_that_are_not_flat():
    flat = np.full((64, 64), 90, np.uint8)
    everywhere = np.ones((64, 64), bool)
    assert speckle_autocorrelation(flat, everywhere, 16, 1) is None
    assert speckle_autocorrelation(gamma_speckle(4, 64), everywhere, 16, 17) is None
    assert speckle_autocorrelation(gamma_speckle(4, 64), ~everywhere, 16, 1) is None
