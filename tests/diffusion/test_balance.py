"""The balancing factor: two routes to one number, and what it does to the SNR."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dakd.diffusion.balance import balancing_factor, image_power, image_power_fft, mean_power


@pytest.mark.parametrize("shape", [(1, 1), (7, 64), (63, 129), (256, 256)])
def test_fft_route_equals_rms_route(shape):
    image = np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)
    assert image_power_fft(image) == pytest.approx(image_power(image), rel=1e-6)


def test_power_of_a_constant_image_is_its_square_with_the_dc_term():
    assert image_power(np.zeros((5, 4), np.uint8)) == 1.0
    assert image_power(np.full((5, 4), 255, np.uint8)) == 1.0
    assert image_power_fft(np.full((5, 4), 51, np.uint8)) == pytest.approx(0.36)


def test_power_is_averaged_over_images_before_the_root_is_taken():
    black, middle = np.zeros((4, 4), np.uint8), np.full((9, 9), 51, np.uint8)
    assert mean_power([black, middle]) == pytest.approx((1 + 0.36) / 2)
    assert balancing_factor(mean_power([black, middle])) == pytest.approx(math.sqrt(0.68))


def test_mask_in_plus_minus_one_has_power_one_so_b_is_the_rms_of_the_images():
    label = np.random.default_rng(0).integers(0, 5, (8, 8))
    y_0 = 2.0 * np.eye(5)[label] - 1.0
    assert np.mean(y_0**2) == 1.0


def test_b_makes_the_noisy_mask_as_strong_as_the_noisy_image():
    image = np.random.default_rng(1).integers(0, 120, (32, 32)).astype(np.uint8)
    b = balancing_factor(image_power(image))
    y_0 = np.where(np.random.default_rng(2).random((5, 32, 32)) < 0.5, 1.0, -1.0)
    assert np.mean((b * y_0) ** 2) == pytest.approx(image_power(image))


def test_no_images_and_no_power_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        mean_power([])
    with pytest.raises(ValueError, match="above 0"):
        balancing_factor(0.0)
