"""Options of the command line that are more than a number or a name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dakd.scene.packages import need
from dakd.scene.radiometry import Window

Aoi = tuple[float, float, float, float]


def read_window(text: str | None) -> Window | Literal["match"] | None:
    """`-25,0` or `match`; ValueError for anything else."""
    if text in (None, "match"):
        return text
    try:
        low, high = (float(one) for one in text.split(","))
    except ValueError:
        raise ValueError(f"--window is {text!r}; expected LO,HI in dB such as -25,0, or match: change it") from None
    return low, high


def read_spacing(text: str | None) -> float | Literal["native"] | None:
    """`50` or `native`; ValueError for anything else."""
    if text in (None, "native"):
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--spacing is {text!r}; expected metres such as 50, or native: change it") from None


def read_place(text: str) -> tuple[float, float]:
    """`11.5,42`, longitude and latitude in degrees; ValueError for anything else."""
    try:
        lon, lat = (float(one) for one in text.split(","))
    except ValueError:
        raise ValueError(f"--centre is {text!r}; expected LON,LAT in degrees such as 11.5,42: change it") from None
    return lon, lat


def read_aoi(text: str | None) -> Aoi | None:
    """`W,S,E,N` in degrees, or the bounds of a vector file; ValueError for anything else."""
    if text is None:
        return None
    if Path(text).is_file():
        return _bounds_of(text)
    try:
        west, south, east, north = (float(one) for one in text.split(","))
    except ValueError:
        raise ValueError(
            f"--aoi is {text!r}; expected W,S,E,N in degrees such as 11.5,41,12.5,42, or a vector file: change it"
        ) from None
    return west, south, east, north


def _bounds_of(path: str) -> Aoi:
    pyogrio, pyproj = need("pyogrio"), need("pyproj")
    try:
        found = pyogrio.read_info(path, force_total_bounds=True)
    except Exception as error:  # GDAL's errors have no common base
        raise ValueError(f"--aoi {path} cannot be read ({error}); give a GeoPackage, GeoJSON or shapefile") from None
    if not found["crs"] or found["total_bounds"] is None:
        raise ValueError(f"--aoi {path} has no CRS or no geometry; give a file with both, or W,S,E,N in degrees")
    transformer = pyproj.Transformer.from_crs(found["crs"], "EPSG:4326", always_xy=True)
    west, south, east, north = transformer.transform_bounds(*found["total_bounds"], densify_pts=21)
    return west, south, east, north
