"""Units are decided or asked for, windows bring scenes to the training's greys, and means are those of power."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rasterio")

from scene_worlds import WINDOW, toy_student, utm, write_tif

from dakd.data.radiometry import Radiometry
from dakd.scene.bad_scene import BadScene
from dakd.scene.grey_scene import GreyScene
from dakd.scene.radiometry import choose_window, decide_unit, foreign_greys, to_grey
from dakd.scene.rasters_in import open_raster
from dakd.scene.resample import Axis, area_mean

RNG = np.random.default_rng(0)
STUDENT = Radiometry.from_dict(toy_student().facts["radiometry"], "the toy")
DB = RNG.normal(-18, 3, 4000)


@pytest.mark.parametrize("dtype, values, unit", [
    ("uint8", RNG.integers(0, 256, 99), "grey"),
    ("uint16", RNG.integers(20, 400, 99), "amplitude"),
    ("float32", DB, "db"),
    ("float64", DB - 5, "db"),
    ("float32", 10 ** (DB / 10), "sigma0"),
])  # fmt: skip
def test_the_unit_is_told_by_type_and_range_with_a_reason(dtype, values, unit):
    found = decide_unit("auto", dtype, values.astype(dtype))
    assert found.unit == unit and len(found.reason) > 10
    assert decide_unit("auto", dtype, values.astype(dtype), "sigma0").unit == "sigma0", "a product's word counts first"


@pytest.mark.parametrize("dtype, values", [
    ("float32", RNG.uniform(0, 255, 99)), ("int16", RNG.integers(-3000, 0, 99)),
    ("float32", RNG.uniform(-900, 900, 99)), ("float32", RNG.uniform(100, 4000, 99)), ("float32", np.zeros(9)),
])  # fmt: skip
def test_numbers_of_no_certain_unit_are_refused_with_the_option(dtype, values):
    with pytest.raises(BadScene, match="--unit db, sigma0, amplitude or grey"):
        decide_unit("auto", dtype, values.astype(dtype))


@pytest.mark.parametrize("unit, values", [
    ("db", np.array([-20.0, 400.0])), ("sigma0", np.array([-9.0, 0.1])), ("amplitude", np.array([-1.0, 5])),
    ("grey", np.array([0.0, 900.0])),
])  # fmt: skip
def test_a_unit_that_the_numbers_contradict_is_refused(unit, values):
    with pytest.raises(BadScene, match="another --unit"):
        decide_unit(unit, "float32", values)


def test_a_window_is_the_users_the_students_or_matched():
    assert choose_window(None, "db", STUDENT, DB)[0] == WINDOW
    assert choose_window((-25.0, 0.0), "db", STUDENT, DB)[0] == (-25, 0)
    assert choose_window(None, "grey", Radiometry(), DB)[0] == (0, 255)
    (low, high), reason = choose_window("match", "amplitude", STUDENT, DB)
    greys = to_grey(DB.astype(np.float32), (low, high))
    assert np.percentile(greys, 1) == pytest.approx(20, abs=1) and np.median(greys) == pytest.approx(120, abs=1)
    assert "20" in reason and "120" in reason
    bright = np.concatenate([DB, np.full(1500, 5.0)])  # land over a quarter of it
    assert np.percentile(to_grey(DB.astype(np.float32), choose_window("match", "db", STUDENT, bright)[0]), 1) < 40
    for asked, unit, student, levels, remedy in (
        (None, "db", Radiometry(), DB, "--window LO,HI in dB, or --window match"),
        (None, "amplitude", STUDENT, DB, "--unit sigma0"),
        ("match", "db", Radiometry(), DB, "--window LO,HI"),
        ("match", "db", STUDENT, np.ones(9), "--window LO,HI"),
    ):
        with pytest.raises(BadScene, match=remedy):
            choose_window(asked, unit, student, levels)


def test_greys_far_from_the_trainings_are_warned_of_with_numbers():
    assert foreign_greys(RNG.integers(60, 180, 999), STUDENT) is None
    dark = foreign_greys(RNG.integers(2, 23, 999), STUDENT)
    assert "darker" in dark and "median grey is 12" in dark and "60 to 180" in dark and "--window match" in dark
    assert "brighter" in foreign_greys(RNG.integers(200, 255, 999), STUDENT)
    spread = np.concatenate([np.zeros(400), np.full(200, 120), np.full(400, 255)])
    assert "of another spread" in foreign_greys(spread, STUDENT)
    assert foreign_greys(np.zeros(9), Radiometry()) is None


@pytest.mark.parametrize("unit", ["db", "sigma0", "amplitude"])
def test_greys_are_the_windows_of_any_unit(tmp_path, unit):
    power = 10 ** (RNG.uniform(-28, -2, (30, 40)) / 10)
    stored = {"db": 10 * np.log10(power), "sigma0": power, "amplitude": np.round(1e4 * np.sqrt(power))}[unit]
    array = stored.astype("uint16" if unit == "amplitude" else "float32")
    raster = open_raster(str(write_tif(tmp_path / "a.tif", array, **utm())))
    shift = 80.0 if unit == "amplitude" else 0.0
    scene = GreyScene(raster, STUDENT, window=(WINDOW[0] + shift, WINDOW[1] + shift))
    rows = scene.rows(0, 30)
    expected = np.clip(np.round((10 * np.log10(power) + 30) / 30 * 255), 0, 255)
    assert scene.unit == unit and np.abs(rows.grey - expected).max() <= 1
    assert np.abs(rows.level / 100 - shift - 10 * np.log10(power)).max() < (0.05 if unit == "amplitude" else 0.006)


def test_multilooking_takes_the_mean_of_power_and_not_of_db(tmp_path):
    power = RNG.gamma(1.0, 0.02, (240, 320))
    db = (10 * np.log10(power)).astype(np.float32)
    raster = open_raster(str(write_tif(tmp_path / "a.tif", db, **utm(10.0))))
    scene = GreyScene(raster, Radiometry.from_dict(toy_student(spacing=40.0).facts["radiometry"], "toy"))
    assert (scene.height, scene.width) == (60, 80) and np.allclose(scene.place.spacing_m, 40, rtol=1e-3)
    expected = 10 * np.log10(power.reshape(60, 4, 80, 4).mean(axis=(1, 3)))
    assert np.abs(scene.rows(0, 60).level / 100 - expected).max() < 0.02
    of_db = db.reshape(60, 4, 80, 4).mean(axis=(1, 3))
    assert np.abs(of_db - expected).mean() > 1, "the mean of dB would pass this test"
    assert GreyScene(raster, STUDENT, spacing="native").height == 240
    assert GreyScene(raster, STUDENT, spacing=20.0).height == 120
    assert any("40 m" in note for note in scene.notes)


def test_a_spacing_that_is_unknown_is_said_and_one_asked_for_is_refused(tmp_path):
    raster = open_raster(str(write_tif(tmp_path / "a.tif", DB[:400].reshape(20, 20).astype(np.float32))))
    assert any("no pixel spacing" in note for note in GreyScene(raster, STUDENT).notes)
    with pytest.raises(BadScene, match="--pixel-size"):
        GreyScene(raster, STUDENT, spacing=50.0)


def test_a_scene_without_a_valid_pixel_is_refused_and_one_with_few_is_read(tmp_path):
    array = np.full((900, 20), np.nan, np.float32)
    with pytest.raises(BadScene, match="none of its pixels is valid"):
        GreyScene(open_raster(str(write_tif(tmp_path / "a.tif", array))), STUDENT)
    array[411, 3:9] = -20  # between the rows that are looked at
    scene = GreyScene(open_raster(str(write_tif(tmp_path / "b.tif", array))), STUDENT)
    assert scene.unit == "db" and scene.rows(0, 900).valid.sum() == 6


@pytest.mark.parametrize("source, target", [(40, 40), (41, 10), (100, 33), (7, 3), (10, 23), (5, 1), (1, 4)])
def test_area_means_are_those_of_float64_and_the_same_in_any_rows(source, target):
    values = RNG.gamma(1, 1, (source, 30)).astype(np.float32)
    valid = RNG.random((source, 30)) > 0.2
    values[~valid] = 0
    rows, columns = Axis.between(source, target), Axis.between(30, 11)

    def dense(count, number):
        edges = np.arange(number + 1) * count / number
        low, high = edges[:-1, None], edges[1:, None]
        cover = np.clip(np.minimum(np.arange(count) + 1, high) - np.maximum(np.arange(count), low), 0, None)
        return cover / cover.sum(axis=1, keepdims=True)

    down, across = dense(source, target), dense(30, 11).T
    cover = down @ valid.astype(float) @ across
    expected = down @ values.astype(float) @ across / np.maximum(cover, 1e-9)
    found, is_valid = area_mean(values, valid, 0, 0, target, rows, columns)
    clear = np.abs(cover - 0.5) > 1e-6
    assert (is_valid == (cover >= 0.5))[clear].all()
    assert np.allclose(found[is_valid], expected[is_valid], rtol=1e-5)
    for top in range(target):
        start, stop = rows.rows_for(top, top + 1, source)
        part, _ = area_mean(values[start:stop], valid[start:stop], start, top, top + 1, rows, columns)
        assert (part[0] == found[top]).all()


def test_a_part_that_is_wholly_valid_has_the_same_bits_as_within_one_that_is_not():
    values, valid = RNG.gamma(1, 1, (40, 30)).astype(np.float32), np.ones((40, 30), bool)
    valid[30:, 5] = False
    rows, columns = Axis.between(40, 12), Axis.between(30, 7)
    whole, _ = area_mean(np.where(valid, values, 0), valid, 0, 0, 12, rows, columns)
    start, stop = rows.rows_for(0, 6, 40)
    part, _ = area_mean(values[start:stop], valid[start:stop], start, 0, 6, rows, columns)
    assert (part == whole[:6]).all()


def test_facts_of_a_students_file_are_checked():
    assert Radiometry.from_dict(STUDENT.to_dict(), "x") == STUDENT and Radiometry.from_dict(None, "x") == Radiometry()
    for change in ({"window_db": [0, -5]}, {"window_db": [0]}, {"greys": [1, 2, float("nan")]}, {"quantity": "x"},
                   {"pixel_spacing_m": -1}, {"pixel_spacing_m": True}, {"unknown": 1}):  # fmt: skip
        with pytest.raises(ValueError, match="x"):
            Radiometry.from_dict(STUDENT.to_dict() | change, "x")
    with pytest.raises(ValueError, match="radiometry of x"):
        Radiometry.from_dict([1], "x")
