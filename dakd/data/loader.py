"""Batches by global position: which sample stands at a position, and what crop, flip and mosaic it gets, is a look-up.

So a run resumes from one integer, and every world size that divides the global batch sees the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dakd.data.order import interleave, rank_positions
from dakd.data.reading import OnBadRecord, OrderedRecords, Skipped
from dakd.data.sample import IGNORE_INDEX, Sample
from dakd.data.shards import ShardSet
from dakd.data.transforms import random_crop, random_flip
from dakd.runtime.distributed import rank
from dakd.runtime.seeding import Stream, numpy_rng

_TILES = 4  # of a mosaic
WINDOW_SHARDS = 64
_TOLD = 10  # records that were passed over, on the console


class TeacherDataset(Dataset):
    """Crops for the teacher, by global position; an epoch holds every sample once.

    An item: {"position", "image" (1, h, w) uint8, "label" (h, w) uint8 or None, "key", "skipped"}; see `collate` for a
    batch.
    sources: sets of shards, taken together as one.  labelled: False leaves the labels out, absent or not.
    crop_size: (h, w) in pixels; smaller images are padded (see `transforms.pad`).
    window, on_bad_record: see `reading.OrderedRecords`.
    """

    def __init__(
        self,
        sources: list[ShardSet],
        crop_size: tuple[int, int],
        *,
        flip: bool,
        seed: int,
        labelled: bool,
        window: int = WINDOW_SHARDS,
        on_bad_record: OnBadRecord = "stop",
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
        self.records = OrderedRecords(sources, seed, window, on_bad_record=on_bad_record)

    @property
    def epoch_length(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict:
        return _own(self.__getitems__([position])[0])

    def __getitems__(self, positions: list[int]) -> list[dict]:
        """The items of a batch; their arrays are valid until the next call."""
        places = [divmod(position, self.epoch_length) for position in positions]
        samples, skipped = self.records.read(places)
        items = []
        for position, sample in zip(positions, samples):
            sample = replace(sample, soft_label=None, label=sample.label if self.labelled else None)
            items.append(_item(position, _augment(sample, self.crop_size, self.flip, self.seed, position)))
        return _with_skipped(items, skipped)


class StudentDataset(Dataset):
    """Real and synthetic samples for the student, by global position (the paper's training of SAROSS-Net).

    Synthetic samples come in mosaics of four, or singly without `mosaic`. An epoch holds every real sample once, and
    every synthetic one once (but the up to three that no mosaic is left for, others in every epoch); or, where a
    `synthetic_share` is set, so many mosaics that they make this share of the epoch: the synthetic set then goes round
    at its own pace. The two kinds are mixed evenly (see `order.interleave`).

    An item: {"position", "image" (1, h, w) uint8, "label" (h, w) uint8, "soft" (K, h, w) float16 or None,
    "is_synthetic", "key", "skipped"}. A synthetic sample has a soft label and its label is ignored everywhere; with
    `hard_labels` the teacher's argmax is its label and it has no soft one.

    crop_size: (h, w) in pixels; a mosaic's tiles are h/2 by w/2.  num_synthetic: only the first N pairs; None: all.
    window, on_bad_record: see `reading.OrderedRecords`. The tiles of a mosaic follow one another in the order of the
    synthetic records: they come from the shards of one window, or of two where they lie on a seam.
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
        synthetic_share: float | None = None,
        window: int = WINDOW_SHARDS,
        on_bad_record: OnBadRecord = "stop",
    ) -> None:
        _check_student_sources(real, synthetic, crop_size, mosaic, num_synthetic)
        self.real, self.synthetic, self.crop_size = real, synthetic, crop_size
        self.mosaic, self.flip, self.seed, self.hard_labels = mosaic, flip, seed, hard_labels
        self.num_real = 0 if real is None else len(real)
        self.num_synthetic = 0 if synthetic is None else (num_synthetic or len(synthetic))
        self._tiles = _TILES if mosaic else 1
        self._synthetic_items = self.num_synthetic // self._tiles  # when each is taken once
        self._synthetic_per_epoch = self._synthetic_items
        if synthetic_share is not None and real is not None and synthetic is not None:
            self._synthetic_per_epoch = _items_of_share(self.num_real, synthetic_share)
        options = {"seed": seed, "window": window, "on_bad_record": on_bad_record}
        self._real = None if real is None else OrderedRecords([real], **options)
        self._made = None
        if synthetic is not None:
            self._made = OrderedRecords([synthetic], stream=Stream.MOSAIC, limit=self.num_synthetic, **options)

    @property
    def classes(self):
        return (self.real or self.synthetic).classes

    @property
    def epoch_length(self) -> int:
        return self.num_real + self._synthetic_per_epoch

    def __getitem__(self, position: int) -> dict:
        return _own(self.__getitems__([position])[0])

    def __getitems__(self, positions: list[int]) -> list[dict]:
        """The items of a batch; their arrays are valid until the next call. A mosaic's arrays are lists of four."""
        wanted = [self._places(position) for position in positions]
        samples, skipped = {}, []
        for kind, records in ((False, self._real), (True, self._made)):
            places = [place for is_synthetic, places in wanted if is_synthetic == kind for place in places]
            if places:
                found, passed_over = records.read(places)
                samples[kind] = iter(found)
                skipped += passed_over
        items = [
            self._compose(position, [next(samples[kind]) for _ in places], kind)
            for position, (kind, places) in zip(positions, wanted)
        ]
        return _with_skipped(items, skipped)

    def _places(self, position: int) -> tuple[bool, list[tuple[int, int]]]:
        """Whether a position is synthetic, and the (epoch, place) of its one record or of its tiles."""
        epoch, place = divmod(position, self.epoch_length)
        is_synthetic, number = interleave(self.num_real, self._synthetic_per_epoch, self.seed, epoch, place)
        if not is_synthetic:
            return False, [(epoch, number)]
        epoch, item = divmod(epoch * self._synthetic_per_epoch + number, self._synthetic_items)
        return True, [(epoch, self._tiles * item + tile) for tile in range(self._tiles)]

    def _compose(self, position: int, samples: list[Sample], is_synthetic: bool) -> dict:
        """An item of one real sample, of one synthetic one, or of four that are tiled 2 x 2 without rescaling.

        The tiles are cropped and flipped one by one.
        """
        if not is_synthetic:
            sample = replace(samples[0], soft_label=None)
            return _item(position, _augment(sample, self.crop_size, self.flip, self.seed, position))
        samples = [self._soften(sample) for sample in samples]
        if not self.mosaic:
            sample = _augment(samples[0], self.crop_size, self.flip, self.seed, position)
            return _item(position, sample, is_synthetic=True)
        size = (self.crop_size[0] // 2, self.crop_size[1] // 2)
        tiles = [
            _item(position, _augment(sample, size, self.flip, self.seed, position, tile), is_synthetic=True)
            for tile, sample in enumerate(samples)
        ]
        joined = {name: [tile[name] for tile in tiles] for name in ("image", "label")}
        soft = None if self.hard_labels else [tile["soft"] for tile in tiles]
        return tiles[0] | joined | {"soft": soft, "key": "+".join(tile["key"] for tile in tiles)}

    def _soften(self, sample: Sample) -> Sample:
        """A synthetic sample without a hard label, or with the teacher's in place of the soft one."""
        if self.hard_labels:
            return replace(sample, label=sample.soft_label.argmax(axis=0).astype(np.uint8), soft_label=None)
        return replace(sample, label=np.broadcast_to(np.uint8(IGNORE_INDEX), sample.sar.shape))


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
        dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate, pin_memory=pin_memory
    )


