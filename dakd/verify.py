"""`dakd verify RUN`: every file of a run against its checksum, and the command that repairs each damaged one.

It only reads, needs no GPU and no net, and may look at a run in progress: unfinished work is reported as such. What
a step believes holds its own checksum (see `runtime/sealed.py`), or is listed with one in the index of its shards or in
its folder's manifest. Pictures and texts that no manifest lists are opened, and must be whole and not empty.
"""

from __future__ import annotations

import json
import math
import shlex
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from PIL import Image

from dakd.data.index import Index, load_index, load_sidecar
from dakd.data.open_shard import read_spans
from dakd.generate.sidecar import manifest_line
from dakd.runtime.files import file_hash, parse_json, write_text
from dakd.runtime.runlog import METRICS, drop_records_after, progress
from dakd.runtime.sealed import (
    MANIFEST,
    list_again,
    parse_sealed,
    read_manifest,
    refuse_changed_yaml,
    refuse_unlisted,
    remedy,
    seal,
    seal_yaml,
)
from dakd.runtime.tensor_files import load_foreign_state, load_state, read_metadata, save_weights
from dakd.train.checkpoint import list_checkpoints, verified_facts

State = Literal["ok", "damaged", "missing", "unexpected", "unfinished"]
_STEPS = ("prepare", "balance", "train_jointnet", "generate", "train_saross", "evaluate", "predict", "report")
_OWN_FOLDERS = ("pictures", "features")  # of the evaluation around them
_STATE = {"state.json", "state.safetensors"}  # the files of a checkpoint or snapshot
_ERRORS = (OSError, EOFError, ValueError, RuntimeError, KeyError, TypeError, SyntaxError, zipfile.BadZipFile,
           zlib.error, yaml.YAMLError)  # fmt: skip


class Found(NamedTuple):
    """A file or folder of a run and its state.  reason: why it is not ok."""

    state: State
    path: Path
    reason: str = ""


def verify_run(run: Path) -> list[Found]:
    """The state of every file of a run, in order of the paths; ValueError where there is no run folder."""
    if not run.is_dir():
        raise ValueError(f"no run folder at {run}; give the folder of a run: runs/NAME")
    if not any((run / name).exists() for name in (*_STEPS, "config.yaml")):
        raise ValueError(f"{run} is not a run folder: found none of config.yaml, {', '.join(_STEPS)}; give runs/NAME")
    files = sorted(path for path in run.rglob("*") if path.is_file() and "wandb" not in path.relative_to(run).parts)
    found = {path: _look_at(path) for path in progress(files, len(files), f"verify {run.name}")}
    for one in _absent_and_foreign(run):
        found[one.path] = one
    return [found[path] for path in sorted(found)]


def next_command(run: Path, found: Found) -> str:
    """The command that makes a damaged or missing file again."""
    place = shlex.quote(str(found.path))
    parts = found.path.relative_to(run).parts
    step = parts[0] if parts[0] in _STEPS else None
    config = run / "config.yaml"
    config_name = shlex.quote(str(config)) if _is_whole_config(config) else "EXPERIMENT.yaml"
    options = f"--config {config_name} run_dir={shlex.quote(str(run))}"
    if step is None:
        return f"dakd prepare {options}" if parts == ("config.yaml",) else f"rm -f {place}"
    if parts[-1] == "config.yaml":
        return f"rm -f {place}  # the config.yaml of the run says what was run"
    if step == "prepare":
        if parts[-1].startswith("shard-") and parts[-1].endswith(".json"):
            return f"rm -f {place}  # it is made again from its tar"
        return f"rm -r {shlex.quote(str(run / step))} && dakd prepare {options}"
    if step == "generate" and "audit" in parts:
        return f"dakd generate {options} --audit"
    if step == "generate" and parts[-1].endswith((".png", "provenance.json", ".yaml")):
        return f"rm -f {place} && dakd generate {options}"
    if step == "generate":
        return f"dakd generate {options} --repair"
    if parts[-1] == METRICS:
        return f"dakd verify --accept {place}  # keeps its whole lines; only training again makes the others"
    if "samples" in parts:
        return f"rm -f {place}  # only training again makes it"
    if "checkpoints" in parts and list_checkpoints(found.path.parents[1])[-1:] != [found.path.parent]:
        return f"rm -r {shlex.quote(str(found.path.parent))}  # there is a newer one"
    if "posthoc" in parts:
        return f"rm -r {shlex.quote(str(found.path.parent))}  # dakd ema leaves it out; only training again makes it"
    return f"dakd {step} {options}"


