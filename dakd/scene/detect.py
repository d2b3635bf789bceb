"""Scenes one by one, shared among processes: each takes what no other is at, and all end when all scenes are done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dakd.models.student import uncompiled
from dakd.names import file_part, hashed, unique_names, written_path
from dakd.runtime.files import NO_ROOM
from dakd.runtime.runlog import say
from dakd.runtime.sealed import read_json
from dakd.runtime.stopping import Preempted
from dakd.runtime.tensor_files import tensors_hash
from dakd.scene.bad_scene import BadScene
from dakd.scene.options import ENDINGS, RECORD_ENDING, SceneOptions
from dakd.scene.packages import need_all
from dakd.scene.rasters_in import is_local
from dakd.scene.scene_job import KIND, SceneJob, SceneResult
from dakd.scene.tile_net import SceneStudent

_POLL_S = 0.5


class BadScenes(ValueError):
    """Scenes without results. failures: (where, reason) of each; all others were written."""

    def __init__(self, failures: Sequence[tuple[str, str]], num_scenes: int) -> None:
        self.failures = list(failures)
        lines = "\n".join(f"  {where}: {reason}" for where, reason in failures)
        done = num_scenes - len(failures)
        super().__init__(f"{len(failures)} of {num_scenes} scenes have no result ({done} have):\n{lines}")


def detect(
    scene: str | Path, student: SceneStudent, out_dir: str | Path, options: SceneOptions, overwrite: bool = False
) -> SceneResult:
    """The result of one scene.  Raises as `detect_all`, with the scene's own error as a BadScene."""
    try:
        return detect_all([str(scene)], student, out_dir, options, overwrite)[0]
    except BadScenes as error:
        where, reason = error.failures[0]
        raise BadScene(f"{where}: {reason}") from (error.__cause__ or error)


def detect_all(
    scenes: Sequence[str], student: SceneStudent, out_dir: str | Path, options: SceneOptions, overwrite: bool = False
) -> list[SceneResult]:
    """The results of scenes, in order, written to a folder.  scenes: files, or names that GDAL opens.

    A scene with a result by the same student and options is not made again, and a killed run resumes. Any number of
    processes may run with the same folder: they share the scenes, and the bands of each.
    overwrite: replace results of another student or other options, which are else an error.
    Raises ValueError, before anything is written, for options that do not fit the student, RuntimeError where a package
    of the extra `geo` is missing, and at the end BadScenes, when some scenes have no result.
    """
    need_all()
    out_dir = written_path(out_dir)
    options.traced(student.classes)
    options.grid_of(student.facts)
    if not scenes:
        raise ValueError(f"scenes are {list(scenes)}; expected at least one: name a file, a folder or a URL")
    if out_dir.is_file():
        raise ValueError(f"{out_dir} is a file; give a folder for the results")
    named = _named(scenes, out_dir)
    sha256 = tensors_hash({name: one for name, one in uncompiled(student.net).state_dict().items()
                           if isinstance(one, torch.Tensor)})  # fmt: skip
    crew = _Crew(named, student, sha256, out_dir, options, overwrite)
    crew.work()
    if crew.failures:
        failures = [(where, crew.failures[where]) for where in named if where in crew.failures]
        raise BadScenes(failures, len(named)) from crew.first_error
    return [crew.results[where] for where in named]


