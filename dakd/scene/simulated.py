"""Simulated scenes of any size with a place on Earth, and the polygons that are in them.

A scene is made of the parts of `dakd.data.simulate`, at the size that they have in a training image: a sea under wind
cells, swell and an incidence gradient; slicks, look-alikes and ships strewn over it; a coast on one side; speckle. It
is written in blocks of rows, each a function of (seed, block) and of the objects that reach into it, so that memory
does not grow with the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dakd.data.sample import OSD_CLASSES
from dakd.data.simulate import (
    LAND,
    LOOK_ALIKE,
    NOISE_FLOOR_DB,
    OIL,
    PIXEL_SPACING_M,
    SEA,
    SEA_DB,
    SHIP,
    WINDOW_DB,
    add_look_alike,
    add_oil,
    noise_pair,
    side_lobes,
    speckle,
)
from dakd.runtime.files import replacing
from dakd.runtime.seeding import Stream, numpy_rng
from dakd.runtime.whole import whole_number
from dakd.scene.georeference import ControlPoint, Georeference
from dakd.scene.measures import FIELDS, Slick
from dakd.scene.packages import gdal_settings, need, need_all
from dakd.scene.places import to_lonlat
from dakd.scene.polygons import trace
from dakd.scene.rasters_out import set_place, write_categories, write_cog
from dakd.scene.vectors_out import write_geojson

Unit = Literal["db", "sigma0", "amplitude", "grey"]
UNITS: tuple[Unit, ...] = ("db", "sigma0", "amplitude", "grey")
_BLOCK = 256  # rows
_PERIOD = (512, 448)  # pixels of the two textures of the sea, which repeat
_WIND_CELL = 96  # pixels between the knots of the wind field
_WINDOW = 160  # pixels: side of the window that an object is made in
_AREA_PER_OBJECT = 250_000  # pixels of the scene for each slick, and for each look-alike
_AREA_PER_SHIP = 120_000
_LOOKS = 6.0
_DN_OF_SIGMA0_1 = 600.0  # of an uncalibrated amplitude
_NODATA: dict[str, float] = {"db": float("nan"), "sigma0": float("nan"), "amplitude": 0, "grey": 0}
_DTYPES = {"db": "float32", "sigma0": "float32", "amplitude": "uint16", "grey": "uint8"}


@dataclass(frozen=True)
class SimulatedScene:
    """A scene of (height, width) pixels by its seed.

    oil, look_alikes, ships: how many there are; None takes them by the scene's area.  land: whether a coast reaches in
    from the east.  collar: pixels without data at the left of the first row and the right of the last, falling to 0.
    """

    height: int
    width: int
    seed: int = 0
    oil: int | None = None
    look_alikes: int | None = None
    ships: int | None = None
    land: bool = False
    collar: int = 0

    def blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """(first row, sigma0 (h, W) float32 linear power, label (h, W) uint8, valid (h, W) bool) from the top on."""
        for number, top in enumerate(range(0, self.height, _BLOCK)):
            yield (top, *self._block(number, top, min(top + _BLOCK, self.height)))

    def _block(self, number: int, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, shape = np.arange(top, bottom), (bottom - top, self.width)
        db, label, damping = self._sea(rows), np.zeros(shape, np.uint8), np.zeros(shape)
        for one in self._objects:
            if one.top < bottom and one.top + _WINDOW > top:
                _paste(_made(one), one, top, label, damping)
        db -= damping
        self._add_land(rows, db, label)
        power = 10 ** (db / 10) + 10 ** (NOISE_FLOOR_DB / 10)
        self._add_ships(top, power, label)
        power *= speckle(self._rng(1, number), shape, _LOOKS)
        places = np.arange(self.width)[None, :]
        share = rows[:, None] / max(self.height - 1, 1)
        valid = (places >= self.collar * (1 - share)) & (places < self.width - self.collar * share)
        return (power * 10 ** (SEA_DB / 10)).astype(np.float32), label, valid

    def _rng(self, *ids: int) -> np.random.Generator:
        return numpy_rng(self.seed, 1 << 40, *ids, stream=Stream.SIMULATE)  # away from the training's scenes

    def _sea(self, rows: np.ndarray) -> np.ndarray:
        wind, textures, (across, strength) = self._fields
        columns = np.arange(self.width)
        db = _interpolated(wind, rows / _WIND_CELL, columns / _WIND_CELL)
        for texture in textures:
            side = len(texture)
            db = db + texture[rows[:, None] % side, columns[None, :] % side]
        return db + across * strength * (columns[None, :] / self.width - 0.5)

    @cached_property
    def _fields(self) -> tuple[np.ndarray, list[np.ndarray], tuple[float, float]]:
        rng = self._rng(0)
        shape = (self.height // _WIND_CELL + 3, self.width // _WIND_CELL + 3)
        wind, _ = noise_pair(rng, shape, slope=2.4)
        textures = [rng.uniform(0.25, 0.4) * noise_pair(rng, (side, side), slope=1.4)[0] for side in _PERIOD]
        return rng.uniform(0.4, 0.8) * wind, textures, (float(rng.choice([-1, 1])), rng.uniform(0.5, 3.0))

    @cached_property
    def _objects(self) -> list[_Object]:
        rng = self._rng(2)
        numbers = ((OIL, self.oil), (LOOK_ALIKE, self.look_alikes))
        area, found = self.height * self.width, []
        for class_id, number in numbers:
            for _ in range(max(1, round(area / _AREA_PER_OBJECT)) if number is None else number):
                top = int(rng.integers(-_WINDOW // 4, max(1, self.height - 3 * _WINDOW // 4)))
                left = int(rng.integers(-_WINDOW // 4, max(1, self.width - 3 * _WINDOW // 4)))
                found.append(_Object(self.seed, len(found), class_id, top, left))
        return found

    def _add_land(self, rows: np.ndarray, db: np.ndarray, label: np.ndarray) -> None:
        if not self.land:
            return
        coast, relief = self._coast
        columns = np.arange(self.width)
        along = np.interp(rows / max(self.height, 1), np.linspace(0, 1, coast.shape[1]), coast[0])
        reach = self.width * (0.86 + 0.05 * along)
        is_land = columns[None, :] > reach[:, None]
        side = len(relief)
        hills = 8.5 + 1.5 * relief[rows[:, None] % side, columns[None, :] % side]
        db[is_land] = hills[is_land]
        label[is_land] = LAND

    @cached_property
    def _coast(self) -> tuple[np.ndarray, np.ndarray]:
        rng = self._rng(3)
        coast, _ = noise_pair(rng, (1, 257), slope=3.4)
        return coast, noise_pair(rng, (_PERIOD[0], _PERIOD[0]), slope=2.8)[0]

    @cached_property
    def _ships(self) -> np.ndarray:
        """(N, 5): row, column, length in pixels, direction, and peak of each ship."""
        rng = self._rng(4)
        number = round(self.height * self.width / _AREA_PER_SHIP) if self.ships is None else self.ships
        draw = rng.random((number, 5))
        return np.stack([draw[:, 0] * self.height, draw[:, 1] * self.width, 3.2 + 3.2 * draw[:, 2],
                         np.pi * draw[:, 3], 10 ** (1.5 + 0.8 * draw[:, 4])], axis=1)  # fmt: skip

    def _add_ships(self, top: int, power: np.ndarray, label: np.ndarray) -> None:
        reach = 24  # pixels
        height, width = label.shape
        for row, column, length, angle, peak in self._ships:
            low, high = max(0, int(row) - reach - top), min(height, int(row) + reach - top)
            left, right = max(0, int(column) - reach), min(width, int(column) + reach)
            if low >= high or left >= right:
                continue
            y, x = np.mgrid[low:high, left:right]
            dy, dx = y + top - row, x - column
            along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
            distance = np.sqrt((2 * along / length) ** 2 + (2 * across / (0.42 * length)) ** 2)
            part = label[low:high, left:right]
            lobes = side_lobes(dx, dy, length) + side_lobes(dy, dx, length)
            power[low:high, left:right] += np.where(part != LAND, peak * (np.exp(-(distance**4)) + lobes), 0)
            part[(distance <= 1) & (part != LAND)] = SHIP


@dataclass(frozen=True)
class _Object:
    """A slick or a look-alike in a window of the scene."""

    seed: int
    number: int
    class_id: int
    top: int
    left: int


@lru_cache(maxsize=256)
def _made(one: _Object) -> tuple[np.ndarray, np.ndarray]:
    """(its label, its damping in dB), each of the window."""
    rng = numpy_rng(one.seed, 1 << 40, 5, one.number, stream=Stream.SIMULATE)
    label = np.zeros((_WINDOW, _WINDOW), np.uint8)
    if one.class_id == OIL:
        return label, add_oil(rng, label, rng.uniform(0.01, 0.04), rim=0.12)
    return label, add_look_alike(rng, label, rng.uniform(0.08, 0.2), rim=0.15)


def _paste(
    made: tuple[np.ndarray, np.ndarray], one: _Object, top: int, label: np.ndarray, damping: np.ndarray
) -> None:
    """Lay an object on a block that begins at row `top`: where both damp the waves, the stronger counts."""
    height, width = label.shape
    low, high = max(0, one.top - top), min(height, one.top + _WINDOW - top)
    left, right = max(0, one.left), min(width, one.left + _WINDOW)
    if low >= high or left >= right:
        return
    part = slice(low + top - one.top, high + top - one.top), slice(left - one.left, right - one.left)
    own_label, own_damping = made[0][part], made[1][part]
    there = slice(low, high), slice(left, right)
    label[there] = np.where((label[there] == SEA) & (own_label != SEA), own_label, label[there])
    damping[there] = np.maximum(damping[there], own_damping)


def _interpolated(field: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(h, w) of a field at fractional rows (h,) and columns (w,), bilinear."""
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[:, None], (columns - left)[None, :]
    upper, lower = field[top], field[top + 1]
    along = (1 - down) * upper + down * lower
    return (1 - right) * along[:, left] + right * along[:, left + 1]


