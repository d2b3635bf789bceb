"""The step `evaluate`: every student of a run on the held-out images, and the synthetic set beside the real one.

Writes `evaluate/NAME.json` and `evaluate/NAME.images.npz` (counts by image) a student, `evaluate/generation.json`,
`evaluate/table.json`, `evaluate/table.txt` and the pictures of the report. Images of another folder
(`evaluate.folder`), or a student from elsewhere (`evaluate.student`), get a folder of their own in `evaluate/`, named
after the folder or the student; the run's own evaluation stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dakd.config import Config
from dakd.data.sample import ClassTable
from dakd.data.shards import ShardSet
from dakd.evaluate import gallery
from dakd.evaluate.choice import choose_students, open_images, open_student, out_folder
from dakd.evaluate.details import Details, format_details, intervals
from dakd.evaluate.extractors import open_extractor
from dakd.evaluate.folder import LabelledFolder
from dakd.evaluate.generation import agreement, count_set, format_statistics, set_statistics
from dakd.evaluate.likeness import compare_images, format_likeness
from dakd.evaluate.segmentation import StudentEvaluation, evaluate_student
from dakd.metrics import SegmentationScores, format_scores
from dakd.models.multiscale import at_scales
from dakd.runtime.distributed import barrier, device, init_if_many, is_main, rank, world_size
from dakd.runtime.files import file_hash, replacing, write_json, write_text
from dakd.runtime.runlog import say


@dataclass(frozen=True)
class Evaluation:
    """scores: by the student's name.  generation: statistics of the real and the synthetic set, or None without one.

    details: by the student's name: objects, boundary_iou, calibration, bootstrap (None without resamples).
    """

    scores: dict[str, SegmentationScores]
    generation: dict | None
    table: str
    details: dict[str, dict]


def evaluate(cfg: Config, run_dir: str | Path | None = None) -> Evaluation:
    """Evaluate all students under run_dir/train_saross; every rank takes part, rank 0 writes and prints.

    run_dir: None takes the configuration's. A run that has pairs and no student yet has its pairs evaluated. Raises
    ValueError where there is neither or no prepared split, and for a folder that cannot be evaluated (see `folder.py`).
    """
    init_if_many()
    run_dir = Path(run_dir) if run_dir is not None else cfg.run_path
    students = choose_students(cfg, run_dir)
    held_out = open_images(cfg, run_dir, students)
    out_dir = out_folder(cfg, run_dir, students)
    results, agreed = {}, None
    is_own = out_dir == run_dir / "evaluate"
    synthetic = _open_synthetic(run_dir, held_out.classes) if is_own else None
    extractor = None if synthetic is None else open_extractor(cfg.evaluate.fidelity, device())
    for name, path in students.items():
        model = at_scales(open_student(path, held_out.classes), cfg.evaluate.scales)
        results[name] = evaluate_student(
            model,
            held_out,
            cfg.evaluate.batch_size,
            device(),
            rank(),
            world_size(),
            label=f"evaluate {name}",
            details=Details.empty(cfg.evaluate, held_out.classes, device()),
        )
        if name == "real" and synthetic is not None:
            agreed = agreement(model, synthetic, cfg.evaluate.batch_size, device(), rank(), world_size())
    generation = None
    if synthetic is not None:
        real = ShardSet(run_dir / "prepare" / "train")
        generation = _compare_sets(real, synthetic, agreed)
        generation |= compare_images(cfg, run_dir, real, synthetic, extractor)
    evaluation = _summarise(cfg, results, generation, held_out)
    if is_main():
        _write(cfg, out_dir, evaluation, students, held_out)
        _write_image_counts(out_dir, results, held_out)
        real = ShardSet(run_dir / "prepare" / "train") if is_own else None
        _write_pictures(cfg, out_dir, results, students, held_out, {"real": real, "synthetic": synthetic})
        say(f"\n{evaluation.table}\n")
    barrier()
    return evaluation


def _open_synthetic(run_dir: Path, classes: ClassTable) -> ShardSet | None:
    folder = run_dir / "generate"
    if not (folder / "index.json").is_file():
        return None
    synthetic = ShardSet(folder)
    if synthetic.classes.names != classes.names:
        raise ValueError(f"{folder} has classes {synthetic.classes.names}, the images {classes.names}; generate again")
    return synthetic


def _compare_sets(real: ShardSet, synthetic: ShardSet, agreed: StudentEvaluation | None) -> dict:
    comparison = {}
    for name, shard_set in (("real", real), ("synthetic", synthetic)):
        counts = count_set(shard_set, rank(), world_size(), device(), label=f"statistics {name}")
        comparison[name] = set_statistics(counts, shard_set.classes)
    comparison["agreement"] = None if agreed is None else agreed.matrix.scores(synthetic.classes).to_dict()
    return comparison


def _summarise(
    cfg: Config,
    results: dict[str, StudentEvaluation],
    generation: dict | None,
    held_out: ShardSet | LabelledFolder,
) -> Evaluation:
    scores = {name: result.matrix.scores(held_out.classes) for name, result in results.items()}
    where = f"the {cfg.evaluate.split} split" if cfg.evaluate.folder is None else f"the folder {cfg.evaluate.folder}"
    weights = f"{cfg.evaluate.weights} weights" if cfg.evaluate.student is None else f"student {cfg.evaluate.student}"
    head = f"{cfg.name}: {len(held_out)} images of {where}, {weights}, percent"
    per_image = {name: result.per_image for name, result in results.items()}
    bootstrapped = intervals(per_image, held_out.classes.names, cfg.evaluate.bootstrap, cfg.seed)
    details = {
        name: result.details.to_dict() | {"bootstrap": bootstrapped.get(name)} for name, result in results.items()
    }
    shown = {name: {"miou": one.miou} | details[name] for name, one in scores.items()}
    parts = [head, format_scores(scores), format_details(shown)] if scores else [f"{cfg.name}: no students"]
    if generation is None and cfg.evaluate.folder is None and cfg.evaluate.student is None:
        parts.append("synthetic set: none (the step generate has not run)")
    elif generation is not None:
        agreed = generation["agreement"]
        parts.append(format_statistics(generation["real"], generation["synthetic"], agreed["miou"] if agreed else None))
        parts.append(format_likeness(generation))
    return Evaluation(scores, generation, "\n\n".join(parts), details)


def _write(cfg: Config, folder: Path, evaluation: Evaluation, students: dict[str, Path], held_out: ShardSet) -> None:
    facts = {
        "split": cfg.evaluate.split,
        "num_images": len(held_out),
        "dataset_fingerprint": held_out.index["fingerprint"],
        "weights": cfg.evaluate.student or cfg.evaluate.weights,
        "scales": list(cfg.evaluate.scales),
    }
    if isinstance(held_out, LabelledFolder):
        skipped = [str(problem) for problem in held_out.skipped]
        facts |= {"folder": str(held_out.folder), "split": held_out.split, "skipped": skipped}
    tables = {name: one.to_dict() | evaluation.details[name] for name, one in evaluation.scores.items()}
    for name, table in tables.items():
        write_json(folder / f"{name}.json", facts | {"student": name, "sha256": file_hash(students[name])} | table)
    if evaluation.generation is not None:
        write_json(folder / "generation.json", evaluation.generation)
    else:
        (folder / "generation.json").unlink(missing_ok=True)
    write_json(folder / "table.json", facts | {"students": tables})
    write_text(folder / "table.txt", evaluation.table + "\n")


def _write_image_counts(folder: Path, results: dict[str, StudentEvaluation], held_out: ShardSet) -> None:
    """NAME.images.npz: counts (N, K, K) int64, rows the true class, and keys (N,) in the same order."""
    keys = np.array([held_out.key(index) for index in range(len(held_out))])
    for name, result in results.items():
        with replacing(folder / f"{name}.images.npz") as aside, aside.open("wb") as file:
            np.savez_compressed(file, counts=result.per_image, keys=keys)


def _write_pictures(
    cfg: Config,
    out_dir: Path,
    results: dict[str, StudentEvaluation],
    students: dict[str, Path],
    held_out: ShardSet | LabelledFolder,
    sets: dict[str, ShardSet | None],
) -> None:
    """sets: by name, those that are shown with their labels laid on the images."""

    def open_one(name: str) -> torch.nn.Module:
        return at_scales(open_student(students[name], held_out.classes), cfg.evaluate.scales)

    folder = out_dir / "pictures"
    gallery.start_gallery(folder)
    mious = {name: result.image_mious() for name, result in results.items()}
    last = next(reversed(results), None)
    choices = []
    if last is not None:
        choices = gallery.choose_images(results[last].per_image, mious[last], cfg.evaluate.num_pictures)
    images = gallery.write_gallery(
        folder, held_out, choices, mious, open_one, device()
    )
    overlays = {}
    if cfg.evaluate.num_pictures:
        overlays = {name: gallery.write_overlays(folder, name, one) for name, one in sets.items() if one is not None}
    gallery.finish_gallery(folder, images, overlays, held_out.classes)
