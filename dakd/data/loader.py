"""Batches by global position: which sample stands at a position, and what crop, flip and mosaic it gets, is a look-up.

So a run resumes from one integer, and every world size that divides the global batch sees the same batches.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dakd.data.order import permutation, rank_positions, record_at
from dakd.data.sample import IGNORE_INDEX, Sample
from dakd.data.shards import ShardSet
from dakd.data.transforms import random_crop, random_flip
from dakd.runtime.lifetime import shield_reader
from dakd.runtime.seeding import Stream, numpy_rng

_TILES = 4  # of a mosaic


class TeacherDataset(Dataset):
    """Crops for the teacher, by global position.

    An item: {"position", "image" (1, h, w) uint8, "label" (h, w) uint8 or None, "key"}; see `collate` for a batch.
    sources: sets of shards, taken together as one.  labelled: False leaves the labels out, absent or not.
    crop_size: (h, w) in pixels; smaller images are padded (see `transforms.pad`).
    """

    def __init__(
        self, sources: list[ShardSet], crop_size: tuple[int, int], *, flip: bool, seed: int, labelled: bool
    ) -> None:
        if not sources:
            raise ValueError("the teacher's dataset has no sources; give at least one set of shards")
        for source in sources if labelled else ():
            if source.index["num_labelled"] != len(source):
                raise ValueError(
                    f"{source.folder} has labels for {source.index['num_labelled']} of {len(source)} samples; "
                    "stages 2 and 3 need all (only stage 1 takes images without labels)"
                )
        self.sources, self.crop_size, self.flip, self.seed, self.labelled = sources, crop_size, flip, seed, labelled
        self._ends = list(accumulate(len(source) for source in sources))

    @property
    def epoch_length(self) -> int:
        return self._ends[-1]

    def __getitem__(self, position: int) -> dict:
        _, index = record_at(self.epoch_length, self.seed, position)
        source = bisect.bisect_right(self._ends, index)
        sample = self.sources[source].read(index - (self._ends[source - 1] if source else 0))
        sample = replace(sample, soft_label=None, label=sample.label if self.labelled else None)
        sample = _augment(sample, self.crop_size, self.flip, self.seed, position)
        return _item(position, sample)


class StudentDataset(Dataset):
    """Real and synthetic samples for the student, by global position (the paper's training of SAROSS-Net).

    An epoch holds every real sample once and every synthetic one once: in mosaics of four (the up to three that are
    left over differ from epoch to epoch), or singly without `mosaic`; all in one random order.
    An item: {"position", "image" (1, h, w) uint8, "label" (h, w) uint8, "soft" (K, h, w) float16 or None,
    "is_synthetic", "key"}. A synthetic sample has a soft label and its label is ignored everywhere; with `hard_labels`
    the teacher's argmax is its label and it has no soft one.

    crop_size: (h, w) in pixels; a mosaic's tiles are h/2 by w/2.  num_synthetic: only the first N pairs; None: all.
    """

    def __init__(
        self,
        real: ShardSet | None,
        synthetic: ShardSet | None,
        crop_size: tuple[int, int],
        *,
        mosaic: bool,
        flip: bool,
        seed: int,
        num_synthetic: int | None = None,
        hard_labels: bool = False,
    ) -> None:
        _check_student_sources(real, synthetic, crop_size, mosaic, num_synthetic)
        self.real, self.synthetic, self.crop_size = real, synthetic, crop_size
        self.mosaic, self.flip, self.seed, self.hard_labels = mosaic, flip, seed, hard_labels
        self.num_real = 0 if real is None else len(real)
        self.num_synthetic = 0 if synthetic is None else (num_synthetic or len(synthetic))

    @property
    def classes(self):
        return (self.real or self.synthetic).classes

    @property
    def epoch_length(self) -> int:
        return self.num_real + (self.num_synthetic // _TILES if self.mosaic else self.num_synthetic)

    def __getitem__(self, position: int) -> dict:
        epoch, index = record_at(self.epoch_length, self.seed, position)
        if index < self.num_real:
            sample = replace(self.real.read(index), soft_label=None)
            return _item(position, _augment(sample, self.crop_size, self.flip, self.seed, position))
        if self.mosaic:
            sample = self._compose(epoch, index - self.num_real, position)
        else:
            sample = self._read_synthetic(index - self.num_real)
            sample = _augment(sample, self.crop_size, self.flip, self.seed, position)
        return _item(position, sample, is_synthetic=True)

    def _compose(self, epoch: int, mosaic: int, position: int) -> Sample:
        """Four synthetic samples tiled 2 x 2, no random centre, no rescaling; cropped and flipped tile by tile."""
        order = permutation(self.num_synthetic, self.seed, epoch, Stream.MOSAIC)
        tile_size = (self.crop_size[0] // 2, self.crop_size[1] // 2)
        tiles = [
            _augment(self._read_synthetic(int(index)), tile_size, self.flip, self.seed, position, tile)
            for tile, index in enumerate(order[_TILES * mosaic : _TILES * (mosaic + 1)])
        ]
        soft = [tile.soft_label for tile in tiles]
        return Sample(
            key="+".join(tile.key for tile in tiles),
            sar=_tile([tile.sar for tile in tiles]),
            label=_tile([tile.label for tile in tiles]),
            soft_label=None if self.hard_labels else _tile(soft),
        )

    def _read_synthetic(self, index: int) -> Sample:
        sample = self.synthetic.read(index)
        if self.hard_labels:
            return replace(sample, label=sample.soft_label.argmax(axis=0).astype(np.uint8), soft_label=None)
        return replace(sample, label=np.full(sample.sar.shape, IGNORE_INDEX, np.uint8))


class PositionBatches(Sampler):
    """Endless lists of a rank's positions, micro-batch by micro-batch, from a global position on."""

    def __init__(self, micro_batch: int, rank: int, world: int, start_position: int) -> None:
        rank_positions(start_position, micro_batch, rank, world)  # refuses what makes no sense
        self.micro_batch, self.rank, self.world, self.start = micro_batch, rank, world, start_position

    def __iter__(self) -> Iterator[list[int]]:
        start = self.start
        while True:
            yield rank_positions(start, self.micro_batch, self.rank, self.world)
            start += self.micro_batch * self.world


def make_loader(
    dataset: TeacherDataset | StudentDataset,
    micro_batch: int,
    rank: int,
    world: int,
    start_position: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """An endless iterable of batches (see `collate`), `micro_batch` samples a rank, from a global position on.

    The positions of a global batch are those of the micro-batches of all ranks; resume with the position after the
    last one consumed.  num_workers: reader processes; 0 reads in this one.
    """
    batches = PositionBatches(micro_batch, rank, world, start_position)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=shield_reader,
    )


def collate(items: list[dict]) -> dict:
    """Items to a batch.

    positions: (B,) int64.  image: (B, 1, h, w) uint8.  label: (B, h, w) uint8, or None.  keys: list of B strings.
    teacher: (Bs, K, h, w) float16 logits of the Bs samples that have a soft label, or None.
    teacher_row: (B,) int64, the row in `teacher`, -1 for a sample without one.  is_synthetic: (B,) bool.
    """
    soft = [item["soft"] for item in items if item["soft"] is not None]
    rows = iter(range(len(soft)))
    return {
        "positions": torch.tensor([item["position"] for item in items], dtype=torch.int64),
        "image": _stack([item["image"] for item in items]),
        "label": None if items[0]["label"] is None else _stack([item["label"] for item in items]),
        "teacher": _stack(soft) if soft else None,
        "teacher_row": torch.tensor([-1 if item["soft"] is None else next(rows) for item in items], dtype=torch.int64),
        "is_synthetic": torch.tensor([item["is_synthetic"] for item in items]),
        "keys": [item["key"] for item in items],
    }


def _augment(sample: Sample, size: tuple[int, int], flip: bool, seed: int, *ids: int) -> Sample:
    """Crop and flip keyed by `ids`: the global position, and the tile in a mosaic."""
    sample = random_crop(sample, size, numpy_rng(seed, *ids, stream=Stream.CROP))
    return random_flip(sample, numpy_rng(seed, *ids, stream=Stream.FLIP)) if flip else sample


def _item(position: int, sample: Sample, is_synthetic: bool = False) -> dict:
    return {
        "position": position,
        "image": sample.sar[None],
        "label": sample.label,
        "soft": sample.soft_label,
        "is_synthetic": is_synthetic,
        "key": sample.key,
    }


def _tile(four: list[np.ndarray]) -> np.ndarray:
    rows = [np.concatenate(four[:2], axis=-1), np.concatenate(four[2:], axis=-1)]
    return np.concatenate(rows, axis=-2)


def _stack(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _check_student_sources(
    real: ShardSet | None,
    synthetic: ShardSet | None,
    crop_size: tuple[int, int],
    mosaic: bool,
    num_synthetic: int | None,
) -> None:
    if real is None and synthetic is None:
        raise ValueError("the student's dataset has neither real nor synthetic samples; give at least one")
    if real is not None and real.index["num_labelled"] != len(real):
        raise ValueError(f"{real.folder}: {real.index['num_labelled']} of {len(real)} samples have labels; wanted all")
    if synthetic is None:
        return
    if synthetic.index["num_soft"] != len(synthetic):
        found = synthetic.index["num_soft"]
        raise ValueError(f"{synthetic.folder}: {found} of {len(synthetic)} samples have soft labels; wanted all")
    if real is not None and real.classes.names != synthetic.classes.names:
        raise ValueError(f"real classes {real.classes.names} differ from synthetic classes {synthetic.classes.names}")
    wanted = len(synthetic) if num_synthetic is None else num_synthetic
    if wanted > len(synthetic) or wanted < (_TILES if mosaic else 1):
        raise ValueError(
            f"num_synthetic is {wanted} of {len(synthetic)} synthetic pairs; wanted at most all of them, "
            f"and at least {_TILES if mosaic else 1} (mosaic: {mosaic})"
        )
    if mosaic and (crop_size[0] % 2 or crop_size[1] % 2):
        raise ValueError(f"crop {crop_size} is odd; a mosaic of 2 x 2 tiles needs even sides")