# --- files ------------------------------------------------------------------------------------------------------------


def write_simulated(
    path: str | Path,
    scene: SimulatedScene,
    unit: Unit = "sigma0",
    spacing_m: float = PIXEL_SPACING_M,
    centre: tuple[float, float] = (11.5, 42.0),
    gcps: bool = False,
) -> dict[str, Path]:
    """Write a scene as a COG, and its truth: PATH, PATH's stem + .truth.tif and .truth.geojson. Returns them by name.

    unit: of the numbers.  spacing_m: metres between pixels.  centre: longitude and latitude of the scene's centre.
    gcps: give its place by ground control points in degrees, not by a transform in its UTM zone.
    Raises ValueError for a size, unit or place that makes no sense, RuntimeError without the extra `geo`.
    """
    need_all()
    path = Path(path)
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}; expected one of {', '.join(UNITS)}: choose one")
    for name in ("height", "width"):
        whole_number(getattr(scene, name), name, 8)
    place = _place(scene, spacing_m, centre, gcps)
    stem = path.with_suffix("")
    files = {"scene": path, "truth": Path(f"{stem}.truth.tif"), "polygons": Path(f"{stem}.truth.geojson")}
    with replacing(files["scene"]) as numbers, replacing(files["truth"]) as truth:
        # Names of their own: the scratch files of both are removed with them.
        scratch = [one.with_name(f"{one.name}.tif") for one in (numbers, truth)]
        try:
            _write_rasters(scratch, scene, unit, place)
            outlines, _ = trace(scratch[1], dict.fromkeys((OIL, LOOK_ALIKE, SHIP, LAND), 0.0))
            with gdal_settings(), need("rasterio").open(scratch[1], "r+") as labels:
                set_place(labels, place)  # only now: GDAL would trace on the map
            write_cog(scratch[0], numbers, "average")
            write_cog(scratch[1], truth, "mode")
        finally:
            for one in scratch:
                one.unlink(missing_ok=True)
                Path(f"{one}.aux.xml").unlink(missing_ok=True)
    write_categories(files["truth"], OSD_CLASSES.names)
    slicks = []
    for number, outline in enumerate(outlines, start=1):
        facts: dict[str, Any] = {"slick_id": f"truth-{number}", "class": OSD_CLASSES.names[outline.class_id],
                                 "inf_idx": outline.class_id, "num_pixels": outline.num_pixels}  # fmt: skip
        lonlat = to_lonlat(outline.geometry, place)
        slicks.append(Slick(outline, lonlat, {name: facts[name] for name in FIELDS if name in facts}))
    write_geojson(files["polygons"], slicks, place, {"scene": path.name, "seed": scene.seed})
    return files


