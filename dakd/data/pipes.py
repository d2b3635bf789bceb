"""Images from pipes: shell commands that a configuration names, each of which writes a tar to its standard output.

Such a stream has no index: its records come in the order of the tar. So each reader needs streams of its own, there is
no shuffle beyond the order of the streams, and a resumed run reads them again up to its position. All other sets are
read by look-up (`datasets.py`). webdataset takes the tars apart; members are decoded explicitly, by their extension.
"""

from __future__ import annotations

import math
import tarfile
from collections.abc import Iterator, Sequence
from itertools import count, islice

from torch.utils.data import IterableDataset, get_worker_info

from dakd.data.batch import BatchBuilder, PackedBatch
from dakd.data.order import PositionBatches
from dakd.data.ordered_records import OnBadRecord
from dakd.data.records import BadRecord, decode_record
from dakd.data.sample import ClassTable, Sample
from dakd.data.tars import stream_members
from dakd.data.transforms import crop_and_flip
from dakd.runtime.seeding import Stream, numpy_rng

# The errors that webdataset and the decoders raise on a failing command, a truncated tar or a damaged record.
_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, AssertionError, RecursionError, tarfile.TarError)


class PipeDataset:
    """Crops of streamed images for the teacher's first stage; labels are not looked at.

    sources: `pipe:COMMAND`, a shell command each, from a configuration or command line and from nowhere else.
    crop_size, flip, seed: see `datasets.TeacherDataset`.  classes: of the run.  on_bad_record: `skip` takes the
    next record of the stream, or the next stream where a tar breaks off; both are reported.
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
            raise ValueError(f"streams are {others or 'none'}; expected pipe:COMMAND each; other sources have an index")
        self.sources, self.crop_size, self.classes = list(sources), crop_size, classes
        self.flip, self.seed, self.on_bad_record = flip, seed, on_bad_record

    def samples(self, reader: int, num_readers: int) -> Iterator[tuple[Sample, list[str]]]:
        """One reader's samples, endless, each with the reasons of the records skipped before it. Raises BadRecord."""
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
                        raise BadRecord(f"{sample}. Fix it, or set data.on_bad_record: skip to continue after it")
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


class PipeReaders(IterableDataset):
    """The packed batches of a rank's readers, each with streams of its own, in the order of their positions.

    A run that resumes at another position continues each reader's streams where that reader was, on the same numbers of
    ranks and readers.  Raises ValueError where there are fewer streams than readers.
    """

    def __init__(self, dataset: PipeDataset, batches: PositionBatches, num_workers: int) -> None:
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
        # torch's loader asks its workers in turn, beginning with worker 0. After a resume, worker 0 therefore takes the
        # part of the reader whose turn it is.
        reader = (before + number) % readers
        taken = math.ceil((before - reader) / readers) * batches.micro_batch
        samples = islice(self.dataset.samples(batches.rank * readers + reader, batches.world * readers), taken, None)
        for positions in islice(batches, number, None, readers):
            yield self.dataset.pack(samples, positions)


def _read_stream(source: str) -> Iterator[Sample | str]:
    """The samples of a stream, and in place of each that is damaged, or of the rest of a tar that is, the reason."""
    from webdataset import tariterators

    try:
        (opened,) = tariterators.url_opener([{"url": source}])
        members_of = stream_members(opened["stream"], source)
        files = ({"fname": name, "data": data, "__url__": source} for name, data in members_of)
        for record in tariterators.group_by_keys(files):
            members = {name: data for name, data in record.items() if not name.startswith("__")}
            try:
                yield decode_record(record["__key__"], members)
            except _ERRORS as error:
                yield f"{source}: record {record['__key__']!r}: {error}"
    except _ERRORS as error:
        yield f"{source} breaks off: {type(error).__name__}: {str(error)[:200]}"
