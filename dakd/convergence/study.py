"""The study of one teacher: every setting is sampled, measured and recorded, and the cheapest one chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dakd.convergence.choice import MIN_JUDGED, Tolerances
from dakd.convergence.distances import Pairs, compare, measure_pairs, physics_distances, whole
from dakd.convergence.record import Record, open_record
from dakd.convergence.results import write_results
from dakd.convergence.settings import CALLS, REFERENCE_STEPS, Setting, candidates
from dakd.convergence.sweep import Start, reference_pairs, sample_pairs
from dakd.data.shards import ShardSet
from dakd.evaluate.physics import SetMeasures, Summary, compare_physics, measure_set
from dakd.generate.teacher import Teacher
from dakd.metrics.bootstrap import MIN_IMAGES
from dakd.names import written_path
from dakd.runtime.runlog import say
from dakd.sampling import check_num_steps


@dataclass(frozen=True)
class Baseline:
    """What each setting is compared with: pairs of the reference and of the fine solution, and sets of images."""

    reference: Pairs
    fine: Pairs
    summary: Summary
    real: Summary | None


def measure_convergence(
    weights: str | Path,
    out_dir: str | Path,
    *,
    num: int = 32,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    calls: Iterable[int] = CALLS,
    reference_steps: int = REFERENCE_STEPS,
    agreement: float | None = None,
    rms: float | None = None,
    real: str | Path | None = None,
    micro_batch: int = 16,
    device: str | None = None,
    precision: str = "auto",
    overwrite: bool = False,
) -> bool:
    """Measure a teacher's settings at each number of calls and write the results to a folder.

    num, size, seed: of the pairs (see `Teacher.sample`).  calls: of the net for each pair.  agreement, rms: see
    `Tolerances`; None takes its values.  real: a folder of shards of real images, which the physics distances then
    refer to.  device, precision: see `Teacher`.  overwrite: begin again, whatever settings the folder's results have.
    The record is written after each setting, and a repeated call measures only what it lacks.
    Returns whether a setting is within tolerance.
    Raises ValueError for too few pairs, more steps than the schedule has timesteps, other classes of the real images,
    and a folder that holds something else.
    """
    out_dir, calls = written_path(out_dir), sorted(set(calls))
    _check_num(num, real)
    tolerances, teacher = Tolerances.of(agreement, rms), Teacher(weights, device, precision)
    check_num_steps(reference_steps, teacher.schedule.num_train_timesteps, "--reference-steps")
    for number in calls:
        check_num_steps(number, teacher.schedule.num_train_timesteps, "--calls")
    real_set = None if real is None else _real_images(real, teacher)
    start = Start(num, teacher.size if size is None else size, seed, micro_batch)
    record = open_record(out_dir, _made_with(teacher, start, reference_steps, real_set), overwrite)
    settings = candidates(calls)
    lacking = [setting for setting in settings if record.row(setting) is None]
    if lacking:
        baseline = _measure_baseline(record, teacher, start, real_set)
        for count, setting in enumerate(lacking, start=1):
            row = _measure(teacher, start, baseline, setting)
            record.add(setting, row)
            alike = f"{100 * row['agreement']:.2f} % of the labels alike"
            say(f"convergence: {count}/{len(lacking)}  {setting}: RMS {row['rms']:.4f}, {alike}")
    return write_results(record, settings, teacher, start, tolerances)


def _check_num(num: int, real: str | Path | None) -> None:
    least, why = (MIN_JUDGED, "two halves are compared") if real is None else (MIN_IMAGES, "intervals need as many")
    if num < least:
        raise ValueError(f"--num is {num}; expected at least {least} pairs, as {why}; set --num to {least} or more")


def _real_images(folder: str | Path, teacher: Teacher) -> ShardSet:
    shards = ShardSet(folder, classes=teacher.classes)
    if len(shards) < MIN_IMAGES:
        found = f"{folder} has {len(shards)} images"
        raise ValueError(f"{found}; expected at least {MIN_IMAGES}, as intervals need; give a larger set as --real")
    return shards


def _made_with(teacher: Teacher, start: Start, reference_steps: int, real_set: ShardSet | None) -> dict[str, Any]:
    """What decides the numbers."""
    return {
        "checkpoint": teacher.checkpoint,
        **start._asdict(),
        "size": list(start.size),
        "precision": str(teacher.dtype).removeprefix("torch."),
        "reference_steps": reference_steps,
        "real": None if real_set is None else real_set.fingerprint,
    }


def _measure_baseline(record: Record, teacher: Teacher, start: Start, real_set: ShardSet | None) -> Baseline:
    """Also records how far the fine solution and the real images are from the reference."""
    classes, size, seed = teacher.classes, start.size, start.seed
    reference, fine = reference_pairs(record, teacher, start)
    measures = measure_pairs(reference, classes)
    real: SetMeasures | None = None if real_set is None else measure_set(real_set, size, seed, label="real images")
    if "halves" not in record.content:
        record.write(
            fine=compare(fine, reference),
            halves=compare_physics(measures, measure_pairs(fine, classes), classes, size, seed),
            real=None if real is None else compare_physics(real, measures, classes, size, seed),
        )
    return Baseline(reference, fine, whole(measures), None if real is None else whole(real))


def _measure(teacher: Teacher, start: Start, baseline: Baseline, setting: Setting) -> dict[str, Any]:
    """The numbers of a setting."""
    pairs = sample_pairs(teacher, setting, start)
    summary = whole(measure_pairs(pairs, teacher.classes))
    return {
        **compare(pairs, baseline.reference),
        "fine": compare(pairs, baseline.fine),
        "physics": physics_distances(baseline.summary, summary, teacher.classes),
        "real": baseline.real and physics_distances(baseline.real, summary, teacher.classes),
    }

