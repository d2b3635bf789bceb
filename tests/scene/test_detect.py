"""`dakd scene` from the outside: files that others read, resuming, sharing, names, errors that cost no other scene."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rasterio")

import rasterio
import scene_worlds
from scene_worlds import ByGrey, painted, toy_student, utm, write_tif

from dakd.data.sample import OSD_CLASSES, ClassTable
from dakd.scene.bad_scene import BadScene
from dakd.scene.bands import BandStore
from dakd.scene.detect import BadScenes, detect_all
from dakd.scene.engine import Band
from dakd.scene.options import OUTPUTS, SceneOptions
from dakd.scene.simulated import SimulatedScene, write_simulated

SEA, OIL = 0, 1


def label_of(height=200, width=260) -> np.ndarray:
    label = np.zeros((height, width), np.uint8)
    label[30:50, 40:140] = OIL
    label[90:130, 150:220] = 2
    label[150:152, 60:64] = 3
    return label


@pytest.fixture
def path(tmp_path):
    settings = utm() | {"nodata": float("nan"), "tags": {"ACQUISITION_START_TIME": "2021-12-23T05:11:22.123Z"}}
    return write_tif(tmp_path / "a.tif", painted(label_of()), **settings)


def run(scenes, out, student=None, overwrite=False, **options):
    options = {"unit": "db"} | options
    places = [str(one) for one in scenes]
    return detect_all(places, student or toy_student(), out, SceneOptions(**options), overwrite)


def test_all_files_are_there_and_the_record_says_what_was_done(path, tmp_path):
    (result,) = run([path], tmp_path / "out")
    names = {"a.class.tif", "a.class.tif.aux.xml", "a.probability.tif", "a.polygons.geojson", "a.polygons.gpkg",
             "a.ships.geojson", "a.quicklook.png", "a.json"}  # fmt: skip
    assert {one.name for one in (tmp_path / "out").iterdir()} == names
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["plan"]["source"]["where"] == str(path) and len(record["plan"]["source"]["sha256"]) == 64
    assert record["plan"]["grid"] | {"size": 0} == {"tile": 64, "stride": 32, "size": 0, "bands": [0, 6],
                                                    "columns": [0, 260]} or record["plan"]["grid"]["tile"] == 64
    assert record["num_pixels"] == {"sea": 200 * 260 - 2000 - 2800 - 8, "oil": 2000, "look-alike": 2800, "ship": 8,
                                    "land": 0, "no data": 0}  # fmt: skip
    assert record["num_slicks"] == 2 and record["num_ships"] == 1 and record["time_utc"] == "2021-12-23T05:11:22Z"
    assert record["decisions"] and record["peak_memory_mib"] > 0 and record["versions"]["gdal"]
    for name, facts in record["files"].items():
        assert facts["name"] == result.files[name].name and len(facts["sha256"]) == 64
    assert result.features[0]["properties"]["slick_id"] == "a-1" and "2 slicks" in repr(result)


def test_the_rasters_are_valid_cogs_with_palette_names_and_place(path, tmp_path):
    cogeo = pytest.importorskip("rio_cogeo")
    (result,) = run([path], tmp_path / "out")
    for name in ("class", "probability"):
        is_valid, errors, warnings = cogeo.cog_validate(result.files[name], strict=True)
        assert is_valid and not errors and not warnings
    with rasterio.open(path) as source, rasterio.open(result.files["class"]) as found:
        assert found.crs == source.crs and found.transform == source.transform and found.nodata == 255
        assert [found.colormap(1)[i][:3] for i in range(5)] == list(OSD_CLASSES.colours)
        assert found.tags(1)["CLASS_1"] == "oil" and (found.read(1) == label_of()).all()
    assert "<Category>look-alike</Category>" in (tmp_path / "out" / "a.class.tif.aux.xml").read_text()
    with rasterio.open(result.files["probability"]) as found:
        assert found.descriptions == OSD_CLASSES.names and found.scales == (1 / 250,) * 5 and found.nodata == 255
        assert np.abs(found.read().astype(int).sum(axis=0) - 250).max() <= 3
    assert Image.open(result.files["quicklook"]).size[0] >= 480


def test_control_points_are_kept_in_the_rasters(tmp_path):
    points = [rasterio.control.GroundControlPoint(r, c, 11 + c / 2000 + (r * c) / 1e8, 42 - r / 2000)
              for r in (0, 100, 200) for c in (0, 130, 260)]  # fmt: skip
    path = write_tif(tmp_path / "a.tif", painted(label_of()), gcps=(points, rasterio.crs.CRS.from_epsg(4326)))
    (result,) = run([path], tmp_path / "out")
    with rasterio.open(result.files["class"]) as found:
        kept, crs = found.gcps
    assert crs.to_epsg() == 4326 and len(kept) == 9
    found, given = (np.array([(one.row, one.col, one.x, one.y) for one in ones]) for ones in (kept, points))
    assert np.allclose(found, given, rtol=0, atol=1e-9)


def test_vector_files_are_read_by_ogr_with_equal_counts_and_areas(path, tmp_path):
    pyogrio, shapely, pyproj = (pytest.importorskip(name) for name in ("pyogrio", "shapely", "pyproj"))
    (result,) = run([path], tmp_path / "out")
    areas = []
    for name, crs in (("geojson", "EPSG:4326"), ("gpkg", "EPSG:32632")):
        facts, _, geometries, fields = pyogrio.raw.read(result.files[name])
        assert pyproj.CRS.from_user_input(facts["crs"]) == pyproj.CRS.from_user_input(crs) and len(geometries) == 2
        found = dict(zip(facts["fields"], fields))
        areas.append(found["area"].tolist())
        assert sorted(found["class"]) == ["look-alike", "oil"] and not found["touches_edge"].any()
        lon, lat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(
            *np.array([one.centroid.coords[0] for one in shapely.from_wkb(geometries)]).T
        )
        assert np.allclose(lon, found["centroid_lon"], atol=1e-4) and np.allclose(lat, found["centroid_lat"], atol=1e-4)
    assert areas[0] == pytest.approx(areas[1])


def test_a_finished_scene_is_not_made_again_and_other_options_are_refused(path, tmp_path, capsys):
    run([path], tmp_path / "out")
    before = {one.name: one.stat().st_mtime_ns for one in (tmp_path / "out").iterdir()}
    run([path], tmp_path / "out")
    assert before == {one.name: one.stat().st_mtime_ns for one in (tmp_path / "out").iterdir()}
    assert "there already" in capsys.readouterr().out
    with pytest.raises(BadScenes, match="--overwrite, or another folder"):
        run([path], tmp_path / "out", least_area_km2=1.0)
    (result,) = run([path], tmp_path / "out", least_area_km2=4.0, overwrite=True)
    assert len(result.features) == 1
    (tmp_path / "out" / "a.quicklook.png").unlink()
    run([path], tmp_path / "out", least_area_km2=4.0, overwrite=True)
    assert (tmp_path / "out" / "a.quicklook.png").exists()


def test_a_scene_that_was_stopped_between_bands_goes_on_and_has_the_same_files(path, tmp_path, monkeypatch):
    (whole,) = run([path], tmp_path / "whole")
    written = []
    keep = BandStore.write

    def stop(self, band):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(band.number)
        keep(self, band)

    monkeypatch.setattr(BandStore, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        run([path], tmp_path / "out")
    monkeypatch.setattr(BandStore, "write", lambda self, band: written.append(band.number) or keep(self, band))
    (result,) = run([path], tmp_path / "out")
    assert sorted(written) == list(range(len(written))), "a band was made twice or not at all"
    for name in ("class", "probability"):
        assert (result.read(name) == whole.read(name)).all()
    assert result.features == whole.features


def test_a_damaged_band_is_removed_and_made_again(path, tmp_path, monkeypatch):
    monkeypatch.setattr("dakd.scene.scene_job.write_scratch", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(BadScenes):
        run([path], tmp_path / "out")
    monkeypatch.undo()
    band = sorted((tmp_path / "out" / ".a.work").glob("band-*.zst"))[2]
    data = bytearray(band.read_bytes())
    data[-20] ^= 255
    band.write_bytes(bytes(data))
    with pytest.raises(BadScenes, match="run the same command again"):
        run([path], tmp_path / "out")
    (result,) = run([path], tmp_path / "out")
    assert (result.read("class") == label_of()).all() and not (tmp_path / "out" / ".a.work").exists()


def test_bands_of_another_plan_are_not_taken(path, tmp_path, monkeypatch):
    monkeypatch.setattr("dakd.scene.scene_job.write_scratch", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(BadScenes):
        run([path], tmp_path / "out", window=(-60.0, 30.0))
    monkeypatch.undo()
    (result,) = run([path], tmp_path / "out")
    assert (result.read("class") == label_of()).all()


def test_a_kept_band_comes_back_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    band = Band(3, 96, 128, 32, 90, rng.integers(0, 5, (32, 58)).astype(np.uint8),
                rng.integers(0, 251, (5, 32, 58)).astype(np.uint8), rng.integers(-3000, 0, (32, 58)).astype(np.int16),
                rng.integers(0, 255, (32, 58)).astype(np.uint8))  # fmt: skip
    store = BandStore(tmp_path, {"a": 1}, range(2, 5), 32)
    store.write(band)
    found = store.read(3)
    assert store.missing() == [2, 4] and store.num_done == 1
    for name in ("label", "probability", "level", "grey"):
        assert (getattr(found, name) == getattr(band, name)).all()
    assert (found.number, found.top, found.bottom, found.left, found.right) == (3, 96, 128, 32, 90)
    assert BandStore(tmp_path, {"a": 1}, range(2, 5), 32).num_done == 1
    assert BandStore(tmp_path, {"a": 2}, range(2, 5), 32).num_done == 0


def test_processes_share_a_scene_and_the_files_are_the_same(tmp_path):
    path = tmp_path / "a.tif"
    write_simulated(path, SimulatedScene(700, 300, 1))
    (whole,) = run([path], tmp_path / "whole", unit="auto")
    code = (
        "import sys, scene_worlds\nfrom dakd.scene.detect import detect_all\n"
        "from dakd.scene.options import SceneOptions\n"
        "detect_all([sys.argv[1]], scene_worlds.toy_student(), sys.argv[2], SceneOptions())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(scene_worlds.__file__).parent)}
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "out")]
    crew = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [one.wait(120) for one in crew] == [0, 0]
    for name in ("class", "probability"):
        with rasterio.open(tmp_path / "out" / f"a.{name}.tif") as found, rasterio.open(whole.files[name]) as expected:
            assert (found.read() == expected.read()).all()
    assert json.loads((tmp_path / "out" / "a.polygons.geojson").read_text())["features"] == whole.features


def test_a_scene_that_fails_costs_no_other_and_is_named_at_the_end(path, tmp_path):
    (tmp_path / "text.tif").write_text("no raster")
    empty = write_tif(tmp_path / "empty.tif", np.full((80, 80), np.nan, np.float32), **utm())
    with pytest.raises(BadScenes) as raised:
        run([tmp_path / "text.tif", path, empty, tmp_path / "none.tif"], tmp_path / "out")
    message = str(raised.value)
    assert message.startswith("3 of 4 scenes have no result (1 have):") and len(message.splitlines()) == 4
    for words in ("text.tif: it cannot be read", "empty.tif: none of its pixels is valid", "none.tif: there is no fil"):
        assert words in message
    assert (tmp_path / "out" / "a.json").exists()
    assert {one.name.split(".")[0] for one in (tmp_path / "out").iterdir()} == {"a"}


def test_two_scenes_of_one_name_keep_apart_and_keep_their_names(path, tmp_path):
    (tmp_path / "sub").mkdir()
    other = write_tif(tmp_path / "sub" / "a.tif", painted(label_of()[::-1].copy()), **utm())
    first = run([path, other], tmp_path / "out")
    names = [one.name for one in first]
    assert len(set(names)) == 2
    assert [one.name for one in run([other, path], tmp_path / "out")] == names[::-1]
    assert [one.name for one in run([other], tmp_path / "out")] == names[1:]
    assert (first[0].read("class") == label_of()).all() and (first[1].read("class") == label_of()[::-1]).all()


def test_outputs_are_optional(path, tmp_path):
    (result,) = run([path], tmp_path / "out", outputs=("geojson",))
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"a.polygons.geojson", "a.json"}
    assert len(result.features) == 2
    with pytest.raises(ValueError, match="no raster 'class'"):
        result.read("class")
    (rasters,) = run([path], tmp_path / "out2", outputs=("class", "probability"))
    with pytest.raises(ValueError, match="add it to outputs"):
        _ = rasters.features


def test_an_area_of_interest_gives_the_same_pixels_as_the_whole_scene(path, tmp_path):
    (whole,) = run([path], tmp_path / "whole")
    with rasterio.open(path) as source:
        transform, crs = source.transform, source.crs
    pyproj = pytest.importorskip("pyproj")
    x, y = [transform.c + 60 * 40, transform.c + 150 * 40], [transform.f - 60 * 40, transform.f - 25 * 40]
    lon, lat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
    (part,) = run([path], tmp_path / "part", aoi=(lon[0], lat[0], lon[1], lat[1]))
    with rasterio.open(part.files["class"]) as found:
        left = round((found.transform.c - transform.c) / 40)
        top = round((transform.f - found.transform.f) / 40)
        height, width = found.shape
    assert left % 32 == 0 and top % 32 == 0 and left <= 60 and left + width >= 150 and height < 200 and width < 260
    for name in ("class", "probability"):
        expected = whole.read(name)[..., top : top + height, left : left + width]
        assert (part.read(name) == expected).all()
    with pytest.raises(BadScenes, match="area of interest lies outside: the scene reaches from"):
        run([path], tmp_path / "other", aoi=(-50.0, 0.0, -49.0, 1.0))


def test_a_scene_whose_greys_are_foreign_is_warned_of_and_matched_by_name(tmp_path, capsys):
    grey = np.where(label_of() == OIL, 3, np.random.default_rng(0).integers(9, 14, (200, 260))).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "dark.png")
    (plain,) = run([tmp_path / "dark.png"], tmp_path / "out", unit="auto")
    assert "darker than the student's training images" in plain.record["warning"]
    assert "warning" in capsys.readouterr().out
    assert (plain.read("class") == OIL).all()
    (matched,) = run([tmp_path / "dark.png"], tmp_path / "out2", unit="auto", window="match")
    assert matched.record["warning"] is None and "matched" in " ".join(matched.record["decisions"])
    assert ((matched.read("class") == OIL) == (label_of() == OIL)).all()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(path, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr("dakd.scene.scene_job.write_gpkg", full)
    with pytest.raises(BadScenes, match="free some space there; the same command then resumes"):
        run([path], tmp_path / "out")
    assert not (tmp_path / "out" / "a.json").exists()
    monkeypatch.undo()
    (result,) = run([path], tmp_path / "out")
    assert len(result.features) == 2


def test_a_student_without_oil_and_unknown_classes_are_refused_before_anything_is_written(path, tmp_path):
    import torch

    class Two(ByGrey):
        num_classes = 2

        def forward(self, image):
            return super().forward(image)[:, :2]

    import dakd

    two = dakd.Student(Two(), ClassTable(("water", "slick"), ((0, 0, 0), (255, 0, 0))), facts=toy_student().facts)
    with pytest.raises(ValueError, match=r"no class 'oil'; it has water, slick; name the classes"):
        run([path], tmp_path / "out", student=two)
    assert not (tmp_path / "out").exists()
    (result,) = run([path], tmp_path / "out", student=two, polygons=("slick",))
    assert result.features and "ships" not in result.files and torch.get_num_threads() >= 1
    for polygons, words in ((("oil", "fish"), "no class is called 'fish'"), (("sea",), "the sea itself")):
        with pytest.raises(ValueError, match=words):
            run([path], tmp_path / "out3", polygons=polygons)


@pytest.mark.parametrize("options, words", [
    ({"unit": "dB"}, "expected one of auto, db"), ({"window": (0, -25)}, "lower one first"),
    ({"window": "LO"}, "expected 2 numbers"), ({"spacing": -1.0}, "expected metres"), ({"tile": 100}, "multiple of 32"),
    ({"tile": 64, "stride": 96}, "at most the tile's 64"), ({"aoi": (1, 2, 3)}, "west, south, east and north"),
    ({"aoi": (1, 5, 3, 2)}, "south below"), ({"outputs": ("cog",)}, "expected some of class"),
    ({"least_area_km2": -1}, "from 0 on"), ({"time_utc": "today"}, "expected one in UTC"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(path, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run([path], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_in_python_a_path_and_an_open_dataset_give_one_result_without_a_folder(path):
    student = toy_student()
    by_path = student.predict_scene(path, unit="db")
    with rasterio.open(path) as dataset:
        by_dataset = student.predict_scene(dataset, unit="db")
    assert (by_path.read("class") == by_dataset.read("class")).all() and len(by_path.features) == 2
    folder = by_path.files["class"].parent
    del by_path
    assert not folder.exists()
    with pytest.raises(TypeError, match="windows"):
        student.predict_scene(path, windows=1)
    with pytest.raises(BadScene, match="there is no file at"):
        student.predict_scene("/nowhere/a.tif")


def test_a_dataset_in_memory_is_read(path):
    with rasterio.MemoryFile(path.read_bytes()) as memory, memory.open() as dataset:
        assert (toy_student().predict_scene(dataset, unit="db").read("class") == label_of()).all()


def test_without_the_extra_the_command_says_how_to_install_it(tmp_path):
    code = (
        "import sys; sys.modules['rasterio'] = None\n"
        "from dakd.cli import main\n"
        f"sys.exit(main(['scene', 'a.tif', '--student', 'x', '--out', {str(tmp_path / 'out')!r}]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.returncode == 1 and "pip install" in found.stderr and "[geo]" in found.stderr
    assert len(found.stderr.strip().splitlines()) <= 2


def test_all_outputs_have_a_name_that_the_help_lists():
    from dakd.cli.main import build_parser

    text = " ".join(build_parser("scene").format_help().split())
    assert all(name in text for name in OUTPUTS)
