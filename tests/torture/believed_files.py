"""Files that a later step believes: weights, indexes, reports and scores; each is damaged, and then read."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torture.damage import DAMAGES
from torture.trials import Findings, Trials
from worlds import finished_run

from dakd.card.subject import read_config
from dakd.data.records import BadRecord, content_hash
from dakd.data.shards import ShardSet
from dakd.runtime.kept_config import CONFIG
from dakd.runtime.runlog import read_records
from dakd.runtime.sealed import read_json
from dakd.runtime.tensor_files import load_state, read_metadata
from dakd.verify import verify_run
from dakd.weights import load_student, load_teacher

_FILES = {
    "final weights": (
        "train_saross/real/student.safetensors",
        "train_saross/real/student_raw.safetensors",
        "train_jointnet/stage3/weights_ema.safetensors",
    ),
    "indexes and sidecars": (
        "prepare/train/index.json",
        "prepare/test/index.json",
        "prepare/train/shard-000001.json",
        "generate/index.json",
        "generate/shard-000000.json",
    ),
    "reports, scores and predictions": (
        "prepare/report.json",
        "balance/balance.json",
        "config.yaml",
        "train_saross/real/config.yaml",
        "evaluate/real.json",
        "evaluate/table.json",
        "evaluate/generation.json",
        "predict/real/predict.json",
        "train_saross/real/metrics.jsonl",
    ),
}


def damage_believed_files(folder: Path, chance: random.Random, times: int) -> list[Trials]:
    """A row per kind of file and of damage: the reader must refuse the file, and `dakd verify` find it."""
    with redirect_stdout(io.StringIO()):  # the steps' own words
        run, other = (finished_run(folder / str(seed), seed).run_path for seed in (0, 1))
    damages = DAMAGES | {"emptied": _empty, "a number edited": _edit_a_number, "another run's file": _swap(run, other)}
    rows = []
    for kind, names in _FILES.items():
        for fault, damage in damages.items():
            trials = Trials(kind, fault)
            for _ in range(times):
                path = run / chance.choice(names)
                trials.count(f"in {path.relative_to(run).parts[0]}", _try(run, path, damage, chance))
            rows.append(trials)
    return rows


def _try(run: Path, path: Path, damage: Callable[[Path, random.Random], str], chance: random.Random) -> Findings:
    found, whole, expected = Findings(), path.read_bytes(), _read(path)
    what = damage(path, chance)
    try:
        content, refusal = _read(path), None
    except (ValueError, BadRecord) as error:
        content, refusal = None, str(error)
    if refusal is None:  # a byte without meaning, such as a space of a header, may have been hit
        found.accepted += content != expected
        found.expect(content == expected, f"{path}, {what}: it was read with another content")
    else:
        found.expect(path.parent.name in refusal, f"{path}, {what}: refused without its name: {refusal}")
        states = {one.path: one.state for one in verify_run(run)}
        is_found = "damaged" in (states[path], states.get(path.with_name("index.json")))
        found.expect(is_found, f"{path}, {what}: dakd verify says {states[path]}")
    path.write_bytes(whole)
    return found


def _read(path: Path) -> Any:
    """All that a later step takes from a file, in a form that can be compared."""
    if path.suffix == ".safetensors":
        (load_teacher if path.name.startswith("weights_") else load_student)(path)
        tensors = {name: (tensor.dtype, tensor.tolist()) for name, tensor in load_state(path).items()}
        return tensors, read_metadata(path)
    if path.name == CONFIG:
        return read_config(path.parent)
    if path.name == "index.json" or path.name.startswith("shard-"):
        shards = ShardSet(path.parent)
        return shards.index, [(sample.key, content_hash(sample)) for sample in shards]
    return read_records(path) if path.suffix == ".jsonl" else read_json(path)


def _empty(path: Path, _: random.Random) -> str:
    path.write_bytes(b"")
    return f"{path.name}: emptied"


def _edit_a_number(path: Path, chance: random.Random) -> str:
    """Another digit in a JSON file, or another value in weights whose metadata stay as they are."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata()
        name = chance.choice(sorted(name for name, tensor in tensors.items() if tensor.is_floating_point()))
        tensors[name].view(-1)[chance.randrange(tensors[name].numel())] += 1
        save_file(tensors, path, metadata=metadata)
        return f"{path.name}: {name} edited"
    text = path.read_text()
    place = chance.choice([match.start() for match in re.finditer(r"(?<=[ :\[,.])\d", text)])
    digit = str((int(text[place]) + chance.randrange(1, 9)) % 10)
    path.write_text(text[:place] + digit + text[place + 1 :])
    return f"{path.name}: byte {place} is {json.dumps(digit)}"


def _swap(run: Path, other: Path) -> Callable[[Path, random.Random], str]:
    def swap(path: Path, _: random.Random) -> str:
        shutil.copy(other / path.relative_to(run), path)
        return f"{path.name}: another run's"

    return swap
