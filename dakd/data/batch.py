"""`Batch`: the samples of a training step as tensors, and the one block of memory in which they travel.

A block is filled row by row: each sample is read, cropped, flipped and then copied once, to its place. A reader process
fills blocks that it shares with the training, each again and again: a new one for every batch would cost the reader
more time in page faults than all the reading does.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dakd.data.sample import Sample
from dakd.data.soft_labels import common_range

# Tensors of any dtype can be views of the block where each starts at a multiple of a cache line.
_ALIGNMENT = 64  # bytes
_Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class Batch(NamedTuple):
    """B samples, of which Bs have a soft label of K classes: what a loader yields and a loss module takes.

    image: (B, 1, h, w) uint8 grey values.
    positions: (B,) int64, the global position of each sample.
    label: (B, h, w) uint8 class ids, IGNORE_INDEX where none is known; None where the dataset leaves labels out.
    teacher: (Bs, K, h, w) float16 logits or uint8 codes; None where no sample has a soft label.
    teacher_row: (B,) int64, the row of each sample in `teacher`, -1 for a sample without a soft label.
    teacher_range: the nats that code 255 stands for, one for the whole batch; None for logits.
    is_synthetic: (B,) bool.
    keys: the B names; that of a mosaic joins those of its tiles with "+".
    skipped: a line for each bad record that was skipped for this batch, with its name.
    host_positions: `positions` on the CPU, where some random numbers are drawn; `to` sets it.
    host_is_synthetic: `is_synthetic` on the CPU, in the same way.

    A loader sets all fields; only `label`, `teacher` and `teacher_range` may then be None. It is a tuple because
    DeepSpeed's hooks and torch.compile find tensors in tuples.
    """

    image: Tensor
    positions: Tensor
    label: Tensor | None = None
    teacher: Tensor | None = None
    teacher_row: Tensor | None = None
    teacher_range: float | None = None
    is_synthetic: Tensor | None = None
    keys: Sequence[str] = ()
    skipped: Sequence[str] = ()
    host_positions: Tensor | None = None
    host_is_synthetic: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, from the CPU."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self._asdict().items()
                 if torch.is_tensor(value)}  # fmt: skip
        on_host = {"host_positions": self.positions, "host_is_synthetic": self.is_synthetic}
        return self._replace(**moved | on_host)


@dataclass(frozen=True)
class PackedBatch:
    """A batch whose tensors lie in one block of memory, on its way from a reader process.

    block: (N,) uint8; None where the layout is of a block that the receiver holds.  The others: see `Batch`.
    """

    block: Tensor | None
    layout: _Layout
    keys: list[str]
    skipped: list[str]
    teacher_range: float | None

    @property
    def num_bytes(self) -> int:
        return _num_bytes(self.layout)

    def unpack(self, block: Tensor | None = None) -> Batch:
        """The batch, its tensors views of its own block or of `block`, a copy of it."""
        views = _views(self.block if block is None else block, self.layout)
        return Batch(**views, teacher_range=self.teacher_range, keys=self.keys, skipped=self.skipped)


class BatchBuilder:
    """Packs samples, or the tiles of mosaics, as the batch of `positions`.

    has_labels: whether the batch has labels.  is_synthetic, has_soft: a flag for each position; None: no.
    block: (N,) uint8 to be used, with N as of `most_bytes`; None takes memory of its own.

    The block is laid out when the first sample comes, which shows the form of the soft labels: it must have one if any
    sample has.
    """

    def __init__(
        self,
        positions: Sequence[int],
        crop_size: tuple[int, int],
        has_labels: bool,
        *,
        is_synthetic: Sequence[bool] | None = None,
        has_soft: Sequence[bool] | None = None,
        block: Tensor | None = None,
    ) -> None:
        no = [False] * len(positions)
        self._positions, self._crop_size, self._has_labels = positions, crop_size, has_labels
        self._is_synthetic, self._has_soft = is_synthetic or no, has_soft or no
        self._soft_rows = [count - 1 if soft else -1 for soft, count in zip(self._has_soft, accumulate(self._has_soft))]
        self._block = block
        self._layout: _Layout = {}
        self._arrays: dict[str, np.ndarray] = {}
        # By tile: tiles are written in the order of the disk, and named in that of the mosaic.
        self._keys: list[dict[int, str]] = [{} for _ in positions]
        self._ranges: set[float | None] = set()

    def write(self, row: int, sample: Sample, tile: int = 0, corner: tuple[int, int] = (0, 0)) -> None:
        """Copy a sample to its row, or, for a tile of a mosaic, to the pixels from `corner` (top, left) on.

        Raises ValueError for a soft label of another range than those that are there.
        """
        if not self._layout:
            self._lay_out(sample.soft_label)
        (top, left), (h, w) = corner, sample.sar.shape
        pixels = (..., slice(top, top + h), slice(left, left + w))
        self._arrays["image"][row][pixels] = sample.sar
        if self._has_labels:
            self._arrays["label"][row][pixels] = sample.label
        if self._has_soft[row]:
            self._ranges.add(sample.soft_range)
            common_range(self._ranges, "a batch")  # refuses a mix
            self._arrays["teacher"][self._soft_rows[row]][pixels] = sample.soft_label
        self._keys[row][tile] = sample.key

    def finish(self, skipped: list[str]) -> PackedBatch:
        """The batch, when all its samples are written.  skipped: see `Batch`."""
        self._arrays["positions"][...] = self._positions
        self._arrays["teacher_row"][...] = self._soft_rows
        self._arrays["is_synthetic"][...] = self._is_synthetic
        keys = ["+".join(names[tile] for tile in sorted(names)) for names in self._keys]
        return PackedBatch(self._block, self._layout, keys, skipped, common_range(self._ranges, "a batch"))

    def _lay_out(self, soft: np.ndarray | None) -> None:
        rows, size = len(self._positions), self._crop_size
        self._layout = {"positions": (torch.int64, (rows,)), "teacher_row": (torch.int64, (rows,)),
                        "is_synthetic": (torch.bool, (rows,)), "image": (torch.uint8, (rows, 1, *size))}  # fmt: skip
        if self._has_labels:
            self._layout["label"] = (torch.uint8, (rows, *size))
        if any(self._has_soft):
            dtype = torch.from_numpy(np.empty(0, soft.dtype)).dtype
            self._layout["teacher"] = (dtype, (sum(self._has_soft), len(soft), *size))
        num_bytes = _num_bytes(self._layout)
        self._block = torch.empty(num_bytes, dtype=torch.uint8) if self._block is None else self._block[:num_bytes]
        self._arrays = {name: value.numpy() for name, value in _views(self._block, self._layout).items()}


def most_bytes(num_rows: int, crop_size: tuple[int, int], num_classes: int) -> int:
    """The size of a block that holds any batch: every sample with a label and a soft label in half precision."""
    pixels = num_rows * math.prod(crop_size)
    # The fields in the order of `_lay_out`.
    sizes = (8 * num_rows, 8 * num_rows, num_rows, pixels, pixels, 2 * num_classes * pixels)
    return sum(_aligned(size) for size in sizes)


def shared_blocks(count: int, num_bytes: int) -> list[Tensor]:
    """(num_bytes,) uint8 each, which this process shares with the children that it forks from now on."""
    # Anonymous: nothing to clean up after a kill, and no limit of /dev/shm.
    return [torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8) for _ in range(count)]


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
    return math.ceil(length / _ALIGNMENT) * _ALIGNMENT
