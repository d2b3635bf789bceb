"""A student's net as a function of a batch of tiles, the same numbers whatever runs beside it.

A convolution's sums may depend on the number of threads and of images that it is given. So each batch has the same
number of tiles, and on a CPU one thread, and the batches are computed side by side.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from dakd.data.sample import ClassTable
from dakd.data.transforms import to_student
from dakd.models.student import at_scales, checked_logits, in_eval_mode
from dakd.scene.grid import Grid

_PIXELS_A_BATCH = {"cpu": 1 << 18, "cuda": 1 << 21}  # at most


class SceneStudent(Protocol):
    """What a scene needs of a student; `dakd.Student` has it."""

    net: nn.Module
    classes: ClassTable
    device: torch.device
    facts: Mapping[str, Any]
    scales: tuple[float, ...]

    @property
    def temperature(self) -> float: ...


@dataclass(frozen=True)
class Batch:
    """Tiles of one row of tiles: the columns of those that count, and the greys of all slots (B, T, T) uint8."""

    row: int
    columns: tuple[int, ...]
    tiles: np.ndarray


class TileNet:
    """tiles (B, T, T) uint8 -> logits (B, K, T, T) float32 times the weights of their places; B = `batch`.

    The tiles of a row share as few batches as memory allows, evenly.
    """

    def __init__(self, student: SceneStudent, grid: Grid) -> None:
        self._student, self._net = student, at_scales(student.net, student.scales)
        self.num_classes = student.classes.num_classes
        kind = "cpu" if student.device.type == "cpu" else "cuda"
        most = max(1, _PIXELS_A_BATCH[kind] // grid.tile**2)
        self.batch = -(-grid.num_columns // -(-grid.num_columns // most))
        self._weights = np.outer(grid.weights(), grid.weights())
        self.num_workers = usable_cores() if kind == "cpu" else 1
        self._lock, self._is_warm = threading.Lock(), False

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """Raises ValueError where the net gives anything but finite logits of these classes."""
        if not len(tiles):
            return np.zeros((0, self.num_classes, *tiles.shape[1:]), np.float32)
        if self._is_warm:
            return self._logits(tiles)
        with self._lock:  # the first batch chooses backends and reports them, once
            logits, self._is_warm = self._logits(tiles), True
        return logits

    @torch.inference_mode()
    def _logits(self, tiles: np.ndarray) -> np.ndarray:
        normalised = to_student(torch.from_numpy(tiles[:, None]).to(self._student.device))
        logits = checked_logits(self._net(normalised), normalised).float().cpu().numpy()
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the net gives {logits.shape[1]} classes; the table has {self.num_classes}; give the table of its "
                "training set"
            )
        if not np.isfinite(logits).all():
            raise ValueError(
                f"the net gives logits that are NaN or infinite at {np.count_nonzero(~np.isfinite(logits))} of "
                f"{logits.size} places; expected finite: take weights of an earlier step"
            )
        weighted: np.ndarray = np.multiply(logits, self._weights, out=logits)
        return weighted

    @contextmanager
    def running(self) -> Iterator[Callable[[Iterable[Batch]], Iterator[tuple[Batch, np.ndarray]]]]:
        """Yields a function that gives batches with their logits, in order, several computed at once."""
        num_threads = torch.get_num_threads()
        start = (torch.set_num_threads, (1,)) if self._student.device.type == "cpu" else (None, ())
        with in_eval_mode(self._student.net):
            pool = ThreadPoolExecutor(self.num_workers, "tiles", *start)
            try:
                yield lambda batches: _in_order(pool, self, batches, 2 * self.num_workers)
            finally:
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(num_threads)


def _in_order(
    pool: ThreadPoolExecutor, net: TileNet, batches: Iterable[Batch], ahead: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    waiting: deque[tuple[Batch, Future[np.ndarray]]] = deque()
    for batch in batches:
        waiting.append((batch, pool.submit(net, batch.tiles)))
        if len(waiting) > ahead:
            done, logits = waiting.popleft()
            yield done, logits.result()
    while waiting:
        done, logits = waiting.popleft()
        yield done, logits.result()


def usable_cores() -> int:
    """Cores that this process may use, by its affinity, or as OMP_NUM_THREADS says."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdecimal() and int(stated) else len(os.sched_getaffinity(0))
