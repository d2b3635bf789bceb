"""Students on whole held-out images at their original size: counts, scores, intervals, and the tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dakd.config import EvaluateConfig
from dakd.data.records import hard_label
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.data.size_batches import batches_of_one_size
from dakd.data.transforms import to_student
from dakd.metrics import BoundaryCounts, CalibrationCounts, ObjectCounts, bootstrap, format_table, paired_bootstrap
from dakd.metrics.bootstrap import FEW_IMAGES, MIN_IMAGES, few_images_notes, unequal_classes_notes
from dakd.metrics.confusion import ConfusionMatrix, count_pairs, sum_over_ranks
from dakd.metrics.scores import mean_iou
from dakd.metrics.tables import percent
from dakd.runtime.runlog import progress

# Scores that get intervals; IoU of oil too where the class table has it.
_SCORES = ("miou", "f1")
DIFFERENCE_HEADER = ("difference", "score", "points (95 %)", "p")


def refuse_unknown_objects(cfg: EvaluateConfig, classes: ClassTable) -> None:
    """ValueError where evaluate.object_classes names a class that the table lacks; the default list may."""
    names = cfg.object_classes
    unknown = [name for name in names if name not in classes.names]
    if unknown and names != EvaluateConfig.model_fields["object_classes"].default:
        raise ValueError(
            f"evaluate.object_classes is {', '.join(names)}; expected names of the class table: "
            f"{classes.no_class(unknown[0])}"
        )


@dataclass(frozen=True)
class DetailCounts:
    """Counts besides the confusion matrix, made in the same pass: objects, outlines and confidence.

    temperature: what logits are divided by for the confidence.  uncalibrated: of a temperature of 1; None where it is.
    """

    classes: ClassTable
    objects: ObjectCounts
    boundary: BoundaryCounts
    inner_boundary: BoundaryCounts
    calibration: CalibrationCounts
    temperature: float = 1.0
    uncalibrated: CalibrationCounts | None = None

    @classmethod
    def empty(
        cls,
        classes: ClassTable,
        object_classes: Sequence[str],
        device: str | torch.device = "cpu",
        temperature: float = 1.0,
    ) -> DetailCounts:
        """object_classes: those whose objects are counted.  temperature: the student's, see `weights.temperature_of`.
        """
        return cls(
            classes,
            ObjectCounts(classes, object_classes),
            BoundaryCounts(classes.num_classes, device=device),
            BoundaryCounts(classes.num_classes, device=device, frame=False),
            CalibrationCounts(device=device),
            temperature,
            None if temperature == 1 else CalibrationCounts(device=device),
        )

    def update(self, logits: Tensor, prediction: Tensor, labels: Sequence[np.ndarray]) -> None:
        """Count a batch: logits (B, K, H, W), their argmax (B, H, W), and B labels (H, W)."""
        target = torch.as_tensor(np.stack(labels), device=logits.device)
        self.boundary.update(prediction, target)
        self.inner_boundary.update(prediction, target)
        self.calibration.update((logits.float() / self.temperature).softmax(dim=1), target)
        if self.uncalibrated is not None:
            self.uncalibrated.update(logits.float().softmax(dim=1), target)
        for one, label in zip(prediction.cpu().numpy(), labels):
            self.objects.update(one, label)

    def all_reduce(self) -> None:
        self.objects.all_reduce(self.boundary.counts.device)
        self.boundary.all_reduce()
        self.inner_boundary.all_reduce()
        self.calibration.all_reduce()
        if self.uncalibrated is not None:
            self.uncalibrated.all_reduce()

    def to_dict(self) -> dict:
        """objects, boundary_iou, inner_boundary_iou, calibration: JSON-serialisable.

        With a temperature, calibration has it, and the numbers of the plain logits as `uncalibrated`.
        """
        calibration = self.calibration.to_dict()
        if self.uncalibrated is not None:
            calibration |= {"temperature": self.temperature, "uncalibrated": self.uncalibrated.to_dict()}
        return {
            "objects": self.objects.to_dict(),
            "boundary_iou": self.boundary.to_dict(self.classes.names),
            "inner_boundary_iou": self.inner_boundary.to_dict(self.classes.names),
            "calibration": calibration,
        }


@dataclass(frozen=True)
class StudentEvaluation:
    """matrix: pooled over all images and ranks.  per_image: (num_images, K, K) int64 counts in the set's order.

    details: pooled too, or None where none were wanted.
    """

    matrix: ConfusionMatrix
    per_image: np.ndarray
    details: DetailCounts | None = None

    def image_mious(self) -> np.ndarray:
        """(num_images,) mIoU of each image over the classes that occur or are predicted in it; NaN without pixels."""
        return np.array([mean_iou(counts) for counts in self.per_image])


@torch.inference_mode()
def predict_logits(model: nn.Module, sar: Tensor) -> Tensor:
    """(B, K, H, W) logits; sar: (B, 1, H, W) uint8 on the model's device."""
    return model(to_student(sar))


