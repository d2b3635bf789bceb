"""`dakd scene`: Mpixel a second of the whole path and of the net alone, peak memory against size, and a plain loop.

    python benchmarks/predict/bench_scene.py --student FILE [--full] [--json FILE]

An IW scene at 50 m (3341 x 5220 pixels, simulated) is classified by the student: by `dakd scene` in a process of its
own, by its net alone on batches of the same shape, and by a plain loop (rasterio, one tile after the other, no overlap,
the whole map in memory). Then a student that is one convolution takes scenes of 26,102 columns and more and more rows:
its time is that of everything but the net, and its memory has to stay the same. --full adds 16,705 rows, a whole
Sentinel-1 IW product at 10 m. Exit status 1: a bar was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio import features
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.table import exit_status

import dakd
from dakd.data.radiometry import Radiometry
from dakd.data.sample import OSD_CLASSES
from dakd.data.simulate import WINDOW_DB
from dakd.data.transforms import to_student
from dakd.scene.grey_scene import GreyScene
from dakd.scene.grid import Grid, default_stride, default_tile
from dakd.scene.rasters_in import open_raster
from dakd.scene.simulated import SimulatedScene, write_simulated
from dakd.scene.tile_net import Batch, TileNet

IW_50 = (3341, 5220)
IW_WIDTH, IW_ROWS = 26_102, (2048, 4096, 16_705)
MOST_SECONDS, MOST_GIB, LEAST_RATE, LEAST_OF_NET, MOST_OVERHEAD = 180, 2.0, 10.0, 0.9, 0.10


class Darkness(nn.Module):
    """One convolution: oil where a blurred pixel is dark."""

    num_classes = 5

    def forward(self, image: Tensor) -> Tensor:
        grey = nn.functional.avg_pool2d(255 * (image[:, :1] * 0.229 + 0.485), 9, 1, 4, count_include_pad=False)
        others = torch.full_like(grey, -9.0)
        return torch.cat([grey - 38, 38 - grey, others, (grey - 235) * 2, others], dim=1)


def darkness() -> dakd.Student:
    greys = (3.0, 77.0, 215.0)
    radiometry = Radiometry("sigma0", WINDOW_DB, None, greys, (17.0, 74.0, 145.0), (41.0, 156.0))
    facts = {"crop": [512, 512], "student": {"encoder": "mamba_vision_b"}, "radiometry": radiometry.to_dict()}
    return dakd.Student(Darkness(), OSD_CLASSES, "cpu", facts)


def main() -> int:
    options = _parse()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-scene-") as folder:
        rows = [*_of_student(options.student, Path(folder), failures), *_of_size(Path(folder), options.full, failures)]
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return exit_status(failures)


def _of_student(file: Path, folder: Path, failures: list[str]) -> list[dict]:
    scene = folder / "iw50.tif"
    write_simulated(scene, SimulatedScene(*IW_50, seed=1))
    student = dakd.load_student(file, "cpu")
    tile = default_tile(student.facts)
    grid = Grid(*IW_50, tile, default_stride(tile, student.facts))
    bare = _bare_rate(student, grid)
    whole_s, gib = in_own_process(_dakd, str(file), str(scene), str(folder / "out"))
    plain_s, plain_gib = in_own_process(_plain, str(file), str(scene), str(folder / "plain.geojson"))
    mpixel, tiles = IW_50[0] * IW_50[1] / 1e6, grid.num_rows * grid.num_columns * tile**2 / 1e6
    record = json.loads((folder / "out" / "iw50.json").read_text())
    bands_s = record["seconds"]["until_bands"]
    overhead = 1 - tiles / bare / whole_s
    row = {"what": "IW at 50 m", "mpixel": mpixel, "tiles_mpixel": tiles, "tile": grid.tile, "stride": grid.stride,
           "whole_s": whole_s, "bands_s": bands_s, "net_alone_mpixel_s": bare, "net_within_mpixel_s": tiles / bands_s,
           "overhead": overhead, "plain_s": plain_s, "gib": gib, "plain_gib": plain_gib,
           "polygons": record["num_slicks"]}  # fmt: skip
    print(f"IW at 50 m  {mpixel:.1f} Mpixel, {tiles:.1f} in tiles of {tile} every {grid.stride}: {whole_s:.0f} s, "
          f"{gib:.2f} GiB, {record['num_slicks']} polygons")  # fmt: skip
    within = tiles / bands_s
    print(f"  the net   alone {bare:.2f} Mpixel/s of tiles, within {within:.2f} ({within / bare:.2f}x)")
    print(f"  the rest  {overhead:.0%} of the whole")
    print(f"  a plain loop without overlap: {plain_s:.0f} s, {plain_gib:.2f} GiB")
    failures += [] if whole_s <= MOST_SECONDS else [f"IW at 50 m takes {whole_s:.0f} s"]
    failures += [] if tiles / bands_s >= LEAST_OF_NET * bare else [f"the net runs at {tiles / bands_s / bare:.2f}x"]
    failures += [] if overhead <= MOST_OVERHEAD else [f"all but the net takes {overhead:.0%}"]
    return [row]


def _bare_rate(student: dakd.Student, grid: Grid) -> float:
    """Mpixel a second of the net on batches of its own, as many at once as there are cores."""
    net = TileNet(student, grid)
    tiles = np.random.default_rng(0).integers(0, 256, (net.batch, grid.tile, grid.tile), dtype=np.uint8)

    def rate(count: int) -> float:
        begin = time.perf_counter()
        with net.running() as run:
            for _ in run(Batch(0, (0,), tiles) for _ in range(count)):
                pass
        return count * tiles.size / (time.perf_counter() - begin) / 1e6

    count = max(4, round(10 * rate(4) * 1e6 / tiles.size))
    return float(np.median([rate(count) for _ in range(3)]))


def _of_size(folder: Path, full: bool, failures: list[str]) -> list[dict]:
    rows, gibs = [], []
    for height in IW_ROWS if full else IW_ROWS[:2]:
        scene = folder / f"rows{height}.tif"
        _write_repeated(scene, folder / "iw50.tif", height)
        seconds, gib = in_own_process(_dakd, "", str(scene), str(folder / "sizes"))
        mpixel = height * IW_WIDTH / 1e6
        gibs.append(gib)
        record = json.loads((folder / "sizes" / f"rows{height}.json").read_text())
        rows.append({"what": "one convolution", "mpixel": mpixel, "whole_s": seconds, "gib": gib,
                     "bands_s": record["seconds"]["until_bands"], "polygons": record["num_slicks"]})  # fmt: skip
        print(f"one convolution  {mpixel:6.1f} Mpixel: {seconds:.0f} s, {mpixel / seconds:.1f} Mpixel/s, {gib:.2f} "
              f"GiB, {record['num_slicks']} polygons", flush=True)  # fmt: skip
        scene.unlink()
    rate = rows[-1]["mpixel"] / rows[-1]["whole_s"]
    failures += [] if rate >= LEAST_RATE else [f"all but the net: {rate:.1f} Mpixel/s"]
    failures += [] if max(gibs) <= MOST_GIB else [f"peak memory {max(gibs):.2f} GiB"]
    failures += [] if gibs[-1] <= 1.1 * gibs[-2] else [f"memory grows with the scene: {gibs}"]
    return rows


def _write_repeated(path: Path, source: Path, height: int) -> None:
    """A scene of the width of an IW product at 10 m, of repeated parts of another one."""
    with rasterio.open(source) as found:
        part = found.read(1)[:2048, :2048]
    row = np.tile(part, (1, -(-IW_WIDTH // 2048)))[:, :IW_WIDTH]
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=IW_WIDTH, count=1, dtype="float32", tiled=True, blockxsize=512,
        blockysize=512, compress="zstd", zstd_level=1, num_threads="all_cpus", bigtiff="if_safer", crs="EPSG:32632",
        transform=rasterio.Affine(10, 0, 3e5, 0, -10, 5e6),
    ) as made:  # fmt: skip
        for top in range(0, height, 2048):
            rows = min(2048, height - top)
            made.write(row[:rows], 1, window=rasterio.windows.Window(0, top, IW_WIDTH, rows))


def _dakd(file: str, scene: str, out: str) -> None:
    student = dakd.load_student(file, "cpu") if file else darkness()
    student.predict_scene(scene, out, least_area_km2=0.05)


def _plain(file: str, scene: str, out: str) -> None:
    """What one writes in an hour: tiles one after the other, the classes of all in memory, polygons as GeoJSON."""
    student = dakd.load_student(file, "cpu")
    tile = default_tile(student.facts)
    greys = GreyScene(open_raster(scene), student.radiometry)  # the same greys
    label = np.zeros((greys.height, greys.width), np.uint8)
    with torch.inference_mode():
        for top in range(0, greys.height, tile):
            strip = greys.rows(top, min(top + tile, greys.height)).grey
            for left in range(0, greys.width, tile):
                part = strip[:, left : left + tile]
                logits = student.net(to_student(torch.from_numpy(part[None, None].copy())))
                label[top : top + len(part), left : left + part.shape[1]] = logits[0].argmax(0).numpy()
    is_shown = (label == 1) | (label == 2)
    found = [{"geometry": one, "class": value} for one, value in features.shapes(label, mask=is_shown)]
    Path(out).write_text(json.dumps(found))


def in_own_process(action: Callable[..., None], *arguments: str) -> tuple[float, float]:
    """Seconds and peak memory in GiB of an action, the start of its process and its imports included."""
    begin = time.perf_counter()
    child = get_context("spawn").Process(target=action, args=arguments)
    child.start()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{action.__name__} ended with status {status}")
    return time.perf_counter() - begin, usage.ru_maxrss / 2**20


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, metavar="FILE", help="a student's weights file")
    parser.add_argument("--full", action="store_true", help="also 16,705 rows, a whole IW product at 10 m")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the rows go, one a line")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