class _Crew:
    """This process's part of the work at some scenes."""

    def __init__(
        self,
        named: Mapping[str, str],
        student: SceneStudent,
        student_sha256: str,
        out_dir: Path,
        options: SceneOptions,
        overwrite: bool,
    ) -> None:
        self._named, self._overwrite = named, overwrite
        self._parts: tuple[Any, ...] = (student, student_sha256, out_dir, options)
        self._jobs: dict[str, SceneJob] = {}
        self.results: dict[str, SceneResult] = {}
        self.failures: dict[str, str] = {}
        self.first_error: Exception | None = None

    def work(self) -> None:
        """Until each scene has a result or a failure."""
        try:
            waiting = list(self._named)
            while waiting:
                waiting = [where for where in waiting if not self._settled(where)]
                if waiting:  # other processes are at them
                    time.sleep(_POLL_S)
        finally:
            for job in self._jobs.values():
                job.close()

    def _settled(self, where: str) -> bool:
        try:
            result = self._advance(where)
        except Preempted:
            raise
        except Exception as error:  # of any class: the other scenes are to be written
            self.failures[where] = _reason(error)
            self.first_error = self.first_error or error
            if len(self._named) > 1:  # of one alone the error says it
                say(f"{self._named[where]}: no result: {self.failures[where]}")
            return self._close(where)
        if result is None:
            return False
        self.results[where] = result
        return self._close(where)

    def _close(self, where: str) -> bool:
        if job := self._jobs.pop(where, None):
            job.close()
        return True

    def _advance(self, where: str) -> SceneResult | None:
        """The scene's result; None while other processes are at all that is left of it."""
        is_new = where not in self._jobs
        if is_new:
            say(f"{self._named[where]}: {where} is opened")
            self._jobs[where] = SceneJob(where, self._named[where], *self._parts)
        job = self._jobs[where]
        if found := job.finished():
            say(f"{job.name}: {_summary(found)} (there already)")
            job.clear_away()
            return found
        if is_new:
            self._refuse_other(job)
        try:
            if is_new:
                job.describe()
            result = job.finish() if job.make_bands() else None
        except FileNotFoundError:
            if not job.finished():
                raise
            return None  # another process has just finished it and removed the work folder: the next look finds it
        if result is not None:
            say(f"{job.name}: {_summary(result)}")
        return result

    def _refuse_other(self, job: SceneJob) -> None:
        if self._overwrite or not job.record_path.exists():
            return
        if _source_of(job.record_path) is None:
            raise ValueError(f"{job.record_path} is no record of a scene; give another folder for the results")
        raise ValueError(
            f"{job.record_path} records a result of another student, of other options or of another version of the "
            "scene; give --overwrite, or another folder"
        )


def _summary(result: SceneResult) -> str:
    record = result.record
    small = f", {record['num_too_small']} too small" if record["num_too_small"] else ""
    return (
        f"{record['num_slicks']} slicks{small}, {record['num_ships']} ships; {record['seconds']['in_all']:.0f} s; "
        f"{result.files['record'].parent}"
    )


def _named(scenes: Sequence[str], out_dir: Path) -> dict[str, str]:
    """A name for the outputs of each scene, in order; the same in each call, and none that another scene has."""
    wheres = list(dict.fromkeys(_where(scene) for scene in scenes))
    earlier: dict[str, str] = {}  # names by scene
    if out_dir.is_dir():
        for path in sorted(out_dir.glob(f"*{RECORD_ENDING}")):
            if (source := _source_of(path)) is not None:
                earlier[source] = path.name.removesuffix(RECORD_ENDING)
    endings = (*ENDINGS.values(), RECORD_ENDING)
    choices = [(earlier[where],) if where in earlier else _choices(where) for where in wheres]
    taken = [name + ending for where, name in earlier.items() if where not in wheres for ending in endings]
    # A scene that lies in the folder of the results is not written over.
    taken += [Path(where).name for where in wheres if is_local(where) and Path(where).parent == out_dir.resolve()]
    return dict(zip(wheres, unique_names(choices, endings, taken)))


def _where(scene: str) -> str:
    return str(Path(scene).expanduser().absolute()) if is_local(scene) else scene


def _choices(where: str) -> tuple[str, ...]:
    name = where.rstrip("/").split("/")[-1].split("?")[0] or "scene"
    stem = name.rsplit(".", 1)[0] or name
    return file_part(stem), file_part(name), hashed(stem, where)


def _source_of(path: Path) -> str | None:
    """The scene of a record; None for a file of anything else."""
    try:
        found = read_json(path)
    except (ValueError, OSError):
        return None
    if not found or found.get("kind") != KIND:
        return None
    return str(found["plan"]["source"]["where"])


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"too little memory for it ({error}); give a smaller --tile, or run fewer processes"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{text}; free some space there; the same command then resumes"
    return text if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: {text}"