def predict_classes(model: nn.Module, sar: Tensor) -> Tensor:
    """(B, H, W) int64 class ids; sar: (B, 1, H, W) uint8 on the model's device."""
    return predict_logits(model, sar).argmax(dim=1)


def evaluate_student(
    model: nn.Module,
    shard_set: ShardSet,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world: int = 1,
    label: str = "evaluate",
    details: DetailCounts | None = None,
) -> StudentEvaluation:
    """Predict all images of a labelled set and pool the counts over the ranks.

    Rank r of `world` takes images i with i % world == r; neighbours of one size form batches of at most `batch_size`.
    details: empty counts, filled in the same pass.
    """
    num_classes = shard_set.classes.num_classes
    per_image = torch.zeros(len(shard_set), num_classes, num_classes, dtype=torch.int64, device=device)
    indices = range(rank, len(shard_set), world)
    samples = ((index, shard_set.read(index)) for index in progress(indices, len(indices), label))
    for batch in batches_of_one_size(samples, batch_size):
        logits = predict_logits(model, stack_images((sample for _, sample in batch), device))
        predictions, labels = logits.argmax(dim=1), [labels_of(sample) for _, sample in batch]
        for (index, _), prediction, label_map in zip(batch, predictions, labels):
            per_image[index] = count_pairs(prediction, torch.as_tensor(label_map), num_classes)
        if details is not None:
            details.update(logits, predictions, labels)
    sum_over_ranks(per_image)
    if details is not None:
        details.all_reduce()
    matrix = ConfusionMatrix(num_classes, device=device)
    matrix.counts += per_image.sum(dim=0)
    return StudentEvaluation(matrix, per_image.cpu().numpy(), details)


def labels_of(sample: Sample) -> np.ndarray:
    """(H, W) uint8 class ids: the label, or the argmax of the soft label; ValueError where there is neither."""
    label = hard_label(sample)
    if not label.size:
        raise ValueError(f"sample {sample.key} has neither label nor soft label; evaluate needs labelled images")
    return label


def stack_images(samples: Iterable[Sample], device: str | torch.device) -> Tensor:
    """(B, 1, H, W) uint8 on the device."""
    return torch.as_tensor(np.stack([sample.sar for sample in samples]), device=device)[:, None]


# --- intervals --------------------------------------------------------------------------------------------------------


def bootstrap_students(
    per_image: dict[str, np.ndarray], class_names: Sequence[str], num_resamples: int, seed: int
) -> dict[str, dict]:
    """For each student the intervals of its scores over images, and of its difference from the first student.

    per_image: (N, K, K) counts by student.  Returns {student: {scores: {score: interval}, difference: {to, scores} or
    None}}, JSON-serialisable; {} without students, or where num_resamples is 0.
    """
    if not num_resamples or not per_image:
        return {}
    first, names = next(iter(per_image)), [*_SCORES, *(["iou:oil"] if "oil" in class_names else [])]
    # One seed: every score of every student is taken on the same resamples.
    options = {"class_names": class_names, "num_resamples": num_resamples, "seed": seed}
    tables: dict[str, dict] = {}
    for student, counts in per_image.items():
        difference = None
        if student != first:
            gaps = {name: paired_bootstrap(counts, per_image[first], name, **options).to_dict() for name in names}
            difference = {"to": first, "scores": gaps}
        scores = {name: bootstrap(counts, name, **options).to_dict() for name in names}
        tables[student] = {"scores": scores, "difference": difference}
    return tables


# --- tables -----------------------------------------------------------------------------------------------------------


def detail_rows(tables: dict[str, dict]) -> tuple[list[str], list[list[str | float | None]]]:
    """Header and rows in percent: mIoU with its interval, mean boundary IoUs, ECE, recall of each class's objects.

    tables: by student, as they are written.
    """
    looked_for = next(iter(tables.values()))["objects"]["per_class"]
    header = ["student", "mIoU (95 %)", "boundary IoU", "inner", "ECE", *(f"{name} found" for name in looked_for)]
    rows: list[list[str | float | None]] = []
    for name, table in tables.items():
        recalls = [percent(one["recall"]) for one in table["objects"]["per_class"].values()]
        boundaries = [percent(table[kind]["mean"]) for kind in ("boundary_iou", "inner_boundary_iou")]
        rows.append([name, with_interval(table), *boundaries, percent(table["calibration"]["ece"]), *recalls])
    return header, rows