def _write_rasters(files: list[Path], scene: SimulatedScene, unit: Unit, place: Georeference) -> None:
    rasterio = need("rasterio")
    base = {"driver": "GTiff", "height": scene.height, "width": scene.width, "count": 1, "tiled": True,
            "blockxsize": 256, "blockysize": 256, "compress": "deflate", "bigtiff": "if_safer"}  # fmt: skip
    with (
        gdal_settings(), rasterio.open(files[0], "w", dtype=_DTYPES[unit], nodata=_NODATA[unit], **base) as numbers,
        rasterio.open(files[1], "w", dtype="uint8", nodata=255, **base) as truth,
    ):
        set_place(numbers, place)
        numbers.set_band_description(1, "VV")
        numbers.update_tags(ACQUISITION_START_TIME="2021-12-23T05:11:22Z", SIMULATED=f"seed {scene.seed}")
        truth.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(OSD_CLASSES.colours)})
        for top, sigma0, label, valid in scene.blocks():
            window = rasterio.windows.Window(0, top, scene.width, len(label))
            stored = np.where(valid, _stored(sigma0, unit), _NODATA[unit]).astype(_DTYPES[unit])
            numbers.write(stored, 1, window=window)
            truth.write(np.where(valid, label, np.uint8(255)), 1, window=window)


