"""The datasets of the trainings: the sample at a global position, its crop, flip and mosaic are a look-up.

So a run resumes from one integer, and every world size that divides the global batch sees the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from dakd.config import DataConfig
from dakd.data.batch import Batch, BatchBuilder, PackedBatch
from dakd.data.degenerate import refuse_unknown_labels
from dakd.data.mix import MixSettings
from dakd.data.ordered_records import OnBadRecord, OrderedRecords
from dakd.data.records import hard_label
from dakd.data.sample import IGNORE_INDEX, ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.data.transforms import crop_and_flip
from dakd.runtime.seeding import Stream

_TILES = 4  # of a mosaic
_WINDOW_SHARDS = DataConfig().window_shards


class TeacherDataset:
    """Crops for the teacher, by global position; an epoch holds every sample once.

    sources: sets of shards, taken together as one.  labelled: False leaves the labels out, absent or not.
    crop_size: (h, w) in pixels; smaller images are padded (see `transforms.pad`).
    window, on_bad_record: see `ordered_records.OrderedRecords`.
    """

    def __init__(
        self,
        sources: list[ShardSet],
        crop_size: tuple[int, int],
        *,
        flip: bool,
        seed: int,
        labelled: bool,
        window: int = _WINDOW_SHARDS,
        on_bad_record: OnBadRecord = "stop",
    ) -> None:
        if not sources:
            raise ValueError("the teacher's dataset has no sources; give at least one set of shards")
        for source in sources if labelled else ():
            if source.index.num_labelled != len(source):
                raise ValueError(
                    f"{source.folder} has labels for {source.index.num_labelled} of {len(source)} samples; "
                    "stages 2 and 3 need all (only stage 1 takes images without labels)"
                )
            refuse_unknown_labels(source.index, str(source.folder))
        self.sources, self.crop_size, self.flip, self.seed, self.labelled = sources, crop_size, flip, seed, labelled
        self.records = OrderedRecords(sources, seed, window, on_bad_record=on_bad_record)

    @property
    def classes(self) -> ClassTable:
        return self.records.classes

    @property
    def epoch_length(self) -> int:
        return len(self.records)

    def batch(self, positions: list[int]) -> Batch:
        return self.pack(positions).unpack()

    def pack(self, positions: list[int], block: Tensor | None = None) -> PackedBatch:
        """The batch of these positions in a block of memory (see `batch.BatchBuilder`)."""
        builder = BatchBuilder(positions, self.crop_size, self.labelled, block=block)

        def take(row: int, sample: Sample) -> None:
            sample = replace(sample, soft_label=None, label=sample.label if self.labelled else None)
            builder.write(row, crop_and_flip(sample, self.crop_size, self.flip, self.seed, positions[row]))

        skipped = self.records.read([divmod(position, self.epoch_length) for position in positions], take)
        return builder.finish([entry.reason for entry in skipped])


class StudentDataset:
    """Real and synthetic samples for the student, by global position (the paper's training of SAROSS-Net).

    Synthetic samples come in mosaics of four, or singly without `mosaic`. An epoch holds every real sample once, and
    every synthetic one once (but the up to three that no mosaic is left for, others in every epoch); or, where a
    `synthetic_share` is set, so many mosaics that they make this share of the epoch: the synthetic set then goes round
    at its own pace. The two kinds are mixed evenly (see `order.interleave`), or as a `schedule` or a pair of shares has
    it (see `mix.py`), over `num_positions` samples, those of the whole training (None: of one epoch).

    A synthetic sample has a soft label, and its label is IGNORE_INDEX everywhere; with `hard_labels` its hard label is
    its label and it has no soft one; with "both" it has both. The hard label is the one that the set stores, else the
    teacher's argmax. Where the set stores hard labels beside the soft ones (`stores_labels`), a sample with a soft
    label has that label too: IGNORE_INDEX marks pixels that count in no loss, as padded ones then do.

    Images that a student has labelled (`pseudo`) are synthetic samples too: both sets are taken together as one.

    crop_size: (h, w) in pixels; a mosaic's tiles are h/2 by w/2.  num_synthetic: only the first N pairs of `synthetic`;
    None: all.  num_pseudo: of images that are not labelled yet, in place of `pseudo`: then samples are only counted.
    held_out: places of real samples that are never seen (see `held_out.py`).
    window, on_bad_record: see `ordered_records.OrderedRecords`. The tiles of a mosaic follow one another in the order
    of the synthetic records: they come from the shards of one window, or of two where they lie on a seam.
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
        pseudo: ShardSet | None = None,
        num_pseudo: int | None = None,
        hard_labels: Literal["both"] | bool = False,
        synthetic_share: float | tuple[float, float] | None = None,
        schedule: str = "mixed",
        num_positions: int | None = None,
        held_out: Sequence[int] = (),
        window: int = _WINDOW_SHARDS,
        on_bad_record: OnBadRecord = "stop",
    ) -> None:
        pair_sets = [pairs for pairs in (synthetic, pseudo) if pairs is not None]
        self.num_pseudo = num_pseudo or (0 if pseudo is None else len(pseudo))
        _check_student_sources(real, pair_sets)
        _check_number(synthetic, self.num_pseudo, real is not None, crop_size, mosaic, num_synthetic)
        self.real, self.synthetic, self.pseudo, self.crop_size = real, synthetic, pseudo, crop_size
        self.mosaic, self.flip, self.seed, self.hard_labels = mosaic, flip, seed, hard_labels
        self.stores_labels = any(map(stores_labels, pair_sets))
        self.num_real = 0 if real is None else len(real) - len(held_out)
        self.num_synthetic = 0 if synthetic is None else (num_synthetic or len(synthetic))
        # When each is taken once.
        self._synthetic_items = (self.num_synthetic + self.num_pseudo) // (_TILES if mosaic else 1)
        self.mixing = MixSettings(self.num_real, self._synthetic_items, schedule, synthetic_share, seed)
        self.mix = self.mixing.over(num_positions or self.mixing.epoch_length)
        options = {"seed": seed, "window": window, "on_bad_record": on_bad_record}
        self._real_records = None if real is None else OrderedRecords([real], left_out=held_out, **options)
        self._synthetic_records = None
        if pair_sets and num_pseudo is None:
            limit = None if synthetic is None else self.num_synthetic
            self._synthetic_records = OrderedRecords(pair_sets, stream=Stream.MOSAIC, limit=limit, **options)

    @property
    def classes(self) -> ClassTable:
        return (self.real or self.synthetic or self.pseudo).classes

    @property
    def epoch_length(self) -> int:
        return self.mixing.epoch_length

    def views(self, num_positions: int) -> dict[str, int]:
        """How many of the first samples of a training are `real` and `synthetic`; a mosaic is one sample."""
        synthetic = self.mix.synthetic_before(num_positions)
        return {"real": num_positions - synthetic, "synthetic": synthetic}

    def batch(self, positions: list[int]) -> Batch:
        return self.pack(positions).unpack()

    def pack(self, positions: list[int], block: Tensor | None = None) -> PackedBatch:
        """The batch of these positions in a block of memory (see `batch.BatchBuilder`)."""
        is_synthetic, tiles = [], []
        for row, position in enumerate(positions):
            of_row = self._tiles_at(row, position)
            is_synthetic.append(of_row[0].is_synthetic)
            tiles += of_row
        has_soft = [synthetic and self.hard_labels is not True for synthetic in is_synthetic]
        builder = BatchBuilder(positions, self.crop_size, True, is_synthetic=is_synthetic, has_soft=has_soft,
                               block=block)  # fmt: skip
        # The synthetic ones first: they show the builder the form of the soft labels.
        skipped = self._read(self._synthetic_records, [tile for tile in tiles if tile.is_synthetic], builder)
        skipped += self._read(self._real_records, [tile for tile in tiles if not tile.is_synthetic], builder)
        return builder.finish(skipped)

    def _tiles_at(self, row: int, position: int) -> list[_Tile]:
        """The one sample that stands at a position, or the four tiles of its mosaic."""
        is_synthetic, number = self.mix.at(position)
        if not is_synthetic:
            return [_Tile(row, 0, False, divmod(number, self.num_real), (0, 0), self.crop_size, (position,))]
        # Synthetic samples have epochs of their own: the set may go round faster or slower than the real one.
        epoch, item = divmod(number, self._synthetic_items)
        if not self.mosaic:
            return [_Tile(row, 0, True, (epoch, item), (0, 0), self.crop_size, (position,))]
        h, w = self.crop_size[0] // 2, self.crop_size[1] // 2
        return [
            _Tile(row, tile, True, (epoch, _TILES * item + tile), (h * (tile // 2), w * (tile % 2)), (h, w),
                  (position, tile))
            for tile in range(_TILES)
        ]  # fmt: skip

    def _read(self, records: OrderedRecords | None, tiles: list[_Tile], builder: BatchBuilder) -> list[str]:
        """Write the records of these tiles into the batch; returns the reasons of the skipped ones."""
        if not tiles:
            return []

        def take(i: int, sample: Sample) -> None:
            tile = tiles[i]
            sample = self._with_its_labels(sample, tile.is_synthetic)
            sample = crop_and_flip(sample, tile.size, self.flip, self.seed, *tile.draw)
            builder.write(tile.row, sample, tile.number, tile.corner)

        return [entry.reason for entry in records.read([tile.record for tile in tiles], take)]

    def _with_its_labels(self, sample: Sample, is_synthetic: bool) -> Sample:
        """A sample with the labels that count: a real one's own, a synthetic one's soft label, its hard one, or both.

        Where the set stores labels, a soft label's sample keeps its hard one, whose ignored pixels mask it.
        """
        if not is_synthetic:
            return replace(sample, soft_label=None)
        if self.hard_labels or self.stores_labels:
            soft = None if self.hard_labels is True else sample.soft_label
            return replace(sample, label=hard_label(sample), soft_label=soft)
        # Broadcast: one byte stands for all pixels, and the batch copies them.
        return replace(sample, label=np.broadcast_to(np.uint8(IGNORE_INDEX), sample.sar.shape))


class _Tile(NamedTuple):
    """The part of a batch that one record fills: a whole row, or one of the four tiles of a mosaic.

    number: of the tile in its row.  record: (epoch, place in it) among the records of its kind.
    corner, size: of its pixels in the row.  draw: the ids that its crop and flip are drawn by.
    """

    row: int
    number: int
    is_synthetic: bool
    record: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    draw: tuple[int, ...]


def stores_labels(pairs: ShardSet) -> bool:
    """Whether a set of pairs stores a hard label beside each soft one; ValueError where it does for some alone."""
    found = pairs.index.num_labelled
    if found not in (0, len(pairs)):
        raise ValueError(
            f"{pairs.folder} has hard labels beside the soft ones for {found} of {len(pairs)} pairs; expected all or "
            "none; write the set again"
        )
    return found > 0


def _check_student_sources(real: ShardSet | None, pair_sets: list[ShardSet]) -> None:
    if real is not None and real.index.num_labelled != len(real):
        raise ValueError(f"{real.folder}: {real.index.num_labelled} of {len(real)} samples have labels; expected all")
    if real is not None:
        refuse_unknown_labels(real.index, str(real.folder))
    for pairs in pair_sets:
        if pairs.index.num_soft != len(pairs):
            found = pairs.index.num_soft
            raise ValueError(f"{pairs.folder}: {found} of {len(pairs)} samples have soft labels; expected all")
        first = real or pair_sets[0]
        if first.classes.names != pairs.classes.names:
            raise ValueError(
                f"{'real' if real is not None else 'synthetic'} classes {first.classes.names} differ from synthetic "
                f"classes {pairs.classes.names}; make the pairs with a teacher or a student of the real set"
            )


def _check_number(
    synthetic: ShardSet | None,
    num_pseudo: int,
    has_real: bool,
    crop_size: tuple[int, int],
    mosaic: bool,
    num_synthetic: int | None,
) -> None:
    if synthetic is not None or num_pseudo:
        available = None if synthetic is None else len(synthetic)
        check_pairs(available, crop_size, mosaic, num_synthetic, num_pseudo)
    elif not has_real:
        raise ValueError("the student's dataset has neither real nor synthetic samples; give at least one")


def check_pairs(
    available: int | None, crop_size: tuple[int, int], mosaic: bool, num_synthetic: int | None, num_pseudo: int = 0
) -> None:
    """ValueError where so many synthetic pairs do not make up the samples that a student is to see.

    available: generated pairs; None where the student sees none.  num_pseudo: pseudo-labelled images beside them.
    """
    least = _TILES if mosaic else 1
    if available is None:
        if num_pseudo < least:
            raise ValueError(f"found {num_pseudo} pseudo-labelled images; expected {least} or more (mosaic: {mosaic})")
    else:
        wanted = available if num_synthetic is None else num_synthetic
        if not max(1, least - num_pseudo) <= wanted <= available:
            raise ValueError(
                f"num_synthetic is {wanted} of {available} synthetic pairs; expected at most all of them, "
                f"and at least {max(1, least - num_pseudo)} (mosaic: {mosaic})"
            )
    if mosaic and (crop_size[0] % 2 or crop_size[1] % 2):
        raise ValueError(f"crop {crop_size} is odd; a mosaic of 2 x 2 tiles needs even sides")
