"""The log and the checkpoints of a training, step by step, compared with those of the undisturbed run."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torture.damage import hashes
from torture.trials import Findings

from dakd.runtime.files import file_hash
from dakd.train.checkpoint import Damaged, list_checkpoints, step_of, verified_facts


@dataclass(frozen=True)
class Trace:
    """checkpoints: hash of the tensors' file by step.  lines: the log's record by step, without its rate.

    weights: hash of each final file.
    """

    checkpoints: dict[int, str]
    lines: dict[int, dict]
    weights: dict[str, str]
    global_batch: int


def read_trace(folder: Path, global_batch: int) -> Trace:
    """The trace of a training that kept every checkpoint."""
    checkpoints = {step_of(path): _tensors_hash(path) for path in list_checkpoints(folder / "checkpoints")}
    lines = {record["step"]: record for record in _records(folder)}
    return Trace(checkpoints, lines, hashes(folder.glob("weights*.safetensors")), global_batch)


def compare(folder: Path, trace: Trace, *, is_finished: bool) -> Findings:
    """Compare a dead or finished training: every step once in the log, every number and every checkpoint equal.

    A dead one must have logged the steps up to its newest checkpoint; later steps may be missing, but not wrong.
    """
    found = Findings()
    last_step = 0
    for path in list_checkpoints(folder / "checkpoints"):
        last_step = step_of(path)
        try:
            facts = verified_facts(path)
        except Damaged as error:
            found.accepted += 1
            found.problems.append(str(error))
            continue
        # One that a stop left between two usual ones is judged by what grows out of it.
        if _tensors_hash(path) != trace.checkpoints.get(last_step, _tensors_hash(path)):
            found.accepted += 1
            found.problems.append(f"{path} differs from the undisturbed run's of that step")
        wanted = last_step * trace.global_batch
        found.expect(facts["position"] == wanted, f"{path} is at sample {facts['position']}, not {wanted}")
    steps = []
    for record in _records(folder):
        steps.append(record["step"])
        found.expect(record == trace.lines.get(record["step"]), f"{folder}: step {record['step']} has other numbers")
    wanted_steps = trace.lines if is_finished else range(1, last_step + 1)
    found.lost += len(set(wanted_steps) - set(steps)) * trace.global_batch
    found.doubled += (len(steps) - len(set(steps))) * trace.global_batch
    found.expect(steps == sorted(steps), f"{folder}: the log's steps are out of order")
    if is_finished:
        found.expect(last_step == max(trace.checkpoints), f"{folder}: the last checkpoint is of step {last_step}")
        weights = hashes(folder.glob("weights*.safetensors"))
        found.expect(weights == trace.weights, f"{folder}: the final weights differ from the undisturbed run's")
    return found


def logged_step(folder: Path) -> int:
    """The newest step in the log; 0 without a log."""
    return max((record["step"] for record in _records(folder)), default=0)


def is_writing(folder: Path, pids: Collection[int]) -> bool:
    """Whether one of these processes, now dead or stopped, was writing a checkpoint or removing one."""
    hidden = (path.name.split(".") for path in (folder / "checkpoints").glob(".step-*"))
    return any(int(parts[2]) in pids for parts in hidden)


def _tensors_hash(checkpoint: Path) -> str:
    return file_hash(checkpoint / "state.safetensors")


def _records(folder: Path) -> list[dict]:
    """The log without the rates, which depend on the machine. Only its last line can be cut by a kill."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n") if path.exists() else [""]
    records = [json.loads(line) for line in lines[:-1]]
    for record in records:
        del record["images_per_s"]
    return records
