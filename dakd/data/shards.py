"""Tar shards with an index: written aside, then renamed, so that a shard is whole or absent.

A shard is a WebDataset tar of records (`records.py`); a sidecar for each tar and an index of the folder (`index.py`)
say where each record's bytes lie, so that records are read by offset.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import overload

import numpy as np

from dakd.data.index import RecordInfo, ShardInfo, describe_shard, load_sidecar, parse_index, write_index
from dakd.data.open_shard import OpenShard, RecordSpan, read_spans
from dakd.data.records import BadRecord, decode_record, encode_record, members_crc
from dakd.data.sample import ClassTable, Sample
from dakd.data.soft_labels import get_codec, refuse_probabilities
from dakd.data.sources import (
    LocalFolder,
    ShardCache,
    default_cache,
    find_index,
    find_sidecar,
    open_source,
    refuse_stale_index,
)
from dakd.names import written_path
from dakd.runtime.files import file_hash, replacing, sync, write_text
from dakd.runtime.lock import locked
from dakd.runtime.runlog import say
from dakd.runtime.whole import whole_number

__all__ = ["ShardInfo", "ShardSet", "describe_shard", "open_split", "shard_name", "verify", "write_index",
           "write_shard", "write_shards"]  # fmt: skip

MAX_OPEN_SHARDS = 128  # of a set and process: two windows of the default size, far below the limits of open files


# Whole, or still written aside (`runtime/files.py`).
_UNFINISHED = re.compile(r"\.?(?:shard-\d{6,}\.(?:tar|json)|index\.json)(?:\..+\.tmp)?")


def shard_name(index: int) -> str:
    """`shard-000012`: the name of a shard's files without their suffix."""
    return f"shard-{index:06d}"


def write_shard(
    folder: str | Path,
    index: int,
    samples: Iterable[Sample],
    classes: ClassTable,
    codec: str | None = None,
    provenance: dict | None = None,
    temperature: float | None = None,
) -> ShardInfo:
    """Writes `shard-INDEX.tar` and its sidecar into `folder`; the same samples give the same bytes.

    codec: name of the soft-label codec; needed when a sample has a soft label.  temperature: of the
    student's softmax, for codecs that ask.  provenance: JSON facts for the sidecar.
    Raises ValueError for a bad or doubled key, arrays of unequal size, or a class id outside the table.
    """
    tar_path = Path(folder) / f"{shard_name(index)}.tar"
    with replacing(tar_path) as aside:
        write_tar(aside, samples, classes, codec, temperature)
        info = describe_shard(aside, classes, file=tar_path.name, provenance=provenance)
    write_text(tar_path.with_suffix(".json"), info.to_json())
    return info


def write_tar(
    path: Path, samples: Iterable[Sample], classes: ClassTable, codec: str | None, temperature: float | None = None
) -> None:
    """The records of a shard, as bytes that depend only on the samples."""
    from webdataset.writer import TarWriter

    encoder = None if codec is None else get_codec(codec, temperature)
    # No user, host or time in the headers: equal samples give equal bytes on every machine.
    fixed = {"user": "dakd", "group": "dakd", "mode": 0o644, "mtime": 0, "encoder": False}
    with open(path, "wb") as stream, TarWriter(stream, **fixed) as writer:
        for place, sample in enumerate(samples):
            _check_types(sample, place)
            try:
                record = encode_record(sample, classes, encoder)
            except TypeError as error:
                raise ValueError(
                    f"{sample.key}: meta cannot be written ({error}); expected texts, numbers of Python, lists and "
                    "dicts: convert numpy's by .item() or .tolist()"
                ) from None
            writer.write(record)


def _check_types(sample: Sample, place: int) -> None:
    """TypeError for what is no sample, or holds no arrays, naming it.  place: in its shard."""
    if not isinstance(sample, Sample):
        raise TypeError(f"sample {place} of the shard is a {type(sample).__name__}; expected a dakd.Sample")
    if not isinstance(sample.key, str):
        raise TypeError(f"sample {place} of the shard has the key {sample.key!r:.80}; expected text, such as '0005'")
    for name in ("sar", "label", "soft_label"):
        array = getattr(sample, name)
        if not isinstance(array, np.ndarray) and (array is not None or name == "sar"):
            raise TypeError(
                f"{sample.key}: {name} is a {type(array).__name__}; expected a numpy array: np.asarray makes one"
            )


