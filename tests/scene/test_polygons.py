"""Polygons of known shapes: right areas, lengths, contrast and places; none where there is nothing to outline."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("rasterio")

from scene_worlds import UTM, painted, toy_student, write_tif

from dakd.data.sample import OSD_CLASSES
from dakd.scene.georeference import Georeference, geod
from dakd.scene.measures import FIELDS
from dakd.scene.places import rfc_7946, to_lonlat
from dakd.scene.polygons import as_multi
from dakd.scene.rasters_out import without_specks
from dakd.scene.zonal import dilated, rectangle

rasterio = pytest.importorskip("rasterio")
shapely = pytest.importorskip("shapely")
pyproj = pytest.importorskip("pyproj")
SEA, OIL, LOOK_ALIKE, SHIP, LAND = range(5)


def shapes(height=320, width=420) -> np.ndarray:
    """A rectangle, an ellipse, a ring, a thin diagonal, a look-alike, ships, and a coast."""
    label = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    label[40:60, 50:130] = OIL
    label[((x - 220) / 40) ** 2 + ((y - 60) / 15) ** 2 <= 1] = OIL
    distance = np.hypot(x - 90, y - 180)
    label[(distance <= 40) & (distance > 25)] = OIL
    label[200:260, 200:300] = LOOK_ALIKE
    for i in range(100):
        label[100 + i, 150 + i] = OIL
    label[150:152, 350:353] = SHIP
    label[290:] = LAND
    return label


def scene_of(tmp_path, label, name="a", db=None, **settings):
    db = painted(label) if db is None else db
    path = write_tif(tmp_path / f"{name}.tif", db.astype(np.float32), nodata=float("nan"), **settings)
    return toy_student().predict_scene(path, tmp_path / "out", unit="db", least_area_km2=0)


def in_crs(crs, spacing, x, y):
    return {"crs": crs, "transform": rasterio.Affine(spacing, 0, x, 0, -spacing, y)}


def by_class(result, name):
    return [one for one in result.features if one["properties"]["class"] == name]


def ground_area(label, place) -> float:
    """The area of the pixels by their corners, one by one, on the ellipsoid."""
    rows, columns = np.nonzero(label)
    total, earth = 0.0, geod()
    for row in np.unique(rows):
        own = columns[rows == row]
        corners = [(own, row), (own + 1, row), (own + 1, row + 1), (own, row + 1)]
        lon, lat = zip(*(place.to_lonlat(np.asarray(c, float), np.full(len(own), float(r))) for c, r in corners))
        for i in range(len(own)):
            total += abs(earth.polygon_area_perimeter([one[i] for one in lon], [one[i] for one in lat])[0])
    return total


@pytest.mark.parametrize("settings", [
    in_crs(UTM, 40.0, 500_000.0, 4_650_000.0),
    in_crs("EPSG:4326", 4e-4, 12.0, 0.05),
    in_crs("EPSG:4326", 4e-4, 12.0, 60.0),
    in_crs("EPSG:4326", 4e-4, 179.93, -17.0),
    in_crs("EPSG:3413", 40.0, -200_000.0, -1_000_000.0),
], ids=["utm", "equator", "60 north", "antimeridian", "polar"])  # fmt: skip
def test_areas_are_those_of_the_pixels_on_the_ellipsoid(tmp_path, settings):
    label = shapes()
    result = scene_of(tmp_path, label, **settings)
    assert (result.read("class") == label).all()
    wkt = pyproj.CRS.from_user_input(settings["crs"]).to_wkt()
    place = Georeference(*label.shape, wkt, tuple(settings["transform"])[:6])
    oil = by_class(result, "oil")
    assert len(oil) == 4 and len(by_class(result, "look-alike")) == 1
    found = sum(one["properties"]["area"] for one in oil)
    assert found == pytest.approx(ground_area(label == OIL, place), rel=0.005)
    for one in result.features:
        facts = one["properties"]
        assert facts["area_km2"] == pytest.approx(facts["area"] / 1e6)
        assert facts["length_km"] == pytest.approx(facts["length"] / 1000)
        lon = np.array([x for part in one["geometry"]["coordinates"] for ring in part for x, _ in ring])
        assert (np.abs(lon) <= 180).all()
    if "4326" in settings["crs"] and settings["transform"].c > 179:
        across = [one for one in oil if len(one["geometry"]["coordinates"]) > 1]
        assert across, "no polygon of this scene crosses the antimeridian"
        spans = [np.ptp([x for x, _ in part[0]]) for one in across for part in one["geometry"]["coordinates"]]
        assert max(spans) < 1, "a polygon runs around the Earth"


def test_measures_of_a_rectangle_are_its_own(tmp_path):
    label = np.zeros((200, 300), np.uint8)
    label[80:100, 60:220] = OIL
    result = scene_of(tmp_path, label, **in_crs(UTM, 40.0, 500_000.0, 4_650_000.0))
    (facts,) = (one["properties"] for one in result.features)
    scale = 0.9996  # of UTM at its central meridian: the ground is larger
    assert facts["length"] == pytest.approx(160 * 40 / scale, rel=1e-3)
    assert facts["width"] == pytest.approx(20 * 40 / scale, rel=1e-3)
    assert facts["perimeter"] == pytest.approx(360 * 40 / scale, rel=1e-3)
    assert facts["orientation"] == pytest.approx(90, abs=0.2) and facts["aspect"] == pytest.approx(8, rel=1e-3)
    assert facts["fill_factor"] == pytest.approx(1, rel=1e-3)
    assert facts["polsby_popper"] == pytest.approx(4 * np.pi * 3200 / 360**2, rel=1e-3)
    assert facts["num_pixels"] == 3200 and facts["geometry_count"] == 1
    assert facts["contrast_db"] == pytest.approx((120 - 20) * 30 / 255, abs=0.1)
    assert facts["inside_db"] == pytest.approx(-30 + 20 * 30 / 255, abs=0.02)
    assert facts["outside_std_db"] == pytest.approx(0, abs=1e-3)
    assert facts["machine_confidence"] > 0.99 and facts["confidence_class"] == "A" and facts["entropy"] < 0.01
    assert facts["p_oil"] > 0.99 and facts["p_look_alike"] < 0.01
    assert not facts["touches_edge"] and not facts["touches_nodata"] and not facts["touches_land"]
    assert set(facts) == set(FIELDS)


def test_contrast_is_of_mean_power_against_the_sea_around_and_not_against_land_or_other_slicks(tmp_path):
    rng = np.random.default_rng(0)
    label = np.zeros((120, 200), np.uint8)
    label[50:70, 40:90] = OIL
    label[50:70, 94:150] = LAND
    label[74:90, 40:90] = LOOK_ALIKE
    power = 10 ** (painted(label) / 10)
    speckled = 10 * np.log10(power * rng.gamma(200, 1 / 200, label.shape))
    result = scene_of(tmp_path, label, db=speckled, **in_crs(UTM, 40.0, 500_000.0, 4_650_000.0))
    (facts,) = (one["properties"] for one in by_class(result, "oil"))
    assert facts["contrast_db"] == pytest.approx(100 * 30 / 255, abs=0.1)
    assert facts["distance_to_land_km"] == pytest.approx(4 * 0.04, rel=0.01)


@pytest.mark.parametrize("turn", [0.0, 30.0, 75.0, 140.0])
def test_orientation_is_clockwise_from_north(tmp_path, turn):
    y, x = np.mgrid[:300, :300]
    east, north = x - 150.0, 150.0 - y
    angle = np.radians(turn)
    along, across = east * np.sin(angle) + north * np.cos(angle), east * np.cos(angle) - north * np.sin(angle)
    label = np.where((np.abs(along) < 90) & (np.abs(across) < 8), OIL, SEA).astype(np.uint8)
    result = scene_of(tmp_path, label, **in_crs(UTM, 40.0, 500_000.0, 4_650_000.0))
    found = result.features[0]["properties"]["orientation"]
    assert min(abs(found - turn), 180 - abs(found - turn)) < 1.5


def test_polygons_burnt_back_are_the_class_map(tmp_path):
    from rasterio.features import rasterize

    label = shapes()
    settings = in_crs(UTM, 40.0, 500_000.0, 4_650_000.0)
    result = scene_of(tmp_path, label, **settings)
    pyogrio = pytest.importorskip("pyogrio")
    _, _, geometries, fields = pyogrio.raw.read(result.files["gpkg"], columns=["inf_idx"])
    shown = zip(shapely.from_wkb(geometries), fields[0].tolist())
    burnt = rasterize(shown, label.shape, transform=settings["transform"])
    assert (burnt == np.where(np.isin(label, (OIL, LOOK_ALIKE)), label, 0)).all()


def test_geometries_are_valid_within_the_scene_and_no_lines(tmp_path):
    """Cerulean's #82, #100 and #86: outlines beyond the scene, lines among them, and slicks where there are no data."""
    label = shapes()
    db = painted(label)
    db[:, :30] = np.nan
    db[52:90, 100:124] = np.nan
    result = scene_of(tmp_path, label, db=db, **in_crs("EPSG:4326", 4e-4, 12.0, 60.0))
    west, north, east, south = 12.0, 60.0, 12.0 + 420 * 4e-4, 60.0 - 320 * 4e-4
    empty = shapely.box(west, south, west + 30 * 4e-4, north)
    hole = shapely.box(west + 100 * 4e-4, north - 90 * 4e-4, west + 124 * 4e-4, north - 52 * 4e-4)
    assert len(result.features) > 4
    for one in result.features:
        geometry = shapely.geometry.shape(one["geometry"])
        assert geometry.geom_type == "MultiPolygon" and geometry.is_valid and not geometry.is_empty
        assert shapely.box(west, south, east, north).buffer(1e-6).contains(geometry)
        assert geometry.intersection(empty).area < 1e-12 and geometry.intersection(hole).area < 1e-12
        for part in geometry.geoms:
            assert part.exterior.is_ccw and not any(ring.is_ccw for ring in part.interiors)
    touching = [one["properties"]["touches_nodata"] for one in by_class(result, "oil")]
    assert any(touching) and not all(touching)


