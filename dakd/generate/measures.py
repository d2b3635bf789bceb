"""What the gate measures of a candidate: class areas, entropy, ENL, and how far a student agrees with the teacher.

Every measure is a function of the sample as its shard stores it, of the gate's settings and of the student's weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dakd.config import GateConfig
from dakd.data.records import hard_label
from dakd.data.sample import ClassTable, Sample
from dakd.data.transforms import to_student
from dakd.metrics.confusion import ConfusionMatrix
from dakd.metrics.speckle import equivalent_looks
from dakd.runtime.files import file_hash
from dakd.weights import load_student

_DIGITS = 6  # beyond them measures differ between devices


class Student:
    """A student of a weights file, as one who labels images.

    Raises ValueError where it knows other classes than the teacher.
    """

    def __init__(self, path: str | Path, classes: ClassTable, device: torch.device) -> None:
        self.device = device
        self._net, facts = load_student(path, device)
        if facts["classes"]["names"] != list(classes.names):
            raise ValueError(
                f"the student {path} knows the classes {', '.join(facts['classes']['names'])}, the teacher "
                f"{', '.join(classes.names)}; set generate.gate.student to a student of the same dataset"
            )

    @torch.inference_mode()
    def label(self, sar: np.ndarray) -> np.ndarray:
        """(H, W) class ids of an image (H, W) uint8. Alone in its batch, so that they depend on no other image."""
        logits = self._net(to_student(torch.tensor(sar, device=self.device)[None, None]))
        return logits[0].argmax(dim=0).cpu().numpy()


def measuring_settings(cfg: GateConfig) -> dict:
    """What of the settings changes a measure; the bounds do not."""
    return {
        "enl_class": cfg.enl_class,
        "enl_window": cfg.enl_window,
        "enl_min_windows": cfg.enl_min_windows,
        "presence_pixels": cfg.presence_pixels,
        "student": None if cfg.student is None else file_hash(cfg.student),
    }


def measure(sample: Sample, classes: ClassTable, cfg: GateConfig, student: Student | None = None) -> dict:
    """The measures of a sample with a soft label, rounded to six digits after the point.

    class_pixels: pixels by class of the likeliest one.  entropy: nats.  enl, agreement: None where not measured.
    """
    label = hard_label(sample)
    region = _region(label, classes, cfg)
    return {
        "class_pixels": np.bincount(label.ravel(), minlength=classes.num_classes).tolist(),
        "entropy": _rounded(mean_entropy(sample.soft_label)),
        "enl": _rounded(equivalent_looks(sample.sar, region, cfg.enl_window, cfg.enl_min_windows)),
        "agreement": _rounded(_agreement(student.label(sample.sar), label, classes, cfg) if student else None),
    }


def mean_entropy(logits: np.ndarray) -> float:
    """Mean over the pixels of the entropy of softmax(logits) over the classes, nats.  logits: (K, H, W)."""
    shifted = logits.astype(np.float32) - logits.max(axis=0).astype(np.float32)
    weights = np.exp(shifted)
    total = weights.sum(axis=0)
    # H = log sum exp z - sum p z, with z shifted so that the largest is 0
    return float(np.mean(np.log(total) - (weights * shifted).sum(axis=0) / total, dtype=np.float64))


def held_classes(class_pixels: np.ndarray | list[int], cfg: GateConfig) -> list[int]:
    """The ids of the classes that an image holds, by its pixels of each."""
    return [number for number, count in enumerate(class_pixels) if count >= cfg.presence_pixels]


def _region(label: np.ndarray, classes: ClassTable, cfg: GateConfig) -> np.ndarray:
    """Where ENL is measured; nowhere where the table has no such class."""
    if cfg.enl_class not in classes.names:
        return np.zeros(label.shape, bool)
    return label == classes.id_of(cfg.enl_class)


def _agreement(predicted: np.ndarray, label: np.ndarray, classes: ClassTable, cfg: GateConfig) -> float:
    """mIoU over the classes that either label holds; specks of others count as errors of these alone."""
    held = {
        number
        for one in (predicted, label)
        for number in held_classes(np.bincount(one.ravel(), minlength=classes.num_classes), cfg)
    }
    matrix = ConfusionMatrix(classes.num_classes).update(torch.as_tensor(predicted), torch.as_tensor(label))
    scores = matrix.scores(classes).per_class
    return float(np.mean([scores[classes.names[number]].iou for number in sorted(held)])) if held else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
