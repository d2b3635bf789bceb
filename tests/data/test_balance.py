"""The balancing factor: two routes to one number, and what it does to the SNR."""

from __future__ import annotations

import numpy as np
import pytest

from dakd.data.balance import balancing_factor, image_power


def image_power_fft(image: np.ndarray) -> float:
    """The paper's route (Eq. 11-13): sum |F|^2 / (M N) is the energy; over the pixels once more, the mean power."""
    spectrum = np.fft.fft2(image / 127.5 - 1)
    return float(np.sum(np.abs(spectrum) ** 2) / spectrum.size**2)


@pytest.mark.parametrize("shape", [(1, 1), (7, 64), (63, 129), (256, 256)])
def test_fft_route_equals_rms_route(shape):
    image = np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)
    assert image_power_fft(image) == pytest.approx(image_power(image), rel=1e-6)


def test_power_of_a_constant_image_is_its_square_with_the_dc_term():
    assert image_power(np.zeros((5, 4), np.uint8)) == 1.0
    assert image_power(np.full((5, 4), 255, np.uint8)) == 1.0
    assert image_power_fft(np.full((5, 4), 51, np.uint8)) == pytest.approx(0.36)


def test_mask_in_plus_minus_one_has_power_one_so_b_is_the_rms_of_the_images():
    label = np.random.default_rng(0).integers(0, 5, (8, 8))
    y_0 = 2.0 * np.eye(5)[label] - 1.0
    assert np.mean(y_0**2) == 1.0


def test_b_makes_the_noisy_mask_as_strong_as_the_noisy_image():
    image = np.random.default_rng(1).integers(0, 120, (32, 32)).astype(np.uint8)
    b = balancing_factor(image_power(image))
    y_0 = np.where(np.random.default_rng(2).random((5, 32, 32)) < 0.5, 1.0, -1.0)
    assert np.mean((b * y_0) ** 2) == pytest.approx(image_power(image))


def test_no_power_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        balancing_factor(0.0)
