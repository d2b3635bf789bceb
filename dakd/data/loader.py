"""Batches by global position: which sample stands at a position, and what crop, flip and mosaic it gets, is a look-up.

So a run resumes from one integer, and every world size that divides the global batch sees the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dakd.data.batch import BatchBuilder, most_bytes, shared_blocks, unpack
from dakd.data.order import PositionBatches, interleave
from dakd.data.reading import OnBadRecord, OrderedRecords
from dakd.data.sample import IGNORE_INDEX, ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.data.soft_labels import common_range, likeliest_class
from dakd.data.streams import StreamDataset, StreamReaders
from dakd.data.transforms import crop_and_flip
from dakd.runtime.distributed import rank
from dakd.runtime.lifetime import shield_reader
from dakd.runtime.seeding import Stream

_TILES = 4  # of a mosaic
WINDOW_SHARDS = 64
_PREFETCHED = 4  # batches that a reader works ahead
_TOLD = 10  # records that were passed over, on the console


class TeacherDataset(Dataset):
    """Crops for the teacher, by global position; an epoch holds every sample once.

    An item: {"position", "image" (1, h, w) uint8, "label" (h, w) uint8 or None, "key", "skipped"}; see `make_loader`
    for a batch.
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
    def classes(self) -> ClassTable:
        return self.records.classes

    @property
    def epoch_length(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict:
        return _item(self.batch([position]))

    def batch(self, positions: list[int]) -> dict:
        """The batch of these positions, see `make_loader`."""
        return unpack(self.__getitems__(positions))

    def __getitems__(self, positions: list[int], block: Tensor | None = None) -> dict:
        """The batch, packed in a block of memory (`batch.BatchBuilder`) for its way from a reader process."""
        builder = BatchBuilder(len(positions), 0, self.crop_size, self.labelled, block)
        keys = [""] * len(positions)

        def take(row: int, sample: Sample) -> None:
            sample = replace(sample, soft_label=None, label=sample.label if self.labelled else None)
            sample = crop_and_flip(sample, self.crop_size, self.flip, self.seed, positions[row])
            builder.write(row, sample.sar, sample.label)
            keys[row] = sample.key

        skipped = self.records.read([divmod(position, self.epoch_length) for position in positions], take)
        none = [-1] * len(positions)
        packed = builder.finish(positions=positions, teacher_row=none, is_synthetic=[False] * len(positions))
        return packed | {"keys": keys, "skipped": [entry.reason for entry in skipped]}


class StudentDataset(Dataset):
    """Real and synthetic samples for the student, by global position (the paper's training of SAROSS-Net).

    Synthetic samples come in mosaics of four, or singly without `mosaic`. An epoch holds every real sample once, and
    every synthetic one once (but the up to three that no mosaic is left for, others in every epoch); or, where a
    `synthetic_share` is set, so many mosaics that they make this share of the epoch: the synthetic set then goes round
    at its own pace. The two kinds are mixed evenly (see `order.interleave`).

    An item: {"position", "image" (1, h, w) uint8, "label" (h, w) uint8, "soft" (K, h, w) float16 logits, uint8 codes
    or None, "soft_range" of the codes, "is_synthetic", "key", "skipped"}. A synthetic sample has a soft label and its
    label is ignored everywhere; with `hard_labels` the teacher's argmax is its label and it has no soft one.

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
    def classes(self) -> ClassTable:
        return (self.real or self.synthetic).classes

    @property
    def epoch_length(self) -> int:
        return self.num_real + self._synthetic_per_epoch

    def __getitem__(self, position: int) -> dict:
        return _item(self.batch([position]))

    def batch(self, positions: list[int]) -> dict:
        """The batch of these positions, see `make_loader`."""
        return unpack(self.__getitems__(positions))

    def __getitems__(self, positions: list[int], block: Tensor | None = None) -> dict:
        """The batch, packed in a block of memory (`batch.BatchBuilder`) for its way from a reader process."""
        wanted = [self._places(position) for position in positions]
        is_synthetic = [kind for kind, _ in wanted]
        has_soft = [kind and not self.hard_labels for kind in is_synthetic]
        soft_rows = [count - 1 if soft else -1 for soft, count in zip(has_soft, accumulate(has_soft))]
        builder = BatchBuilder(len(positions), sum(has_soft), self.crop_size, True, block)
        keys = [[""] * len(places) for _, places in wanted]
        skipped, ranges = [], set()
        # The synthetic ones first: they tell the builder what soft labels are like.
        for kind, records in ((True, self._made), (False, self._real)):
            rows = [row for row, own in enumerate(is_synthetic) if own == kind]
            tiles = [(row, tile) for row in rows for tile in range(len(keys[row]))]

            def take(i: int, sample: Sample, tiles=tiles, kind=kind) -> None:
                row, tile = tiles[i]
                size, corner, ids = self._tile(positions[row], tile, kind)
                sample = crop_and_flip(self._soften(sample) if kind else replace(sample, soft_label=None), size,
                                  self.flip, self.seed, *ids)  # fmt: skip
                if sample.soft_label is not None:
                    ranges.add(sample.soft_range)
                    common_range(ranges, "a batch")  # refuses a mix
                builder.write(row, sample.sar, sample.label, sample.soft_label, soft_rows[row], corner)
                keys[row][tile] = sample.key

            if tiles:
                skipped += records.read([wanted[row][1][tile] for row, tile in tiles], take)
        packed = builder.finish(positions=positions, teacher_row=soft_rows, is_synthetic=is_synthetic)
        told = {"keys": ["+".join(names) for names in keys], "skipped": [entry.reason for entry in skipped]}
        return packed | told | {"teacher_range": common_range(ranges, "a batch")}

    def _places(self, position: int) -> tuple[bool, list[tuple[int, int]]]:
        """Whether a position is synthetic, and the (epoch, place) of its one record or of its tiles."""
        epoch, place = divmod(position, self.epoch_length)
        is_synthetic, number = interleave(self.num_real, self._synthetic_per_epoch, self.seed, epoch, place)
        if not is_synthetic:
            return False, [(epoch, number)]
        epoch, item = divmod(epoch * self._synthetic_per_epoch + number, self._synthetic_items)
        return True, [(epoch, self._tiles * item + tile) for tile in range(self._tiles)]

    def _tile(self, position: int, tile: int, is_synthetic: bool) -> tuple[tuple[int, int], tuple[int, int], tuple]:
        """The size of a sample, or of a mosaic's tile, its upper left corner, and the key of its crop and flip."""
        if not (is_synthetic and self.mosaic):
            return self.crop_size, (0, 0), (position,)
        h, w = self.crop_size[0] // 2, self.crop_size[1] // 2
        return (h, w), (h * (tile // 2), w * (tile % 2)), (position, tile)

    def _soften(self, sample: Sample) -> Sample:
        """A synthetic sample without a hard label, or with the teacher's in place of the soft one."""
        if self.hard_labels:
            return replace(sample, label=likeliest_class(sample.soft_label), soft_label=None)
        return replace(sample, label=np.broadcast_to(np.uint8(IGNORE_INDEX), sample.sar.shape))


AnyDataset = TeacherDataset | StudentDataset | StreamDataset


class BatchLoader:
    """The batches of a dataset at a rank's positions, endless; see `make_loader`."""

    def __init__(
        self, dataset: AnyDataset, batches: PositionBatches, num_workers: int, pin_memory: bool
    ) -> None:
        if isinstance(dataset, StreamDataset):
            StreamReaders(dataset, batches, num_workers)  # refuses too few streams before anything starts
        self.dataset, self.batches, self.num_workers, self.pin_memory = dataset, batches, num_workers, pin_memory

    def __iter__(self) -> Iterator[dict]:
        if isinstance(self.dataset, StreamDataset):
            return self._from_streams()
        return self._from_readers() if self.num_workers else self._from_here()

    def _from_streams(self) -> Iterator[dict]:
        readers = StreamReaders(self.dataset, self.batches, self.num_workers)
        options = {"prefetch_factor": _PREFETCHED} if self.num_workers else {}
        loader = DataLoader(
            readers, None, num_workers=self.num_workers, collate_fn=dict, worker_init_fn=shield_reader, **options
        )
        for batch in loader:
            yield unpack(batch | {"block": batch["block"].pin_memory()} if self.pin_memory else batch)

    def _from_here(self) -> Iterator[dict]:
        for positions in self.batches:
            batch = self.dataset.__getitems__(positions)
            yield unpack(batch | {"block": batch["block"].pin_memory()} if self.pin_memory else batch)

    def _from_readers(self) -> Iterator[dict]:
        # A reader has at most _PREFETCHED batches under way while another is copied here, and takes its blocks in turn.
        num_bytes = most_bytes(self.batches.micro_batch, self.dataset.crop_size, self.dataset.classes.num_classes)
        blocks = shared_blocks(self.num_workers * (_PREFETCHED + 1), num_bytes)
        loader = DataLoader(
            _Served(self.dataset, blocks),
            sampler=enumerate(self.batches),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=_PREFETCHED,
            collate_fn=dict,  # as it is
            worker_init_fn=shield_reader,
            multiprocessing_context="fork",  # the blocks are inherited
        )
        for batch in loader:
            shared = blocks[batch["block"]][: batch.pop("num_bytes")]
            yield unpack(batch | {"block": shared.pin_memory() if self.pin_memory else shared.clone()})


class _Served(Dataset):
    """A dataset behind reader processes: what comes back names a shared block instead of holding one."""

    def __init__(self, dataset: TeacherDataset | StudentDataset, blocks: list[Tensor]) -> None:
        self.dataset, self.blocks = dataset, blocks

    def __getitem__(self, task: tuple[int, list[int]]) -> dict:
        number, positions = task
        number %= len(self.blocks)
        batch = self.dataset.__getitems__(positions, self.blocks[number])
        return batch | {"block": number, "num_bytes": len(batch["block"])}


def make_loader(
    dataset: AnyDataset,
    micro_batch: int,
    rank: int,
    world: int,
    start_position: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> BatchLoader:
    """An endless iterable of batches, `micro_batch` samples a rank, from a global position on.

    The positions of a global batch are those of the micro-batches of all ranks; resume with the position after the
    last one consumed.  num_workers: reader processes; 0 reads in this one. A batch holds

    positions: (B,) int64.  image: (B, 1, h, w) uint8.  label: (B, h, w) uint8, or None.  keys: list of B strings.
    teacher: (Bs, K, h, w) float16 logits or uint8 codes of the Bs samples that have a soft label, or None.
    teacher_range: the nats that code 255 stands for, one for the batch; None for logits. ValueError for a mix.
    teacher_row: (B,) int64, the row in `teacher`, -1 for a sample without one.  is_synthetic: (B,) bool.
    skipped: what was passed over for this batch, a line for each bad record.
    """
    return BatchLoader(dataset, PositionBatches(micro_batch, rank, world, start_position), num_workers, pin_memory)


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


def _item(batch: dict) -> dict:
    """The one sample of a batch of one."""
    arrays = {name: None if batch[name] is None else batch[name][0].numpy() for name in ("image", "label")}
    return arrays | {
        "position": int(batch["positions"][0]),
        "soft": None if batch["teacher"] is None else batch["teacher"][0].numpy(),
        "soft_range": batch["teacher_range"],
        "is_synthetic": bool(batch["is_synthetic"][0]),
        "key": batch["keys"][0],
        "skipped": batch["skipped"],
    }


def _items_of_share(num_real: int, share: float) -> int:
    """How many synthetic items beside `num_real` real ones make their share of all."""
    if not 0 < share < 1:
        raise ValueError(f"synthetic_share is {share}; wanted a number between 0 and 1, or none for every pair once")
    return max(1, round(num_real * share / (1 - share)))


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
