"""predict.json: the student that made all predictions in a folder, and the image of each, over all calls.

It has the student (a sha256 of its weights, its scales), `sources` (where each prediction comes from, by name) and, of
the last call, its inputs, the names that it wrote (`images`) and the images that failed. By it an image keeps its name
in later calls, and no other image takes that name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dakd.data.radiometry import Radiometry
from dakd.data.sample import ClassTable
from dakd.names import is_file_part
from dakd.predict.images import BadImages, Source, name_sources, predict_sources
from dakd.predict.prediction import OVERLAY_ALPHA, Prediction, output_endings
from dakd.runtime.distributed import barrier, is_main
from dakd.runtime.runlog import say
from dakd.runtime.sealed import (
    files_of,
    listed_in,
    parse_sealed,
    read_json,
    remove_manifest,
    write_json,
    write_manifest,
)

RECORD_FILE = "predict.json"


def predict_to_folder(
    predict: Callable[[np.ndarray], Prediction],
    sources: list[Source],
    out_dir: Path,
    classes: ClassTable,
    maker: dict[str, Any],
    facts: dict[str, Any],
    *,
    is_own: bool = False,
    overlay_alpha: float = OVERLAY_ALPHA,
    radiometry: Radiometry | None = None,
) -> list[Source]:
    """Predict the sources and write them to a folder beside those of earlier calls; returns them with their names.

    classes: the student's.  maker: what tells the student from others.  facts: more for the record.
    is_own: whether the folder is the step's own, where predictions of another student are replaced. In any other they
    are an error, and no file is written over that is not a prediction of the same image.
    radiometry: of the student's training images, for warnings.
    Every rank takes its share. Raises BadImages at the end when some images were not predicted.
    """
    if out_dir.is_file():
        raise ValueError(f"{out_dir} is a file; give a folder for the predictions")
    maker = maker | {"endings": output_endings(classes)}
    record = facts | maker
    before = _read(out_dir, is_own)
    is_same = all(before.get(key) == value for key, value in maker.items())
    if before and not is_same and not is_own:
        raise ValueError(
            f"{out_dir} has predictions of another student, or of the same at other scales, says its {RECORD_FILE}; "
            "give another folder, or remove this one"
        )
    earlier = before["sources"] if before and is_same else {}
    named = name_sources(sources, classes, out_dir, earlier, () if is_own else _not_ours(out_dir, before))
    barrier()  # every rank has read the record before it is replaced
    if is_main():
        listed = listed_in(out_dir) if is_own else {}
        if is_own:
            remove_manifest(out_dir)
        if before and not is_same:
            _remove_predictions(out_dir, before)
        # Before the pictures too: a call that is killed must not leave them under another student's record.
        planned = earlier | {source.name: source.where for source in named}
        write_json(out_dir / RECORD_FILE, record | {"images": [], "sources": planned, "failed": {}})
    barrier()
    problem = None
    try:
        predict_sources(predict, named, out_dir, record["endings"], overlay_alpha, radiometry)
    except BadImages as error:
        problem = error
    if is_main():
        failed = dict(problem.failures) if problem else {}
        names = {source.name: source.where for source in named}
        written = [name for name, where in names.items() if where not in failed]
        kept = {
            name: where
            for name, where in (earlier | names).items()
            if where not in failed or any((out_dir / f"{name}{ending}").exists() for ending in record["endings"])
        }
        write_json(out_dir / RECORD_FILE, record | {"images": written, "sources": kept, "failed": failed})
        if is_own:  # in any other folder, manifest.json may be somebody's
            ours = {RECORD_FILE, *(f"{name}{ending}" for name in kept for ending in record["endings"])}
            new = {RECORD_FILE, *(f"{name}{ending}" for name in names for ending in record["endings"])}
            earlier_files = {name: digest for name, digest in listed.items() if name not in new}
            write_manifest(out_dir, [path for path in files_of(out_dir) if path.name in ours], earlier_files)
    if problem:
        raise problem
    return named


def _read(out_dir: Path, is_own: bool) -> dict:
    """The predict.json of an earlier call; {} where there is none, and in an own folder where it cannot be used."""
    path = out_dir / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        how = "give another folder for the predictions, or remove this one"
        # In a folder of somebody's, manifest.json, at which `read_json` looks too, may be anything.
        found = read_json(path, how) if is_own else parse_sealed(path.read_bytes(), path, how)
    except (ValueError, OSError):
        if not is_own:
            raise
        say(f"{path} cannot be read; it is written again")
        return {}
    if _is_record(found):
        return found
    if not is_own:
        raise ValueError(f"{path} is no record of predictions; give another folder for them, or move that file away")
    return {}


def _is_record(found: Any) -> bool:
    sources, endings = (found.get(key) if isinstance(found, dict) else None for key in ("sources", "endings"))
    if not isinstance(sources, dict) or not isinstance(endings, list):
        return False
    # Files are removed by these names: none may lead out of the folder.
    return all(map(is_file_part, [*sources, *(f"x{ending}" for ending in endings)]))


def _not_ours(out_dir: Path, record: dict) -> list[str]:
    """The names of all files in the folder that no earlier call has written."""
    if not out_dir.is_dir():
        return []
    ours = {f"{name}{ending}" for name in record.get("sources", ()) for ending in record["endings"]}
    return [path.name for path in out_dir.iterdir() if path.name not in ours]


def _remove_predictions(out_dir: Path, record: dict) -> None:
    for name in record["sources"]:
        for ending in record["endings"]:
            (out_dir / f"{name}{ending}").unlink(missing_ok=True)
    say(f"{out_dir}: {len(record['sources'])} predictions by other weights or at other scales are removed")
