"""Moving averages of any length after a training, from snapshots of two (Karras et al. 2024, sections 3 and C).

A power-function average of power g weighs the weights of time tau by tau^g; its decay at step s is (1 - 1/s)^(g+1). Its
length is the standard deviation of that profile over the training's time, relative to it: 0.10 is g = 6.94. During the
training two such averages are kept, and snapshots of both are written at intervals. Afterwards the profile of any
length is fitted by least squares with those of the snapshots; the same combination of the snapshots is its average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dakd.runtime.runlog import say
from dakd.runtime.tensor_files import load_state, read_metadata, save_weights
from dakd.train.checkpoint import Damaged, list_checkpoints, load_tensors, verified_facts

FOLDER = "posthoc"
_OF_FINAL_WEIGHTS = ("temperature", "validation_scores")


def power_decay(step: int, power: float) -> float:
    """The decay at an optimizer step (1-based): (1 - 1/step)^(power + 1); the first step forgets what was before it."""
    return (1 - 1 / step) ** (power + 1)


def power_of_length(length: float) -> float:
    """The power of a profile of relative standard deviation `length`, in (0, 0.28].

    length^2 = (g + 1) / ((g + 2)^2 (g + 3)), a cubic in g whose largest root is the power.
    """
    if not 0 < length <= 0.28:
        raise ValueError(f"an average's length is {length}; expected a number above 0 and at most 0.28")
    t = length**-2
    return float(max(root.real for root in np.roots([1, 7, 16 - t, 12 - t]) if abs(root.imag) < 1e-6))


@dataclass(frozen=True)
class Profile:
    """The weights w(tau) = (power + 1) tau^power / step^(power + 1) of an average at a step, for tau in [0, step]."""

    step: int
    power: float

    def dot(self, other: Profile) -> float:
        """The integral of the product of two profiles; in ratios of steps, which do not overflow."""
        early, late = sorted((self, other), key=lambda profile: profile.step)
        scale = (early.power + 1) * (late.power + 1) / (early.power + late.power + 1)
        return scale * (early.step / late.step) ** late.power / late.step


def fit(profiles: Sequence[Profile], target: Profile) -> tuple[np.ndarray, float]:
    """(n,) float64 coefficients of the least-squares fit, and its error relative to the target's own norm."""
    gram = np.array([[a.dot(b) for b in profiles] for a in profiles])
    projections = np.array([a.dot(target) for a in profiles])
    # Scaled to a unit diagonal: profiles of late steps are far flatter than those of early ones.
    scale = 1 / np.sqrt(np.diag(gram))
    coefficients = scale * np.linalg.lstsq(gram * np.outer(scale, scale), projections * scale, rcond=1e-13)[0]
    own = target.dot(target)
    left = own - 2 * coefficients @ projections + coefficients @ gram @ coefficients
    return coefficients, float(np.sqrt(max(0.0, left) / own))


def reconstruct(training_folder: Path, weights: Path, length: float, out: Path, step: int | None = None) -> float:
    """Write the average of `length` at `step` (default: the newest snapshot's) to `out`; the fit's relative error.

    weights: the training's final averaged weights, from which the metadata and the tensors without an average are
    taken (frozen parameters, counters). ValueError where there are no snapshots or no such step, where `out` is a file
    of anything but this average, and where it lies in a training's folder.
    """
    snapshots, power = _whole_snapshots(training_folder / FOLDER), power_of_length(length)
    steps = [facts["step"] for _, facts in snapshots]
    if not steps:
        raise ValueError(
            f"{training_folder / FOLDER} has no snapshots; set optimizer.posthoc_every before the training starts"
        )
    step = max(steps) if step is None else step
    if step not in steps:
        raise ValueError(
            f"{training_folder / FOLDER} has snapshots of steps {steps}; expected one of step {step}. They are "
            "taken where optimizer.posthoc_every is set when the training starts"
        )
    # Scores and temperature are those of the final weights, not of this average.
    found = {key: value for key, value in read_metadata(weights).items() if key not in _OF_FINAL_WEIGHTS}
    metadata = found | {"weights": "posthoc", "ema_length": length, "ema_step": step}
    if metadata.get("views", {}).get("steps") != step:
        metadata.pop("views", None)  # of the whole training, not of the part before this step
    _refuse_to_replace(out, metadata)
    used = [(path, facts) for path, facts in snapshots if facts["step"] <= step]
    profiles = [
        Profile(facts["step"], power_of_length(snapshot_length))
        for _, facts in used
        for snapshot_length in facts["lengths"]
    ]
    coefficients, error = fit(profiles, Profile(step, power))
    combined = _combine([path for path, _ in used], coefficients)
    final = load_state(weights)
    # A training wraps its net: names in its state have that prefix, those in weights have not.
    averaged = {name.removeprefix("net."): value for name, value in combined.items()}
    if unknown := sorted(set(averaged) - set(final)):
        raise ValueError(
            f"{weights} lacks {', '.join(unknown[:8])}, which the snapshots have: they are of another net; set "
            "the net's settings back to those of the snapshots"
        )
    save_weights(out, final | averaged, metadata)
    return error


def _refuse_to_replace(out: Path, metadata: dict) -> None:
    """ValueError where a file is another than an earlier average with this metadata, or a training's own."""
    if any(folder.parent.name in ("train_jointnet", "train_saross") for folder in out.resolve().parents):
        raise ValueError(f"{out} lies in the folder of a training, whose files are its own; give a file elsewhere")
    try:
        is_same = not out.exists() or read_metadata(out) == metadata
    except (ValueError, FileNotFoundError):  # no weights file; a folder
        is_same = False
    if not is_same:
        raise ValueError(
            f"{out} is there already, and is not this average (of length {metadata['ema_length']:g}, at step "
            f"{metadata['ema_step']}, of this training); give another file, or remove that one"
        )


def _whole_snapshots(folder: Path) -> list[tuple[Path, dict]]:
    """Snapshots and their facts, oldest first; a damaged one is named and left out."""
    whole = []
    for path in list_checkpoints(folder):
        try:
            whole.append((path, verified_facts(path)))
        except Damaged as error:
            say(f"damaged snapshot, left out: {error}")
    return whole


def _combine(snapshots: Sequence[Path], coefficients: np.ndarray) -> dict[str, Tensor]:
    """The weighted sum of the snapshots' floating tensors, summed in float64, in fp32."""
    per_snapshot = coefficients.reshape(len(snapshots), -1)
    sums: dict[str, Tensor] = {}
    for path, row in zip(snapshots, per_snapshot):
        for key, value in load_tensors(path).items():
            kind, _, name = key.partition("/")
            if value.is_floating_point():
                sums.setdefault(name, torch.zeros_like(value, dtype=torch.float64))
                sums[name].add_(value, alpha=float(row[int(kind.removeprefix("posthoc_"))]))
    return {name: value.float() for name, value in sums.items()}
