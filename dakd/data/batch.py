"""The tensors of a batch in one block of memory, which may be one that a reader process shares with the training.

A block is filled row by row: what is read, cropped and flipped is copied once, to its place. Shared blocks serve again
and again: a new one for every batch would cost its reader more time in page faults than all the reading does.
"""

from __future__ import annotations

import math
import mmap

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes
_Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class BatchBuilder:
    """The images, labels and soft labels of `num_rows` samples, of which `num_soft` have soft labels.

    The block is laid out when the first sample comes: it tells what soft labels are stored as.
    block: (N,) uint8 to be used, with N as of `most_bytes`; None takes memory of its own.
    """

    def __init__(
        self, num_rows: int, num_soft: int, crop_size: tuple[int, int], has_labels: bool, block: Tensor | None = None
    ) -> None:
        self.num_rows, self.num_soft, self.crop_size, self.has_labels = num_rows, num_soft, crop_size, has_labels
        self._block = block
        self._layout: _Layout = {}
        self._arrays: dict[str, np.ndarray] = {}

    def write(
        self,
        row: int,
        image: np.ndarray,
        label: np.ndarray | None,
        soft: np.ndarray | None = None,
        soft_row: int = -1,
        corner: tuple[int, int] = (0, 0),
    ) -> None:
        """A sample, or the tile of one whose upper left pixel is `corner`, to its place.

        image, label: (h, w) uint8.  soft: (K, h, w). The first one written has one if any has.
        """
        if not self._layout:
            self._lay_out(soft)
        (top, left), (h, w) = corner, image.shape
        there = (..., slice(top, top + h), slice(left, left + w))
        self._arrays["image"][row][there] = image
        if self.has_labels:
            self._arrays["label"][row][there] = label
        if soft is not None:
            self._arrays["teacher"][soft_row][there] = soft

    def finish(self, **numbers: list[int] | list[bool]) -> dict:
        """The packed batch, with further tensors of one number a row: int64, or bool."""
        for name, values in numbers.items():
            self._arrays[name][...] = values
        return {"block": self._block, "layout": self._layout}

    def _lay_out(self, soft: np.ndarray | None) -> None:
        rows, size = self.num_rows, self.crop_size
        self._layout = {"positions": (torch.int64, (rows,)), "teacher_row": (torch.int64, (rows,)),
                        "is_synthetic": (torch.bool, (rows,)), "image": (torch.uint8, (rows, 1, *size))}  # fmt: skip
        if self.has_labels:
            self._layout["label"] = (torch.uint8, (rows, *size))
        if self.num_soft:
            dtype = torch.from_numpy(np.empty(0, soft.dtype)).dtype
            self._layout["teacher"] = (dtype, (self.num_soft, len(soft), *size))
        num_bytes = _num_bytes(self._layout)
        self._block = torch.empty(num_bytes, dtype=torch.uint8) if self._block is None else self._block[:num_bytes]
        self._arrays = {name: value.numpy() for name, value in _views(self._block, self._layout).items()}


def most_bytes(num_rows: int, crop_size: tuple[int, int], num_classes: int) -> int:
    """The size of a block that holds any batch: every sample with a label and a soft label in half precision."""
    pixels = num_rows * math.prod(crop_size)
    sizes = (8 * num_rows, 8 * num_rows, num_rows, pixels, pixels, 2 * num_classes * pixels)
    return sum(_aligned(size) for size in sizes)


def shared_blocks(count: int, num_bytes: int) -> list[Tensor]:
    """(num_bytes,) uint8 each, which this process shares with the children that it forks from now on."""
    # Anonymous: nothing to clean up after a kill, and no limit of /dev/shm.
    return [torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8) for _ in range(count)]


def unpack(batch: dict) -> dict:
    """The batch with its tensors, views of the block, in place of the block; absent ones are None."""
    views = _views(batch["block"], batch["layout"])
    rest = {name: value for name, value in batch.items() if name not in ("block", "layout")}
    return {"label": None, "teacher": None, "teacher_range": None} | views | rest


def _views(block: Tensor, layout: _Layout) -> dict[str, Tensor]:
    views, start = {}, 0
    for name, (dtype, shape) in layout.items():
        length = math.prod(shape) * dtype.itemsize
        views[name] = block[start : start + length].view(dtype).view(shape)
        start += _aligned(length)
    return views


def _num_bytes(layout: _Layout) -> int:
    return sum(_aligned(math.prod(shape) * dtype.itemsize) for dtype, shape in layout.values())


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT
