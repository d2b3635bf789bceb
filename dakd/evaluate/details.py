"""What is told of a student beside its pooled scores: objects, boundary IoU, calibration; and how sure it all is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dakd.config import EvaluateConfig
from dakd.data.sample import ClassTable
from dakd.metrics import BoundaryCounts, CalibrationCounts, ObjectCounts, bootstrap, format_table, paired_bootstrap

# Scores that get intervals; IoU of oil where the table has it.
_SCORES = ("miou", "f1")


@dataclass(frozen=True)
class Details:
    """Counts that are filled while a student predicts, and pooled over the ranks as its confusion matrix is."""

    classes: ClassTable
    objects: ObjectCounts
    boundary: BoundaryCounts
    calibration: CalibrationCounts

    @classmethod
    def empty(cls, cfg: EvaluateConfig, classes: ClassTable, device: str | torch.device = "cpu") -> Details:
        return cls(
            classes,
            ObjectCounts(classes, cfg.object_classes, cfg.object_sizes, cfg.object_coverage),
            BoundaryCounts(classes.num_classes, cfg.boundary_width, device=device),
            CalibrationCounts(cfg.calibration_bins, device=device),
        )

    def update(self, logits: Tensor, prediction: Tensor, labels: Sequence[np.ndarray]) -> None:
        """Count a batch: logits (B, K, H, W), their argmax (B, H, W), and B labels (H, W)."""
        target = torch.as_tensor(np.stack(labels), device=logits.device)
        self.boundary.update(prediction, target)
        self.calibration.update(logits.float().softmax(dim=1), target)
        for one, label in zip(prediction.cpu().numpy(), labels):
            self.objects.update(one, label)

    def all_reduce(self) -> None:
        self.objects.all_reduce(self.boundary.counts.device)
        self.boundary.all_reduce()
        self.calibration.all_reduce()

    def to_dict(self) -> dict:
        """objects, boundary_iou, calibration: JSON-serialisable."""
        return {
            "objects": self.objects.to_dict(),
            "boundary_iou": self.boundary.to_dict(self.classes.names),
            "calibration": self.calibration.to_dict(),
        }


def intervals(per_image: dict[str, np.ndarray], class_names: Sequence[str], num_resamples: int, seed: int) -> dict:
    """By student the bootstrap over images: its scores' intervals, and its difference to the first student.

    per_image: (N, K, K) counts by student.  Returns {student: {scores: {score: interval}, difference: {to, scores} or
    None}}, JSON-serialisable; {} without students, or where num_resamples is 0.
    """
    if not num_resamples or not per_image:
        return {}
    first, names = next(iter(per_image)), [*_SCORES, *(["iou:oil"] if "oil" in class_names else [])]
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
    """Header and rows in percent: mIoU with its interval, mean boundary IoU, ECE, recall of each class's objects.

    tables: by student, as they are written.
    """
    looked_for = next(iter(tables.values()))["objects"]["per_class"]
    header = ["student", "mIoU (95 %)", "boundary IoU", "ECE", *(f"{name} found" for name in looked_for)]
    rows: list[list[str | float | None]] = []
    for name, table in tables.items():
        recalls = [_percent(one["recall"]) for one in table["objects"]["per_class"].values()]
        boundary, ece = _percent(table["boundary_iou"]["mean"]), _percent(table["calibration"]["ece"])
        rows.append([name, with_interval(table), boundary, ece, *recalls])
    return header, rows


def with_interval(table: dict, score: str = "miou") -> str | None:
    """Such as "74.86 [72.10, 77.31]"; the mIoU alone where no interval was made."""
    found = (table.get("bootstrap") or {}).get("scores", {}).get(score)
    if found is None:
        return f"{100 * table['miou']:.2f}" if score == "miou" else None
    return None if found["value"] is None else f"{100 * found['value']:.2f} {_bracket(found)}"


def difference_rows(tables: dict[str, dict]) -> list[list[str | float]]:
    """Rows of who minus whom, score, difference with interval, and p; none without a second student."""
    rows: list[list[str | float]] = []
    for name, table in tables.items():
        difference = (table.get("bootstrap") or {}).get("difference")
        for score, gap in (difference["scores"] if difference else {}).items():
            if gap["value"] is not None:
                shown = f"{100 * gap['value']:+.2f} {_bracket(gap)}"
                rows.append([f"{name} minus {difference['to']}", score_name(score), shown, f"{gap['p']:.3f}"])
    return rows


DIFFERENCE_HEADER = ("difference", "score", "points (95 %)", "p")


def score_name(score: str) -> str:
    field, _, class_name = score.partition(":")
    name = {"miou": "mIoU", "f1": "F1", "iou": "IoU"}.get(field, field)
    return f"{name} of {class_name}" if class_name else name


def format_details(tables: dict[str, dict]) -> str:
    """The compact table beside the pooled scores, as text, with the names of what is absent."""
    parts = [format_table(*detail_rows(tables))]
    gaps = difference_rows(tables)
    if gaps:
        parts.append(format_table(DIFFERENCE_HEADER, gaps))
    first = next(iter(tables.values()))
    if first["bootstrap"] and (share := first["bootstrap"]["scores"]["miou"]["incomplete"]):
        parts.append(f"{100 * share:.1f} % of the resamples lack a class and are scored over the others")
    if absent := first["objects"]["absent"]:
        parts.append(f"no object in the truth: {', '.join(absent)}")
    return "\n\n".join(parts)


def _bracket(interval: dict) -> str:
    return f"[{100 * interval['low']:.2f}, {100 * interval['high']:.2f}]"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