def _stored(sigma0: np.ndarray, unit: Unit) -> np.ndarray:
    if unit == "sigma0":
        return sigma0
    if unit == "amplitude":
        return np.clip(np.round(_DN_OF_SIGMA0_1 * np.sqrt(sigma0)), 1, 65535)
    db = 10 * np.log10(sigma0)
    if unit == "db":
        return db
    low, high = WINDOW_DB
    return np.clip(np.round((db - low) * (255 / (high - low))), 1, 255)  # 0 is no data


def _place(scene: SimulatedScene, spacing_m: float, centre: tuple[float, float], gcps: bool) -> Georeference:
    pyproj = need("pyproj")
    lon, lat = centre
    if not (-180 <= lon <= 180 and -80 <= lat <= 80):
        raise ValueError(f"centre is {lon:g},{lat:g}; expected longitude and latitude, from 80 S to 80 N: change it")
    if not 0 < spacing_m < 1e5:
        raise ValueError(f"spacing is {spacing_m:g} m; expected a number above 0: change it")
    zone = min(int((lon + 180) // 6) + 1, 60)
    crs = pyproj.CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    left, top = x - scene.width * spacing_m / 2, y + scene.height * spacing_m / 2
    transform = (spacing_m, 0.0, left, 0.0, -spacing_m, top)
    place = Georeference(scene.height, scene.width, crs.to_wkt(), transform=transform)
    if not gcps:
        return place
    rows, columns = (grid.ravel() for grid in np.meshgrid(
        np.linspace(0, scene.height, 11), np.linspace(0, scene.width, 11), indexing="ij"))  # fmt: skip
    lons, lats = place.to_lonlat(columns, rows)
    points = tuple(map(ControlPoint, columns.tolist(), rows.tolist(), lons.tolist(), lats.tolist()))
    return Georeference(scene.height, scene.width, pyproj.CRS.from_epsg(4326).to_wkt(), points=points)
