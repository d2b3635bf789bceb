"""Where the pixels of a scene lie: an affine transform, ground control points, or nothing.

Pixel coordinates are (column, row) from the outer corner of the first pixel, as in GDAL. Ground control points are
followed by a thin-plate spline, which goes through each of them. An affine transform fitted to them is never used: on a
Sentinel-1 GRD scene over mountains it is 882 m off on average.

Longitudes are unwrapped: in a scene across the antimeridian they run past 180 (or below -180), so that shapes stay
whole. `vectors_out` cuts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dakd.scene.bad_scene import BadScene
from dakd.scene.packages import need

WGS84 = "EPSG:4326"
_NET = 65  # lines of the net by which an area of interest is found
_STEP = 1 / 8  # of the width and height, for the pixel spacing


@dataclass(frozen=True)
class ControlPoint:
    """A pixel coordinate (column, row) and its place (x, y, z) in the CRS of the georeference."""

    column: float
    row: float
    x: float
    y: float
    z: float = 0.0


@dataclass(frozen=True)
class Georeference:
    """The place of a raster of (height, width) pixels.

    crs: as WKT, None for none.  transform: a, b, c, d, e, f with x = a column + b row + c and y = d column + e row + f.
    points: ground control points in place of a transform.  pixel_size_m: a spacing that the user states for a raster
    without a place.
    """

    height: int
    width: int
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    points: tuple[ControlPoint, ...] = ()
    pixel_size_m: float | None = None

    @property
    def kind(self) -> str:
        """"transform", "gcps" or "pixels"."""
        if self.crs is None:
            return "pixels"
        return "gcps" if self.points else "transform"

    @property
    def has_place(self) -> bool:
        return self.kind != "pixels"

    def resized(self, height: int, width: int) -> Georeference:
        """The same place with another number of pixels."""
        down, right = self.height / height, self.width / width
        transform = None
        if self.transform is not None:
            a, b, c, d, e, f = self.transform
            transform = (a * right, b * down, c, d * right, e * down, f)
        points = tuple(ControlPoint(one.column / right, one.row / down, one.x, one.y, one.z) for one in self.points)
        size = None if self.pixel_size_m is None else self.pixel_size_m * (down * right) ** 0.5
        return Georeference(height, width, self.crs, transform, points, size)

    def cropped(self, top: int, bottom: int, left: int, right: int) -> Georeference:
        """The place of these rows and columns."""
        transform = None
        if self.transform is not None:
            a, b, c, d, e, f = self.transform
            transform = (a, b, a * left + b * top + c, d, e, d * left + e * top + f)
        points = tuple(ControlPoint(one.column - left, one.row - top, one.x, one.y, one.z) for one in self.points)
        return Georeference(bottom - top, right - left, self.crs, transform, points, self.pixel_size_m)

    def to_map(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) pixel coordinates to (N,) x and y of the CRS; without one to pixels, y upwards from 0 at the top edge.
        """
        columns, rows = np.asarray(columns, np.float64), np.asarray(rows, np.float64)
        if self.crs is None:
            return columns, -rows
        if self.points:
            return self._by_spline(columns, rows)
        a, b, c, d, e, f = self.transform
        return a * columns + b * rows + c, d * columns + e * rows + f

    def to_lonlat(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) pixel coordinates to (N,) longitudes and latitudes in degrees (WGS 84), unwrapped around the scene's
        centre. ValueError without a CRS."""
        if self.crs is None:
            raise ValueError("a raster without a CRS has no longitudes; give one, as EPSG:CODE")
        lon, lat = self._lonlat(*self.to_map(columns, rows))
        return self.centre_lon + (lon - self.centre_lon + 180) % 360 - 180, lat

    def window_of(self, aoi: tuple[float, float, float, float]) -> tuple[int, int, int, int] | None:
        """Top, bottom, left and right of the pixels that hold an area; None where it lies outside the raster.

        aoi: west, south, east and north in degrees; west of greater longitude than east is across the antimeridian.
        The window is that of the cells of a coarse net over the raster that the area meets, never smaller than it.
        """
        west, south, east, north = aoi
        east += 360 * (east < west)
        columns, rows = (np.unique(np.linspace(0, side, _NET).round()) for side in (self.width, self.height))
        across, down = np.meshgrid(columns, rows)
        lon, lat = (one.reshape(across.shape) for one in self.to_lonlat(across.ravel(), down.ravel()))
        corners = [(slice(None, -1), slice(None, -1)), (slice(None, -1), slice(1, None)),
                   (slice(1, None), slice(None, -1)), (slice(1, None), slice(1, None))]  # fmt: skip
        low, high = (pick([lon[one] for one in corners], axis=0) for pick in (np.min, np.max))
        bottom, top = (pick([lat[one] for one in corners], axis=0) for pick in (np.min, np.max))
        meets = np.zeros(low.shape, bool)
        for turn in (-720, -360, 0, 360, 720):
            meets |= (low <= east + turn) & (high >= west + turn) & (bottom <= north) & (top >= south)
        if not meets.any():
            return None
        found_rows, found_columns = np.flatnonzero(meets.any(axis=1)), np.flatnonzero(meets.any(axis=0))
        return (int(rows[found_rows[0]]), int(rows[found_rows[-1] + 1]),
                int(columns[found_columns[0]]), int(columns[found_columns[-1] + 1]))  # fmt: skip

    @cached_property
    def centre_lon(self) -> float:
        lon, _ = self._lonlat(*self.to_map(np.array([self.width / 2]), np.array([self.height / 2])))
        return float(lon[0])

    @cached_property
    def spacing_m(self) -> tuple[float, float] | None:
        """Metres on the ground between neighbouring pixels, along rows and along columns, at the scene's centre.

        None where there is neither a CRS nor a stated size.
        """
        if self.crs is None:
            return None if self.pixel_size_m is None else (self.pixel_size_m, self.pixel_size_m)
        middle_column, middle_row = self.width / 2, self.height / 2
        across, down = max(self.width * _STEP, 0.5), max(self.height * _STEP, 0.5)
        columns = np.array([middle_column - across, middle_column + across, middle_column, middle_column])
        rows = np.array([middle_row, middle_row, middle_row - down, middle_row + down])
        lon, lat = self.to_lonlat(columns, rows)
        _, _, metres = geod().inv(lon[[0, 2]], lat[[0, 2]], lon[[1, 3]], lat[[1, 3]])
        spacing = float(metres[0]) / (2 * across), float(metres[1]) / (2 * down)
        if not all(np.isfinite(spacing)) or min(spacing) <= 0:
            raise BadScene(
                f"its pixels are {spacing[0]:g} x {spacing[1]:g} m by its georeference; expected lengths above 0: "
                "check its transform, or give --crs none to work in pixels"
            )
        return spacing

    def footprint(self) -> tuple[np.ndarray, np.ndarray]:
        """Longitudes and latitudes around the scene's edge, closed, clockwise in pixels."""
        steps = np.linspace(0, 1, 33)
        columns = np.concatenate([steps, np.ones(32), steps[-2::-1], np.zeros(32)]) * self.width
        rows = np.concatenate([np.zeros(33), steps[1:], np.ones(32), steps[-2::-1]]) * self.height
        return self.to_lonlat(columns, rows)

    # -- the CRS ------------------------------------------------------------------------------------------------------

    @cached_property
    def _to_wgs84(self) -> Any:
        return need("pyproj").Transformer.from_crs(self.crs, WGS84, always_xy=True)

    def _lonlat(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lon, lat = self._to_wgs84.transform(x, y)
        lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
        if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
            raise BadScene(
                "its georeference leads outside its CRS; expected a transform whose pixels lie on Earth: check it, or "
                "give --crs none to work in pixels"
            )
        return lon, lat

    # -- ground control points ----------------------------------------------------------------------------------------

    def _by_spline(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = self._spline.xy(rows.tolist(), columns.tolist(), offset="ul")
        return np.asarray(x, np.float64), np.asarray(y, np.float64)

    @cached_property
    def _spline(self) -> Any:
        rasterio = need("rasterio")
        transform = need("rasterio.transform")
        points = [rasterio.control.GroundControlPoint(one.row, one.column, one.x, one.y, one.z) for one in self.points]
        pixels = np.array([(one.column, one.row) for one in self.points])
        try:
            if len(points) < 3 or np.linalg.matrix_rank(pixels - pixels.mean(axis=0), tol=1e-3) < 2:
                raise ValueError("they lie on a line")  # GDAL would take them
            return transform.GCPTransformer(points, tps=True)
        except Exception as error:  # GDAL's errors have no common base
            raise BadScene(
                f"its {len(points)} ground control points give no spline ({error}); expected at least three that do "
                "not lie on a line: check them, or give --crs none to work in pixels"
            ) from error


def unwrapped_points(points: Sequence[ControlPoint], is_geographic: bool) -> tuple[ControlPoint, ...]:
    """Points of a scene across the antimeridian with longitudes that do not jump."""
    if not is_geographic or not points:
        return tuple(points)
    x = np.array([one.x for one in points])
    if np.ptp(x) > 180:
        x = np.where(x < 0, x + 360, x)
    return tuple(ControlPoint(one.column, one.row, float(lon), one.y, one.z) for one, lon in zip(points, x))


def geod() -> Any:
    """The ellipsoid of WGS 84, on which areas and lengths are taken (`pyproj.Geod`)."""
    return need("pyproj").Geod(ellps="WGS84")
