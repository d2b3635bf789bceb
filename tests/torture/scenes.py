"""Radar scenes: killed at random instants, on a full disk, and shared by two processes of which one is killed."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from scene_worlds import ByGrey, toy_student
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torture.full_disk import Disk, SmallDisk, _count, _rest, meets_full_disk, on_small_disk
from torture.trials import Findings, Trials
from torture.victim import Victim

from dakd.runtime.files import file_hash
from dakd.runtime.sealed import read_json
from dakd.scene import bands
from dakd.scene.detect import detect_all
from dakd.scene.options import SceneOptions
from dakd.scene.packages import need, need_all
from dakd.scene.simulated import SimulatedScene, write_simulated

_SIZE = 300, 400  # pixels
_TIMED = ("seconds", "peak_memory_mib")  # of the record
_DATED = ".gpkg"  # holds the time at which it was written
_BATCH_S = 0.04
_LEAST_KM2 = 0.15


class Slow(ByGrey):
    """As long in the bands as in the files, and without the speckle's specks."""

    def forward(self, image: Tensor) -> Tensor:
        time.sleep(_BATCH_S)
        return super().forward(avg_pool2d(image, 7, stride=1, padding=3, count_include_pad=False))


@dataclass(frozen=True)
class UndisturbedScene:
    """A scene and what an undisturbed process makes of it: contents by file name, and how long that took."""

    scene: Path
    contents: dict[str, Any]
    num_bytes: int
    largest: int
    seconds: float

    def work(self, out: Path) -> Callable[[], object]:
        return lambda: detect(self.scene, out)


def detect(scene: Path, out: Path) -> None:
    """The command of all processes. Only in a fork: threads of GDAL do not go over into further ones."""
    bands._CHUNK_ROWS = 64  # so that two processes share even so small a scene
    detect_all([str(scene)], toy_student(Slow()), out, SceneOptions(least_area_km2=_LEAST_KM2))


def make_undisturbed_scene(folder: Path) -> UndisturbedScene:
    need_all()  # so that its processes start at once
    scene, out = folder / "scene.tif", folder / "alone"
    _finish(lambda: write_simulated(scene, SimulatedScene(*_SIZE, oil=2, look_alikes=2, ships=3, land=True)), folder)
    start_s = time.monotonic()
    _finish(lambda: detect(scene, out), folder)
    seconds = time.monotonic() - start_s
    files = sorted(out.iterdir())
    sizes = [path.stat().st_size for path in files]
    return UndisturbedScene(scene, {path.name: content_of(path) for path in files}, sum(sizes), max(sizes), seconds)


def _finish(work: Callable[[], object], folder: Path) -> None:
    last = Victim(work, folder / "last.log")
    if last.wait():
        raise RuntimeError(f"a scene could not be finished:\n{last.output()[-2000:]}")


def content_of(path: Path) -> Any:
    """All that a reader finds in a file, in a form that can be compared."""
    if path.suffix == ".tif":
        with need("rasterio").open(path) as found:
            pixels = hashlib.sha256(found.read().tobytes()).hexdigest()
            return found.profile, found.descriptions, found.overviews(1), found.tags(1), pixels
    if path.suffix == ".gpkg":
        meta, _, geometries, columns = need("pyogrio.raw").read(path)
        return str(meta["crs"]), geometries.tolist(), [one.tolist() for one in columns]
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return picture.size, hashlib.sha256(picture.tobytes()).hexdigest()
    if path.suffix == ".geojson":
        return json.loads(path.read_text())
    return _record(path) if path.suffix == ".json" else path.read_text()


def _record(path: Path) -> dict[str, Any]:
    """A record without what differs from call to call; the hash of each file, and whether it is that of the file."""
    found = {name: value for name, value in read_json(path).items() if name not in _TIMED}
    hashes = {one["name"]: one["sha256"] for one in found.pop("files").values()}
    are_true = {name: one == file_hash(path.with_name(name)) for name, one in hashes.items()}
    return found | {"hashes": {name: one for name, one in hashes.items() if not name.endswith(_DATED)}} | are_true


def compare(out: Path, undisturbed: UndisturbedScene, is_finished: bool) -> Findings:
    """Every file under its final name must be whole and that of the undisturbed process; in the end all are there."""
    found = Findings()
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    for name in sorted(name for name in names if not name.startswith(".")):
        try:
            is_same = str(content_of(out / name)) == str(undisturbed.contents.get(name))
        except Exception as error:  # each library has its own
            is_same, name = False, f"{name} ({error!r:.200})"
        found.accepted += not is_same
        found.expect(is_same, f"{out / name} differs from the undisturbed process's")
    if not is_finished:
        return found
    missing = set(undisturbed.contents) - names
    found.lost += bool(missing)
    found.expect(not missing, f"{out} lacks {sorted(missing)}")
    left = sorted(name for name in names if name.startswith("."))
    found.expect(not left, f"{left[:3]} were left in {out}")
    return found


