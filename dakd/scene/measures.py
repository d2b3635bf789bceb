"""The properties of a slick: names as operators' systems use them (Cerulean's, CleanSeaNet's), units in each meaning.

Areas and lengths are geodesic, on the ellipsoid of WGS 84, where the scene has a place. FIELDS lists all properties in
their order; what cannot be known is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakd.data.sample import ClassTable
from dakd.scene.engine import PROBABILITY_STEPS
from dakd.scene.georeference import Georeference, geod
from dakd.scene.packages import need
from dakd.scene.places import to_lonlat
from dakd.scene.polygons import Outline
from dakd.scene.zonal import Zone, rectangle

OIL, LOOK_ALIKE, SHIP, LAND = "oil", "look-alike", "ship", "land"
CONFIDENCE_CLASSES = (("A", 0.9), ("B", 0.7))  # thresholds of machine_confidence; below them C
_TEXT, _NUMBER, _WHOLE, _TRUTH = "text", "number", "whole", "truth"
FIELDS: dict[str, tuple[str, str]] = {
    "slick_id": (_TEXT, "scene and number, from the top"),
    "scene_id": (_TEXT, "name of the scene's outputs"),
    "slick_timestamp": (_TEXT, "start of the acquisition, UTC"),
    "time_utc": (_TEXT, "the same"),
    "class": (_TEXT, "name of the class"),
    "inf_idx": (_WHOLE, "id of the class"),
    "machine_confidence": (_NUMBER, "median probability of the class in the polygon"),
    "mean_conf": (_NUMBER, "mean probability of the class"),
    "median_conf": (_NUMBER, "the same as machine_confidence"),
    "max_conf": (_NUMBER, "largest probability of the class"),
    "p_oil": (_NUMBER, "mean probability of oil"),
    "p_look_alike": (_NUMBER, "mean probability of look-alike"),
    "entropy": (_NUMBER, "mean entropy of the classes over its largest value; 0: sure, 1: no idea"),
    "confidence_class": (_TEXT, "A, B or C: machine_confidence from 0.9, from 0.7, below (dakd's own)"),
    "area": (_NUMBER, "m2"),
    "area_km2": (_NUMBER, "km2"),
    "perimeter": (_NUMBER, "m, with the rims of holes, along the edges of pixels"),
    "perimeter_km": (_NUMBER, "km"),
    "length": (_NUMBER, "m, longer side of the least rectangle"),
    "length_km": (_NUMBER, "km"),
    "width": (_NUMBER, "m, shorter side of the least rectangle"),
    "width_km": (_NUMBER, "km"),
    "orientation": (_NUMBER, "degrees of the longer side, clockwise from north, 0 to 180"),
    "aspect": (_NUMBER, "length over width"),
    "polsby_popper": (_NUMBER, "4 pi area over perimeter squared"),
    "fill_factor": (_NUMBER, "area over that of the least rectangle"),
    "linearity": (_NUMBER, "length squared over area and polsby_popper"),
    "complexity": (_NUMBER, "perimeter over that of a circle of the same area"),
    "geometry_count": (_WHOLE, "number of parts"),
    "largest_area": (_NUMBER, "m2, of the largest part"),
    "median_area": (_NUMBER, "m2, of the parts' median"),
    "centroid_lon": (_NUMBER, "degrees"),
    "centroid_lat": (_NUMBER, "degrees"),
    "inside_lon": (_NUMBER, "degrees, of a point that lies in the polygon"),
    "inside_lat": (_NUMBER, "degrees"),
    "contrast_db": (_NUMBER, "dB by which the polygon is darker than the sea around it: outside_db - inside_db"),
    "inside_db": (_NUMBER, "dB of the mean power in the polygon"),
    "outside_db": (_NUMBER, "dB of the mean power of sea pixels 3 to 10 pixels around it"),
    "outside_std_db": (_NUMBER, "dB of one plus the deviation of that power over its mean"),
    "distance_to_land_km": (_NUMBER, "km to the nearest pixel of the class land in the scene"),
    "touches_land": (_TRUTH, "whether it borders on the class land"),
    "touches_edge": (_TRUTH, "whether it reaches the edge of the result"),
    "touches_nodata": (_TRUTH, "whether it borders on pixels without data"),
    "num_pixels": (_WHOLE, "pixels of the result"),
    "length_px": (_NUMBER, "pixels, longer side of the least rectangle"),
    "width_px": (_NUMBER, "pixels, shorter side of the least rectangle"),
    "student": (_TEXT, "sha256 of the student's weights, its first 12 digits"),
    "version": (_TEXT, "of dakd"),
}  # fmt: skip


@dataclass(frozen=True)
class Slick:
    """An outline with its properties.  lonlat: its geometry in degrees, unwrapped; None without a place."""

    outline: Outline
    lonlat: Any
    properties: dict[str, Any]


@dataclass(frozen=True)
class Coast:
    """The outlines of land in a scene, for distances."""

    place: Georeference
    outlines: Sequence[Outline]

    def distance(self, geometry: Any) -> tuple[float | None, bool]:
        """Kilometres from a geometry in pixels to the nearest land, None without land or place; whether they touch."""
        if not self.outlines:
            return None, False
        shapely = need("shapely")
        others = [one.geometry for one in self.outlines]
        nearest = others[int(np.argmin(shapely.distance(np.array(others, object), geometry)))]
        ends = shapely.get_coordinates(shapely.shortest_line(geometry, nearest))
        pixels = float(np.hypot(*(ends[1] - ends[0])))
        if self.place.has_place:
            lon, lat = self.place.to_lonlat(ends[:, 0], ends[:, 1])
            return float(geod().inv(lon[0], lat[0], lon[1], lat[1])[2]) / 1000, pixels == 0
        spacing = self.place.spacing_m
        return None if spacing is None else pixels * spacing[0] / 1000, pixels == 0


def measure(
    outline: Outline, zone: Zone, place: Georeference, coast: Coast, classes: ClassTable, common: Mapping[str, Any]
) -> Slick:
    """The properties of an outline.  common: those that all outlines of the scene share."""
    lonlat = to_lonlat(outline.geometry, place) if place.has_place else None
    distance, touches_land = coast.distance(outline.geometry)
    west, north, east, south = outline.geometry.bounds
    found = dict.fromkeys(FIELDS) | dict(common)
    found |= {
        "class": classes.names[outline.class_id],
        "inf_idx": outline.class_id,
        "num_pixels": zone.num_pixels,
        "geometry_count": len(outline.geometry.geoms),
        "distance_to_land_km": distance,
        "touches_land": touches_land,
        "touches_edge": west <= 0 or north <= 0 or east >= place.width or south >= place.height,
        "touches_nodata": zone.touches_nodata,
    }
    found |= _confidence(zone, outline.class_id, classes) | _contrast(zone) | _form(outline.geometry, lonlat, place)
    return Slick(outline, lonlat, {name: found[name] for name in FIELDS})


def _confidence(zone: Zone, class_id: int, classes: ClassTable) -> dict[str, Any]:
    steps, total = np.arange(PROBABILITY_STEPS + 1) / PROBABILITY_STEPS, zone.num_pixels
    own = zone.histograms[class_id]
    median = float(steps[np.searchsorted(np.cumsum(own), total / 2)])
    means = zone.histograms @ steps / total
    of_name = dict(zip(classes.names, means.tolist()))
    return {
        "machine_confidence": median,
        "median_conf": median,
        "mean_conf": float(means[class_id]),
        "max_conf": float(steps[np.flatnonzero(own)[-1]]),
        "p_oil": of_name.get(OIL),
        "p_look_alike": of_name.get(LOOK_ALIKE),
        "entropy": zone.entropy / total / float(np.log(classes.num_classes)),
        "confidence_class": next((name for name, least in CONFIDENCE_CLASSES if median >= least), "C"),
    }


def _contrast(zone: Zone) -> dict[str, Any]:
    (num_inside, inside, _), (num_outside, outside, squares) = zone.inside, zone.outside
    found: dict[str, Any] = {}
    if num_inside:
        found["inside_db"] = float(10 * np.log10(inside / num_inside))
    if num_outside:
        mean = outside / num_outside
        deviation = float(np.sqrt(max(squares / num_outside - mean**2, 0)))
        found |= {
            "outside_db": float(10 * np.log10(mean)),
            "outside_std_db": float(10 * np.log10(1 + deviation / mean)),
        }
    if num_inside and num_outside:
        found["contrast_db"] = found["outside_db"] - found["inside_db"]
    return found


def _form(geometry: Any, lonlat: Any, place: Georeference) -> dict[str, Any]:
    shapely = need("shapely")
    length_px, width_px, _ = rectangle(shapely.get_coordinates(geometry))
    found: dict[str, Any] = {"length_px": length_px, "width_px": width_px}
    if lonlat is not None:
        found |= _places(geometry, place)
        parts, perimeter, box = _on_earth(lonlat)
    elif place.spacing_m is not None:
        size = place.spacing_m[0]
        parts, perimeter = [one.area * size**2 for one in geometry.geoms], geometry.length * size
        box = (length_px * size, width_px * size, None)
    else:
        return found | {"aspect": length_px / width_px if width_px else None}
    area, (length, width, orientation) = sum(parts), box
    compactness = 4 * np.pi * area / perimeter**2
    return found | {
        "area": area, "area_km2": area / 1e6,
        "perimeter": perimeter, "perimeter_km": perimeter / 1000,
        "length": length, "length_km": length / 1000,
        "width": width, "width_km": width / 1000,
        "orientation": orientation,
        "aspect": length / width if width else None,
        "polsby_popper": compactness,
        "fill_factor": area / (length * width) if width else None,
        "linearity": length**2 / area / compactness,
        "complexity": perimeter / (2 * np.sqrt(np.pi * area)),
        "largest_area": max(parts), "median_area": float(np.median(parts)),
    }  # fmt: skip


def _places(geometry: Any, place: Georeference) -> dict[str, float]:
    inside = geometry.representative_point()
    columns = np.array([geometry.centroid.x, inside.x])
    rows = np.array([geometry.centroid.y, inside.y])
    lon, lat = place.to_lonlat(columns, rows)
    lon = (lon + 180) % 360 - 180
    return {"centroid_lon": float(lon[0]), "centroid_lat": float(lat[0]),
            "inside_lon": float(lon[1]), "inside_lat": float(lat[1])}  # fmt: skip


def _on_earth(lonlat: Any) -> tuple[list[float], float, tuple[float, float, float]]:
    """Of a MultiPolygon in degrees: its parts' areas in m2, its perimeter in m, and its least rectangle in m."""
    shapely, earth = need("shapely"), geod()
    areas, perimeter = [], 0.0
    for polygon in lonlat.geoms:
        rings = [polygon.exterior, *polygon.interiors]
        found = [earth.polygon_area_perimeter(*np.array(ring.coords).T) for ring in rings]
        areas.append(abs(found[0][0]) - sum(abs(one[0]) for one in found[1:]))
        perimeter += sum(one[1] for one in found)
    # The azimuthal equidistant projection around the centroid: azimuths and geodesic distances from it.
    centre, points = lonlat.centroid, shapely.get_coordinates(shapely.convex_hull(lonlat))
    azimuth, _, distance = earth.inv(*(np.full(len(points), one) for one in (centre.x, centre.y)), *points.T)
    angle = np.radians(azimuth)
    return areas, perimeter, rectangle(np.stack([distance * np.sin(angle), distance * np.cos(angle)], axis=1))
