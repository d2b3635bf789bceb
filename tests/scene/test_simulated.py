"""Simulated scenes: the same by seed, of any size, with a place, and with a truth that is theirs."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("rasterio")

import rasterio
from documents import ROOT
from scene_worlds import ByGrey, toy_student

import dakd
from dakd.cli import main
from dakd.data.radiometry import Radiometry
from dakd.data.sample import OSD_CLASSES
from dakd.data.simulate import PIXEL_SPACING_M, SEA_DB, WINDOW_DB
from dakd.scene.measures import FIELDS
from dakd.scene.simulated import SimulatedScene, write_simulated


def arrays(files):
    with rasterio.open(files["scene"]) as scene, rasterio.open(files["truth"]) as truth:
        return scene.read(1), truth.read(1)


@pytest.mark.parametrize("unit", ["db", "sigma0", "amplitude", "grey"])
def test_a_scene_has_its_unit_its_place_and_its_collar(tmp_path, unit):
    files = write_simulated(tmp_path / "a.tif", SimulatedScene(300, 400, 3, collar=50), unit)
    numbers, truth = arrays(files)
    with rasterio.open(files["scene"]) as found:
        assert found.shape == (300, 400) and found.crs.to_epsg() == 32632 and found.descriptions == ("VV",)
        valid = found.read_masks(1) > 0
    assert ((truth != 255) == valid).all() and not valid[0, :50].any() and not valid[299, 350:].any()
    sea = float(np.median(numbers[truth == 0]))
    db_of = {"db": lambda: sea, "sigma0": lambda: 10 * np.log10(sea), "amplitude": lambda: 20 * np.log10(sea / 600),
             "grey": lambda: WINDOW_DB[0] + sea * (WINDOW_DB[1] - WINDOW_DB[0]) / 255}  # fmt: skip
    assert db_of[unit]() == pytest.approx(SEA_DB, abs=2.5)


def test_a_scene_is_that_of_its_seed_in_any_blocks(tmp_path, monkeypatch):
    one = SimulatedScene(600, 300, 7, land=True)
    blocks = list(one.blocks())
    again = list(SimulatedScene(600, 300, 7, land=True).blocks())
    assert all((a[1] == b[1]).all() and (a[2] == b[2]).all() for a, b in zip(blocks, again))
    other = list(SimulatedScene(600, 300, 8, land=True).blocks())
    assert any((a[1] != b[1]).any() for a, b in zip(blocks, other))
    label = np.concatenate([one[2] for one in blocks])
    assert label.shape == (600, 300) and {0, 1, 2, 4} <= set(np.unique(label))


def test_truth_polygons_are_those_of_the_truth_raster(tmp_path):
    files = write_simulated(tmp_path / "a.tif", SimulatedScene(500, 500, 2, oil=4, look_alikes=3, ships=10))
    _, truth = arrays(files)
    found = json.loads(files["polygons"].read_text())["features"]
    for class_id, name in enumerate(OSD_CLASSES.names[1:4], start=1):
        counted = sum(one["properties"]["num_pixels"] for one in found if one["properties"]["class"] == name)
        assert counted == (truth == class_id).sum() > 0


def test_control_points_place_a_scene_where_its_transform_does(tmp_path):
    from dakd.scene.rasters_in import open_raster

    scene = SimulatedScene(200, 300, 1)
    places = [open_raster(str(write_simulated(tmp_path / f"{gcps}.tif", scene, gcps=gcps)["scene"])).place
              for gcps in (False, True)]  # fmt: skip
    assert [one.kind for one in places] == ["transform", "gcps"]
    columns, rows = np.array([0.0, 150.5, 300.0]), np.array([200.0, 77.0, 3.0])
    (lon, lat), (lon2, lat2) = (one.to_lonlat(columns, rows) for one in places)
    assert np.abs(lon - lon2).max() < 1e-5 and np.abs(lat - lat2).max() < 1e-5


def test_known_slicks_are_found_by_a_student_that_knows_their_darkness(tmp_path):
    """Objects of a simulated scene against the polygons: precision and recall of those with contrast."""
    import torch

    class Dark(ByGrey):
        def forward(self, image):
            grey = torch.nn.functional.avg_pool2d(255 * (image[:, :1] * 0.229 + 0.485), 5, 1, 2)
            others = torch.full_like(grey, -99.0)
            return torch.cat([grey - 38, 38 - grey, others, others, others], dim=1)

    radiometry = Radiometry("sigma0", WINDOW_DB, PIXEL_SPACING_M, (3, 77, 215), (17, 74, 145), (41, 156))
    student = dakd.Student(Dark(), OSD_CLASSES, "cpu", {"crop": [64, 64], "radiometry": radiometry.to_dict()})
    scene = SimulatedScene(900, 1100, 11, oil=12, look_alikes=0, ships=6)
    files = write_simulated(tmp_path / "a.tif", scene)
    _, truth = arrays(files)
    result = student.predict_scene(files["scene"], least_area_km2=0.05)
    label = result.read("class")
    from scipy.ndimage import label as connected

    objects, count = connected(truth == 1, np.ones((3, 3)))
    large = [i for i in range(1, count + 1) if (objects == i).sum() >= 60]
    found = [i for i in large if (label[objects == i] == 1).mean() > 0.3]
    assert len(large) >= 8 and len(found) / len(large) > 0.6
    outlines, number = connected(label == 1, np.ones((3, 3)))
    shown = [i for i in range(1, number + 1) if (outlines == i).sum() * 1600 >= 50_000]
    right = [i for i in shown if (truth[outlines == i] == 1).mean() > 0.3]
    assert len(shown) == len(result.features) and len(right) / len(shown) > 0.8


def test_the_commands_write_a_scene_and_its_polygons(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate-scene", "a.tif", "--size", "200", "260", "--unit", "db", "--centre", "179.99,-17"]) == 0
    names = {"a.tif", "a.truth.tif", "a.truth.tif.aux.xml", "a.truth.geojson"}
    assert {one.name for one in tmp_path.iterdir()} == names
    for arguments, words in ((["--centre", "x"], "expected LON,LAT"), (["--centre", "0,85"], "from 80 S to 80 N"),
                             (["--spacing", "0"], "above 0"), (["--size", "4", "9"], "at least 8")):  # fmt: skip
        assert main(["simulate-scene", "b.tif", *arguments]) == 1
        assert words in capsys.readouterr().err and not (tmp_path / "b.tif").exists()


def test_the_command_scene_takes_texts_and_files(tmp_path, monkeypatch, capsys):
    import torch
    from tiny_students import TINY_STUDENT

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    facts = toy_student().facts
    dakd.Student(dakd.create_student(num_classes=5, **TINY_STUDENT), OSD_CLASSES, "cpu").save("s.safetensors", facts)
    write_simulated(tmp_path / "a.tif", SimulatedScene(160, 200))
    begin = ["scene", "a.tif", "--student", "s.safetensors", "--out"]
    assert main([*begin, "one", "--outputs", "class,geojson", "--window=-25,0", "--spacing", "native"]) == 0
    assert {one.name for one in (tmp_path / "one").iterdir()} == {
        "a.class.tif", "a.class.tif.aux.xml", "a.polygons.geojson", "a.json"}  # fmt: skip
    assert main([*begin, "two", "--aoi", "a.truth.geojson", "--polygons", "oil", "--spacing", "80"]) == 0
    options = json.loads((tmp_path / "two" / "a.json").read_text())["options"]
    assert options["spacing"] == 80 and options["polygons"] == ["oil"] and len(options["aoi"]) == 4
    for arguments, words in ((["--window", "x"], "expected LO,HI"), (["--aoi", "x"], "expected W,S,E,N"),
                             (["--spacing", "x"], "expected metres"), (["--polygons", "fish"], "no class is called"),
                             (["--band", "VH"], "no band 'VH'"), (["--aoi=-9,1,-8,2"], "lies outside")):  # fmt: skip
        assert main([*begin, "three", *arguments]) == 1
        assert words in capsys.readouterr().err and not list((tmp_path / "three").glob("[!.]*"))


def test_the_document_lists_the_fields_as_they_are():
    text = (ROOT / "dakd" / "scene" / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `") and "SCENE" not in line]
    assert rows == [f"| `{name}` | {meaning} |" for name, (_, meaning) in FIELDS.items()]
