"""One scene on its way: opened, its grid laid, its bands classified, its files written."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dakd.data.radiometry import Radiometry
from dakd.runtime.files import file_hash, left_overs
from dakd.runtime.runlog import format_duration, say
from dakd.runtime.sealed import read_json, write_json
from dakd.scene.bad_scene import BadScene
from dakd.scene.bands import BandStore, plan_in
from dakd.scene.engine import classify
from dakd.scene.grey_scene import GreyScene
from dakd.scene.grid import Grid
from dakd.scene.measures import Coast, Slick, measure
from dakd.scene.options import ENDINGS, LEAST_OF_SHIP, LEAST_PIXELS, RECORD_ENDING, SceneOptions
from dakd.scene.packages import need
from dakd.scene.polygons import Outline, trace
from dakd.scene.quicklook import write_quicklook
from dakd.scene.rasters_in import is_local, open_raster
from dakd.scene.rasters_out import LABEL, PROBABILITY, TRACED, Scratch, write_categories, write_cog, write_scratch
from dakd.scene.tile_net import SceneStudent, TileNet
from dakd.scene.vectors_out import write_geojson, write_gpkg, write_ships
from dakd.scene.zonal import ZoneReader
from dakd.shipped import version

_FORMAT = 1  # of the bands and of the record
KIND = "dakd scene"
_FIRST_REPORT_S, _REPORT_S = 3.0, 30.0


@dataclass(frozen=True)
class SceneResult:
    """The result of one scene.

    name: of its outputs.  files: the outputs that were written, by the names of OUTPUTS, and `record`.
    record: what SCENE.json holds.  kept: holds a temporary folder of the files, which goes with it.
    """

    name: str
    files: dict[str, Path]
    record: dict[str, Any]
    kept: Any = None

    @property
    def features(self) -> list[dict[str, Any]]:
        """The polygons as GeoJSON features."""
        if "geojson" not in self.files:
            raise ValueError(f"{self.name} has no polygons, for outputs left geojson out; add it to outputs")
        return json.loads(self.files["geojson"].read_text())["features"]

    def read(self, output: str) -> np.ndarray:
        """The raster `class` (H, W) uint8 or `probability` (K, H, W) uint8, in 250ths; 255 where there are no data."""
        if output not in ("class", "probability") or output not in self.files:
            raise ValueError(f"{self.name} has no raster {output!r}; it has {', '.join(self.files)}: choose one")
        with need("rasterio").open(self.files[output]) as found:
            return found.read(1) if output == "class" else found.read()

    def __repr__(self) -> str:
        return f"SceneResult({self.name}: {self.record['num_slicks']} slicks; {', '.join(self.files)})"


class SceneJob:
    """A scene that one or several processes work at."""

    def __init__(
        self, where: str, name: str, student: SceneStudent, student_sha256: str, out_dir: Path, options: SceneOptions
    ) -> None:
        """Raises BadScene where the scene cannot be read or its meaning is unclear, ValueError for the student's part.
        """
        self.where, self.name, self.out_dir, self.options, self._student = where, name, out_dir, options, student
        self._begun = time.monotonic()
        self.traced = options.traced(student.classes)
        tile, stride = options.grid_of(student.facts)
        self._raster = open_raster(where, options.band, options.nodata, options.crs, options.pixel_size_m)
        try:
            facts = Radiometry.from_dict(student.facts.get("radiometry"), "the student's file")
            self.scene = GreyScene(self._raster, facts, options.unit, options.window, options.spacing)
            self.grid = Grid(self.scene.height, self.scene.width, tile, stride)
            self.bands, self.columns = self._area()
        except BaseException:
            self._raster.close()
            raise
        first, last = self.grid.band(self.bands[0])[0], self.grid.band(self.bands[-1])[1]
        self.rows = first, last
        self.place = self.scene.place.cropped(first, last, *self.columns)
        self.plan = self._plan(student_sha256)

    def _area(self) -> tuple[range, tuple[int, int]]:
        """The bands and columns of the result: all, or those of the area of interest, rounded to the grid."""
        everything = range(self.grid.num_bands), (0, self.scene.width)
        if self.options.aoi is None:
            return everything
        if not self.scene.place.has_place:
            raise BadScene("it has no place on Earth for an area of interest; leave --aoi out, or give a GeoTIFF")
        window = self.scene.place.window_of(self.options.aoi)
        if window is None:
            lon, lat = self.scene.place.footprint()
            raise BadScene(
                f"the area of interest lies outside: the scene reaches from {lon.min():.3f} to {lon.max():.3f} east, "
                f"from {lat.min():.3f} to {lat.max():.3f} north; change --aoi"
            )
        top, bottom, left, right = window
        step, last = self.grid.stride, self.grid.num_bands - 1
        bands = range(min(top // step, last), min((bottom - 1) // step, last) + 1)
        return bands, (left // step * step, min(-(-right // step) * step, self.scene.width))

    def _plan(self, student_sha256: str) -> dict[str, Any]:
        """All that decides the bytes of the bands."""
        source: dict[str, Any] = {"where": self.where, "sha256": None}
        if is_local(self.where):
            source |= {"sha256": file_hash(self.where), "num_bytes": Path(self.where).stat().st_size}
        return {
            "format": _FORMAT,
            "source": source,
            "student": {"sha256": student_sha256, "scales": list(self._student.scales),
                        "temperature": self._student.temperature, "classes": self._student.classes.to_dict()},
            "input": {"band": self._raster.band, "dtype": self._raster.dtype, "unit": self.scene.unit,
                      "window": list(self.scene.window), "nodata": _finite(self.options.nodata),
                      "averaged_by": self.scene.grey_window and list(self.scene.grey_window),
                      "size": [self._raster.place.height, self._raster.place.width]},
            "grid": {"tile": self.grid.tile, "stride": self.grid.stride, "size": [self.grid.height, self.grid.width],
                     "bands": [self.bands.start, self.bands.stop], "columns": list(self.columns)},
        }  # fmt: skip

    # -- earlier results ----------------------------------------------------------------------------------------------

    @property
    def record_path(self) -> Path:
        return self.out_dir / f"{self.name}{RECORD_ENDING}"

    @cached_property
    def files(self) -> dict[str, Path]:
        """The outputs that are asked for, by name; no ships where the student has no class for them."""
        names = [one for one in self.options.outputs if one != "ships" or self.traced["ships"]]
        return {name: self.out_dir / f"{self.name}{ENDINGS[name]}" for name in names}

    def finished(self) -> SceneResult | None:
        """The result, where an earlier call or another process has written it by the same plan and options."""
        try:
            found = read_json(self.record_path)
        except (ValueError, OSError):
            return None
        if found is None or found.get("plan") != self.plan or found.get("options") != self._own_options:
            return None
        if not all(path.exists() for path in self.files.values()):
            return None
        return SceneResult(self.name, self.files | {"record": self.record_path}, dict(found))

    @cached_property
    def _own_options(self) -> dict[str, Any]:
        found = asdict(self.options)
        found["nodata"] = _finite(found["nodata"])
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @property
    def work_folder(self) -> Path:
        return self.out_dir / f".{self.name}.work"

    @cached_property
    def store(self) -> BandStore:
        return BandStore(self.work_folder, self.plan, self.bands, self.grid.stride)

    def describe(self) -> None:
        """Print what was decided about the scene."""
        height, width = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        say(f"{self.name}: {height} x {width} pixels, tiles of {self.grid.tile} every {self.grid.stride}; "
            f"{'; '.join(self.scene.notes)}")  # fmt: skip
        if self.scene.warning:
            say(f"{self.name}: warning: {self.scene.warning}")
        if kept := self.store.num_done:
            say(f"{self.name}: {kept} of {len(self.bands)} bands are there already")

    # -- bands --------------------------------------------------------------------------------------------------------

    def make_bands(self) -> bool:
        """Make the missing bands that no other process is at; returns whether all are there.

        A process that finishes a chunk goes on into the next one where that is free, without a row of tiles made twice.
        """
        net = TileNet(self._student, self.grid)
        report = _Report(self)
        for number in self.store.missing():
            if not self.store.has(number):
                self._make_from(number, net, report)
        return not self.store.missing()

    def _make_from(self, first: int, net: TileNet, report: _Report) -> None:
        with contextlib.ExitStack() as locks:
            held = self.store.chunk_of(first)
            if not locks.enter_context(self.store.lock(f"chunk-{held:05d}")):
                return
            missing = set(self.store.missing())  # another process may have made it before the lock was free
            if first not in missing or self.finished():  # or removed it with all others
                return
            wanted = range(first, self.bands.stop)
            bands = classify(self.scene, net, self.grid, wanted, self.columns, self._student.temperature)
            with contextlib.closing(bands):
                for band in bands:
                    self.store.write(band)
                    report.band_is_there(band.bottom - band.top)
                    following = band.number + 1
                    if following not in missing:
                        return
                    if self.store.chunk_of(following) != held:
                        held = self.store.chunk_of(following)
                        if not locks.enter_context(self.store.lock(f"chunk-{held:05d}")):
                            return
                        missing = set(self.store.missing())
                        if following not in missing:
                            return

    # -- files --------------------------------------------------------------------------------------------------------

    def finish(self) -> SceneResult | None:
        """Write the files of a scene whose bands are all there; None where another process is at it."""
        with self.store.lock("finish") as is_mine:
            if not is_mine:
                return None
            if found := self.finished():
                return found
            made_s = time.monotonic() - self._begun
            self.record_path.unlink(missing_ok=True)  # it must not speak of other files
            least = self._least_pixels()
            scratch, counts, specks = write_scratch(self.store, self.rows[0], self.place, self._student.classes, least)
            slicks, ships, dropped = self._measured(scratch, least)
            dropped += sum(specks.get(one, 0) for one in self.traced["slicks"])
            self._write(scratch, slicks, ships)
            record = self._record(counts, slicks, ships, dropped, made_s)
            write_json(self.record_path, record)
            for path in left_overs(self.out_dir, ".*"):
                if path.is_file():
                    path.unlink(missing_ok=True)
        self.store.remove()
        return SceneResult(self.name, self.files | {"record": self.record_path}, record)

    def clear_away(self) -> None:
        """Remove the work folder of a finished scene, which a process that was killed at its very end left."""
        if self.work_folder.is_dir() and plan_in(self.work_folder) == self.plan:
            self.store.remove_idle()

    def _least_pixels(self) -> dict[int, float]:
        """The least number of pixels of an outline, by the ids of the classes that are traced."""
        spacing, kinds = self.place.spacing_m, self.traced
        least = LEAST_PIXELS if spacing is None else self.options.least_area_km2 * 1e6 / (spacing[0] * spacing[1])
        if not {"geojson", "gpkg", "ships", "quicklook"} & set(self.files):
            return {}
        return dict.fromkeys((*kinds["slicks"], *kinds["land"]), least) | dict.fromkeys(kinds["ships"], LEAST_OF_SHIP)

    def _measured(self, scratch: Scratch, least: dict[int, float]) -> tuple[list[Slick], list[Slick], int]:
        """The slicks, the ships, and the number of outlines of slicks that were too small."""
        kinds = self.traced
        outlines, dropped = trace(scratch.folder / TRACED, least)
        coast = Coast(self.place, [one for one in outlines if one.class_id in kinds["land"]])
        with ZoneReader(scratch, self.scene.has_db) as zones:
            slicks, ships = (
                [self._slick(number, one, zones, coast) for number, one in enumerate(
                    (one for one in outlines if one.class_id in kinds[what]), start=1)]
                for what in ("slicks", "ships")
            )  # fmt: skip
        return slicks, ships, sum(dropped.get(one, 0) for one in kinds["slicks"])

    def _slick(self, number: int, outline: Outline, zones: ZoneReader, coast: Coast) -> Slick:
        common = {
            "slick_id": f"{self.name}-{number}", "scene_id": self.name, "slick_timestamp": self.time_utc,
            "time_utc": self.time_utc, "student": self.plan["student"]["sha256"][:12], "version": version(),
        }  # fmt: skip
        return measure(outline, zones.of(outline), self.place, coast, self._student.classes, common)

    @property
    def time_utc(self) -> str | None:
        return self.options.time_utc or self._raster.time_utc

    def _write(self, scratch: Scratch, slicks: list[Slick], ships: list[Slick]) -> None:
        files, classes = self.files, self._student.classes
        facts = {"scene": self.name, "time_utc": self.time_utc, "student": self.plan["student"]["sha256"]}
        if "class" in files:
            write_cog(scratch.folder / LABEL, files["class"], "mode")
            write_categories(files["class"], classes.names)
        if "probability" in files:
            write_cog(scratch.folder / PROBABILITY, files["probability"], "average")
        if "geojson" in files:
            write_geojson(files["geojson"], slicks, self.place, facts)
        if "gpkg" in files:
            write_gpkg(files["gpkg"], slicks, self.place)
        if "ships" in files:
            write_ships(files["ships"], ships, self.place, facts)
        if "quicklook" in files:
            title = f"{self.name}   {self.time_utc or 'time unknown'}   {len(slicks)} slicks, {len(ships)} ships"
            write_quicklook(files["quicklook"], scratch, slicks, self.place, classes, title)

    def _record(
        self, counts: np.ndarray, slicks: list[Slick], ships: list[Slick], dropped: int, made_s: float
    ) -> dict[str, Any]:
        names = self._student.classes.names
        return {
            "kind": KIND,
            "plan": self.plan,
            "options": self._own_options,
            "decisions": self.scene.notes,
            "warning": self.scene.warning,
            "time_utc": self.time_utc,
            "place": {"kind": self.place.kind, "crs": self.place.crs, "spacing_m": self.place.spacing_m and list(
                self.place.spacing_m), "size": [self.place.height, self.place.width]},
            "num_pixels": {name: int(counts[i]) for i, name in enumerate(names)} | {"no data": int(counts[255])},
            "num_slicks": len(slicks),
            "num_ships": len(ships),
            "num_too_small": dropped,
            "files": {name: {"name": path.name, "sha256": file_hash(path)} for name, path in self.files.items()},
            "versions": _versions(),
            "seconds": {"until_bands": round(made_s, 3), "in_all": round(time.monotonic() - self._begun, 3)},
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }  # fmt: skip

    def close(self) -> None:
        self._raster.close()


class _Report:
    """A line of progress after 3 s, then every 30 s, with the rest in Mpixel."""

    def __init__(self, job: SceneJob) -> None:
        self._job, self._start = job, time.monotonic()
        self._next, self._made = self._start + _FIRST_REPORT_S, 0
        self._width = job.columns[1] - job.columns[0]

    def band_is_there(self, num_rows: int) -> None:
        self._made += num_rows * self._width
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _REPORT_S
        job = self._job
        missing = sum(bottom - top for top, bottom in map(job.grid.band, job.store.missing())) * self._width
        total = (job.rows[1] - job.rows[0]) * self._width
        rate = self._made / (now - self._start)
        say(f"{job.name}  {(total - missing) / 1e6:.1f} of {total / 1e6:.1f} Mpixel  {rate / 1e6:.2f} Mpixel/s  "
            f"eta {format_duration(missing / rate)}")  # fmt: skip


def _finite(value: float | None) -> float | str | None:
    """A number as JSON has it."""
    return value if value is None or np.isfinite(value) else str(value)


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "rasterio", "shapely", "pyproj", "pyogrio")
    return {"dakd": version()} | {name: str(need(name).__version__) for name in names} | {
        "gdal": str(need("rasterio").__gdal_version__)
    }