def write_shards(
    folder: str | Path,
    samples: Iterable[Sample],
    classes: ClassTable,
    *,
    shard_size: int = 128,
    codec: str = "fp16",
    temperature: float | None = None,
    provenance: dict | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes samples as a set of shards with an index, which `ShardSet` and the trainings read; returns the folder.

    samples: any number of them, read one by one, each with a key of its own.  classes: names and colours by class id.
    shard_size: samples a shard.  codec: how soft labels are stored: fp16 logits, or logprob8 for one `temperature`.
    provenance: JSON facts on where the set comes from.  overwrite: replace the set that is there, whose own samples may
    be among the new ones; of logprob8, with the same temperature.
    The set is written aside and takes its place when it is whole; an earlier one stays until then. Raises ValueError
    where a set, shards or sidecars are there already, for files of others in .partial/, where there is no sample, for a
    URL, and for a sample that no record can hold; TypeError for what is no sample; RuntimeError where another process
    writes to the folder.
    """
    folder = written_path(folder)
    shard_size = whole_number(shard_size, "shard_size", 1)
    if not isinstance(samples, Iterable):
        raise TypeError(f"samples is a {type(samples).__name__}; expected a list, or others that yield dakd.Sample")
    if not isinstance(classes, ClassTable):
        raise TypeError(f"classes is a {type(classes).__name__}; expected a dakd.ClassTable")
    get_codec(codec, temperature)  # refused before anything is written
    _refuse_full(folder, overwrite)
    aside = folder / ".partial"
    _refuse_foreign(aside)
    with locked(folder):
        shutil.rmtree(aside, ignore_errors=True)  # of a call that was killed
        try:
            beside_unknown = _write_set(aside, samples, classes, shard_size, codec, temperature, provenance)
            _take_place(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    if beside_unknown[0] and not beside_unknown[1:].any():  # as sea beside land without a class also has
        say(
            f"{folder}: labels with 255, which means unknown, hold nothing else but 0 ({classes.names[0]}); if they "
            "are black and white masks, write class ids in their place"
        )
    return folder


def _write_set(
    folder: Path,
    samples: Iterable[Sample],
    classes: ClassTable,
    shard_size: int,
    codec: str,
    temperature: float | None,
    provenance: dict | None,
) -> np.ndarray:
    """Returns (K,) int64: the pixels of each class in labels that have unknown pixels too."""
    beside_unknown = np.zeros(classes.num_classes, np.int64)
    remaining, num_samples, num_soft = map(_without_probabilities, samples), 0, 0
    for index in itertools.count():
        # One sample ahead, so that no empty shard is begun.
        first = list(itertools.islice(remaining, 1))
        if not first:
            break
        shard = itertools.chain(first, itertools.islice(remaining, shard_size - 1))
        info = write_shard(folder, index, shard, classes, codec, provenance, temperature)
        num_samples += info.num_samples
        num_soft += info.num_soft
        for record in info.records:
            if record.ignored_pixels:
                beside_unknown += np.array(record.class_pixels, np.int64)
    if not num_samples:
        raise ValueError("there are no samples to write; expected at least one")
    kind, codec_used = ("synthetic", codec) if num_soft else ("real", None)
    write_index(folder, classes, kind=kind, codec=codec_used, provenance=provenance)
    return beside_unknown


def _without_probabilities(sample: Sample) -> Sample:
    """The sample; ValueError where its soft label holds probabilities. dakd's own teachers need no such guess."""
    if isinstance(sample, Sample) and sample.soft_label is not None and sample.soft_range is None:  # else refused later
        refuse_probabilities(f"{sample.key}: soft label", sample.soft_label)
    return sample


def _refuse_full(folder: Path, overwrite: bool) -> None:
    """ValueError where a folder holds a set, or files of one without its index, and nobody asked to replace them."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    found = [path.name for name in ("index.json", "shard-*.tar", "shard-*.json") for path in sorted(folder.glob(name))]
    if found and not overwrite:
        raise ValueError(
            f"{folder} holds a set of shards already; found {found[0]}; give another folder, or overwrite=True "
            "(--overwrite)"
        )


def _refuse_foreign(aside: Path) -> None:
    """ValueError where the folder for unfinished sets has files that a killed call did not leave."""
    found = [path.name for path in aside.iterdir()] if aside.is_dir() else [aside.name] if aside.exists() else []
    if others := sorted(name for name in found if not _UNFINISHED.fullmatch(name)):
        raise ValueError(f"{aside} is for unfinished sets, and has {', '.join(others[:5])}; move it away")


def _take_place(aside: Path, folder: Path) -> None:
    """Move a whole set to its folder, the index last: a folder without one is not a set."""
    # The old index goes first: a kill from here on leaves a folder that is not a set, never a mixture of two sets.
    for path in [folder / "index.json", *folder.glob("shard-*.tar"), *folder.glob("shard-*.json")]:
        path.unlink(missing_ok=True)
    for path in sorted(aside.glob("shard-*")):
        os.replace(path, folder / path.name)
    os.replace(aside / "index.json", folder / "index.json")
    sync(folder)


class ShardSet:
    """A set of shards with an index, as a list of samples; safe to share with forked and spawned readers.

    `len(shards)`, `shards[i]`, `for sample in shards`: so that it serves as a map-style dataset of torch too.

    The memory of a set grows with the number of its shards, not of its records: tables of records are read when they
    are needed, and the last ones stay, each with its tar open.
    """

    def __init__(
        self,
        place: str | Path,
        cache: ShardCache | None = None,
        classes: ClassTable | None = None,
        images_only: bool = False,
    ) -> None:
        """place: a folder, or the URL of one (see `sources.py`).  cache: for fetched shards and derived indexes.

        classes: the class table of tars that come without an index; they are indexed when first opened. None refuses
        them.  images_only: no label will be read, so that a set with an index may have other classes.
        Raises ValueError if there is no intact set, or if its index has other class names, or not all of its tars.
        """
        self._cache = cache or default_cache()
        self._source = open_source(place, self._cache)
        self.folder = self._source.folder if isinstance(self._source, LocalFolder) else place
        text, self._home = find_index(self._source, self._cache, classes)
        path = f"{place}/index.json"
        self.index = parse_index(text, path)
        refuse_stale_index(self._source, self._home, self.index, None if images_only else classes)
        self.classes = self.index.classes
        self.counts = np.array([entry.num_samples for entry in self.index.shards], np.int64)
        self._ends = np.cumsum(self.counts).tolist()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """The same for sets of the same samples, however they are packed."""
        return self.index.fingerprint

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": OrderedDict()}  # open files stay with their process

    @overload
    def __getitem__(self, i: int) -> Sample: ...

    @overload
    def __getitem__(self, i: slice) -> list[Sample]: ...

    def __getitem__(self, i: int | slice) -> Sample | list[Sample]:
        """The sample at place i, negative places from the end, or a list of those of a slice; see `read`."""
        if isinstance(i, slice):
            return [self.read(place) for place in range(len(self))[i]]
        if i < -len(self):
            raise IndexError(f"sample {i} of a set of {len(self)}")
        return self.read(i + len(self) if i < 0 else i)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.read, range(len(self)))

    def __repr__(self) -> str:
        return f"ShardSet({str(self.folder)!r}: {len(self)} samples, classes: {', '.join(self.classes.names)})"

    def key(self, i: int) -> str:
        return self.span(*self.locate(i)).key

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of a sample, without reading it."""
        span = self.span(*self.locate(i))
        return span.height, span.width

    def read(self, i: int) -> Sample:
        """The sample at place i, its arrays writable. BadRecord when it cannot be had, or is not what was written."""
        shard, record = self.locate(i)
        return self.read_record(shard, record, memoryview(bytearray(self.span(shard, record).length)))

    def locate(self, i: int) -> tuple[int, int]:
        """(shard, record in it) of the sample at place i; IndexError beyond the last, as for any list."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of a set of {len(self)}")
        shard = bisect.bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def record_infos(self) -> Iterator[RecordInfo]:
        """The facts of each sample by place, from the sidecars. BadRecord where a shard or its sidecar is not there."""
        for shard, entry in enumerate(self.index.shards):
            opened = self._opened(shard)
            records = load_sidecar(opened.sidecar).records
            for first, stop in [(0, len(records))] if entry.kept is None else entry.kept:
                yield from records[first:stop]

    def span(self, shard: int, record: int) -> RecordSpan:
        """Where a record's bytes lie. BadRecord where its shard cannot be read."""
        return self._opened(shard).spans[record]

    def read_record(self, shard: int, record: int, buffer: memoryview) -> Sample:
        """A sample whose arrays may lie in `buffer`, which has span(shard, record).length bytes.

        Raises BadRecord where they are not the bytes that were written.
        """
        opened = self._opened(shard)
        span = opened.spans[record]
        opened.read_into(buffer, span)
        try:
            members = {extension: buffer[start : start + size] for extension, start, size in span.members}
            if members_crc(members) != span.crc32:
                raise ValueError(
                    "its checksum differs from the one that was written: its bytes have changed; fetch or write the "
                    "set again"
                )
            sample = decode_record(span.key, members)
            if sample.sar.shape != (span.height, span.width):
                raise ValueError(
                    f"is of {sample.sar.shape} pixels, in the index of {(span.height, span.width)}; write the set "
                    "again"
                )
            if sample.soft_label is not None and len(sample.soft_label) != self.classes.num_classes:
                raise ValueError(
                    f"has logits of {len(sample.soft_label)} classes, the set {self.classes.num_classes}; write the "
                    "set again"
                )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadRecord(f"{opened.path}: record {span.key!r}: {error}") from None
        return sample

    def _opened(self, shard: int) -> OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        entry = self.index.shards[shard]
        try:
            # Opened before its sidecar is read: from then on the cache may evict the tar without harm.
            tar_path, fileno = self._source.open_tar(entry.file, entry.sha256)
            opened = OpenShard(tar_path, fileno)
            sidecar = find_sidecar(self._source, self._home, entry, self.classes, tar_path)
            opened.spans, opened.sidecar = read_spans(sidecar, entry), sidecar
        except FileNotFoundError:
            where = f"{self._source.place}/{entry.file}"
            raise BadRecord(f"{where} does not exist, though the index names it; fetch or write it again") from None
        except ValueError as error:
            raise BadRecord(str(error)) from None
        self._open[shard] = opened
        while len(self._open) > MAX_OPEN_SHARDS:
            self._open.popitem(last=False)
        return opened


def open_split(prepared: str | Path, split: str) -> ShardSet:
    """A split of a prepared dataset (RUN/prepare).

    ValueError where prepare has not run, and where it has but the dataset has no such split.
    """
    prepared = Path(prepared)
    splits = sorted(path.parent.name for path in prepared.glob("*/index.json"))
    if splits and split not in splits:
        raise ValueError(
            f"the dataset in {prepared} has no {split} split, only {', '.join(splits)}; put labelled images "
            f"into {split}/images and {split}/masks of prepare.root, remove {prepared} and run prepare again"
        )
    return ShardSet(prepared / split)


def verify(folder: str | Path) -> list[str]:
    """The faults of a set of shards, one line each: absent files, checksums that differ. Empty when it is intact."""
    shards = ShardSet(folder)
    problems = []
    for shard in shards.index.shards:
        path = shards.folder / shard.file
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif (found := file_hash(path)) != shard.sha256:
            problems.append(f"{path}: sha256 is {found}, the index says {shard.sha256}")
        elif (sidecar := path.with_suffix(".json")).is_file():  # an absent one is made again from the tar
            try:
                read_spans(sidecar, shard)
            except ValueError as error:
                problems.append(str(error))
    return problems