def test_a_black_border_or_the_edge_makes_no_polygon(tmp_path):
    label = np.zeros((200, 300), np.uint8)
    db = painted(label)
    for row in range(200):
        db[row, : 60 - row // 4] = np.nan
        db[row, 300 - row // 5 :] = np.nan
    assert scene_of(tmp_path, label, db=db, **in_crs(UTM, 40.0, 5e5, 4.65e6)).features == []
    grey = np.full((200, 300), 120, np.uint8)
    for row in range(200):
        grey[row, : 60 - row // 4] = 0
    path = write_tif(tmp_path / "grey.tif", grey, **in_crs(UTM, 40.0, 5e5, 4.65e6))
    result = toy_student().predict_scene(path, tmp_path / "out", least_area_km2=0)
    assert result.features == [] and (result.read("class")[grey == 0] == 255).all()


def test_a_line_through_all_bands_is_one_polygon(tmp_path):
    """Cerulean's #87, a slick cut at the borders of tiles."""
    label = np.zeros((2200, 90), np.uint8)
    for row in range(2200):
        start = round(40 + 30 * np.sin(row / 90))
        label[row, start : start + 3] = OIL
    result = scene_of(tmp_path, label, **in_crs(UTM, 40.0, 5e5, 4.65e6))
    (one,) = result.features
    assert one["properties"]["num_pixels"] == 6600 and one["properties"]["touches_edge"]
    assert one["properties"]["length_px"] == pytest.approx(2200, rel=0.01)


def test_pixels_that_touch_at_corners_are_one_polygon_of_valid_parts(tmp_path):
    label = np.zeros((100, 100), np.uint8)
    for i in range(60):
        label[20 + i, 20 + i] = OIL
    result = scene_of(tmp_path, label, **in_crs(UTM, 40.0, 5e5, 4.65e6))
    (one,) = result.features
    assert one["properties"]["geometry_count"] == 60 and one["properties"]["num_pixels"] == 60
    assert shapely.geometry.shape(one["geometry"]).is_valid


def test_small_polygons_are_left_out_and_counted(tmp_path):
    label = shapes()
    label[5, 5] = label[70, 300] = label[120, 20:24] = OIL
    path = write_tif(tmp_path / "a.tif", painted(label), **in_crs(UTM, 40.0, 5e5, 4.65e6))
    student = toy_student()
    result = student.predict_scene(path, tmp_path / "out", unit="db", least_area_km2=0.008)  # 5 pixels
    assert len(by_class(result, "oil")) == 4 and result.record["num_too_small"] == 3
    assert (result.read("class") == label).all(), "the class map keeps them"


def test_specks_are_dropped_but_not_those_that_may_go_on_beyond():
    label = np.zeros((9, 9), np.uint8)
    label[0, 2] = label[8, 8] = label[4, 4] = OIL
    label[6, 0:3] = OIL
    dropped = {OIL: 0}
    kept = without_specks(label, {OIL: 3}, dropped)
    assert dropped == {OIL: 1} and kept[4, 4] == 0 and kept[0, 2] == kept[8, 8] == OIL and (kept[6, :3] == OIL).all()
    assert (without_specks(label, {}, {}) == 0).all()


def test_ships_are_points_in_their_own_file(tmp_path):
    label = shapes()
    result = scene_of(tmp_path, label, **in_crs(UTM, 40.0, 5e5, 4.65e6))
    found = json.loads(result.files["ships"].read_text())["features"]
    assert len(found) == result.record["num_ships"] == 1 and found[0]["geometry"]["type"] == "Point"
    lon, lat = found[0]["geometry"]["coordinates"]
    x, y = pyproj.Transformer.from_crs(4326, UTM, always_xy=True).transform(lon, lat)
    assert 350 <= (x - 5e5) / 40 <= 353 and 150 <= (4.65e6 - y) / 40 <= 152
    assert found[0]["properties"]["class"] == "ship"
    assert found[0]["properties"]["length"] == pytest.approx(120, rel=0.01)


def test_a_scene_without_a_place_is_measured_in_pixels_or_by_a_stated_size(tmp_path):
    label = np.zeros((100, 150), np.uint8)
    label[20:30, 40:90] = OIL
    path = write_tif(tmp_path / "a.tif", painted(label))
    (one,) = toy_student().predict_scene(path, tmp_path / "out", unit="db").features
    ring = one["geometry"]["coordinates"][0][0]
    assert sorted({x for x, _ in ring}) == [40, 90] and sorted({y for _, y in ring}) == [-30, -20]
    assert one["properties"]["area"] is None and one["properties"]["length_px"] == 50
    (one,) = toy_student().predict_scene(path, tmp_path / "out2", unit="db", pixel_size_m=100.0).features
    assert one["properties"]["area_km2"] == pytest.approx(5) and one["properties"]["length"] == pytest.approx(5000)
    assert "pixels" in json.loads((tmp_path / "out" / "a.polygons.geojson").read_text())["coordinates"]


def test_confidence_is_that_of_the_polygons_class(tmp_path):
    grey = np.full((100, 150), 120.0)
    grey[20:40, 20:80] = 36  # between oil and look-alike, nearer to oil
    from scene_worlds import db_of

    path = write_tif(tmp_path / "a.tif", db_of(grey).astype(np.float32), **in_crs(UTM, 40.0, 5e5, 4.65e6))
    result = toy_student().predict_scene(path, tmp_path / "out", unit="db")
    (facts,) = (one["properties"] for one in result.features)
    probability = result.read("probability")[:, 20:40, 20:80].reshape(5, -1) / 250
    assert facts["median_conf"] == facts["machine_confidence"] == pytest.approx(np.median(probability[OIL]), abs=0.005)
    assert facts["mean_conf"] == facts["p_oil"] == pytest.approx(probability[OIL].mean(), abs=1e-3)
    assert facts["max_conf"] == pytest.approx(probability[OIL].max())
    assert facts["p_look_alike"] == pytest.approx(probability[LOOK_ALIKE].mean(), abs=1e-3)
    clipped = np.clip(probability, 1e-9, 1)
    expected = -(clipped * np.log(clipped)).sum(axis=0).mean() / np.log(5)
    assert facts["entropy"] == pytest.approx(expected, abs=0.02)


def test_a_polygon_around_a_pole_and_one_across_the_antimeridian_keep_their_area():
    crs = pyproj.CRS.from_epsg(3413).to_wkt()
    place = Georeference(200, 200, crs, (1000.0, 0, -100_000.0, 0, -1000.0, 100_000.0))
    ring = as_multi(shapely.box(60, 60, 140, 140))
    found = rfc_7946(to_lonlat(ring, place))
    assert found.is_valid and found.bounds[0] >= -180 and found.bounds[2] <= 180 and found.bounds[3] == 90
    plain = shapely.MultiPolygon([shapely.box(179.5, -17, 180.5, -16)])
    cut = rfc_7946(plain)
    assert len(cut.geoms) == 2 and cut.area == pytest.approx(plain.area) and cut.bounds == (-180, -17, 180, -16)


def test_a_dilation_is_that_of_scipy_and_a_rectangle_that_of_its_points():
    from scipy.ndimage import binary_dilation

    mask = (np.random.default_rng(0).random((40, 50)) > 0.98).astype(np.uint8)
    for by in (1, 3, 10):
        assert (dilated(mask, by) == binary_dilation(mask, np.ones((2 * by + 1,) * 2))).all()
    angle = np.radians(35)
    corners = np.array([[0, 0], [10, 0], [10, 2], [0, 2.0]])
    turned = corners @ np.array([[np.sin(angle), np.cos(angle)], [np.cos(angle), -np.sin(angle)]])
    length, width, direction = rectangle(turned)
    assert (length, width, direction) == (pytest.approx(10), pytest.approx(2), pytest.approx(35))
    assert rectangle(np.zeros((1, 2))) == (0, 0, 0)


def test_only_polygons_count_of_what_a_repair_leaves():
    collection = shapely.GeometryCollection([
        shapely.box(0, 0, 1, 1), shapely.LineString([(0, 0), (5, 5)]), shapely.Point(3, 3),
        shapely.MultiPolygon([shapely.box(4, 4, 5, 5)]), shapely.GeometryCollection([shapely.box(7, 7, 8, 8)]),
    ])  # fmt: skip
    assert as_multi(collection).area == 3 and len(as_multi(collection).geoms) == 3
    assert as_multi(shapely.LineString([(0, 0), (1, 1)])).is_empty


def test_the_table_of_fields_has_the_names_that_operators_use():
    cerulean = {"machine_confidence", "mean_conf", "median_conf", "max_conf", "length", "area", "perimeter",
                "polsby_popper", "fill_factor", "linearity", "geometry_count", "largest_area", "median_area",
                "slick_timestamp", "inf_idx"}  # fmt: skip
    assert cerulean <= set(FIELDS) and len(OSD_CLASSES.names) == 5
