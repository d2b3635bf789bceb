"""The objects of a label: connected components of each class, with boxes; a detector is trained on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Objects:
    """Of one image. boxes: (n, 4) float32, x0 y0 x1 y1 in pixels, the end excluded.  classes: (n,) int64 ids.

    places: (H, W) int32, i + 1 on the pixels of object i, 0 elsewhere.
    """

    boxes: np.ndarray
    classes: np.ndarray
    places: np.ndarray


def objects_of(label: np.ndarray, num_classes: int, min_pixels: int = 1, max_objects: int | None = None) -> Objects:
    """The components of classes 1 to num_classes - 1 of a label (H, W) that have at least `min_pixels` pixels.

    Class 0 is the background. Pixels of other ids (the ignored one) belong to nothing. Of more than `max_objects` the
    largest are taken. Objects are in the order of classes, and within a class in reading order.
    """
    places, sizes, classes = np.zeros(label.shape, np.int32), [], []
    for class_id in range(1, num_classes):
        components, count = connected_components(label == class_id)
        places[components > 0] = components[components > 0] + len(sizes)
        sizes += np.bincount(components.ravel(), minlength=count + 1)[1:].tolist()
        classes += [class_id] * count
    size = np.array(sizes, np.int64)
    largest = np.argsort(-size, kind="stable")[:max_objects]
    kept = np.sort(largest[size[largest] >= min_pixels])
    renumbered = np.zeros(len(size) + 1, np.int32)
    renumbered[kept + 1] = np.arange(1, len(kept) + 1)
    places = renumbered[places]
    return Objects(_boxes(places, len(kept)), np.array(classes, np.int64)[kept], places)


def _boxes(places: np.ndarray, count: int) -> np.ndarray:
    rows, columns = np.nonzero(places)
    owner = places[rows, columns] - 1
    boxes = np.empty((count, 4), np.float32)
    for edge, reduce, values, start in (
        (0, np.minimum, columns, np.inf),
        (1, np.minimum, rows, np.inf),
        (2, np.maximum, columns + 1, 0),
        (3, np.maximum, rows + 1, 0),
    ):
        boxes[:, edge] = start
        reduce.at(boxes[:, edge], owner, values.astype(np.float32))
    return boxes


def connected_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """(H, W) int32: 0 outside of the mask, else a component's number from 1 in reading order; and how many there are.

    Pixels that touch at an edge or a corner belong together. Works on runs of pixels within a row, which are few.
    """
    height, width = mask.shape
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]  # the first pixel after the run
    first_of_row = np.searchsorted(rows, np.arange(height + 1))
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    start_of, end_of = starts.tolist(), ends.tolist()
    for row in range(1, height):
        above, run = int(first_of_row[row - 1]), int(first_of_row[row])
        last_above, last = run, int(first_of_row[row + 1])
        while above < last_above and run < last:
            # An end is excluded, so that runs which meet at a corner have one's end at the other's start.
            if start_of[run] <= end_of[above] and start_of[above] <= end_of[run]:
                a, b = root(above), root(run)
                parent[max(a, b)] = min(a, b)
            if end_of[above] < end_of[run]:
                above += 1
            else:
                run += 1
    roots = np.array([root(run) for run in range(len(parent))], np.int64)
    _, numbers = np.unique(roots, return_inverse=True)
    components = np.zeros(height * width, np.int32)
    lengths = ends - starts
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    components[np.repeat(rows * width + starts, lengths) + offsets] = np.repeat(numbers + 1, lengths)
    return components.reshape(height, width), int(numbers.max(initial=-1)) + 1
