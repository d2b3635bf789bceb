"""The vector files of a scene: polygons as GeoJSON and GeoPackage, ships as GeoJSON points."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dakd.runtime.files import replacing, write_text
from dakd.scene.georeference import Georeference
from dakd.scene.measures import FIELDS, Slick
from dakd.scene.packages import need
from dakd.scene.places import rfc_7946, to_map

_DIGITS = 7  # of degrees: a centimetre
_PIXELS = "pixels: x to the right, y upwards, (0, 0) at the outer corner of the first pixel"


def write_geojson(path: Path, slicks: Sequence[Slick], place: Georeference, facts: Mapping[str, Any]) -> None:
    """Polygons as RFC 7946 has them: longitudes and latitudes of WGS 84, cut at the antimeridian.

    A scene without a place has pixels in their stead; the member `coordinates` then says so.
    """
    features = []
    for slick in slicks:
        if slick.lonlat is None:
            geometry = to_map(slick.outline.geometry, place)
        else:
            geometry = rfc_7946(slick.lonlat)
        features.append(_feature(_coordinates(geometry), slick.properties))
    _write_collection(path, features, place, facts)


def write_ships(path: Path, ships: Sequence[Slick], place: Georeference, facts: Mapping[str, Any]) -> None:
    """The ships as points, each at a pixel of its own."""
    features = []
    for ship in ships:
        point = ship.outline.geometry.representative_point()
        if place.has_place:
            found = [ship.properties["inside_lon"], ship.properties["inside_lat"]]
        else:
            found = [float(one[0]) for one in place.to_map(np.array([point.x]), np.array([point.y]))]
        features.append(_feature({"type": "Point", "coordinates": [_rounded(one) for one in found]}, ship.properties))
    _write_collection(path, features, place, facts)


def _write_collection(path: Path, features: list[dict], place: Georeference, facts: Mapping[str, Any]) -> None:
    head: dict[str, Any] = {"type": "FeatureCollection"}
    if not place.has_place:
        head["coordinates"] = _PIXELS
    text = ",\n".join(json.dumps(one) for one in features)
    start = json.dumps(head | {"dakd": dict(facts)})
    write_text(path, f'{start[:-1]}, "features": [\n{text}\n]}}\n')


def _feature(geometry: dict, properties: Mapping[str, Any]) -> dict:
    shown = {name: _plain(value) for name, value in properties.items()}
    return {"type": "Feature", "id": properties["slick_id"], "geometry": geometry, "properties": shown}


def _plain(value: Any) -> Any:
    """Numbers that JSON has, with as many digits as anybody can use."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.9g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _coordinates(geometry: Any) -> dict:
    polygons = [[[[_rounded(x), _rounded(y)] for x, y in ring.coords] for ring in (one.exterior, *one.interiors)]
                for one in geometry.geoms]  # fmt: skip
    return {"type": "MultiPolygon", "coordinates": polygons}


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)


def write_gpkg(path: Path, slicks: Sequence[Slick], place: Georeference) -> None:
    """Polygons in the scene's own CRS, layer `slicks`; in a geographic one cut at the antimeridian.

    A scene without a CRS gets GeoPackage's undefined one, with y upwards.
    """
    pyogrio, shapely = need("pyogrio"), need("shapely")
    is_geographic = place.has_place and need("pyproj").CRS.from_user_input(place.crs).is_geographic
    geometries = [to_map(one.outline.geometry, place) for one in slicks]
    if is_geographic:
        geometries = [rfc_7946(one) for one in geometries]
    made = [_column(kind, [one.properties[name] for one in slicks]) for name, (kind, _) in FIELDS.items()]
    columns, masks = [one for one, _ in made], [one for _, one in made]
    with replacing(path) as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        # GDAL takes the driver's name, but wants the ending.
        whole = aside.with_suffix(".gpkg")
        try:
            pyogrio.raw.write(
                whole, np.array(shapely.to_wkb(geometries), object), columns, list(FIELDS), field_mask=masks,
                layer="slicks", driver="GPKG", geometry_type="MultiPolygon", crs=place.crs,
            )  # fmt: skip
            whole.replace(aside)
        finally:
            for ending in ("", "-journal", "-wal", "-shm"):
                Path(f"{whole}{ending}").unlink(missing_ok=True)


def _column(kind: str, values: list[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """The values as an array, and which are null."""
    is_null = np.array([one is None or (isinstance(one, float) and not math.isfinite(one)) for one in values], bool)
    if kind == "text":
        return np.array(["" if one is None else one for one in values], object), is_null
    dtype = {"number": np.float64, "whole": np.int64, "truth": np.bool_}[kind]
    return np.array([0 if null else one for one, null in zip(values, is_null)], dtype), is_null