def report_skipped(batches: Iterator[dict], folder: Path) -> Iterator[dict]:
    """Pass batches through; records that were passed over are told, the first few, and written down, all of them.

    Every rank writes lines {"positions", "reason"} to `bad_records-rankNNNNN.jsonl` in `folder`.
    """
    path, told = folder / f"bad_records-rank{rank():05d}.jsonl", 0
    for batch in batches:
        reasons = batch["skipped"]
        if reasons:
            between = [int(batch["positions"][0]), int(batch["positions"][-1])]
            folder.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as stream:
                stream.writelines(json.dumps({"positions": between, "reason": reason}) + "\n" for reason in reasons)
            for reason in reasons[: max(0, _TOLD - told)]:
                print(f"rank {rank()}: passed over {reason}", flush=True)
            if told < _TOLD < told + len(reasons):
                print(f"rank {rank()}: there are more than {_TOLD}; all of them stand in {path}", flush=True)
            told += len(reasons)
        yield batch


def collate(items: list[dict]) -> dict:
    """Items to a batch.

    positions: (B,) int64.  image: (B, 1, h, w) uint8.  label: (B, h, w) uint8, or None.  keys: list of B strings.
    teacher: (Bs, K, h, w) float16 logits of the Bs samples that have a soft label, or None.
    teacher_row: (B,) int64, the row in `teacher`, -1 for a sample without one.  is_synthetic: (B,) bool.
    skipped: what was passed over for this batch, a line for each bad record.
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
        "skipped": [line for item in items for line in item["skipped"]],
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
        "skipped": [],
    }


def _with_skipped(items: list[dict], skipped: list[Skipped]) -> list[dict]:
    items[0]["skipped"] = [entry.reason for entry in skipped]
    return items


def _items_of_share(num_real: int, share: float) -> int:
    """How many synthetic items beside `num_real` real ones make their share of all."""
    if not 0 < share < 1:
        raise ValueError(f"synthetic_share is {share}; wanted a number between 0 and 1, or none for every pair once")
    return max(1, round(num_real * share / (1 - share)))


def _own(item: dict) -> dict:
    """The item with whole arrays of its own."""
    arrays = {name: item[name] for name in ("image", "label", "soft") if item[name] is not None}
    return item | {name: _stack([array]).numpy()[0] for name, array in arrays.items()}


def _stack(arrays: list[np.ndarray | list[np.ndarray]]) -> Tensor:
    """(B, ...) of B equal arrays, or of lists of four that are tiled 2 x 2; the only copy on their way to the step.

    In a reader process the memory is shared with the training process, which saves a second one.
    """
    first = arrays[0]
    is_whole = isinstance(first, np.ndarray)
    shape = first.shape if is_whole else (*first[0].shape[:-2], *(2 * side for side in first[0].shape[-2:]))
    stacked = torch.empty((len(arrays), *shape), dtype=torch.from_numpy(np.empty(0, first[0].dtype)).dtype)
    if get_worker_info() is not None:
        stacked.share_memory_()
    for row, array in zip(stacked.numpy(), arrays):
        if isinstance(array, np.ndarray):
            row[...] = array
        else:
            h, w = array[0].shape[-2:]
            row[..., :h, :w], row[..., :h, w:], row[..., h:, :w], row[..., h:, w:] = array
    return stacked


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
