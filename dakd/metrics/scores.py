"""From a confusion matrix to the numbers of the paper's tables.

Per class, one against the rest:

    IoU = TP/(TP+FP+FN)    P = TP/(TP+FP)    R = TP/(TP+FN)    F1 = 2TP/(2TP+FP+FN)    A = (TP+TN)/N

mIoU, P, R, F1 and A are plain means over the classes: F1 is the mean of the classes' F1, and A the mean one-vs-rest
accuracy, not the pixel accuracy. The rows of the paper's tables obey these identities.

All counts are pooled first. A mean over images of each image's own mIoU, such as torchmetrics' MeanIoU, is another
number: there a ship missed in a small image weighs as much as a slick, and an image with only sea scores 1. The two
cannot be compared; torchmetrics' JaccardIndex (macro) pools as this module does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class ClassScores:
    """Fractions of one class against the rest; support: its true pixels.

    A class that is predicted but never occurs has recall 0, one that occurs but is never predicted precision 0.
    """

    iou: float
    precision: float
    recall: float
    f1: float
    accuracy: float
    support: int


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of one test set. Means run over the classes that occur or are predicted; the others are in `absent`."""

    class_names: tuple[str, ...]  # all, in the order of the ids
    per_class: dict[str, ClassScores]  # without the absent ones
    absent: tuple[str, ...]
    miou: float
    f1: float
    accuracy: float  # mean one-vs-rest: A in the tables
    recall: float
    precision: float
    pixel_accuracy: float
    num_pixels: int
    counts: tuple[tuple[int, ...], ...]  # rows true, columns predicted

    @property
    def shares(self) -> dict[str, float]:
        """Each class's fraction of the counted pixels."""
        return {name: sum(row) / self.num_pixels for name, row in zip(self.class_names, self.counts)}

    @property
    def has_oil_convention(self) -> bool:
        """Whether there are two classes, a predicted or occurring "oil" among them."""
        return len(self.class_names) == 2 and "oil" in self.per_class

    def oil_convention(self) -> dict[str, float]:
        """The other convention for two classes: P, R and F1 of oil alone, with the mIoU of both classes.

        The rows of CBD-Net (Zhu et al. 2022) on SOS follow it; they do not compare with the class means of other rows.
        Raises ValueError where there are other than two classes, or oil neither occurs nor is predicted.
        """
        if not self.has_oil_convention:
            found = ", ".join(self.class_names)
            raise ValueError(
                f"the one-class convention needs two classes, one of them oil, present or predicted; found {found}"
            )
        oil = self.per_class["oil"]
        return {
            "miou": self.miou,
            "f1": oil.f1,
            "accuracy": oil.accuracy,
            "recall": oil.recall,
            "precision": oil.precision,
        }

    def to_dict(self) -> dict:
        """JSON-serialisable; fractions, not percent."""
        table = asdict(self) | {"shares": self.shares, "counts": [list(row) for row in self.counts]}
        table |= {"class_names": list(self.class_names), "absent": list(self.absent)}
        if self.has_oil_convention:
            table["oil_convention"] = self.oil_convention()
        return table


def score(counts: np.ndarray, class_names: tuple[str, ...]) -> SegmentationScores:
    """Scores of a confusion matrix.

    counts: (K, K) non-negative integers, rows the true class, columns the predicted one.  class_names: K names.
    Raises ValueError for another shape, for numbers that are no counts, for a name that two classes share, and for a
    matrix without a single pixel.
    """
    counts = np.asarray(counts)
    if counts.dtype.kind not in "biuf" or not (counts >= 0).all() or (counts % 1).any():
        raise ValueError(
            f"counts hold {counts.dtype} that are negative or no whole numbers; expected numbers of pixels: give the "
            "matrix before it is normalised"
        )
    counts = counts.astype(np.int64)
    num_classes = len(class_names)
    if counts.shape != (num_classes, num_classes):
        raise ValueError(f"counts have shape {counts.shape} for {num_classes} classes; expected {(num_classes,) * 2}")
    if len(set(class_names)) < num_classes:
        raise ValueError(f"class_names are {', '.join(class_names)}; expected another one for each class: rename one")
    num_pixels = int(counts.sum())
    if num_pixels == 0:
        raise ValueError(
            "no pixel was counted, so that there are no scores; give images with labels other than unknown (255)"
        )
    per_class = {
        name: _class_scores(counts, index, num_pixels)
        for index, name in enumerate(class_names)
        if counts[index].sum() + counts[:, index].sum() > 0
    }
    return SegmentationScores(
        class_names=tuple(class_names),
        per_class=per_class,
        absent=tuple(name for name in class_names if name not in per_class),
        miou=_mean(per_class, "iou"),
        f1=_mean(per_class, "f1"),
        accuracy=_mean(per_class, "accuracy"),
        recall=_mean(per_class, "recall"),
        precision=_mean(per_class, "precision"),
        pixel_accuracy=int(np.trace(counts)) / num_pixels,
        num_pixels=num_pixels,
        counts=tuple(tuple(int(n) for n in row) for row in counts),
    )