def format_found(run: Path, found: list[Found]) -> str:
    """A line for each file that is not ok, the counts of all, and the next commands."""
    width = max(map(len, ("unexpected", *(one.state for one in found))))
    lines = [
        f"{one.state:<{width}}  {one.path.relative_to(run)}: {one.reason}" for one in found if one.state != "ok"
    ]
    counts = Counter(one.state for one in found)
    lines.append(f"{run}: " + ", ".join(f"{counts[state]} {state}" for state in State.__args__ if counts[state]))
    commands = dict.fromkeys(next_command(run, one) for one in found if one.state in ("damaged", "missing"))
    if commands:
        lines += ["to repair:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)


def accept(path: Path) -> None:
    """Give a file that was edited by hand a checksum that fits, and have the manifest that lists it list it so.

    Of a log of lines the whole ones stay. A file that was removed is no longer listed.
    ValueError for a file that has no checksum, is not JSON any more or has values that are not finite.
    """
    if not path.is_file():
        if not list_again(path):
            raise ValueError(f"there is no {path}, and no {MANIFEST} lists it; give a file of a run")
        return
    if path.suffix == ".safetensors":
        metadata = dict(read_metadata(path))
        save_weights(path, load_foreign_state(path), metadata)
    elif path.suffix == ".json":
        content = parse_json(path.read_bytes(), path, "fix it first")
        if content.pop("content_sha256", None) is None:
            raise ValueError(f"{path} has no content_sha256, so dakd did not write it; give a JSON file of a run")
        write_text(path, seal(json.dumps(content, indent=1)))
    elif path.suffix == ".yaml":
        write_text(path, seal_yaml("".join(line for line in path.open() if not line.startswith("# content_sha256: "))))
    elif path.name == METRICS:
        drop_records_after(path, math.inf)
    if not list_again(path) and path.suffix not in (".safetensors", ".json", ".yaml", ".jsonl"):
        raise ValueError(f"{path} holds no checksum of its own and no {MANIFEST} lists it; give another file of a run")


def _is_whole_config(path: Path) -> bool:
    try:
        refuse_changed_yaml(path)
    except (OSError, ValueError):
        return False
    return True


# --- one file ---------------------------------------------------------------------------------------------------------


def _look_at(path: Path) -> Found:
    if path.name.startswith(".") or path.parent.name.startswith("."):
        is_part = path.name.endswith((".tmp", ".old")) or path.parent.name.startswith(".")
        return Found("unfinished", path, "left by a writer that was killed, or being written") if is_part else Found(
            "ok", path)  # fmt: skip
    if any(part.endswith(".partial") or part.startswith(("damaged-step-", "quarantine")) for part in path.parts):
        return Found("unfinished", path, "set aside by its step")
    if path.suffix not in _CHECKS and "claims" not in path.parts and path.name != "wandb_id":
        return Found("unexpected", path, "no step writes such a file")
    try:
        _CHECKS.get(path.suffix, lambda _: None)(path)
        if path.name not in _STATE and _has_readable_manifest(path.parent):
            refuse_unlisted(path)
    except FileNotFoundError:
        return Found("unfinished", path, "it went away: its step is at work")
    except _ERRORS as error:
        return Found("damaged", path, _short(error, path))
    return Found("ok", path)


def _has_readable_manifest(folder: Path) -> bool:
    try:
        return read_manifest(folder) is not None
    except ValueError:
        return False  # reported as damaged itself


def _short(error: BaseException, path: Path) -> str:
    """An error's first line without the file's own path and without the remedies, which stand at the end."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.removesuffix(f"; {remedy(path)}").replace(f"{path} ", "").replace(f"{path}: ", "")[:300]


def _check_json(path: Path) -> None:
    if path.name == "state.json":
        verified_facts(path.parent)
    elif path.name == "index.json" and path.parent.name != "pictures":
        load_index(path)
    elif path.name.startswith("shard-") and "measures" not in path.parts:
        load_sidecar(path)
    else:
        parse_sealed(path.read_bytes(), path)


def _check_tensors(path: Path) -> None:
    if path.name == "state.safetensors":
        verified_facts(path.parent)
    else:
        load_state(path)


def _check_tar(path: Path) -> None:
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise ValueError(f"{sidecar.name} does not exist")
    info = load_sidecar(sidecar)
    if (found := file_hash(path)) != info.sha256:
        raise ValueError(f"found the sha256 {found[:12]}, expected {info.sha256[:12]} ({sidecar.name})")


def _check_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


def _check_arrays(path: Path) -> None:
    with zipfile.ZipFile(path) as arrays:
        if (name := arrays.testzip()) is not None:
            raise ValueError(f"the checksum of {name} differs")


def _check_lines(path: Path) -> None:
    # What follows the last line's end may be a line that is being written.
    for number, line in enumerate(path.read_text().split("\n")[:-1], 1):
        try:
            json.loads(line)
        except ValueError:
            raise ValueError(f"line {number} is not JSON") from None


def _check_settings(path: Path) -> None:
    refuse_changed_yaml(path)
    if not isinstance(yaml.safe_load(path.read_text()), dict):
        raise ValueError("holds no settings")


def _check_text(path: Path) -> None:
    if not path.read_text().strip():
        raise ValueError("is empty")


_CHECKS = {
    ".json": _check_json,
    ".safetensors": _check_tensors,
    ".tar": _check_tar,
    ".png": _check_picture,
    ".npz": _check_arrays,
    ".jsonl": _check_lines,
    ".yaml": _check_settings,
    ".txt": _check_text,
    ".html": _check_text,
    ".md": _check_text,
}


# --- what belongs together --------------------------------------------------------------------------------------------


def _absent_and_foreign(run: Path) -> Iterator[Found]:
    """Files that are missing, steps that are not finished, and whole files that belong to another set or run."""
    yield from _prepared(run / "prepare")
    yield from _generated(run / "generate")
    trainings = [path for step in ("train_jointnet", "train_saross") for path in (run / step).glob("*/")]
    evaluations = [run / "evaluate"] if _has_own_evaluation(run / "evaluate") else []
    evaluations += [path for path in (run / "evaluate").glob("*/") if path.name not in _OWN_FOLDERS]
    for folder in (run / "prepare", run / "balance", *trainings, *evaluations, *(run / "predict").glob("*/")):
        yield from _listed(folder)


def _has_own_evaluation(folder: Path) -> bool:
    """Whether the run's own evaluation was begun: those of other folders and students have folders of their own."""
    return folder.is_dir() and any(path.is_file() or path.name in _OWN_FOLDERS for path in folder.iterdir())


def _listed(folder: Path) -> Iterator[Found]:
    if not folder.is_dir():
        return
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return  # reported as damaged
    if manifest is None:
        if any(folder.iterdir()) and folder.name != "prepare":
            yield Found("unfinished", folder, f"its step has not finished: there is no {MANIFEST}")
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
    if not (folder / "index.json").is_file():
        yield Found("unfinished", folder, "generate has not finished: there is no index.json")
        return
    index = yield from _shards_of(folder)
    if index is None or not (folder / "provenance.json").is_file():  # not made by generate
        return
    for name in ("manifest.jsonl", "contact_sheet.png"):
        if not (folder / name).is_file():
            yield Found("missing", folder / name, "generate writes it")
    path = folder / "manifest.jsonl"
    try:
        sidecars = [load_sidecar(one) for one in sorted(folder.glob("shard-??????.json"))]
        lines = {line["file"]: line for line in map(json.loads, path.read_text().splitlines())}
    except _ERRORS:
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
            yield Found("damaged", path, f"it does not belong to these shards: {_short(error, sidecar)}")
            break
    return index


def _readable(path: Path) -> dict | None:
    try:
        return parse_sealed(path.read_bytes(), path)
    except (OSError, ValueError):
        return None
