"""Scenes as rasters: GeoTIFFs, COGs and VRTs by GDAL, plain pictures by dakd's own reader.

A raster gives rows of float32 numbers of one band, with the pixels that are valid. Another kind of product (Sentinel-1
SAFE) needs a class with the same members, and an entry in `open_raster`.

Not valid are: the band's nodata value, NaN and infinite numbers, pixels hidden by a mask or by transparency, the value
of `nodata`, and a black collar: runs of at least 8 pixels of 0 from the left or the right end of a row, where the file
states no nodata value. A sea has pixels of 0 too, but no such runs at its edge.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.read_picture import MAX_SCENE_PIXELS, read_grey
from dakd.scene.bad_scene import BadScene
from dakd.scene.georeference import ControlPoint, Georeference, unwrapped_points
from dakd.scene.packages import gdal_settings, need

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
SCENE_SUFFIXES = (".tif", ".tiff", ".vrt", *PICTURE_SUFFIXES)
_COLLAR = 8  # pixels
_LONGEST_SIDE = 10_000_000  # pixels: around the Earth at 4 m
_LARGEST_BLOCK = 1 << 30  # bytes, which GDAL decodes at once
_PREFERRED = "VV"
_TIMES = (
    re.compile(r"(?<!\d)(\d{4})(\d\d)(\d\d)[Tt](\d\d)(\d\d)(\d\d)(?!\d)"),
    re.compile(r"(?<!\d)(\d{4})[-:](\d\d)[-:](\d\d)[ T_](\d\d):(\d\d):(\d\d)"),
)
_TIME_TAGS = ("ACQUISITION_START_TIME", "start_time", "datetime", "TIFFTAG_DATETIME")
_SCALES = ("scale", "offset")


class Raster(Protocol):
    """A scene as it is stored.

    place: of its pixels.  dtype: of the stored numbers.  band: the name or number of the band that is read.
    notes: what was decided about it, in words.  time_utc: of the acquisition, ISO 8601, None for unknown.
    unit: what the numbers are, where the product says so ("sigma0"); else None.
    """

    place: Georeference
    dtype: str
    band: str
    notes: list[str]
    time_utc: str | None
    unit: str | None

    def read(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        """(bottom - top, width) float32 numbers of these rows, and bool: valid. Numbers that are not valid are 0.

        Raises BadScene where they cannot be read.
        """

    def close(self) -> None: ...


def open_raster(
    path: str,
    band: str | None = None,
    nodata: float | None = None,
    crs: str | None = None,
    pixel_size_m: float | None = None,
) -> Raster:
    """Open a scene.  path: a file, or a name that GDAL opens (https://..., /vsizip/...).

    band: a number from 1 on or a name; None takes VV where bands have names, else the first.  nodata: another value
    without data than the file's.  crs: in place of the file's; "none" leaves it out.  pixel_size_m: of a scene without
    a CRS.
    Raises BadScene where it cannot be read, and where it is unclear what it holds.
    """
    if is_local(path) and not Path(path).exists():
        raise BadScene(f"there is no file at {path}; check the path")
    if path.rstrip("/").lower().endswith((".safe", ".zip")):
        raise BadScene(
            "it is a product folder or a ZIP, such as Sentinel-1's SAFE; expected a raster: calibrate it to sigma0 "
            "(SNAP, pyroSAR) and give that GeoTIFF"
        )
    if Path(path).suffix.lower() in PICTURE_SUFFIXES and is_local(path):
        return Picture(path, band, nodata, crs, pixel_size_m)
    return GdalRaster(path, band, nodata, crs, pixel_size_m)


def is_local(path: str) -> bool:
    """Whether a path names a file here, and not one behind GDAL's virtual file systems or a URL."""
    return not path.startswith("/vsi") and "://" not in path


class Picture:
    """A PNG, JPEG or BMP of 8-bit grey, read as images of a dataset are: whole, into memory."""

    dtype, unit = "uint8", None

    def __init__(
        self, path: str, band: str | None, nodata: float | None, crs: str | None, pixel_size_m: float | None
    ) -> None:
        if band not in (None, "1"):
            raise BadScene(f"it has one band of greys, and band {band} is asked for; leave --band out")
        if crs not in (None, "none"):
            raise BadScene(f"a picture has no transform for the CRS {crs}; give --pixel-size in metres, or a GeoTIFF")
        try:
            self._greys = read_grey(Path(path), max_pixels=MAX_SCENE_PIXELS)
        except (BadFile, OSError) as error:
            raise BadScene(error.reason if isinstance(error, BadFile) else str(error)) from error
        self.place = Georeference(*self._greys.shape, pixel_size_m=pixel_size_m)
        self.band, self.notes, self.time_utc = "1", [], time_in(Path(path).name)
        self._nodata = nodata

    def read(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        values = self._greys[top:bottom].astype(np.float32)
        valid = ~collar_of(values) if self._nodata is None else values != self._nodata
        return np.where(valid, values, np.float32(0)), valid

    def close(self) -> None:
        del self._greys


class GdalRaster:
    """A GeoTIFF, COG or VRT of any size, read row by row."""

    unit = None

    def __init__(
        self, path: str, band: str | None, nodata: float | None, crs: str | None, pixel_size_m: float | None
    ) -> None:
        self._rasterio = need("rasterio")
        # A VRT may name files anywhere: over the network only where the user's path does.
        self._settings = {"CPL_VSIL_CURL_ALLOWED_FILENAME": "none"} if is_local(path) else {}
        self._settings |= {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}
        self._lock, self._path = threading.Lock(), path
        self.notes: list[str] = []
        with gdal_settings(**self._settings):
            driver = "VRT" if path.lower().endswith(".vrt") else "GTiff"
            self._dataset = self._guarded(lambda: self._rasterio.open(path, driver=driver, sharing=False))
            try:
                self._guarded(lambda: self._set_up(band, nodata, crs, pixel_size_m))
            except BaseException:
                self._dataset.close()
                raise

    def _set_up(self, band: str | None, nodata: float | None, crs: str | None, pixel_size_m: float | None) -> None:
        found = self._dataset
        self._bands = self._chosen(band)
        self.dtype = found.dtypes[self._bands[0] - 1]
        if "complex" in self.dtype:
            raise BadScene(
                f"its numbers are {self.dtype}, a single-look complex image; expected a detected one: take the GRD "
                "product, or write the squared magnitude as sigma0"
            )
        self._refuse_size()
        if found.colorinterp[self._bands[0] - 1].name == "palette":
            raise BadScene("it stores numbers of colours, a palette; expected radar values: give the scene itself")
        own = found.nodatavals[self._bands[0] - 1]
        self._nodata = own if nodata is None else nodata
        flags = found.mask_flag_enums[self._bands[0] - 1]
        self._has_mask = any(flag.name in ("per_dataset", "alpha") for flag in flags)
        self._has_collar = self._nodata is None and not self._has_mask
        self._scale = tuple(getattr(found, name + "s")[self._bands[0] - 1] for name in _SCALES)
        self.place = self._place(crs, pixel_size_m)
        tags = found.tags()
        times = map(time_in, (*(tags.get(one) for one in _TIME_TAGS), Path(self._path).name))
        self.time_utc = next((time for time in times if time is not None), None)

    def _refuse_size(self) -> None:
        """BadScene for a size that only a damaged header states, before memory is taken for it."""
        found = self._dataset
        if max(found.shape) > _LONGEST_SIDE:
            raise BadScene(
                f"it claims to have {found.height} x {found.width} pixels; expected at most {_LONGEST_SIDE:,} on a "
                "side: copy or download it again"
            )
        rows, columns = found.block_shapes[self._bands[0] - 1]
        if rows * columns * np.dtype(self.dtype).itemsize > _LARGEST_BLOCK:
            raise BadScene(
                f"it is stored in blocks of {rows} x {columns} pixels, more than memory should hold; expected tiles or "
                "short strips: copy it again, or write it anew (gdal_translate -co TILED=YES)"
            )

    def _chosen(self, band: str | None) -> list[int]:
        """The numbers of the bands that are read: one, or three of a grey picture that is stored as colours."""
        found = self._dataset
        names = [str(text or tags.get("POLARISATION") or tags.get("POLARIZATION") or "").strip()
                 for text, tags in zip(found.descriptions, (found.tags(i) for i in found.indexes))]  # fmt: skip
        colours = [one.name for one in found.colorinterp]
        data = [i for i, colour in zip(found.indexes, colours) if colour != "alpha"]
        shown = ", ".join(f"{i} {names[i - 1]}".strip() for i in data)
        if not data:
            raise BadScene("it has no band but a transparent one; expected radar values: give the scene itself")
        if band is not None:
            taken = [i for i in data if band == str(i) or band.lower() == names[i - 1].lower()]
            if len(taken) != 1:
                raise BadScene(f"it has no band {band!r}; it has: {shown}; choose one with --band")
        elif colours[:3] == ["red", "green", "blue"] and not any(names) and len(data) == 3:
            self.band = "1"
            return data
        else:
            taken = [i for i in data if names[i - 1].upper() == _PREFERRED] or data
            if len(data) > 1:
                others = ", ".join(f"{i} {names[i - 1]}".strip() for i in data if i != taken[0])
                self.notes.append(f"band {taken[0]} {names[taken[0] - 1]} is read; not read: {others} (--band)")
        self.band = names[taken[0] - 1] or str(taken[0])
        return taken[:1]

    def _place(self, crs: str | None, pixel_size_m: float | None) -> Georeference:
        found = self._dataset
        height, width = found.shape
        points, points_crs = found.gcps
        affine = tuple(found.transform)[:6]
        is_identity = affine in ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
        pixels = Georeference(height, width, pixel_size_m=pixel_size_m)
        if crs == "none":
            return pixels
        if crs is not None and is_identity and not points:
            raise BadScene(f"it has no transform and no ground control points for the CRS {crs}; leave --crs out")
        if is_identity and not points:
            if found.rpcs is not None:
                raise BadScene(
                    "its place is given by rational polynomials (RPC), which dakd does not follow; expected a "
                    "transform or ground control points: warp it first (gdalwarp -rpc), or give --crs none"
                )
            if found.crs is not None:
                self.notes.append(
                    f"it names {found.crs.to_string()}, but its transform is that of plain pixels: taken as not "
                    "georeferenced"
                )
            return pixels
        own = points_crs if is_identity or not found.crs else found.crs
        wkt = self._wkt(crs) if crs is not None else (own.to_wkt() if own else None)
        if wkt is None:
            raise BadScene(
                "it has a transform but no CRS, so that its place is unknown; give --crs EPSG:CODE, or --crs none to "
                "work in pixels"
            )
        is_geographic = self._is_geographic(wkt)
        if is_identity:
            listed = [ControlPoint(one.col, one.row, one.x, one.y, one.z or 0.0) for one in points]
            return Georeference(height, width, wkt, points=unwrapped_points(listed, is_geographic))
        if not math.isfinite(sum(affine)) or affine[0] * affine[4] == affine[1] * affine[3]:
            raise BadScene(f"its transform is {affine}; expected one that can be undone: check it, or give --crs none")
        return Georeference(height, width, wkt, transform=affine)

    @staticmethod
    def _wkt(crs: str) -> str:
        pyproj = need("pyproj")
        try:
            return pyproj.CRS.from_user_input(crs).to_wkt()
        except pyproj.exceptions.CRSError as error:
            expected = "expected a code such as EPSG:32631, or none"
            raise BadScene(f"--crs is {crs!r}; {expected}: change it ({error})") from None

    @staticmethod
    def _is_geographic(wkt: str) -> bool:
        pyproj = need("pyproj")
        try:
            found = pyproj.CRS.from_user_input(wkt)
            if not (found.is_geographic or found.is_projected or found.is_bound or found.is_compound):
                raise BadScene(f"its CRS {found.name!r} has no place on Earth; give --crs EPSG:CODE, or --crs none")
            return bool(found.is_geographic)
        except pyproj.exceptions.CRSError as error:
            raise BadScene(f"its CRS cannot be understood ({error}); give --crs EPSG:CODE, or --crs none") from None

    def read(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock, gdal_settings(**self._settings):
            return self._guarded(lambda: self._read(top, bottom), f" in rows {top} to {bottom - 1}")

    def _read(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        window = self._rasterio.windows.Window(0, top, self.place.width, bottom - top)
        stored = self._dataset.read(self._bands, window=window)
        if len(stored) > 1 and not (stored[0] == stored[1:]).all():
            raise BadScene("its red, green and blue differ, so it is a colour picture; choose one band with --band")
        values = stored[0].astype(np.float32)
        valid = np.isfinite(values)
        if self._nodata is not None and not math.isnan(self._nodata):
            # As stored: a nodata value of float64 digits, such as -3.4028234663852886e+38, is compared as float32.
            wanted = stored.dtype.type(self._nodata) if stored.dtype.kind == "f" else self._nodata
            valid &= stored[0] != wanted
        if self._has_mask:
            valid &= self._dataset.read_masks(self._bands[0], window=window) > 0
        if self._has_collar:
            valid &= ~collar_of(values)
        scale, offset = self._scale
        if (scale, offset) != (1.0, 0.0):
            values = values * np.float32(scale) + np.float32(offset)
        return np.where(valid, values, np.float32(0)), valid

    def _guarded(self, action: Callable[[], Any], where: str = "") -> Any:
        """BadScene for all that GDAL stumbles over; its errors have no common base."""
        try:
            return action()
        except (BadScene, MemoryError):
            raise
        except Exception as error:
            text = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
            raise BadScene(
                f"it cannot be read{where} ({text}); expected a whole GeoTIFF, COG, VRT, PNG, JPEG or BMP: copy or "
                "download it again"
            ) from error

    def close(self) -> None:
        self._dataset.close()


def collar_of(values: np.ndarray) -> np.ndarray:
    """(H, W) bool: runs of at least 8 zeros from the left and from the right end of each row."""
    is_zero = values == 0
    if not (is_zero[:, 0].any() or is_zero[:, -1].any()):
        return np.zeros(values.shape, bool)
    width = values.shape[1]
    num_left = np.where(is_zero.all(axis=1), width, np.argmin(is_zero, axis=1))
    num_right = np.where(is_zero.all(axis=1), width, np.argmin(is_zero[:, ::-1], axis=1))
    least = min(_COLLAR, width)
    num_left, num_right = (np.where(num >= least, num, 0)[:, None] for num in (num_left, num_right))
    places = np.arange(width)[None, :]
    return (places < num_left) | (places >= width - num_right)


def time_in(text: str | None) -> str | None:
    """The first date and time in a text, such as a product's name, as 2021-12-23T05:11:22Z; None where there is none.
    """
    for pattern in _TIMES:
        if text and (found := pattern.search(text)):
            try:
                time = datetime(*map(int, found.groups()), tzinfo=UTC)
            except ValueError:
                continue
            return time.strftime("%Y-%m-%dT%H:%M:%SZ")
    return None


def checked_time(text: str) -> str:
    """A time of the user's in the same form; ValueError for anything else."""
    found = time_in(text) or time_in(text.replace("Z", ""))
    if found is None:
        raise ValueError(f"time is {text!r}; expected one in UTC such as 2021-12-23T05:11:22: change it")
    return found


def scenes_in(paths: Sequence[str]) -> list[str]:
    """The scenes of files, URLs and folders of files, each once, in order.  ValueError where a folder has none."""
    found: dict[str, None] = {}
    for path in paths:
        if is_local(path) and Path(path).is_dir() and not path.rstrip("/").lower().endswith(".safe"):
            files = (one for one in Path(path).iterdir() if one.is_file() and not one.name.startswith("."))
            inside = sorted(str(one) for one in files if one.suffix.lower() in SCENE_SUFFIXES)
            if not inside:
                expected = f"expected files that end in {', '.join(SCENE_SUFFIXES)}"
                raise ValueError(f"no scene in {path}; {expected}: name one")
            found |= dict.fromkeys(inside)
        else:
            found[path] = None
    return list(found)
