"""What a user may ask of `dakd scene`, checked before a scene is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dakd.data.radiometry import checked_spacing, checked_window
from dakd.data.sample import ClassTable
from dakd.scene.grid import checked_stride, checked_tile, default_stride, default_tile
from dakd.scene.measures import LAND, LOOK_ALIKE, OIL, SHIP
from dakd.scene.radiometry import UNITS, Window
from dakd.scene.rasters_in import checked_time

OUTPUTS = ("class", "probability", "geojson", "gpkg", "ships", "quicklook")
ENDINGS = {"class": ".class.tif", "probability": ".probability.tif", "geojson": ".polygons.geojson",
           "gpkg": ".polygons.gpkg", "ships": ".ships.geojson", "quicklook": ".quicklook.png"}  # fmt: skip
RECORD_ENDING = ".json"
LEAST_AREA_KM2 = 0.05
LEAST_PIXELS = 16.0  # where areas are not known
LEAST_OF_SHIP = 3.0  # pixels


@dataclass(frozen=True)
class SceneOptions:
    """The options of `dakd scene`; see its help. Raises ValueError for one that makes no sense.

    band: a name, or a number from 1 on.  unit: auto, db, sigma0, amplitude or grey.  window: (low, high) in dB, or in
    greys for grey scenes; "match"; None: the student's.  spacing: metres; "native"; None: the student's.
    nodata: another value without data.  crs: in place of the scene's; "none": pixels.  pixel_size_m: of a scene without
    a CRS.  tile, stride: of the grid, in pixels; None: the student's.  aoi: west, south, east, north in degrees.
    polygons: classes that are traced; None: oil and look-alike.  least_area_km2: of a polygon.
    outputs: some of OUTPUTS.  time_utc: of the acquisition, where the scene does not state it.
    """

    band: str | None = None
    unit: str = "auto"
    window: Window | Literal["match"] | None = None
    spacing: float | Literal["native"] | None = None
    nodata: float | None = None
    crs: str | None = None
    pixel_size_m: float | None = None
    tile: int | None = None
    stride: int | None = None
    aoi: tuple[float, float, float, float] | None = None
    polygons: tuple[str, ...] | None = None
    least_area_km2: float = LEAST_AREA_KM2
    outputs: tuple[str, ...] = OUTPUTS
    time_utc: str | None = None

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}; expected one of {', '.join(UNITS)}: choose one")
        if self.band is not None:
            keep("band", str(self.band))
        if self.window not in (None, "match"):
            keep("window", checked_window(self.window, "window"))
        for name in ("spacing", "pixel_size_m"):
            if getattr(self, name) not in (None, "native"):
                keep(name, checked_spacing(getattr(self, name), name))
        if self.tile is not None:
            keep("tile", checked_tile(self.tile))
        if self.aoi is not None:
            keep("aoi", _checked_aoi(self.aoi))
        unknown = [one for one in self.outputs if one not in OUTPUTS]
        if unknown or not isinstance(self.outputs, list | tuple):
            raise ValueError(f"outputs are {self.outputs!r}; expected some of {', '.join(OUTPUTS)}: choose of these")
        keep("outputs", tuple(one for one in OUTPUTS if one in self.outputs))
        if not isinstance(self.least_area_km2, int | float) or not 0 <= self.least_area_km2 < 1e9:
            raise ValueError(f"least_area_km2 is {self.least_area_km2!r}; expected km2 from 0 on: change it")
        if self.time_utc is not None:
            keep("time_utc", checked_time(self.time_utc))

    def grid_of(self, facts: Any) -> tuple[int, int]:
        """The tile's side and the stride for a student of these facts.  ValueError where they do not go together."""
        tile = self.tile or default_tile(facts)
        return tile, default_stride(tile, facts) if self.stride is None else checked_stride(self.stride, tile)

    def traced(self, classes: ClassTable) -> dict[str, list[int]]:
        """The ids of the classes that are traced: `slicks`, `ships` and `land`.

        ValueError where a class is not in the student's table, and where it has no class oil and none was named.
        """
        if self.polygons is None:
            if OIL not in classes.names:
                raise ValueError(
                    f"the student has no class {OIL!r}; it has {', '.join(classes.names)}; name the classes of the "
                    "polygons with --polygons"
                )
            slicks: Sequence[str] = [one for one in (OIL, LOOK_ALIKE) if one in classes.names]
        else:
            slicks = self.polygons
        ids = [classes.id_of(name) for name in slicks]
        if 0 in ids:
            raise ValueError(f"polygons of {classes.names[0]!r}, the first class, are the sea itself; choose others")
        others = {"ships": SHIP, "land": LAND}
        return {"slicks": ids} | {
            what: [classes.id_of(name)] if name in classes.names and name not in slicks else []
            for what, name in others.items()
        }


def _checked_aoi(aoi: Any) -> tuple[float, float, float, float]:
    try:
        west, south, east, north = (float(one) for one in aoi)
    except (TypeError, ValueError):
        raise ValueError(f"aoi is {aoi!r:.80}; expected west, south, east and north in degrees: change it") from None
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90) or west == east:
        raise ValueError(
            f"aoi is {west:g},{south:g},{east:g},{north:g}; expected west,south,east,north in degrees, south below "
            "north (west may be the greater one, across the antimeridian): change it"
        )
    return west, south, east, north
