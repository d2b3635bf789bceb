"""Damaged headers take no memory, gaps neither, and processes that die or come late leave no trace."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio")

import rasterio
from scene_worlds import painted, toy_student, utm, write_tif

from dakd.data.radiometry import Radiometry
from dakd.scene import detect as detecting
from dakd.scene.bad_scene import BadScene
from dakd.scene.bands import BandStore
from dakd.scene.detect import BadScenes, detect, detect_all
from dakd.scene.engine import _Plan
from dakd.scene.georeference import Georeference
from dakd.scene.grey_scene import GreyScene
from dakd.scene.options import SceneOptions
from dakd.scene.rasters_in import open_raster
from dakd.scene.scene_job import SceneJob

LABEL = np.zeros((48, 56), np.uint8)
LABEL[10:30, 8:30] = 1
WIDTH, HEIGHT, ROWS_PER_STRIP, GEO_KEYS = 256, 257, 278, 34735  # tags
HUGE, HUGER = 100_000, 2_000_000_000
CLASS_ONLY = SceneOptions(outputs=("class",))


@pytest.fixture
def scene(tmp_path) -> Path:
    return write_tif(tmp_path / "a.tif", painted(LABEL), **utm())


def entries(path: Path) -> dict[int, int]:
    """The place of each tag's entry in a TIFF."""
    data = path.read_bytes()
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    places = [directory + 2 + 12 * i for i in range(count)]
    return {struct.unpack_from("<H", data, place)[0]: place for place in places}