def resumed(out: Path, undisturbed: UndisturbedScene, folder: Path) -> Findings:
    """The same command again, and what it leaves."""
    found, last = Findings(), Victim(undisturbed.work(out), folder / "last.log")
    found.expect(last.wait() == 0, f"the scene could not be finished: {last.output()[-300:]}")
    return found.add(compare(out, undisturbed, is_finished=True))


def state_of(out: Path, undisturbed: UndisturbedScene) -> str:
    """What dead processes were doing, judged by the files that are there."""
    if any(not path.name.startswith(".") for path in out.glob("*")):
        return "writing the last files"
    work = next(iter(out.glob(".*.work")), None)
    if work is None:
        return "starting"
    return "bringing bands together" if (work / "class.tif").exists() else "making bands"


def kill_scenes(folder: Path, undisturbed: UndisturbedScene, chance: random.Random, kills: int) -> Trials:
    """A process is killed at a random instant; then the same command runs again."""
    trials = Trials("scenes", "kill -9")
    out = folder / "out"
    while trials.tried < kills:
        shutil.rmtree(out, ignore_errors=True)
        victim = Victim(undisturbed.work(out), folder / "victim.log")
        time.sleep(chance.uniform(0, undisturbed.seconds))
        if not victim.kill():
            trials.missed += 1
            continue
        state, found = state_of(out, undisturbed), compare(out, undisturbed, is_finished=False)
        trials.count(state, found.add(resumed(out, undisturbed, folder)))
    return trials


def kill_one_of_two(folder: Path, undisturbed: UndisturbedScene, chance: random.Random, kills: int) -> Trials:
    """Two processes share a scene; one is killed, and the other finishes it without a further command."""
    trials = Trials("scenes", "kill -9 of one of two that share it")
    out = folder / "out"
    while trials.tried < kills:
        shutil.rmtree(out, ignore_errors=True)
        pair = [Victim(undisturbed.work(out), folder / f"victim-{i}.log") for i in range(2)]
        time.sleep(chance.uniform(0, undisturbed.seconds))
        first = chance.randrange(2)
        has_landed, state, found = pair[first].kill(), state_of(out, undisturbed), Findings()
        other = pair[1 - first]
        found.expect(other.wait() == 0, f"the other process could not finish: {other.output()[-300:]}")
        found.add(compare(out, undisturbed, is_finished=True))
        trials.count_if(has_landed, state, found)
    return trials


def share_scenes(folder: Path, undisturbed: UndisturbedScene, races: int) -> Trials:
    """Three processes take up a scene at the same time; each ends well."""
    trials = Trials("scenes", "processes race for it")
    out = folder / "out"
    for _ in range(races):
        shutil.rmtree(out, ignore_errors=True)
        racers = [Victim(undisturbed.work(out), folder / f"racer-{i}.log") for i in range(3)]
        found = Findings()
        for racer in racers:
            found.expect(racer.wait() == 0, f"a process ended with an error: {racer.output()[-300:]}")
        trials.count("starting", found.add(compare(out, undisturbed, is_finished=True)))
    return trials


def fill_scenes(folder: Path, undisturbed: UndisturbedScene, chance: random.Random, times: int) -> list[Trials]:
    """The disk fills up in the middle of a scene; then there is room again."""

    def work(disk: Disk) -> list[Trials]:
        trials = Trials("scenes", disk.means)
        out = disk.folder / "out"
        # The work folder holds about as much as the results do.
        largest = 2 * undisturbed.num_bytes if isinstance(disk, SmallDisk) else undisturbed.largest
        while trials.tried < times:
            shutil.rmtree(out, ignore_errors=True)
            found = Findings()
            disk.squeeze(_rest(chance, largest))
            has_failed = meets_full_disk(disk, undisturbed.work(out), folder / "victim.log", found)
            state = state_of(out, undisturbed)
            found.add(compare(out, undisturbed, is_finished=not has_failed))
            disk.free()
            _count(trials, has_failed, state, found.add(resumed(out, undisturbed, folder)))
        return [trials]

    return on_small_disk(folder / "disk", 64, work)


def disturb_scenes(folder: Path, chance: random.Random, many: Callable[[int], int]) -> list[Trials]:
    """A row for each kind of fault."""
    undisturbed = make_undisturbed_scene(folder)
    return [
        kill_scenes(folder, undisturbed, chance, many(30)),
        kill_one_of_two(folder, undisturbed, chance, many(20)),
        share_scenes(folder, undisturbed, many(10)),
        *fill_scenes(folder, undisturbed, chance, many(20)),
    ]
