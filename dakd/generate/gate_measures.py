"""The gate's measures of a candidate: class areas, entropy, ENL, and how far a student agrees with the teacher.

Every measure is a function of the sample as its shard stores it, of the gate's settings and of the student's weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dakd.config import GateConfig
from dakd.data.records import hard_label
from dakd.data.sample import ClassTable, Sample
from dakd.data.transforms import to_student
from dakd.metrics.confusion import ConfusionMatrix
from dakd.metrics.speckle import LOOKS_MIN_WINDOWS, LOOKS_WINDOW, equivalent_looks
from dakd.runtime.tensor_files import weights_hash
from dakd.weights import load_student_of

PRESENCE_PIXELS = 8  # an image with fewer pixels of a class does not count as holding it
_DIGITS = 6  # after the point; further ones differ between devices


class GateMeasures(NamedTuple):
    """The measures of a candidate.

    class_pixels: pixels of each class, by the likeliest one.  entropy: nats.  enl, agreement: None where not measured.
    """

    class_pixels: list[int]
    entropy: float
    enl: float | None
    agreement: float | None


class Labeller:
    """A student from its weights file, which labels images.

    Raises ValueError where its classes are not the teacher's.
    """

    def __init__(self, path: str | Path, classes: ClassTable, device: torch.device) -> None:
        self.device = device
        remedy = "set generate.gate.student to a student of the same dataset"
        self._net = load_student_of(path, classes, device, "teacher", remedy)[0]

    @torch.inference_mode()
    def label(self, sar: np.ndarray) -> np.ndarray:
        """(H, W) class ids of an image (H, W) uint8. Alone in its batch, so that they depend on no other image."""
        logits = self._net(to_student(torch.tensor(sar, device=self.device)[None, None]))
        return logits[0].argmax(dim=0).cpu().numpy()


def measuring_settings(cfg: GateConfig, student: Path | None) -> dict:
    """The settings and constants that change a measure; the bounds do not.  ValueError where the student is absent."""
    if student is not None and not student.is_file():
        raise ValueError(f"generate.gate.student is {cfg.student}, which is no file; give a student.safetensors")
    return {
        "enl_class": cfg.enl_class,
        "enl_window": LOOKS_WINDOW,
        "enl_min_windows": LOOKS_MIN_WINDOWS,
        "presence_pixels": PRESENCE_PIXELS,
        "student": None if student is None else weights_hash(student),
    }


def measure(sample: Sample, classes: ClassTable, cfg: GateConfig, student: Labeller | None = None) -> GateMeasures:
    """The measures of a sample with a soft label, rounded to six digits after the point."""
    label = hard_label(sample)
    is_enl_class = np.zeros(label.shape, bool)  # a table without that class has no ENL
    if cfg.enl_class in classes.names:
        is_enl_class = label == classes.id_of(cfg.enl_class)
    return GateMeasures(
        class_pixels=np.bincount(label.ravel(), minlength=classes.num_classes).tolist(),
        entropy=round(mean_entropy(sample.soft_label), _DIGITS),
        enl=_rounded(equivalent_looks(sample.sar, is_enl_class, LOOKS_WINDOW, LOOKS_MIN_WINDOWS)),
        agreement=_rounded(_agreement(student.label(sample.sar), label, classes) if student else None),
    )


def mean_entropy(logits: np.ndarray) -> float:
    """Mean over the pixels of the entropy of softmax(logits) over the classes, nats.  logits: (K, H, W)."""
    shifted = logits.astype(np.float32) - logits.max(axis=0).astype(np.float32)
    weights = np.exp(shifted)
    total = weights.sum(axis=0)
    # H = log sum exp z - sum p z, with z shifted so that the largest is 0
    return float(np.mean(np.log(total) - (weights * shifted).sum(axis=0) / total, dtype=np.float64))


def held_classes(class_pixels: np.ndarray | list[int]) -> list[int]:
    """The ids of the classes that an image holds, by its pixels of each."""
    return [number for number, count in enumerate(class_pixels) if count >= PRESENCE_PIXELS]


def _agreement(predicted: np.ndarray, label: np.ndarray, classes: ClassTable) -> float:
    """mIoU over the classes that either label holds; specks of other classes count only as errors of these."""
    held = {
        number
        for one in (predicted, label)
        for number in held_classes(np.bincount(one.ravel(), minlength=classes.num_classes))
    }
    matrix = ConfusionMatrix(classes.num_classes).update(torch.as_tensor(predicted), torch.as_tensor(label))
    scores = matrix.scores(classes).per_class
    return float(np.mean([scores[classes.names[number]].iou for number in sorted(held)])) if held else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
