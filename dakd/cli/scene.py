"""The commands `dakd scene` and `dakd simulate-scene`."""

from __future__ import annotations

import argparse

from dakd.cli.command import local_path, positive
from dakd.runtime.console import show
from dakd.runtime.stopping import is_rank_0


def scene_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `dakd scene`."""
    parser.epilog = (
        "Writes SCENE.class.tif and SCENE.probability.tif (COGs), SCENE.polygons.geojson and .gpkg,\n"
        "SCENE.ships.geojson, SCENE.quicklook.png and SCENE.json to DIR. Repeated, it resumes; several\n"
        "processes share the scenes. Needs the extra geo."
    )
    parser.add_argument("scenes", nargs="+", metavar="SCENE",
                        help="a GeoTIFF, COG, VRT, PNG, JPEG or BMP of any size, a name that GDAL opens "
                        "(/vsicurl/...), or a folder of such files")
    parser.add_argument("--student", required=True, metavar="FILE", help="a student's weights file")
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="folder for the results")
    meaning = parser.add_argument_group("meaning of the scene's numbers")
    meaning.add_argument("--band", metavar="NAME", help="name or number of the band (default: VV, else the first)")
    meaning.add_argument("--unit", choices=("auto", "db", "sigma0", "amplitude", "grey"), default="auto",
                         help="dB, linear power, uncalibrated amplitude, or greys (default: auto, by the numbers)")
    meaning.add_argument("--window", metavar="LO,HI | match",
                         help="dB (or greys) that become black and white, or match: fit the scene to the "
                         "training's greys (default: the student's)")
    meaning.add_argument("--spacing", metavar="M | native",
                         help="pixel spacing in metres that the student sees (default: its training's)")
    meaning.add_argument("--nodata", type=float, metavar="X", help="value without data, in place of the file's")
    meaning.add_argument("--crs", metavar="EPSG:N | none", help="CRS in place of the file's; none: work in pixels")
    meaning.add_argument("--pixel-size", type=float, metavar="M", help="metres a pixel, of a scene without a CRS")
    meaning.add_argument("--time", metavar="UTC", help="time of the acquisition (default: by the file's tags or name)")
    made = parser.add_argument_group("results")
    made.add_argument("--aoi", metavar="W,S,E,N | FILE",
                      help="area of interest in degrees, or a vector file; rounded outwards to the tile grid")
    made.add_argument("--polygons", metavar="CLASS,...", help="classes that are traced (default: oil,look-alike)")
    made.add_argument("--least-area", type=float, default=0.05, metavar="KM2",
                      help="area of the smallest polygon (default: 0.05; without a spacing 16 pixels)")
    made.add_argument("--outputs", metavar="NAME,...",
                      help="some of class, probability, geojson, gpkg, ships, quicklook (default: all)")
    made.add_argument("--tile", type=positive, metavar="PIXELS",
                      help="side of the tiles, a multiple of 32 (default: the student's training crop)")
    made.add_argument("--stride", type=positive, metavar="PIXELS",
                      help="from tile to tile, a multiple of 32 (default: a multiple of the student's windows)")
    made.add_argument("--overwrite", action="store_true", help="replace results of another student or other options")
    made.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU if there is one)")  # fmt: skip


def run_scene(args: argparse.Namespace) -> int:
    """`dakd scene`."""
    if is_rank_0():  # before torch is imported, which takes seconds
        show(f"scene: {', '.join(args.scenes[:3])}{' ...' if len(args.scenes) > 3 else ''} by {args.student}")
    from dakd.predict.student import Student
    from dakd.runtime.runlog import say
    from dakd.scene.detect import detect_all
    from dakd.scene.options import OUTPUTS, SceneOptions
    from dakd.scene.packages import need_all
    from dakd.scene.rasters_in import scenes_in
    from dakd.scene.texts import read_aoi, read_spacing, read_window

    need_all()
    options = SceneOptions(
        band=args.band,
        unit=args.unit,
        window=read_window(args.window),
        spacing=read_spacing(args.spacing),
        nodata=args.nodata,
        crs=args.crs,
        pixel_size_m=args.pixel_size,
        tile=args.tile,
        stride=args.stride,
        aoi=read_aoi(args.aoi),
        polygons=None if args.polygons is None else tuple(args.polygons.split(",")),
        least_area_km2=args.least_area,
        outputs=OUTPUTS if args.outputs is None else tuple(args.outputs.split(",")),
        time_utc=args.time,
    )
    scenes = scenes_in(args.scenes)
    results = detect_all(scenes, Student.load(args.student, args.device), args.out, options, args.overwrite)
    slicks = sum(one.record["num_slicks"] for one in results)
    say(f"scene: {len(results)} scenes, {slicks} slicks in {args.out}")
    return 0


def simulation_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `dakd simulate-scene`."""
    parser.add_argument("out", type=local_path, metavar="FILE.tif", help="the scene to write; its truth goes beside it")
    parser.add_argument("--size", type=positive, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"),
                        help="of the scene in pixels (default: 1024 1024)")
    parser.add_argument("--seed", type=int, default=0, help="of the scene (default: 0)")
    parser.add_argument("--unit", choices=("db", "sigma0", "amplitude", "grey"), default="sigma0",
                        help="of its numbers (default: sigma0, linear power)")
    parser.add_argument("--spacing", type=float, default=40.0, metavar="M", help="metres a pixel (default: 40)")
    parser.add_argument("--centre", default="11.5,42", metavar="LON,LAT", help="of the scene (default: 11.5,42)")
    parser.add_argument("--gcps", action="store_true", help="give its place by ground control points, as a GRD has it")
    parser.add_argument("--collar", type=int, default=0, metavar="PIXELS",
                        help="without data at both sides (default: 0)")
    parser.add_argument("--land", action="store_true", help="with a coast in the east")  # fmt: skip


def run_simulation(args: argparse.Namespace) -> None:
    """`dakd simulate-scene`."""
    from dakd.runtime.runlog import say
    from dakd.scene.simulated import SimulatedScene, write_simulated
    from dakd.scene.texts import read_place

    scene = SimulatedScene(*args.size, args.seed, land=args.land, collar=args.collar)
    files = write_simulated(args.out, scene, args.unit, args.spacing, read_place(args.centre), args.gcps)
    say(f"simulate-scene: {', '.join(str(path) for path in files.values())}")
