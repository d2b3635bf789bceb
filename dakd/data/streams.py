"""Images that come as streams: commands that a configuration names, each of which writes a tar to its standard output.

A stream has no index: its records come in the order of the tar, so each reader needs streams of its own, there is no
shuffle beyond the order of the streams, and a resumed run reads them again up to where it was. All else is read by
look-up (`loader`). Tars are taken apart by webdataset; members are decoded explicitly, by their extension.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from itertools import count, islice

from torch.utils.data import IterableDataset, get_worker_info

from dakd.data.batch import BatchBuilder, PackedBatch
from dakd.data.order import PositionBatches
from dakd.data.reading import OnBadRecord
from dakd.data.records import BadRecord, decode_record
from dakd.data.sample import ClassTable, Sample
from dakd.data.transforms import crop_and_flip
from dakd.runtime.seeding import Stream, numpy_rng

# What a command that fails, a tar that is cut and a record that is damaged make webdataset and the decoders raise.
_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, AssertionError, tarfile.TarError)


class StreamDataset:
    """Crops of streamed images for the teacher's first stage; labels are not looked at.

    sources: `pipe:COMMAND`, a shell command each, from a configuration or command line and from nowhere else.
    crop_size, flip, seed: see `loader.TeacherDataset`.  classes: of the run.  on_bad_record: `skip` goes on with the
    next record of the stream, or with the next stream where a tar breaks off; both are told.
    """

    def __init__(
        self,
        sources: Sequence[str],
        crop_size: tuple[int, int],
        classes: ClassTable,
        *,
        flip: bool,
        seed: int,
        on_bad_record: OnBadRecord = "stop",
    ) -> None:
        others = [source for source in sources if not source.startswith("pipe:")]
        if others or not sources:
            raise ValueError(f"streams are {others or 'none'}; wanted pipe:COMMAND each; other sources have an index")
        self.sources, self.crop_size, self.classes = list(sources), crop_size, classes
        self.flip, self.seed, self.on_bad_record = flip, seed, on_bad_record

    def samples(self, reader: int, num_readers: int) -> Iterator[tuple[Sample, list[str]]]:
        """One reader's samples, endless, each with the reasons of what was passed over for it. Raises BadRecord."""
        own = self.sources[reader::num_readers]
        skipped: list[str] = []
        for epoch in count():
            is_empty = True
            for number in numpy_rng(self.seed, epoch, reader, stream=Stream.ORDER).permutation(len(own)):
                for sample in _read_stream(own[number]):
                    if isinstance(sample, Sample):
                        yield sample, skipped
                        skipped, is_empty = [], False
                    elif self.on_bad_record == "stop":
                        raise BadRecord(f"{sample}. Mend it, or set data.on_bad_record: skip to go on behind it")
                    else:
                        skipped.append(sample)
            if is_empty:
                raise BadRecord(f"the streams {', '.join(own)} hold no good record{': ' if skipped else ''}"
                                f"{'; '.join(skipped[:3])}")  # fmt: skip

    def pack(self, samples: Iterator[tuple[Sample, list[str]]], positions: list[int]) -> PackedBatch:
        """The next samples as the batch of these positions."""
        builder = BatchBuilder(positions, self.crop_size, has_labels=False)
        skipped: list[str] = []
        for row, position in enumerate(positions):
            sample, passed_over = next(samples)
            builder.write(row, crop_and_flip(sample, self.crop_size, self.flip, self.seed, position))
            skipped += passed_over
        return builder.finish(skipped)


class StreamReaders(IterableDataset):
    """The packed batches of a rank's readers, each with streams of its own, in the order of their positions.

    A run that goes on at another position takes up each reader's streams where that reader was, on the same numbers of
    ranks and readers.  Raises ValueError where there are fewer streams than readers.
    """

    def __init__(self, dataset: StreamDataset, batches: PositionBatches, num_workers: int) -> None:
        self.dataset, self.batches, self.num_readers = dataset, batches, max(1, num_workers)
        wanted = batches.world * self.num_readers
        if len(dataset.sources) < wanted:
            raise ValueError(
                f"{len(dataset.sources)} streams for {batches.world} ranks x {self.num_readers} readers; name at least "
                f"{wanted}, or lower engine.num_workers, or make a set of shards of them, which any number can read"
            )

    def __iter__(self) -> Iterator[PackedBatch]:
        worker = get_worker_info()
        number = 0 if worker is None else worker.id
        batches, readers = self.batches, self.num_readers
        before = batches.start // (batches.micro_batch * batches.world)  # batches of this rank
        reader = (before + number) % readers
        taken = -(-(before - reader) // readers) * batches.micro_batch
        samples = islice(self.dataset.samples(batches.rank * readers + reader, batches.world * readers), taken, None)
        for positions in islice(batches, number, None, readers):
            yield self.dataset.pack(samples, positions)


def _read_stream(source: str) -> Iterator[Sample | str]:
    """The samples of a stream, and in place of each that is damaged, or of the rest of a tar that is, the reason."""
    from webdataset import tariterators

    try:
        files = tariterators.tar_file_expander(tariterators.url_opener([{"url": source}]))
        for record in tariterators.group_by_keys(files):
            members = {name: data for name, data in record.items() if not name.startswith("__")}
            try:
                yield decode_record(record["__key__"], members)
            except _ERRORS as error:
                yield f"{source}: record {record['__key__']!r}: {error}"
    except _ERRORS as error:
        yield f"{source} breaks off: {type(error).__name__}: {str(error)[:200]}"
