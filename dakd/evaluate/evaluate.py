"""The step `evaluate`: every student of a run on the held-out images, and the synthetic set next to the real one.

Writes `evaluate/NAME.json` and `evaluate/NAME.images.npz` (counts by image) for each student,
`evaluate/generation.json`, `evaluate/table.json`, `evaluate/table.txt` and the pictures of the report. Images of
another folder (`evaluate.folder`), a student from elsewhere (`evaluate.student`), and the training images of a run that
has test images (`evaluate.split`) get a folder of their own in `evaluate/`, named after the folder, the student or the
split, and with digits of a hash where other inputs, weights, scales or settings of labels have that name; the run's own
evaluation stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dakd.config import Config
from dakd.data.prepared import open_prepared
from dakd.data.sample import ClassTable
from dakd.data.shards import ShardSet
from dakd.evaluate.extractors import open_extractor
from dakd.evaluate.inputs import (
    LabelledFolder,
    choose_students,
    inputs_of,
    open_images,
    open_student,
    open_with_metadata,
    out_folder,
)
from dakd.evaluate.pairs import compare_pairs, format_pairs
from dakd.evaluate.pictures import write_pictures
from dakd.evaluate.students import (
    DetailCounts,
    StudentEvaluation,
    bootstrap_students,
    evaluate_student,
    format_details,
    refuse_unknown_objects,
)
from dakd.metrics import SegmentationScores, format_scores
from dakd.metrics.scores import one_class_note
from dakd.metrics.tables import Views
from dakd.models.student import at_scales
from dakd.runtime.distributed import barrier, device, init_if_many, is_main, rank, world_size
from dakd.runtime.files import file_hash, replacing, write_text
from dakd.runtime.lock import locked
from dakd.runtime.runlog import say
from dakd.runtime.sealed import files_of, read_json, remove_manifest, write_json, write_manifest
from dakd.weights import temperature_of


@dataclass(frozen=True)
class Evaluation:
    """scores: by the student's name.  generation: the comparison of the pairs, or None without a synthetic set.

    details: by the student's name: objects, boundary_iou, inner_boundary_iou, calibration, bootstrap (None without),
    views (steps of its training, real and synthetic samples drawn in it; None of a file that does not have them).
    notes: sentences on students whose scores mean little, which the table has too.
    """

    scores: dict[str, SegmentationScores]
    generation: dict | None
    table: str
    details: dict[str, dict]
    notes: tuple[str, ...] = ()


def evaluate(cfg: Config, run_dir: str | Path | None = None) -> Evaluation:
    """Evaluate all students under run_dir/train_saross; every rank takes part, rank 0 writes and prints.

    run_dir: None takes the configuration's. Of a run that has pairs and no student yet, the pairs alone are evaluated.
    Raises ValueError where there is neither or no prepared split, for a folder that cannot be evaluated (see
    `inputs.py`), and for objects of a class that there is not; RuntimeError where another process evaluates the same.
    """
    init_if_many()
    run_dir = Path(run_dir) if run_dir is not None else cfg.run_path
    students = choose_students(cfg, run_dir)
    held_out = open_images(cfg, run_dir, students)
    refuse_unknown_objects(cfg.evaluate, held_out.classes)
    out_dir = out_folder(cfg, run_dir, students)
    with locked(out_dir):
        evaluation = _evaluate(cfg, run_dir, out_dir, students, held_out)
        barrier()
    return evaluation


def _evaluate(
    cfg: Config, run_dir: Path, out_dir: Path, students: dict[str, Path], held_out: ShardSet | LabelledFolder
) -> Evaluation:
    pair_sets = _open_pairs(cfg, run_dir, held_out.classes) if out_dir == run_dir / "evaluate" else {}
    synthetic = pair_sets.get("synthetic")
    # Opened first: an extractor that is missing must not cost an evaluation of all students.
    extractor = None if synthetic is None else open_extractor(cfg.evaluate.fidelity, device())

    def open_one(name: str) -> torch.nn.Module:
        return at_scales(open_student(students[name], held_out.classes), cfg.evaluate.scales)

    results, views, agreement = {}, {}, None
    shares = {"batch_size": cfg.evaluate.batch_size, "device": device(), "rank": rank(), "world": world_size()}
    for name in students:
        student, metadata = open_with_metadata(students[name], held_out.classes)
        model, views[name] = at_scales(student, cfg.evaluate.scales), metadata.get("views")
        temperature = temperature_of(metadata, students[name])
        details = DetailCounts.empty(held_out.classes, cfg.evaluate.object_classes, device(), temperature)
        results[name] = evaluate_student(model, held_out, **shares, label=f"evaluate {name}", details=details)
        if name == "real" and synthetic is not None:
            agreed = evaluate_student(model, synthetic, **shares, label="agreement")
            agreement = agreed.matrix.scores(synthetic.classes)
    generation = None
    if synthetic is not None:
        generation = compare_pairs(cfg, run_dir, pair_sets["real"], synthetic, extractor, agreement)
    evaluation = _summarise(cfg, results, generation, held_out, views)
    if is_main():
        _say_what_is_replaced(cfg, out_dir)
        remove_manifest(out_dir)
        _write(cfg, out_dir, evaluation, students, held_out, inputs_of(cfg, run_dir, students))
        _write_image_counts(out_dir, results, held_out)
        folder, num_pictures = out_dir / "pictures", cfg.evaluate.num_pictures
        write_pictures(folder, held_out, results, open_one, pair_sets, num_pictures, device())
        write_manifest(out_dir, files_of(out_dir, folder))
        say(f"\n{evaluation.table}\n")
    return evaluation


def _say_what_is_replaced(cfg: Config, out_dir: Path) -> None:
    """A line where the tables that are there are of other weights or scales."""
    try:
        table = read_json(out_dir / "table.json") or {}
    except (ValueError, OSError):  # damaged: written again
        return
    now = {"weights": cfg.evaluate.student or cfg.evaluate.weights, "scales": list(cfg.evaluate.scales)}
    before = {key: table.get(key, value) for key, value in now.items()}
    if before != now:
        shown, new = (f"weights {one['weights']} at scales {one['scales']}" for one in (before, now))
        say(f"{out_dir}: tables of {shown} are replaced by those of {new}")


def _open_pairs(cfg: Config, run_dir: Path, classes: ClassTable) -> dict[str, ShardSet]:
    """The real training set, and the synthetic one where it is there."""
    sets = {"real": open_prepared(cfg, "train", run_dir)}
    folder = run_dir / "generate"
    if (folder / "index.json").is_file():
        sets["synthetic"] = ShardSet(folder)
        names = sets["synthetic"].classes.names
        if names != classes.names:
            raise ValueError(f"{folder} has classes {names}, the images {classes.names}; generate again")
    return sets


def _summarise(
    cfg: Config,
    results: dict[str, StudentEvaluation],
    generation: dict | None,
    held_out: ShardSet | LabelledFolder,
    views: Views,
) -> Evaluation:
    scores = {name: result.matrix.scores(held_out.classes) for name, result in results.items()}
    where = f"the {cfg.evaluate.split} split" if cfg.evaluate.folder is None else f"the folder {cfg.evaluate.folder}"
    weights = f"{cfg.evaluate.weights} weights" if cfg.evaluate.student is None else f"student {cfg.evaluate.student}"
    if cfg.evaluate.scales != (1.0,):
        weights += f", at the scales {', '.join(f'{scale:g}' for scale in cfg.evaluate.scales)}"
    images = f"{len(held_out)} image{'' if len(held_out) == 1 else 's'}"
    head = f"{cfg.name}: {images} of {where}, {weights}, percent"
    per_image = {name: result.per_image for name, result in results.items()}
    intervals = bootstrap_students(per_image, held_out.classes.names, cfg.evaluate.bootstrap, cfg.seed)
    details = {
        name: result.details.to_dict() | {"bootstrap": intervals.get(name), "views": views[name]}
        for name, result in results.items()
    }
    shown = {name: {"miou": one.miou} | details[name] for name, one in scores.items()}
    parts = [head, format_scores(scores, views), format_details(shown)] if scores else [f"{cfg.name}: no students"]
    found = (one_class_note(name, one.counts, one.class_names, images) for name, one in scores.items())
    notes = tuple(note for note in found if note is not None)
    parts += notes
    if generation is not None:
        parts.append(format_pairs(generation))
    elif cfg.evaluate.folder is None and cfg.evaluate.student is None and cfg.evaluate.split == "test":
        is_needed = cfg.train_saross.reads_generated_pairs()
        why = "the step generate has not run" if is_needed else "no student learns from generated pairs"
        parts.append(f"synthetic set: none ({why})")
    return Evaluation(scores, generation, "\n\n".join(parts), details, notes)


def _write(
    cfg: Config,
    folder: Path,
    evaluation: Evaluation,
    students: dict[str, Path],
    held_out: ShardSet | LabelledFolder,
    inputs: dict[str, Any] | None,
) -> None:
    facts = {
        "split": cfg.evaluate.split,
        "num_images": len(held_out),
        "dataset_fingerprint": held_out.fingerprint,
        "weights": cfg.evaluate.student or cfg.evaluate.weights,
        "scales": list(cfg.evaluate.scales),
    }
    if isinstance(held_out, LabelledFolder):
        skipped = [str(problem) for problem in held_out.skipped]
        facts |= {"folder": str(held_out.folder), "split": held_out.split, "skipped": skipped}
    facts["inputs"] = inputs
    tables = {name: one.to_dict() | evaluation.details[name] for name, one in evaluation.scores.items()}
    hashes = {name: file_hash(students[name]) for name in tables}
    for name, table in tables.items():
        write_json(folder / f"{name}.json", facts | {"student": name, "sha256": hashes[name]} | table)
    if evaluation.generation is not None:
        write_json(folder / "generation.json", evaluation.generation)
    else:
        (folder / "generation.json").unlink(missing_ok=True)
    write_json(folder / "table.json", facts | {"notes": list(evaluation.notes), "sha256": hashes, "students": tables})
    write_text(folder / "table.txt", evaluation.table + "\n")


def _write_image_counts(
    folder: Path, results: dict[str, StudentEvaluation], held_out: ShardSet | LabelledFolder
) -> None:
    """NAME.images.npz: counts (N, K, K) int64, rows the true class, and keys (N,) in the same order."""
    keys = np.array([held_out.key(index) for index in range(len(held_out))])
    for name, result in results.items():
        with replacing(folder / f"{name}.images.npz") as aside, aside.open("wb") as file:
            np.savez_compressed(file, counts=result.per_image, keys=keys)
