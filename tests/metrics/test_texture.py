"""Spectrum and edges, against scipy and images worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dakd.metrics.texture import EDGE_MARGIN, edge_agreement, label_boundary, radial_frequencies, radial_spectrum


def test_the_spectrum_of_white_noise_is_its_variance():
    found = radial_spectrum(100 + 5 * np.random.default_rng(0).standard_normal((256, 256)))
    assert found.shape == (128,) and found[8:].mean() == pytest.approx(25, rel=0.02)


@pytest.mark.parametrize("size", [(16, 16), (16, 20), (33, 21)])
def test_the_spectrum_is_scipys_periodogram_of_the_plane_averaged_over_rings(size):
    scipy_fft, windows = pytest.importorskip("scipy.fft"), pytest.importorskip("scipy.signal.windows")
    image = np.random.default_rng(1).integers(0, 256, size).astype(np.uint8)
    fade = np.outer(windows.hann(size[0], sym=False), windows.hann(size[1], sym=False))
    centred = fade * (image - np.average(image, weights=fade))
    power = np.abs(scipy_fft.fft2(centred)) ** 2 / (fade**2).sum()
    radius = np.hypot(scipy_fft.fftfreq(size[0])[:, None], scipy_fft.fftfreq(size[1])[None])
    step = 1 / min(size)
    rings = [power[np.abs(radius - middle) < step / 2].mean() for middle in radial_frequencies(size)]
    assert radial_spectrum(image) == pytest.approx(np.array(rings), rel=1e-9)


def test_a_wave_lies_at_its_frequency():
    wave = 100 + 20 * np.sin(2 * np.pi * 10 * np.arange(64) / 64)[None] * np.ones((64, 1))
    found = radial_spectrum(wave)
    assert radial_frequencies((64, 64))[found.argmax()] == 10 / 64
    assert found[[8, 9, 10]].sum() > 0.999 * found.sum()


def two_halves(step: int, noise: float = 4.0, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sea above, oil below and darker by `step`; the label's edge lies `shift` rows below the image's."""
    rows = np.arange(64)[:, None] * np.ones((1, 64))
    sar = 120 - step * (rows >= 32) + noise * np.random.default_rng(0).standard_normal((64, 64))
    return sar.round().astype(np.uint8), (rows >= 32 + shift).astype(np.uint8)


def test_the_boundary_is_the_pixels_on_both_sides_and_none_beside_ignored_ones():
    label = np.zeros((4, 4), np.uint8)
    label[2:] = 1
    assert label_boundary(label).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]
    label[2] = 255
    assert not label_boundary(label).any()


def test_edges_agree_where_the_label_follows_the_image_and_less_the_further_it_lies_off():
    found = [edge_agreement(*two_halves(60, shift=shift), min_pixels=16) for shift in (0, 2, 8)]
    assert found[0] > 10 and found[0] > 2 * found[1] > 2 * found[2]
    assert edge_agreement(*two_halves(0), min_pixels=16) == pytest.approx(1, abs=0.25)


def test_edge_agreement_of_a_ramp_worked_by_hand():
    # A slope of 2 everywhere but between rows 28 and 35, where it is 6: the boundary at rows 31 and 32 sees 6.
    slopes = np.full(64, 2.0)
    slopes[24:40] = 6
    sar = np.cumsum(slopes)[:, None] * np.ones((1, 64))
    label = (np.arange(64)[:, None] * np.ones((1, 64)) >= 32).astype(np.uint8)
    far = np.ones(64, bool)
    far[31 - EDGE_MARGIN : 33 + EDGE_MARGIN] = False
    assert edge_agreement(sar, label, 16) == pytest.approx(6 / _mean_slope(sar[:, 0], far))


def _mean_slope(profile: np.ndarray, rows: np.ndarray) -> float:
    padded = np.pad(profile, 2, mode="symmetric")
    smooth = np.convolve(padded, np.array([1, 4, 6, 4, 1]) / 16, mode="valid")
    return float(np.abs(np.gradient(smooth))[rows].mean())


def test_no_boundary_or_nothing_away_from_it_gives_no_agreement():
    sar, label = two_halves(60)
    assert edge_agreement(sar, np.zeros_like(label), 16) is None
    stripes = (np.arange(64)[:, None] // 4 % 2 * np.ones((1, 64))).astype(np.uint8)
    assert edge_agreement(sar, stripes, 16) is None
    flat = np.where(label == 0, 120, 60).astype(np.uint8)
    assert edge_agreement(flat, label, 16) is None  # nothing to compare with