def with_tags(path: Path, tags: dict[int, int]) -> Path:
    data, places = bytearray(path.read_bytes()), entries(path)
    for tag, value in tags.items():
        struct.pack_into("<HHII", data, places[tag], tag, 4, 1, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "tags",
    [{WIDTH: HUGE, HEIGHT: HUGE}, {WIDTH: HUGE, HEIGHT: HUGE, ROWS_PER_STRIP: HUGE}, {WIDTH: HUGER}, {HEIGHT: HUGER}],
    ids=["sides", "sides and strips", "width", "height"],
)
@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_a_header_that_claims_a_huge_image_is_refused_before_memory_is_taken(tmp_path, tags, compress):
    path = with_tags(write_tif(tmp_path / "a.tif", painted(LABEL), compress=compress, **utm()), tags)
    code = (
        "import resource, sys, rasterio; from dakd.scene.rasters_in import open_raster\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: open_raster(sys.argv[1]).read(0, 8)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    refusal, mebibytes = done.stdout.splitlines()
    assert refusal.startswith("BadScene ") and "copy" in refusal
    assert int(mebibytes) < 300


def test_pixels_much_coarser_than_the_students_are_not_blown_up_to_a_giant(tmp_path):
    path = write_tif(tmp_path / "a.tif", painted(LABEL), **utm(spacing=4000.0))
    with pytest.raises(BadScene, match=r"more than 16 times the 40 m .* --spacing native"):
        detect(path, toy_student(spacing=40.0), tmp_path / "out", CLASS_ONLY)
    native = SceneOptions(outputs=("class",), spacing="native")
    assert detect(path, toy_student(spacing=40.0), tmp_path / "out", native).read("class").shape == (48, 56)


def test_a_damaged_crs_of_control_points_is_refused_as_a_damaged_file_is(tmp_path):
    corners = ((0, 0), (0, 56), (48, 0), (48, 56))
    point = rasterio.control.GroundControlPoint
    points = [point(row, column, 11 + column * 5e-4, 42 - row * 4e-4) for row, column in corners]
    path = write_tif(tmp_path / "a.tif", painted(LABEL), gcps=(points, "EPSG:4326"))
    data = bytearray(path.read_bytes())
    (place,) = struct.unpack_from("<I", data, entries(path)[GEO_KEYS] + 8)
    struct.pack_into("<H", data, place + 10, 4)  # where the first key's value lies
    path.write_bytes(data)
    with pytest.raises(BadScene, match=r"cannot be read \(Key 1024 of unknown type.* copy or download it again"):
        open_raster(str(path))


class Empty:
    """A raster without a valid pixel; `most` were read at once."""

    unit, dtype, band, time_utc = None, "float32", "1", None

    def __init__(self) -> None:
        self.place, self.notes, self.most = Georeference(2000, 100_000), [], 0

    def read(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        shape = bottom - top, self.place.width
        self.most = max(self.most, shape[0] * shape[1])
        return np.broadcast_to(np.float32(0), shape), np.broadcast_to(False, shape)


def test_a_wide_scene_without_a_valid_pixel_is_searched_a_few_rows_at_a_time():
    raster = Empty()
    with pytest.raises(BadScene, match="none of its pixels is valid"):
        GreyScene(raster, Radiometry())
    assert raster.most <= 1 << 22


def test_rows_of_a_large_gap_do_not_pile_up_in_memory(tmp_path, monkeypatch):
    values = np.full((4000, 64), np.nan, np.float32)
    values[:100] = values[-100:] = -15
    held, take = [], _Plan.take

    def watched(self, row):
        held.append(len(self._shown))
        return take(self, row)

    monkeypatch.setattr(_Plan, "take", watched)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = detect(write_tif(tmp_path / "a.tif", values, **utm()), toy_student(), tmp_path / "out", CLASS_ONLY)
    label = found.read("class")
    assert (label[:100] == 0).all() and (label[100:-100] == 255).all() and (label[-100:] == 0).all()
    assert len(held) > 100 and max(held) <= 5


def test_hidden_files_of_killed_processes_are_removed_and_those_of_living_ones_are_not(scene, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    out = tmp_path / "out"
    out.mkdir()
    names = [f".a.{name}.{socket.gethostname()}.{{}}.0a1b2c3d.{ending}" for name, ending in
             (("class.tif", "tmp"), ("class.tif", "tmp.aux.xml"), ("polygons.gpkg", "gpkg-journal"))]  # fmt: skip
    for name in names:
        (out / name.format(dead.pid)).touch()
        (out / name.format(os.getpid())).touch()
    detect(scene, toy_student(), out, CLASS_ONLY)
    hidden = sorted(path.name for path in out.glob(".*"))
    assert hidden == sorted(name.format(os.getpid()) for name in names)


def test_a_work_folder_that_was_left_at_the_very_end_is_removed_by_the_next_call(scene, tmp_path, monkeypatch):
    work = tmp_path / "out" / ".a.work"
    with monkeypatch.context() as patch:
        patch.setattr(BandStore, "remove", lambda self: None)
        detect(scene, toy_student(), tmp_path / "out", CLASS_ONLY)
    with open(work / "chunk-00000.lock", "a") as stream:  # another process is at work in it
        fcntl.flock(stream, fcntl.LOCK_EX)
        detect(scene, toy_student(), tmp_path / "out", CLASS_ONLY)
        assert work.exists()
    detect(scene, toy_student(), tmp_path / "out", CLASS_ONLY)
    assert not work.exists()


@pytest.mark.parametrize("step", ["describe", "make_bands", "finish"])
def test_a_scene_that_another_process_finishes_in_between_is_taken_from_it(scene, tmp_path, monkeypatch, step):
    monkeypatch.setattr(detecting, "_POLL_S", 0.01)
    own = getattr(SceneJob, step)
    outer = []

    def late(job, *arguments):
        if step != "describe":
            _ = job.store
        if not outer:
            outer.append(job)
            detect(scene, toy_student(), tmp_path / "out", CLASS_ONLY)
        return own(job, *arguments)

    monkeypatch.setattr(SceneJob, step, late)
    found = detect(scene, toy_student(), tmp_path / "out", CLASS_ONLY)
    assert found.read("class").shape == (48, 56) and outer
    assert not list((tmp_path / "out").glob(".*"))


def test_a_missing_file_that_is_nobodys_doing_is_still_an_error(scene, tmp_path, monkeypatch):
    def vanished(job):
        raise FileNotFoundError("gone")

    monkeypatch.setattr(SceneJob, "make_bands", vanished)
    with pytest.raises(BadScenes, match="gone"):
        detect_all([str(scene)], toy_student(), tmp_path / "out", CLASS_ONLY)
