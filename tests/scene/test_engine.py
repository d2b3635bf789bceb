"""The result is a function of scene, student, tile and stride: bit-equal for any way that it is made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("rasterio")

import itertools
import warnings

from scene_worlds import Blurry, ByGrey, db_of, toy_student, utm, write_tif
from tiny_students import TINY_MAMBA_STUDENT

import dakd
from dakd.config import StudentConfig
from dakd.data.radiometry import Radiometry
from dakd.data.sample import OSD_CLASSES
from dakd.data.transforms import to_student
from dakd.models.registry import build_student
from dakd.scene import engine
from dakd.scene.engine import NO_DATA, classify
from dakd.scene.grey_scene import GreyScene, Rows
from dakd.scene.grid import Grid, default_stride, default_tile, window_period
from dakd.scene.rasters_in import open_raster
from dakd.scene.tile_net import TileNet

ARRAYS = ("label", "probability", "level", "grey")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:300, :410]
    db = -15 + 6 * np.sin(x / 23) * np.cos(y / 31) + rng.normal(0, 1.5, (300, 410))
    db[120:140, 60:90] = np.nan
    db[:, 400:] = np.nan
    path = write_tif(tmp_path_factory.mktemp("scene") / "a.tif", db.astype(np.float32), **utm())
    radiometry = Radiometry.from_dict(toy_student().facts["radiometry"], "toy")
    return GreyScene(open_raster(str(path)), radiometry)


@pytest.fixture(scope="module")
def mamba():
    torch.manual_seed(0)
    return dakd.Student(build_student(StudentConfig(**TINY_MAMBA_STUDENT), 5), OSD_CLASSES, "cpu")


def whole(scene, student, grid, bands=None, columns=None, temperature=1.0):
    """The arrays of all bands, joined."""
    columns = columns or (0, grid.width)
    bands = range(grid.num_bands) if bands is None else bands
    found = list(classify(scene, TileNet(student, grid), grid, bands, columns, temperature))
    assert [one.number for one in found] == list(bands)
    return {name: np.concatenate([getattr(one, name) for one in found], axis=-2) for name in ARRAYS}


@pytest.mark.parametrize("tile, stride", [(64, 32), (64, 64), (128, 96), (512, 256)])
def test_every_pixel_is_made_once_and_the_bands_fit_together(scene, tile, stride):
    grid = Grid(scene.height, scene.width, tile, stride)
    found = whole(scene, toy_student(), grid)
    rows = scene.rows(0, scene.height)
    grey = rows.grey.astype(float)
    centres = np.array([120, 20, 60, 250, 190.0])
    nearest = np.abs(grey[None] - centres[:, None, None]).argmin(axis=0)
    assert (found["label"][rows.valid] == nearest[rows.valid]).all()
    assert (found["label"][~rows.valid] == NO_DATA).all() and (found["probability"][:, ~rows.valid] == NO_DATA).all()
    total = found["probability"].astype(int).sum(axis=0)[rows.valid]
    assert np.abs(total - 250).max() <= 3 and (found["grey"] == rows.grey).all()


def test_bits_are_the_same_for_any_bands_and_columns(scene, mamba):
    grid = Grid(scene.height, scene.width, 64, 32)
    sharp = {"temperature": 0.01}  # so that a small difference of untrained logits shows
    all_of_it = whole(scene, mamba, grid, **sharp)
    assert len(np.unique(all_of_it["probability"])) > 50
    for bands in (range(0, 1), range(3, 5), range(grid.num_bands - 1, grid.num_bands)):
        top, bottom = grid.band(bands[0])[0], grid.band(bands[-1])[1]
        found = whole(scene, mamba, grid, bands, **sharp)
        for name in ARRAYS:
            assert (found[name] == all_of_it[name][..., top:bottom, :]).all(), name
    for left, right in ((0, 64), (96, 288), (320, 410)):
        found = whole(scene, mamba, grid, range(2, 4), (left, right), **sharp)
        for name in ARRAYS:
            assert (found[name] == all_of_it[name][..., 64:128, left:right]).all(), name


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_bits_are_the_same_for_any_number_of_threads(scene, mamba, num_workers, monkeypatch):
    grid = Grid(scene.height, scene.width, 64, 64)
    before = torch.get_num_threads()
    reference = whole(scene, mamba, grid, temperature=0.01)
    assert torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", str(num_workers))
    assert TileNet(mamba, grid).num_workers == num_workers
    torch.set_num_threads(num_workers)
    try:
        found = whole(scene, mamba, grid, temperature=0.01)
    finally:
        torch.set_num_threads(before)
    assert all((found[name] == reference[name]).all() for name in ARRAYS)


def test_a_net_that_sees_less_than_the_margin_gives_what_it_gives_for_the_whole_image(monkeypatch):
    """With weights that are 0 within the net's reach of a tile's rim, tiles and the whole image agree to rounding."""
    net = Blurry().eval()
    grey = np.random.default_rng(1).integers(0, 256, (320, 448)).astype(np.uint8)

    class Plain:
        def rows(self, top, bottom):
            part = grey[top:bottom]
            return Rows(part, np.ones(part.shape, bool), part.astype(np.int16))

    places = np.arange(64)
    inner = np.where((places >= net.reach) & (places < 64 - net.reach), Grid(64, 64, 64, 32).weights(), np.float32(0))
    monkeypatch.setattr(Grid, "weights", lambda self: inner)
    logits = []
    made = engine._probability
    monkeypatch.setattr(engine, "_probability", lambda found, at: logits.append(found.copy()) or made(found, at))
    grid = Grid(320, 448, 64, 32)
    list(classify(Plain(), TileNet(toy_student(net), grid), grid, range(1, 8), (32, 416)))
    with torch.inference_mode():
        expected = net(to_student(torch.from_numpy(grey[None, None])))[0].numpy()
    assert np.abs(np.concatenate(logits, axis=1) - expected[:, 32:256, 32:416]).max() < 1e-5


def test_there_are_no_seams(scene):
    """Where tiles begin and end, probabilities change no more than elsewhere."""
    grid = Grid(scene.height, scene.width, 64, 32)
    found = whole(scene, toy_student(Blurry()), grid)["probability"].astype(float)[:, :256, :380]
    steps = np.abs(np.diff(found, axis=2)).mean(axis=(0, 1))
    borders = np.arange(31, 379, 32)
    elsewhere = np.setdiff1d(np.arange(64, 379), np.concatenate([borders - 1, borders, borders + 1]))
    assert steps[borders[1:]].mean() <= 1.05 * steps[elsewhere].mean()


def test_a_temperature_changes_probabilities_and_no_class(scene, mamba):
    grid = Grid(scene.height, scene.width, 64, 64)
    plain, calibrated = whole(scene, mamba, grid), whole(scene, mamba, grid, temperature=3.0)
    assert (plain["label"] == calibrated["label"]).all()
    valid = plain["label"] != NO_DATA
    assert calibrated["probability"].max(axis=0)[valid].mean() < plain["probability"].max(axis=0)[valid].mean()


def test_pixels_without_data_do_not_darken_their_neighbours(tmp_path):
    """A net that sees 9 pixels around: black ones beside a sea would make look-alikes of it."""

    class Blurred(ByGrey):
        def forward(self, image):
            return super().forward(torch.nn.functional.avg_pool2d(image, 9, 1, 4, count_include_pad=False))

    db = np.full((150, 200), db_of(120), np.float32)
    db[40:70, 50:90] = np.nan
    db[:, 180:] = np.nan
    radiometry = Radiometry.from_dict(toy_student().facts["radiometry"], "toy")
    scene = GreyScene(open_raster(str(write_tif(tmp_path / "a.tif", db))), radiometry)
    found = whole(scene, toy_student(Blurred()), Grid(150, 200, 64, 32))["label"]
    assert (found[np.isfinite(db)] == 0).all() and (found[np.isnan(db)] == NO_DATA).all()


def test_tiles_without_a_valid_pixel_are_not_computed(tmp_path):
    array = np.full((640, 128), np.nan, np.float32)
    array[:64] = -15
    scene = GreyScene(open_raster(str(write_tif(tmp_path / "a.tif", array))),
                      Radiometry.from_dict(toy_student().facts["radiometry"], "toy"))  # fmt: skip
    calls = []

    class Counted(ByGrey):
        def forward(self, image):
            calls.append(len(image))
            return super().forward(image)

    found = whole(scene, toy_student(Counted()), Grid(640, 128, 64, 64))
    assert len(calls) == 1 and (found["label"][64:] == NO_DATA).all() and (found["label"][:64] != NO_DATA).all()
    across = GreyScene(open_raster(str(write_tif(tmp_path / "b.tif", np.ascontiguousarray(array.T)))),
                       Radiometry.from_dict(toy_student().facts["radiometry"], "toy"))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's, of the median of no pixel
        found = whole(across, toy_student(), Grid(128, 640, 64, 64))
    assert (found["label"].T[64:] == NO_DATA).all() and (found["label"].T[:64] != NO_DATA).all()


def test_a_net_with_other_classes_or_with_nan_is_an_error(scene):
    class Spoilt(ByGrey):
        def forward(self, image):
            return super().forward(image) / 0 * 0

    class Wide(ByGrey):
        def forward(self, image):
            return super().forward(image)[:, :3]

    grid = Grid(scene.height, scene.width, 64, 64)
    with pytest.raises(ValueError, match="NaN or infinite"):
        whole(scene, toy_student(Spoilt()), grid)
    with pytest.raises(ValueError, match="the net gives 3 classes"):
        whole(scene, toy_student(Wide()), grid)


@pytest.mark.parametrize("side, tile, stride, count", [
    (64, 64, 32, 1), (65, 64, 32, 2), (10, 64, 32, 1), (129, 64, 32, 4),
])  # fmt: skip
def test_the_grid_covers_a_side_from_pixel_0_on(side, tile, stride, count):
    grid = Grid(side, side, tile, stride)
    assert grid.num_rows == grid.num_columns == count
    bands = [grid.band(number) for number in range(grid.num_bands)]
    assert bands[0][0] == 0 and bands[-1][1] == side and all(a[1] == b[0] for a, b in itertools.pairwise(bands))
    assert (grid.sums(0, side, count) > 0).all()
    for start in range(side):
        expected = [n for n in range(count) if n * stride <= start < n * stride + tile]
        assert list(grid.tile_rows_of(start, start + 1)) == expected


def test_the_default_grid_is_that_of_the_training_and_of_the_windows():
    def facts(crop, **student):
        return {"crop": crop, "student": student}

    demo = facts([64, 64], encoder="mamba_vision", encoder_options={"window_size": [8, 8, 4, 2]})
    paper = facts([512, 512], encoder="mamba_vision_b")
    assert (default_tile(demo), window_period(demo), default_stride(64, demo)) == (64, 64, 32)
    assert (default_tile(paper), window_period(paper), default_stride(512, paper)) == (512, 224, 448)
    assert default_stride(256, paper) == 224 and default_tile(facts([100, 180])) == 192
    resnet = facts([256, 256], encoder="resnet18")
    assert window_period(resnet) == 32 and default_stride(256, resnet) == 224
    for odd in ({}, {"crop": "x"}, {"crop": [0]}, {"crop": [True]}):
        assert default_tile(odd) in (256, 64)
