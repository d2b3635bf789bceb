"""The loader: the batches of a dataset at a rank's positions, read in this process or in several reader processes."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dakd.data.batch import Batch, PackedBatch, most_bytes, shared_blocks
from dakd.data.datasets import StudentDataset, TeacherDataset
from dakd.data.order import PositionBatches
from dakd.data.pipes import PipeDataset, PipeReaders
from dakd.runtime.console import show
from dakd.runtime.distributed import collective_timeout_s, rank
from dakd.runtime.files import open_to_append
from dakd.runtime.stopping import ignore_stop_signals
from dakd.runtime.waiting import Watch

_SAID_AFTER_S = 60.0  # until a wait for data is reported
_PREFETCHED = 4  # batches that a reader works ahead
_MOST_PRINTED = 10  # skipped records, on the console

AnyDataset = TeacherDataset | StudentDataset | PipeDataset


class BatchLoader:
    """The batches of a dataset at a rank's positions, endless; see `make_loader`."""

    def __init__(
        self, dataset: AnyDataset, batches: PositionBatches, num_workers: int, pin_memory: bool
    ) -> None:
        if isinstance(dataset, PipeDataset):
            PipeReaders(dataset, batches, num_workers)  # refuses too few streams before anything starts
        self.dataset, self.batches, self.num_workers, self.pin_memory = dataset, batches, num_workers, pin_memory

    def __iter__(self) -> Iterator[Batch]:
        if not isinstance(self.dataset, PipeDataset) and self.num_workers:
            return self._from_readers()
        return (packed.unpack(packed.block.pin_memory() if self.pin_memory else None) for packed in self._packed())

    def _packed(self) -> Iterator[PackedBatch]:
        """Packed batches, each in memory of its own."""
        if not isinstance(self.dataset, PipeDataset):
            return map(self.dataset.pack, self.batches)
        readers = PipeReaders(self.dataset, self.batches, self.num_workers)
        loader = DataLoader(readers, **self._options())
        return self._awaited(loader) if self.num_workers else iter(loader)

    def _from_readers(self) -> Iterator[Batch]:
        # A reader has at most _PREFETCHED batches under way while another is copied here, and takes its blocks in turn.
        num_bytes = most_bytes(self.batches.micro_batch, self.dataset.crop_size, self.dataset.classes.num_classes)
        blocks = shared_blocks(self.num_workers * (_PREFETCHED + 1), num_bytes)
        served = _Served(self.dataset, blocks)
        # fork: the readers inherit the blocks.
        loader = DataLoader(served, sampler=enumerate(self.batches), multiprocessing_context="fork", **self._options())
        for number, packed in self._awaited(loader):
            shared = blocks[number][: packed.num_bytes]
            # Copied, because the reader fills this block again for a later batch.
            yield packed.unpack(shared.pin_memory() if self.pin_memory else shared.clone())

    def _options(self) -> dict:
        """Options of torch's loader, which takes the batches as they are."""
        options = {"batch_size": None, "collate_fn": _as_it_is, "num_workers": self.num_workers,
                   "worker_init_fn": ignore_stop_signals}  # fmt: skip
        return options | ({"prefetch_factor": _PREFETCHED} if self.num_workers else {})

    def _awaited(self, loader: DataLoader) -> Iterator:
        """What torch's loader gives, with words where its reader processes give nothing for long.

        Raises RuntimeError at the limit of DAKD_COLLECTIVE_S. The readers, which may hang, are killed then; torch's own
        limit would let them be, and a dead one unnoticed outside the main thread.
        """
        limit_s, others = collective_timeout_s(), set(multiprocessing.active_children())
        batches = iter(loader)
        readers = [process for process in multiprocessing.active_children() if process not in others]

        def end() -> None:
            for reader in readers:
                reader.kill()

        # After the readers were forked: a fork keeps no other thread, but the locks that it holds.
        text = f"rank {rank()} waits for data, and its {len(readers)} reader processes send none"
        watch = Watch(f"{text}; DAKD_COLLECTIVE_S allows {limit_s:g} s", _SAID_AFTER_S, limit_s, end)
        try:
            while True:
                with watch:
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
        except RuntimeError as error:  # of the death of a reader
            if not watch.is_over:
                raise
            raise RuntimeError(
                f"no data came for {limit_s:g} s, the limit of DAKD_COLLECTIVE_S, from the processes that read it; "
                "look whether the data's disk or network folder answers; the same command resumes the work"
            ) from error
        finally:
            watch.close()


def _as_it_is(batch: object) -> object:
    return batch


class _Served(Dataset):
    """A dataset in a reader process: fills shared blocks, and sends the number of the block in place of the bytes."""

    def __init__(self, dataset: TeacherDataset | StudentDataset, blocks: list[Tensor]) -> None:
        self.dataset, self.blocks = dataset, blocks

    def __getitem__(self, task: tuple[int, list[int]]) -> tuple[int, PackedBatch]:
        index, positions = task
        # torch keeps at most num_workers * _PREFETCHED tasks open, fewer than there are blocks: this one is free again.
        number = index % len(self.blocks)
        return number, replace(self.dataset.pack(positions, self.blocks[number]), block=None)


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
    last one consumed.  num_workers: reader processes; 0 reads in this one.
    """
    return BatchLoader(dataset, PositionBatches(micro_batch, rank, world, start_position), num_workers, pin_memory)


def report_skipped(batches: Iterator[Batch], folder: Path) -> Iterator[Batch]:
    """Passes batches through, and reports the records that were skipped: prints the first few, writes all down.

    Every rank writes lines {"positions", "reason"} to `bad_records-rankNNNNN.jsonl` in `folder`.
    """
    path, num_printed = folder / f"bad_records-rank{rank():05d}.jsonl", 0
    for batch in batches:
        reasons = batch.skipped
        if reasons:
            between = [int(batch.positions[0]), int(batch.positions[-1])]
            folder.mkdir(parents=True, exist_ok=True)
            with open_to_append(path) as stream:
                stream.writelines(json.dumps({"positions": between, "reason": reason}) + "\n" for reason in reasons)
            for reason in reasons[: max(0, _MOST_PRINTED - num_printed)]:
                show(f"rank {rank()}: skipped {reason}")
            if num_printed < _MOST_PRINTED < num_printed + len(reasons):
                show(f"rank {rank()}: there are more than {_MOST_PRINTED}; {path} lists them all")
            num_printed += len(reasons)
        yield batch
