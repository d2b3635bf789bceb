"""Files of a run that belong together: sets of shards, and the files that a manifest lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dakd.data.index import Index, load_index, load_sidecar
from dakd.data.open_shard import read_spans
from dakd.generate.sidecar import manifest_line
from dakd.runtime.files import file_hash
from dakd.runtime.kept_config import CONFIG
from dakd.runtime.sealed import MANIFEST, listed_in, parse_sealed, read_manifest
from dakd.verify.found import ERRORS, OWN_FOLDERS, Found, short


def absent_and_foreign(run: Path) -> Iterator[Found]:
    """Files that are missing, steps that are not finished, and whole files that belong to another set or run."""
    yield from _settings(run)
    yield from _prepared(run / "prepare")
    yield from _generated(run / "generate")
    yield from _refined(run / "refine")
    yield from _pseudo_labelled(run / "pseudo_label")
    trainings = [path for step in ("train_jointnet", "train_saross") for path in (run / step).glob("*/")]
    evaluations = [run / "evaluate"] if _has_own_evaluation(run / "evaluate") else []
    evaluations += [path for path in (run / "evaluate").glob("*/") if path.name not in OWN_FOLDERS]
    own = [run / place for place in ("prepare", "balance", "generate/audit", "report")]
    for folder in (*own, *trainings, *evaluations, *(run / "predict").glob("*/")):
        yield from _listed(folder)


def _settings(run: Path) -> Iterator[Found]:
    """The run's own config.yaml, which every training and `generate` write before their own."""
    path, listed = run / CONFIG, listed_in(run)
    if CONFIG in listed:
        yield from _listed(run)
    elif path.is_file():
        yield Found("unfinished", path, f"it has no checksum that is of this run: no {MANIFEST} lists it")
    elif not (run / MANIFEST).exists() and any(run.glob(f"train_*/*/{CONFIG}")):
        yield Found("missing", path, "the steps have kept theirs")


def _has_own_evaluation(folder: Path) -> bool:
    """Whether the run's own evaluation was begun: those of other folders and students have folders of their own."""
    return folder.is_dir() and any(path.is_file() or path.name in OWN_FOLDERS for path in folder.iterdir())


def _listed(folder: Path) -> Iterator[Found]:
    if not folder.is_dir():
        return
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return  # reported as damaged
    if manifest is None:
        if any(folder.iterdir()) and folder.name != "prepare":
            reason = f"its step has not finished, or an older version wrote no checksums: there is no {MANIFEST}"
            yield Found("unfinished", folder, reason)
        return
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            yield Found("missing", path, f"{MANIFEST} lists it")
        elif path.parent != folder and file_hash(path) != expected:
            yield Found("damaged", path, f"it is not the file that {MANIFEST} lists")


def _prepared(folder: Path) -> Iterator[Found]:
    if not folder.is_dir():
        return
    if not (folder / MANIFEST).is_file():  # it appears with all its files, at once
        yield Found("missing", folder / MANIFEST, "prepare writes it")
    report = _readable(folder / "report.json")
    if report is None:
        if not (folder / "report.json").is_file():
            yield Found("missing", folder / "report.json", "prepare writes it")
        return
    for split, facts in report["splits"].items():
        index = yield from _shards_of(folder / split)
        if index is not None and index.fingerprint != facts["fingerprint"]:
            yield Found("damaged", folder / split / "index.json", "it is of another set than report.json says")


def _generated(folder: Path) -> Iterator[Found]:
    if not folder.is_dir():
        return
    path = folder / "index.json"
    if not path.is_file() and not (folder / MANIFEST).is_file():
        yield Found("unfinished", folder, "generate has not finished: there is no index.json")
        return
    index = (yield from _shards_of(folder)) if path.is_file() else None
    is_ours = index is not None and "config" in index.provenance  # else others have put a set here
    if is_ours or (folder / MANIFEST).is_file():
        yield from _listed(folder)
    if is_ours:
        yield from _derived(folder, index)


def _pseudo_labelled(folder: Path) -> Iterator[Found]:
    if not folder.is_dir():
        return
    for name in ("index.json", MANIFEST):  # they appear with the folder
        if not (folder / name).is_file():
            yield Found("missing", folder / name, "pseudo_label writes it")
    if (folder / "index.json").is_file():
        yield from _shards_of(folder)
    if (folder / MANIFEST).is_file():
        yield from _listed(folder)


def _refined(folder: Path) -> Iterator[Found]:
    if (folder / "index.json").is_file():
        yield from _shards_of(folder)
    yield from _listed(folder)


def _derived(folder: Path, index: Index) -> Iterator[Found]:
    """The files of a set of pairs that hold what its index or its sidecars hold."""
    path = folder / "provenance.json"
    made_with = {name: value for name, value in index.provenance.items() if name != "gate"}
    if not path.is_file():
        yield Found("missing", path, "generate writes it")
    elif (found := _readable(path)) is not None and found != made_with:
        yield Found("damaged", path, "it is of another set than index.json says")
    path = folder / "manifest.jsonl"
    try:
        sidecars = [load_sidecar(one) for one in sorted(folder.glob("shard-??????.json"))]
        lines = {line["file"]: line for line in map(json.loads, path.read_text().splitlines())}
    except ERRORS:
        return  # reported as damaged, or missing
    expected = {info.file: json.loads(json.dumps(manifest_line(info))) for info in sidecars}
    named = {entry.file for entry in index.shards}
    if any(lines.get(name) != expected.get(name) for name in named):
        yield Found("damaged", path, "it differs from the shards' sidecars")


def _shards_of(folder: Path) -> Iterator[Found]:
    """Yields the faults of the shards of an index; returns the index, None where it cannot be read."""
    path = folder / "index.json"
    if not path.is_file():
        yield Found("missing", path, "report.json names this split")
        return None
    try:
        index: Index = load_index(path)
    except ValueError:
        return None
    for entry in index.shards:
        tar, sidecar = folder / entry.file, (folder / entry.file).with_suffix(".json")
        if not tar.is_file():
            yield Found("missing", tar, "index.json names it")
        if not sidecar.is_file():
            yield Found("missing", sidecar, "index.json names its shard")
            continue
        try:
            load_sidecar(sidecar)
        except ValueError:
            continue  # reported as damaged
        try:
            read_spans(sidecar, entry)
        except ValueError as error:
            yield Found("damaged", path, f"it does not belong to these shards: {short(error, sidecar)}")
            break
    return index


def _readable(path: Path) -> dict | None:
    try:
        return parse_sealed(path.read_bytes(), path)
    except (OSError, ValueError):
        return None