# Means over the classes, then of all pixels; of one class they are `iou:NAME` and the like.
POOLED_SCORES = ("miou", "f1", "accuracy", "recall", "precision", "pixel_accuracy")
_OF_ONE_CLASS = ("iou", "f1", "accuracy", "recall", "precision")


def pooled_score(counts: np.ndarray, name: str, class_names: Sequence[str] | None = None) -> np.ndarray:
    """One score of many matrices at once, each as `score` gives it; NaN where a matrix is empty or lacks the class.

    counts: (..., K, K), rows the true class.  name: one of POOLED_SCORES, or iou, f1, accuracy, recall or precision of
    a class: "iou:oil", which needs class_names.  Returns (...) float64.
    """
    counts = np.asarray(counts, dtype=np.float64)
    field, _, class_name = name.partition(":")
    if name not in POOLED_SCORES and not (class_name and field in _OF_ONE_CLASS):
        raise ValueError(f"no score is called {name!r}; expected {', '.join(POOLED_SCORES)}, or iou:NAME of a class")
    if class_name and class_name not in (class_names or ()):
        raise ValueError(
            f"no class is called {class_name!r}; the names given are {', '.join(class_names or ('none',))}"
        )
    if name == "pixel_accuracy":
        return _divide(np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1)))
    values = _class_values("iou" if name == "miou" else field, counts)
    is_there = counts.sum(axis=-1) + counts.sum(axis=-2) > 0
    if class_name:
        place = list(class_names).index(class_name)
        return np.where(is_there[..., place], values[..., place], np.nan)
    return _divide(np.where(is_there, values, 0).sum(axis=-1), is_there.sum(axis=-1))


def _class_values(field: str, counts: np.ndarray) -> np.ndarray:
    """(..., K) float64: one of _OF_ONE_CLASS of every class; NaN or 0 for one that is absent."""
    hit, true, guessed = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)
    wrong = true + guessed - 2 * hit
    if field == "iou":
        return _divide(hit, hit + wrong)
    if field == "f1":
        return _divide(2 * hit, 2 * hit + wrong)
    if field == "accuracy":
        total = counts.sum(axis=(-2, -1))[..., None]
        return _divide(total - wrong, total)
    return np.nan_to_num(_divide(hit, guessed if field == "precision" else true))


def mean_iou(counts: np.ndarray) -> float:
    """mIoU of one (K, K) matrix over the classes that occur or are predicted; NaN where nothing was counted."""
    if counts.sum() == 0:
        return float("nan")
    return score(counts, tuple(str(index) for index in range(len(counts)))).miou


def one_class_note(who: str, counts: np.ndarray, class_names: Sequence[str], where: str) -> str | None:
    """A sentence on a student that predicts one class for every counted pixel, where the truth holds others; else None.

    who, where: the student, and the images, as in "27 images".  counts: (K, K), rows the true class.
    """
    (predicted,), (true,) = (np.nonzero(np.asarray(counts).sum(axis=axis)) for axis in (0, 1))
    others = [class_names[one] for one in true if one not in predicted]
    if len(predicted) != 1 or not others:
        return None
    return (
        f"{who} predicts {class_names[predicted[0]]} for every pixel of {where}, though {', '.join(others)} "
        f"{'occurs' if len(others) == 1 else 'occur'} there; its scores rank nothing: train longer, or weigh the "
        "classes (train_saross.loss.class_weights)"
    )


def _class_scores(counts: np.ndarray, index: int, num_pixels: int) -> ClassScores:
    true_positive = int(counts[index, index])
    false_positive = int(counts[:, index].sum()) - true_positive
    false_negative = int(counts[index].sum()) - true_positive
    wrong = false_positive + false_negative
    return ClassScores(
        iou=true_positive / (true_positive + wrong),
        precision=_ratio(true_positive, true_positive + false_positive),
        recall=_ratio(true_positive, true_positive + false_negative),
        f1=2 * true_positive / (2 * true_positive + wrong),
        accuracy=(num_pixels - wrong) / num_pixels,
        support=true_positive + false_negative,
    )


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(per_class: dict[str, ClassScores], field: str) -> float:
    return float(np.mean([getattr(scores, field) for scores in per_class.values()]))