def with_interval(table: dict, score: str = "miou") -> str | None:
    """Such as "74.86 [72.10, 77.31]"; the number alone where it has no interval."""
    found = (table["bootstrap"] or {}).get("scores", {}).get(score)
    if found is None:
        return f"{100 * table['miou']:.2f}" if score == "miou" else None
    return None if found["value"] is None else f"{100 * found['value']:.2f}{_bracket(found)}"


def difference_rows(tables: dict[str, dict]) -> list[list[str | None]]:
    """Rows: the two students, score, difference with interval, and p; none without a second student."""
    rows: list[list[str | None]] = []
    for name, table in tables.items():
        difference = (table["bootstrap"] or {}).get("difference")
        for score, gap in (difference["scores"] if difference else {}).items():
            if gap["value"] is not None:
                shown = f"{100 * gap['value']:+.2f}{_bracket(gap)}"
                rows.append([f"{name} minus {difference['to']}", score_name(score), shown, _p_value(gap["p"])])
    return rows


def difference_notes(tables: dict[str, dict]) -> list[str]:
    """Sentences on the students whose means are over other classes than those of the student they are compared with."""
    notes = []
    for name, table in tables.items():
        difference = (table["bootstrap"] or {}).get("difference")
        pooled = difference["scores"]["miou"] if difference else {}
        # Evaluations of earlier versions did not write the numbers of classes.
        found = unequal_classes_notes(pooled.get("num_classes", []))
        notes += [f"{name} minus {difference['to']}: {note}" for note in found]
    return notes


def score_name(score: str) -> str:
    field, _, class_name = score.partition(":")
    name = {"miou": "mIoU", "f1": "F1", "iou": "IoU"}.get(field, field)
    return f"{name} of {class_name}" if class_name else name


def format_details(tables: dict[str, dict]) -> str:
    """The tables of details and differences as text, with the classes that are absent."""
    note = "(boundary IoU as Cheng et al. 2021 have it; inner: without the contours along the image's frame)"
    parts = [format_table(*detail_rows(tables)) + "\n" + note]
    gaps = difference_rows(tables)
    if gaps:
        parts.append("\n".join([format_table(DIFFERENCE_HEADER, gaps), *difference_notes(tables)]))
    first = next(iter(tables.values()))
    parts += bootstrap_notes(first["bootstrap"])
    if absent := first["objects"]["absent"]:
        parts.append(f"no object in the truth: {', '.join(absent)}")
    return "\n\n".join(parts)


def bootstrap_notes(tables: dict | None) -> list[str]:
    """Sentences on what the intervals of a student's scores do not show; tables: of `bootstrap_students`, or None."""
    if not tables:
        return []
    scores, notes = tables["scores"], []
    pooled = scores["miou"]
    if pooled["low"] is None:
        notes.append(f"no intervals and no p: {_why_none(pooled)}")
    else:
        notes += few_images_notes(pooled["num_images"], "the intervals are too narrow and p is too small")
    for name, one in scores.items():
        if one["value"] is None or pooled["low"] is None:
            continue
        if one["low"] is None:
            notes.append(f"no interval of {score_name(name)}: {_why_none(one)}")
        elif ":" in name and pooled["num_images"] >= FEW_IMAGES:
            consequence = f"the interval of {score_name(name)} is too narrow and its p too small"
            notes += few_images_notes(one["num_images"], consequence, "images with the class")
    if pooled["incomplete"] and pooled["low"] is not None:
        notes.append(f"{100 * pooled['incomplete']:.1f} % of the resamples lack a class and are scored over the others")
    return notes


def _why_none(interval: dict) -> str:
    found, what = interval["num_images"], "with the class" if ":" in interval["score"] else "with counted pixels"
    if found < MIN_IMAGES:
        return f"{found} image{'' if found == 1 else 's'} {what}; expected at least {MIN_IMAGES}"
    return f"{interval['num_resamples']} resamples; set evaluate.bootstrap to at least 40"


def _bracket(interval: dict) -> str:
    """With a space before it; empty where there is no interval."""
    low, high = interval["low"], interval["high"]
    return "" if low is None or high is None else f" [{100 * low:.2f}, {100 * high:.2f}]"


def _p_value(p: float | None) -> str | None:
    """Never 0: a finite number of resamples cannot show that."""
    return None if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
