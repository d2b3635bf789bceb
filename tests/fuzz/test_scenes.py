"""Damaged radar scenes: each gives files that can all be read, or is refused in one line, and leaves no file behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.mutations import mutated_bytes, tiff_with_a_lying_header
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("rasterio")
pytest.importorskip("pyogrio")

import pyogrio
import rasterio
from rasterio._err import CPLE_BaseError
from scene_worlds import GREYS, painted, toy_student, utm, write_tif

from dakd.data.sample import OSD_CLASSES
from dakd.scene.bad_scene import BadScene
from dakd.scene.detect import BadScenes, detect_all
from dakd.scene.options import OUTPUTS, SceneOptions
from dakd.scene.scene_job import SceneResult

HEIGHT, WIDTH = 48, 56
GDAL_ERRORS = (type(None), OSError, ValueError, rasterio.errors.RasterioError, CPLE_BaseError)
STUDENTS = {None: toy_student(), 40.0: toy_student(spacing=40.0)}  # by the spacing that their files state
LABEL = np.zeros((HEIGHT, WIDTH), np.uint8)
LABEL[10:30, 8:30], LABEL[20:24, 12:20], LABEL[35:38, 40:43], LABEL[:, 51:] = 1, 2, 3, 4
DB, GREY = painted(LABEL), np.array([GREYS[name] for name in OSD_CLASSES.names], np.uint8)[LABEL]
SIGMA0 = 10 ** (DB / 10)
VRT = f"""<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><SRS>EPSG:32632</SRS>
<GeoTransform>500000, 40, 0, 4650000, 0, -40</GeoTransform><VRTRasterBand dataType="Float32" band="1">
<NoDataValue>-999</NoDataValue><SimpleSource><SourceFilename relativeToVRT="1">db.tif</SourceFilename>
<SourceBand>1</SourceBand><SrcRect xOff="0" yOff="0" xSize="{WIDTH}" ySize="{HEIGHT}"/>
<DstRect xOff="0" yOff="0" xSize="{WIDTH}" ySize="{HEIGHT}"/></SimpleSource></VRTRasterBand></VRTDataset>
"""


def control_points() -> tuple[list, str]:
    corners = ((0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH), (20, 30))
    point = rasterio.control.GroundControlPoint
    return [point(row, column, 11 + column * 5e-4, 42 - row * 4e-4) for row, column in corners], "EPSG:4326"


def write_cog(path: Path) -> Path:
    write_tif(path.with_suffix(".plain.tif"), np.kron(DB, np.ones((4, 4), np.float32)), **utm())
    options = {"driver": "COG", "compress": "deflate", "blocksize": 128}
    rasterio.shutil.copy(path.with_suffix(".plain.tif"), path, **options)
    return path


@dataclass(frozen=True)
class Kind:
    """A sound scene: how it is written, and how it is asked for."""

    write: Callable[[Path], Path]
    options: dict[str, Any]
    suffix: str = ".tif"


def kind(array: np.ndarray, options: dict[str, Any] | None = None, **settings: Any) -> Kind:
    return Kind(lambda path: write_tif(path, array, **settings), options or {})


TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}
VALID = np.where(LABEL[::-1] == 3, 0, 255).astype(np.uint8)
KINDS = {
    "uint8, tiled, lzw": kind(GREY, compress="lzw", **TILED, **utm()),
    "uint16, match": kind((600 * np.sqrt(SIGMA0)).astype(np.uint16), {"window": "match"}, compress="deflate", **utm()),
    "int16, asked for": kind(np.rint(DB).astype(np.int16), {"unit": "db"}, nodata=-999, compress="zstd", **utm()),
    "dB, striped": kind(DB, nodata=-999.0, **utm()),
    "linear, predictor": kind(SIGMA0, compress="deflate", predictor=3, nodata=float("nan"), **TILED, **utm()),
    "two bands": kind(np.stack([DB - 5, DB]), descriptions=("VH", "VV"), interleave="pixel", **utm()),
    "mask": kind(DB, mask=VALID, compress="deflate", **utm()),
    "alpha": kind(np.stack([GREY, VALID]), photometric="minisblack", alpha="yes", compress="deflate", **utm()),
    "control points": Kind(lambda path: write_tif(path, DB, compress="zstd", gcps=control_points()), {}),
    "no place": kind(GREY, {"pixel_size_m": 40.0}, tags={"TIFFTAG_DATETIME": "2021:12:23 05:11:22"}),
    "COG": Kind(write_cog, {}),
    "VRT": Kind(lambda path: path.write_text(VRT) and path, {}, ".vrt"),
}  # fmt: skip


VRT_PARTS = (f"{WIDTH}", f"{HEIGHT}", "Float32", "db.tif", "40", "SimpleSource", "-999", "EPSG:32632", "500000", "1",
             "VRTRasterBand", "NoDataValue")  # fmt: skip
VRT_VALUES = ("0", "-1", "100000", "2147483647", "nan", "1e300", "", "CFloat64", "scene.vrt", "/etc/passwd", "../x.tif",
              "/vsicurl/http://127.0.0.1:9/x.tif", "/vsistdin/", "ComplexSource", "EPSG:4326", "EPSG:9", "ScaleRatio",
              "&lt;", "]]>", "x" * 5000)  # fmt: skip


@st.composite
def vrt_with_lies(draw) -> bytes:
    text = VRT
    for _ in range(draw(st.integers(1, 2))):
        text = text.replace(draw(st.sampled_from(VRT_PARTS)), draw(st.sampled_from(VRT_VALUES)))
    return text.encode()


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Callable[[str], bytes]:
    """The bytes of each kind. Each gives a result, by which all packages are imported too."""
    folder, found = tmp_path_factory.mktemp("sound"), {}
    write_tif(folder / "db.tif", DB, **utm())
    for number, (name, one) in enumerate(KINDS.items()):
        path = one.write(folder / f"{number}{one.suffix}")
        assert scene_result(path, folder / "out", one.options, number % 2 == 0)
        found[name] = path.read_bytes()
    return found.__getitem__


def scene_result(path: Path, out: Path, options: dict[str, Any], has_spacing: bool) -> SceneResult:
    """The result, whose files are all read. The error of one without a result, as it was raised first."""
    student = STUDENTS[40.0 if has_spacing else None]
    before = set(out.iterdir()) if out.exists() else set()
    try:
        (result,) = detect_all([str(path)], student, out, SceneOptions(**options))
    except BadScenes as error:
        left = [one.name for one in set(out.iterdir()) - before] if out.exists() else []
        assert left in ([], [f".{path.stem}.work"]), f"{left} were left by {error}"
        assert len(str(error).splitlines()) == 2, f"not one line: {error}"
        ((where, _),) = error.failures
        assert where == str(path)
        raise error.__cause__ from None
    read_all(result)
    return result


def read_all(result: SceneResult) -> None:
    """Read every file of a result, of the sizes that the record states."""
    record = json.loads(result.files["record"].read_text())
    assert set(result.files) == {*OUTPUTS, "record"}
    assert not list(result.files["record"].parent.glob(f".{result.name}*")), "files were left aside"
    height, width = record["place"]["size"]
    assert result.read("class").shape == (height, width)
    assert result.read("probability").shape == (OSD_CLASSES.num_classes, height, width)
    assert sum(record["num_pixels"].values()) == height * width
    assert len(result.features) == record["num_slicks"]
    assert len(json.loads(result.files["ships"].read_text())["features"]) == record["num_ships"]
    assert pyogrio.read_info(result.files["gpkg"])["features"] == record["num_slicks"]
    with Image.open(result.files["quicklook"]) as picture:
        picture.load()


def judge_scene(target: str, folder: Path, content: bytes, one: Kind, has_spacing: bool) -> None:
    folder, out = folder / "scenes", folder / "out"
    for old in (folder, out):
        shutil.rmtree(old, ignore_errors=True)
    folder.mkdir()
    path = folder / f"scene{one.suffix}"
    path.write_bytes(content)
    if one.suffix == ".vrt":
        write_tif(folder / "db.tif", DB, **utm())

    def read() -> None:
        try:
            scene_result(path, out, one.options, has_spacing)
        except BadScene as error:
            assert ";" in str(error) or ":" in str(error), f"no remedy: {error}"
            assert isinstance(error.__cause__, GDAL_ERRORS), f"a fault of ours: {error.__cause__!r}"
            raise

    judge(target, read)
    assert {one.name for one in folder.iterdir()} <= {path.name, "db.tif"}, "a file was written beside the scene"


@fuzzed
@given(data=st.data())
def test_bytes_of_a_scene(sound, tmp_path, data):
    name = data.draw(st.sampled_from(tuple(KINDS)))
    content = data.draw(mutated_bytes(sound(name)))
    if data.draw(st.integers(0, 7)) == 0:  # spliced with another one
        other = sound(data.draw(st.sampled_from(tuple(KINDS))))
        content = content[: data.draw(st.integers(0, len(content)))] + other[data.draw(st.integers(0, len(other))) :]
    judge_scene("scenes, bytes", tmp_path, content, KINDS[name], data.draw(st.booleans()))


@fuzzed
@given(data=st.data())
def test_header_of_a_scene(sound, tmp_path, data):
    name = data.draw(st.sampled_from(tuple(KINDS)))
    content = data.draw(vrt_with_lies() if name == "VRT" else tiff_with_a_lying_header(sound(name)))
    judge_scene("scenes, header", tmp_path, content, KINDS[name], data.draw(st.booleans()))
