"""The simulated scenes: reproducible, near the class shares of OSD, and physical where numbers can tell."""

from __future__ import annotations

import numpy as np
import pytest

from dakd.config import SimulationConfig
from dakd.data.sample import OSD_CLASSES
from dakd.data.simulate import LAND, LOOK_ALIKE, OIL, SEA, SHIP, blur, noise_pair, simulate, speckle

NUM_SCENES = 300


@pytest.fixture(scope="module")
def scenes():
    return [simulate(i, SimulationConfig(), seed=0) for i in range(NUM_SCENES)]


def test_a_scene_is_a_function_of_seed_and_index_alone():
    one, again = (simulate(3, SimulationConfig(), seed=7) for _ in range(2))
    assert np.array_equal(one.sar, again.sar) and np.array_equal(one.label, again.label)
    assert not np.array_equal(one.sar, simulate(4, SimulationConfig(), seed=7).sar)
    assert not np.array_equal(one.sar, simulate(3, SimulationConfig(), seed=8).sar)
    assert one.meta == {"source": "simulated", "seed": 7, "index": 3, "looks": 6.0}


@pytest.mark.parametrize("size", [(8, 8), (63, 129), (64, 64), (200, 100)])
def test_any_size_can_be_drawn(size):
    sample = simulate(0, SimulationConfig(size=size), seed=0)
    assert sample.sar.shape == sample.label.shape == size
    assert sample.sar.dtype == sample.label.dtype == np.uint8
    assert sample.label.max() < OSD_CLASSES.num_classes


def test_class_shares_are_near_those_asked_for(scenes):
    cfg = SimulationConfig()
    counts = sum(np.bincount(scene.label.ravel(), minlength=5) for scene in scenes)
    shares = counts / counts.sum()
    wanted = {OIL: cfg.oil_share, LOOK_ALIKE: cfg.look_alike_share, LAND: cfg.land_share}
    for class_id, share in wanted.items():
        assert shares[class_id] == pytest.approx(share, rel=0.05)
    assert shares[SHIP] == pytest.approx(cfg.ship_share, rel=0.5)
    assert shares[SEA] == pytest.approx(0.883, abs=0.005)


def test_shares_follow_the_configuration():
    cfg = SimulationConfig(oil_share=0.2, look_alike_share=0, land_share=0, ship_share=0)
    counts = sum(np.bincount(simulate(i, cfg, 0).label.ravel(), minlength=5) for i in range(60))
    assert counts[OIL] / counts.sum() == pytest.approx(0.2, rel=0.2)
    assert counts[[LOOK_ALIKE, SHIP, LAND]].sum() == 0


def test_classes_are_ordered_by_brightness(scenes):
    means = [np.mean([s.sar[s.label == c].mean() for s in scenes if (s.label == c).any()]) for c in range(5)]
    assert means[OIL] + 15 < means[LOOK_ALIKE] < means[SEA] - 10
    assert means[SEA] + 40 < means[LAND] and means[SEA] + 60 < means[SHIP]


def test_oil_is_darker_than_the_sea_of_its_own_scene_almost_always(scenes):
    darker = [s.sar[s.label == OIL].mean() < s.sar[s.label == SEA].mean() for s in scenes if (s.label == OIL).any()]
    assert len(darker) > 100 and np.mean(darker) > 0.97


def test_balancing_factor_lies_where_that_of_real_sets_lies(scenes):
    power = np.mean([np.mean((scene.sar / 127.5 - 1.0) ** 2) for scene in scenes])
    assert 0.45 <= power**0.5 <= 0.6


@pytest.mark.parametrize("looks", [1.0, 4.0, 6.5])
def test_speckle_has_mean_one_the_stated_looks_and_a_slight_correlation(looks):
    noise = speckle(np.random.default_rng(0), (512, 512), looks)
    assert noise.min() >= 0 and noise.mean() == pytest.approx(1, abs=0.01)
    assert 1 / noise.var() == pytest.approx(looks, rel=0.05)
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert 0.2 < neighbours < 0.5
    assert abs(np.corrcoef(noise[:, 4:].ravel(), noise[:, :-4].ravel())[0, 1]) < 0.02


def test_fields_are_independent_and_of_unit_variance_with_the_stated_spectrum():
    one, other = noise_pair(np.random.default_rng(1), (256, 256), slope=3.0)
    assert one.mean() == pytest.approx(0, abs=1e-9) and one.std() == pytest.approx(1)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.5
    power = np.abs(np.fft.fft2(one)) ** 2
    k = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None]) * 256
    bands = [power[(k >= low) & (k < 2 * low)].mean() for low in (8, 16, 32)]
    assert np.log2(bands[0] / bands[1]) == pytest.approx(3, abs=0.3)
    assert np.log2(bands[1] / bands[2]) == pytest.approx(3, abs=0.3)


def test_blur_is_a_gaussian_that_keeps_constants():
    assert np.allclose(blur(np.ones((5, 9), bool), 2.0), 1.0)
    point = np.zeros((31, 31), bool)
    point[15, 15] = True
    spread = blur(point, 1.5)
    assert spread.sum() == pytest.approx(1) and spread[15, 15] == spread.max()
    assert np.sum(spread * (np.arange(31)[:, None] - 15.0) ** 2) == pytest.approx(1.5**2, rel=0.05)


def test_land_takes_no_area_from_slicks_nor_slicks_from_look_alikes():
    cfg = SimulationConfig(oil_share=0.1, look_alike_share=0.1, land_share=0.1, ship_share=0)
    counts = sum(np.bincount(simulate(i, cfg, 0).label.ravel(), minlength=5) for i in range(150))
    shares = counts / counts.sum()
    assert shares[[OIL, LOOK_ALIKE, LAND]] == pytest.approx([0.1] * 3, rel=0.05)
