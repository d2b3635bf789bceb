"""Polygons of connected pixels of one class, traced by GDAL line by line over the whole scene.

GDAL holds two lines of pixels and the outlines, so that no size of scene matters, and a slick that runs through all
bands is one polygon. Pixels that touch at a corner belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dakd.scene.packages import gdal_settings, need


@dataclass(frozen=True)
class Outline:
    """A polygon of one class.  geometry: a shapely MultiPolygon in pixel coordinates (column, row), valid."""

    class_id: int
    geometry: Any

    @property
    def num_pixels(self) -> int:
        return round(self.geometry.area)


def trace(path: Path, least_pixels: Mapping[int, float]) -> tuple[list[Outline], dict[int, int]]:
    """The outlines in a raster of class ids without a place, from the top to the bottom; class 0 is never traced.

    least_pixels: of an outline, by the ids of the classes that are traced.
    Returns the outlines, and how many smaller ones of each class were left out.
    """
    rasterio, features, shapely = need("rasterio"), need("rasterio.features"), need("shapely")
    shape = need("shapely.geometry").shape
    found, dropped = [], dict.fromkeys(least_pixels, 0)
    with gdal_settings(), rasterio.open(path) as labels:
        band = rasterio.band(labels, 1)
        for outline, value in features.shapes(band, mask=band, connectivity=8, transform=rasterio.Affine.identity()):
            class_id = int(value)
            if class_id not in least_pixels:
                continue
            if _ring_area(outline["coordinates"]) < least_pixels[class_id]:
                dropped[class_id] += 1
                continue
            polygon = shape(outline)
            found.append(Outline(class_id, as_multi(polygon if polygon.is_valid else shapely.make_valid(polygon))))
    return sorted(found, key=lambda one: (one.geometry.bounds[1], one.geometry.bounds[0])), dropped


def _ring_area(rings: list) -> float:
    """The pixels within the first ring less those of the others; cheaper than a geometry for specks."""
    areas = []
    for ring in rings:
        x, y = np.array(ring, np.float64).T
        areas.append(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)
    return areas[0] - sum(areas[1:])


def as_multi(geometry: Any) -> Any:
    """The polygons of any geometry as one MultiPolygon: lines and points, which a repair may leave, are none."""
    shapely = need("shapely")
    parts = [one for one in shapely.get_parts(geometry)] if hasattr(geometry, "geoms") else [geometry]
    polygons: list[Any] = []
    for part in parts:
        if part.geom_type == "Polygon":
            polygons.append(part)
        elif part.geom_type in ("MultiPolygon", "GeometryCollection"):
            polygons.extend(as_multi(part).geoms)
    return shapely.MultiPolygon([one for one in polygons if one.area > 0])
