"""Geometries from pixels to a map and to longitudes and latitudes, and cut at the antimeridian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dakd.scene.georeference import Georeference
from dakd.scene.packages import need
from dakd.scene.polygons import as_multi

_LONGEST = 32.0  # pixels of an edge: a straight line of pixels is a curve on a map


def to_map(geometry: Any, place: Georeference) -> Any:
    """A geometry in pixels in the CRS of the scene, or in pixels with y upwards where it has none."""
    dense = need("shapely").segmentize(geometry, _LONGEST) if place.has_place else geometry
    return _moved(dense, place.to_map)


def to_lonlat(geometry: Any, place: Georeference) -> Any:
    """A geometry in pixels in degrees, longitudes unwrapped."""
    return _moved(need("shapely").segmentize(geometry, _LONGEST), place.to_lonlat)


def _moved(geometry: Any, move: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Any:
    found = need("shapely").transform(geometry, lambda points: np.stack(move(points[:, 0], points[:, 1]), axis=1))
    return as_multi(found)  # a collection of one may have become its member


def rfc_7946(geometry: Any) -> Any:
    """Polygons or a point with longitudes from -180 to 180, cut at the antimeridian; outer rings run anticlockwise."""
    shapely = need("shapely")
    if geometry.geom_type == "Point":
        return shapely.Point((geometry.x + 180) % 360 - 180, geometry.y)
    geometry = as_multi(geometry if geometry.is_valid else shapely.make_valid(_with_pole(geometry)))
    west, _, east, _ = geometry.bounds
    if west >= -180 and east <= 180:
        return _oriented(geometry)
    parts = []
    for turn in range(int(np.floor((west + 180) / 360)), int(np.floor((east + 180) / 360)) + 1):
        strip = shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)
        inside = geometry.intersection(strip)
        parts.append(shapely.transform(inside, lambda points, turn=turn: points - (360.0 * turn, 0.0)))
    return _oriented(as_multi(shapely.union_all([as_multi(one) for one in parts if not one.is_empty])))


def _with_pole(geometry: Any) -> Any:
    """Rings around a pole, whose longitudes do not come back to where they start, closed over it."""
    shapely = need("shapely")
    polygons = []
    for polygon in geometry.geoms:
        points = np.array(polygon.exterior.coords)
        longitudes = np.unwrap(points[:, 0], period=360)
        if abs(longitudes[-1] - longitudes[0]) < 180:
            polygons.append(polygon)
            continue
        pole = 90.0 if points[:, 1].mean() > 0 else -90.0
        ring = np.stack([longitudes, points[:, 1]], axis=1)
        over = np.array([[longitudes[-1], pole], [longitudes[0], pole]])
        polygons.append(shapely.Polygon(np.concatenate([ring, over])))
    return shapely.MultiPolygon(polygons)


def _oriented(geometry: Any) -> Any:
    return need("shapely").MultiPolygon([need("shapely.geometry.polygon").orient(one, 1.0) for one in geometry.geoms])
