"""Pixels lie where they are: transforms, ground control points, the antimeridian, a pole, areas of interest."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio")

from scene_worlds import UTM

from dakd.scene.bad_scene import BadScene
from dakd.scene.georeference import ControlPoint, Georeference, geod, unwrapped_points
from dakd.scene.rasters_in import open_raster

pyproj = pytest.importorskip("pyproj")
WGS84 = pyproj.CRS.from_epsg(4326).to_wkt()


def in_utm(spacing=40.0, turn=0.0, size=(300, 400)) -> Georeference:
    c, s = spacing * np.cos(turn), spacing * np.sin(turn)
    return Georeference(*size, pyproj.CRS.from_user_input(UTM).to_wkt(), (c, s, 500_000.0, s, -c, 4_650_000.0))


def metres(lon, lat, lon2, lat2) -> np.ndarray:
    return np.asarray(geod().inv(lon, lat, lon2, lat2)[2])


@pytest.mark.parametrize("turn", [0.0, 0.3, -1.2])
def test_places_of_a_transform_are_those_of_pyproj_and_rasterio(turn):
    import rasterio.transform

    place = in_utm(turn=turn)
    columns, rows = np.array([0.0, 10.5, 400.0]), np.array([0.0, 299.0, 17.25])
    x, y = rasterio.transform.xy(rasterio.Affine(*place.transform), rows, columns, offset="ul")
    lon, lat = pyproj.Transformer.from_crs(UTM, 4326, always_xy=True).transform(x, y)
    found = place.to_lonlat(columns, rows)
    assert metres(lon, lat, *found).max() < 1e-3
    assert np.allclose(place.spacing_m, 40, rtol=1e-3)


def curved(column, row):
    """A place that no affine transform has: terrain moves it by kilometres."""
    lon = 11.0 + 1e-4 * column + 2e-6 * row + 0.02 * np.sin(column / 400)
    return lon, 42.0 - 1e-4 * row + 0.015 * np.cos(row / 300)


def with_points(step: int, size=(2000, 2500)) -> Georeference:
    rows, columns = (one.ravel() for one in np.mgrid[0 : size[0] + 1 : step, 0 : size[1] + 1 : step].astype(float))
    points = tuple(ControlPoint(c, r, *curved(c, r)) for c, r in zip(columns.tolist(), rows.tolist()))
    return Georeference(*size, WGS84, points=points)


def test_ground_control_points_are_followed_and_not_replaced_by_an_affine_transform():
    import rasterio.transform

    place = with_points(250)
    columns = np.array([one.column for one in place.points])
    rows = np.array([one.row for one in place.points])
    at_points = metres(*place.to_lonlat(columns, rows), *curved(columns, rows))
    assert at_points.max() < 1
    between = np.random.default_rng(0).uniform(0, 2000, (2, 500))
    held_out = metres(*place.to_lonlat(*between), *curved(*between))
    assert held_out.mean() < 20
    gcps = [rasterio.control.GroundControlPoint(one.row, one.column, one.x, one.y) for one in place.points]
    lon, lat = rasterio.transform.xy(rasterio.transform.from_gcps(gcps), between[1], between[0], offset="ul")
    assert metres(lon, lat, *curved(*between)).mean() > 500, "the points are such that an affine transform would do"


@pytest.mark.real_data
def test_a_real_grds_points_are_met_and_those_left_out_are_near(tmp_path):
    root = Path(os.environ.get("DAKD_REAL_DATA", "/nowhere")) / "sar"
    found = list(root.glob("S1B_IW_GRDH*5371.zip"))
    if not found:
        pytest.skip("DAKD_REAL_DATA has no sar/ with a Sentinel-1 product")
    import rasterio

    with rasterio.open(f"/vsizip/{found[0]}/{found[0].stem}.SAFE/manifest.safe") as product:
        points, _ = product.gcps
        shape = product.shape
    sea = [one for one in points if one.z < 10]
    given = tuple(ControlPoint(one.col, one.row, one.x, one.y) for one in points)
    place = Georeference(*shape, WGS84, points=given)
    lon, lat = place.to_lonlat(np.array([one.col for one in points]), np.array([one.row for one in points]))
    assert metres(lon, lat, [one.x for one in points], [one.y for one in points]).max() < 1
    kept = tuple(ControlPoint(one.col, one.row, one.x, one.y) for one in sea[::2])
    place = Georeference(*shape, WGS84, points=kept)
    held = sea[1::2]
    lon, lat = place.to_lonlat(np.array([one.col for one in held]), np.array([one.row for one in held]))
    assert metres(lon, lat, [one.x for one in held], [one.y for one in held]).mean() <= 20


def test_points_on_a_line_give_a_clear_error():
    place = Georeference(10, 10, WGS84, points=tuple(ControlPoint(i, i, 11 + i, 42 + i) for i in range(5)))
    with pytest.raises(BadScene, match="5 ground control points"):
        place.to_lonlat(np.array([1.0]), np.array([2.0]))


def test_resized_and_cropped_places_are_the_same_places():
    for place in (in_utm(), in_utm(turn=0.4), with_points(100, (300, 400))):
        small = place.resized(75, 160)
        a = place.to_lonlat(np.array([100.0, 400.0]), np.array([200.0, 300.0]))
        b = small.to_lonlat(np.array([40.0, 160.0]), np.array([50.0, 75.0]))
        assert metres(*a, *b).max() < 0.01
        part = place.cropped(50, 250, 100, 300)
        assert metres(*place.to_lonlat(np.array([150.0]), np.array([80.0])),
                      *part.to_lonlat(np.array([50.0]), np.array([30.0]))).max() < 0.01  # fmt: skip
    assert np.allclose(in_utm().resized(150, 200).spacing_m, 80, rtol=1e-3)


def test_longitudes_do_not_jump_at_the_antimeridian():
    crossing = Georeference(100, 200, WGS84, transform=(0.001, 0, 179.9, 0, -0.001, -17.0))
    lon, _ = crossing.to_lonlat(np.arange(0, 201, 50.0), np.zeros(5))
    assert np.allclose(np.diff(lon), 0.05) and lon[0] < 180 < lon[-1]
    south_1 = pyproj.CRS.from_epsg(32701).to_wkt()
    fiji = Georeference(100, 2000, south_1, transform=(40, 0, 140_000.0, 0, -40, 8_100_000.0))
    lon, _ = fiji.to_lonlat(np.arange(0, 2001, 100.0), np.zeros(21))
    assert (np.diff(lon) > 0).all() and np.ptp(lon) < 1
    points = [ControlPoint(0, 0, 179.9, 0), ControlPoint(9, 0, -179.9, 0), ControlPoint(0, 9, 179.8, 1)]
    assert [one.x for one in unwrapped_points(points, True)] == pytest.approx([179.9, 180.1, 179.8])
    assert unwrapped_points(points, False) == tuple(points)


def test_a_scene_without_a_place_has_pixels_upwards_and_the_spacing_that_is_stated():
    place = Georeference(30, 40)
    x, y = place.to_map(np.array([3.0]), np.array([7.0]))
    assert (x[0], y[0]) == (3, -7) and place.spacing_m is None and place.kind == "pixels"
    assert Georeference(30, 40, pixel_size_m=80.0).spacing_m == (80, 80)
    with pytest.raises(ValueError, match="without a CRS"):
        place.to_lonlat(np.array([0.0]), np.array([0.0]))


def test_an_area_of_interest_lies_within_its_window_also_across_the_antimeridian():
    place = in_utm(size=(650, 1300))
    lon, lat = place.to_lonlat(np.array([400.0, 600.0]), np.array([300.0, 200.0]))
    top, bottom, left, right = place.window_of((lon[0], lat[0], lon[1], lat[1]))
    assert top <= 200 and bottom >= 300 and left <= 400 and right >= 600
    assert bottom - top < 200 and right - left < 320
    assert place.window_of((-50.0, 10.0, -49.0, 11.0)) is None
    crossing = Georeference(130, 260, WGS84, transform=(0.001, 0, 179.9, 0, -0.001, -17.0))
    top, bottom, left, right = crossing.window_of((179.95, -17.05, -179.95, -17.02))
    assert left <= 50 and right >= 150 and top <= 20 and bottom >= 50 and (right - left) < 130


def test_a_transform_off_the_earth_is_an_error_with_a_remedy():
    place = Georeference(10, 10, pyproj.CRS.from_user_input(UTM).to_wkt(), (1e9, 0, 0, 0, -1e9, 0))
    with pytest.raises(BadScene, match="--crs none"):
        place.to_lonlat(np.array([5.0]), np.array([5.0]))


def test_a_files_georeference_is_kept_by_kind(tmp_path):
    import rasterio
    from scene_worlds import utm, write_tif

    array = np.ones((20, 30), np.uint8)
    turned = {"crs": UTM, "transform": rasterio.Affine(*in_utm(turn=0.35).transform)}
    for name, settings in (("a", utm()), ("b", turned)):
        place = open_raster(str(write_tif(tmp_path / f"{name}.tif", array, **settings))).place
        assert place.kind == "transform" and place.transform == tuple(settings["transform"])[:6]
    gcps = [rasterio.control.GroundControlPoint(r, c, 11 + c / 1000, 42 - r / 1000) for r in (0, 20) for c in (0, 30)]
    path = write_tif(tmp_path / "c.tif", array, gcps=(gcps, rasterio.crs.CRS.from_epsg(4326)))
    place = open_raster(str(path)).place
    assert place.kind == "gcps" and len(place.points) == 4
    assert place.to_lonlat(np.array([15.0]), np.array([10.0])) == (pytest.approx(11.015), pytest.approx(41.99))
