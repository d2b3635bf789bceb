"""Objects such as ships and slicks: how many were found, by size, and how many alarms were false.

An object is a connected component of a class in the truth, corners connecting (8-connectivity). It is found when at
least a share of its pixels, `coverage`, is predicted as its class. Coverage and not IoU decides: here a slick must be
noticed; how well its outline is drawn is measured by IoU and boundary IoU. A false alarm is a connected component of
the prediction that touches no pixel of its class in the truth (nor a pixel whose class is unknown).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dakd.data.sample import IGNORE_INDEX, ClassTable
from dakd.metrics.confusion import check_are_integers, check_ids, sum_over_ranks

COVERAGE = 0.5  # share of an object's pixels that must be predicted as its class
SIZES = (16, 64, 256, 1024)  # pixels: lower edges of all bins of sizes but the first


class ObjectCounts:
    """Objects of some classes, counted over a test set, in bins of their size in pixels.

    names: the classes whose objects are counted; those that the table lacks are kept in `unknown`.  sizes: ascending
    edges: the first bin holds objects below sizes[0] pixels, the last those of sizes[-1] and more.
    """

    def __init__(
        self,
        classes: ClassTable,
        names: Sequence[str],
        sizes: Sequence[int] = SIZES,
        coverage: float = COVERAGE,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        if not 0 < coverage <= 1:
            raise ValueError(f"coverage is {coverage}; expected the share of an object's pixels, above 0 and at most 1")
        if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1:
            raise ValueError(f"object sizes are {list(sizes)}; expected ascending pixel counts, at least one")
        self.names = tuple(name for name in names if name in classes.names)
        self.unknown = tuple(name for name in names if name not in classes.names)
        self.sizes, self.coverage, self.ignore_index = tuple(sizes), coverage, ignore_index
        self._num_classes = classes.num_classes
        self._ids = [classes.id_of(name) for name in self.names]
        num_bins = len(self.sizes) + 1
        self.total = torch.zeros(len(self.names), num_bins, dtype=torch.int64)
        self.found = torch.zeros_like(self.total)
        self.false_alarms = torch.zeros(len(self.names), dtype=torch.int64)
        self.num_images = torch.zeros(1, dtype=torch.int64)

    def update(self, prediction: np.ndarray, target: np.ndarray) -> ObjectCounts:
        """Count one image; prediction, target: (H, W) integer class ids.

        Raises ValueError for other shapes, for numbers that are no integers, and for ids beyond the classes.
        """
        if prediction.shape != target.shape or prediction.ndim != 2:
            raise ValueError(f"prediction is {prediction.shape} and target {target.shape}; give two (H, W) arrays")
        check_are_integers(prediction=prediction, target=target)
        known = np.asarray(target) != self.ignore_index
        for what, ids in (("prediction", prediction), ("target", target)):
            check_ids(torch.as_tensor(np.asarray(ids)[known].astype(np.int64)), what, self._num_classes)
        for place, class_id in enumerate(self._ids):
            truth, guess = target == class_id, prediction == class_id
            self._count_objects(place, truth, guess)
            self.false_alarms[place] += _untouched(guess, truth | (target == self.ignore_index))
        self.num_images += 1
        return self

    def all_reduce(self, device: str | torch.device = "cpu") -> ObjectCounts:
        """Sum over the ranks of the default process group; device: where the ranks' sums take place."""
        for counts in (self.total, self.found, self.false_alarms, self.num_images):
            counts.copy_(sum_over_ranks(counts.to(device)))
        return self

    def bin_names(self) -> list[str]:
        """Such as "1-15 px", "16-63 px", "64 px and more"."""
        lows = (1, *self.sizes)
        inner = [f"{low}-{high - 1} px" if high - 1 > low else f"{low} px" for low, high in zip(lows, self.sizes)]
        return [*inner, f"{self.sizes[-1]} px and more"]

    def to_dict(self) -> dict:
        """By class: the objects, the share found (None without one), the same by size, false alarms per image.

        JSON-serialisable. absent: counted classes without an object in the truth.
        """
        per_class = {name: self._class_table(place) for place, name in enumerate(self.names)}
        return {
            "coverage": self.coverage,
            "sizes": list(self.sizes),
            "num_images": int(self.num_images),
            "per_class": per_class,
            "absent": [name for name, table in per_class.items() if not table["objects"]],
            "not_in_table": list(self.unknown),
        }

    def _class_table(self, place: int) -> dict:
        total, found = self.total[place].tolist(), self.found[place].tolist()
        alarms, images = int(self.false_alarms[place]), int(self.num_images)
        by_size = [
            {"size": name, "objects": n, "found": hits, "recall": hits / n if n else None}
            for name, n, hits in zip(self.bin_names(), total, found)
        ]
        return {
            "objects": sum(total),
            "found": sum(found),
            "recall": sum(found) / sum(total) if sum(total) else None,
            "by_size": by_size,
            "false_alarms": alarms,
            "false_alarms_per_image": alarms / images if images else None,
        }

    def _count_objects(self, place: int, truth: np.ndarray, guess: np.ndarray) -> None:
        labels, count = label_components(truth)
        pixels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        covered = np.bincount(labels[guess], minlength=count + 1)[1:]
        bins = np.digitize(pixels, self.sizes)
        num_bins = len(self.sizes) + 1
        self.total[place] += torch.as_tensor(np.bincount(bins, minlength=num_bins))
        hits = bins[covered >= self.coverage * pixels]
        self.found[place] += torch.as_tensor(np.bincount(hits, minlength=num_bins))


def label_components(mask: np.ndarray | Tensor) -> tuple[np.ndarray, int]:
    """(H, W) int64 with the components of a boolean mask numbered 1 .. n, 0 elsewhere; and n. Corners connect.

    Runs of each row are joined with those that they touch in the row above until no two differ.
    """
    mask = np.asarray(mask, dtype=bool)
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    (rows, starts), ends = np.nonzero(steps == 1), np.nonzero(steps == -1)[1]
    stride = mask.shape[1] + 2  # so that runs of one row never touch those of the next in the searches below
    above = (rows - 1) * stride
    first = np.searchsorted(rows * stride + ends, above + starts, side="left")
    last = np.searchsorted(rows * stride + starts, above + ends, side="right")
    touching = np.maximum(last - first, 0)
    lower = np.repeat(np.arange(len(rows)), touching)
    upper = np.arange(len(lower)) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
    _, numbers = np.unique(_roots(len(rows), lower, upper), return_inverse=True)
    labels = np.zeros(mask.shape, np.int64)
    labels[mask] = np.repeat(numbers + 1, ends - starts)
    return labels, int(numbers.max()) + 1 if len(numbers) else 0


def _roots(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(count,) the smallest member of each node's component; left, right: the ends of the edges."""
    roots = np.arange(count)
    while True:
        one, other = roots[left], roots[right]
        if np.array_equal(one, other):
            return roots
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(roots, further := roots[roots]):
            roots = further


def _untouched(guess: np.ndarray, truth: np.ndarray) -> int:
    """How many components of `guess` share no pixel with `truth`."""
    labels, count = label_components(guess)
    return count - len(np.unique(labels[guess & truth]))
