"""The loader against plain webdataset on the same shards, and a consumer that must never wait.

    python benchmarks/data/bench_loader.py [--records N] [--csv FILE]

Records are 256 x 256 grey values with soft labels of five classes. Both sides decode with the same code and end with
the same tensors of a batch of 16, in one thread, in turns; their CPU time counts. webdataset reads its shards from
front to back, its best case; the loader reads in its shuffled order and compares every record with its checksum. The
files lie in the page cache: disks and networks are not measured.

The consumer computes on a batch of 16 for as long as 1,540 records/s leave it, and asks for the next batch early,
like a training on a device that works asynchronously; it copies its batches, as to a device. A step waits if its batch
is not there when the previous step ends. Two reader processes serve it; the machine's load is printed. Exit status 1: a
bar was missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.bench_codec import logits_like
from lib.race import Races
from lib.table import Row, exit_status
from lib.timing import time_in_turns

from dakd.config import SimulationConfig
from dakd.data.batch import Batch
from dakd.data.datasets import StudentDataset
from dakd.data.loader import make_loader
from dakd.data.records import decode_record
from dakd.data.sample import IGNORE_INDEX, OSD_CLASSES, Sample
from dakd.data.shards import ShardSet, write_index, write_shard
from dakd.data.simulate import simulate

SIDE, BATCH, SHARD = 256, 16, 64
TEMPERATURE = 2.0
# Records a second over plain webdataset's, by codec.
LEAST_RATIOS = {"fp16": 1.3, "logprob8": 1.1}
CONSUMER_RATE, MOST_LATE_SHARE, NUM_READERS = 1540.0, 0.01, 2
_SECONDS = 4.0


def main() -> int:
    options = _parse()
    torch.set_num_threads(1)
    races, failures = Races("cpu", options.csv, _SECONDS), []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for codec, least in LEAST_RATIOS.items():
            shards = _write_set(Path(folder) / codec, codec, options.records)
            rows = _race(shards, codec)
            races.keep(rows, prints=False)
            for row in rows:
                print(f"{codec:<10}{row.contestant:<12}{row.images_per_s:>8.0f} records/s"
                      f"{row.gb_s * 1e3:>8.0f} MB/s a core", flush=True)  # fmt: skip
            ours, theirs = (next(row for row in rows if row.contestant == name) for name in ("dakd", "webdataset"))
            ratio = ours.images_per_s / theirs.images_per_s
            print(f"{codec:<10}{ratio:.2f} x webdataset, bar {least}")
            failures += [] if ratio >= least else [f"{codec}: {ratio:.2f} x webdataset, bar {least}"]
            late, slowest_ms = _feed_consumer(shards, options.steps)
            waits = f"waits in {100 * late:.2f} % of {options.steps} steps, at most {slowest_ms:.1f} ms"
            print(f"{codec:<10}consumer of {CONSUMER_RATE:.0f} records/s, {NUM_READERS} readers, "
                  f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: {waits}", flush=True)  # fmt: skip
            failures += [] if late <= MOST_LATE_SHARE else [f"{codec}: the consumer {waits}"]
    return exit_status(failures)


def _write_set(folder: Path, codec: str, num_records: int) -> ShardSet:
    """Simulated scenes under their speckle, with logits that lead by 6 to 10 nats, soft edges and noise."""
    scenes = SimulationConfig(size=(SIDE, SIDE))
    given = {} if codec == "fp16" else {"temperature": TEMPERATURE}
    drawn = [simulate(index, scenes, seed=0) for index in range(BATCH)]
    for shard in range(num_records // SHARD):
        samples = (_with_logits(drawn[index % BATCH], index) for index in range(shard * SHARD, (shard + 1) * SHARD))
        write_shard(folder, shard, samples, OSD_CLASSES, codec=codec, **given)
    write_index(folder, OSD_CLASSES, kind="synthetic", codec=codec)
    return ShardSet(folder)


def _with_logits(scene: Sample, index: int) -> Sample:
    return Sample(f"scene-{index:06d}", scene.sar, soft_label=logits_like(scene.label, index))


def _race(shards: ShardSet, codec: str) -> list[Row]:
    epochs = {"dakd": [_our_epoch(shards)], "webdataset": [_their_epoch(shards)]}
    timings, failures = time_in_turns(epochs, "cpu", _SECONDS)
    if failures:
        raise RuntimeError(f"not timed: {failures}")
    megabytes = shards.index.num_bytes / 1e6
    return [
        Row("loader", f"{SIDE}x{SIDE}", codec, f"batches of {BATCH}", name, timing.called_us, timing.method,
            timing.called_us, least_mb=megabytes, gb_s=megabytes / timing.called_us * 1e3,
            images_per_s=len(shards) / timing.called_us * 1e6)
        for name, timing in timings.items()
    ]  # fmt: skip


def _dataset(shards: ShardSet) -> StudentDataset:
    # No mosaic and no flips: the other side would have to do them too.
    return StudentDataset(None, shards, (SIDE, SIDE), mosaic=False, flip=False, seed=0)


def _our_epoch(shards: ShardSet) -> Callable[[], None]:
    dataset, epochs = _dataset(shards), iter(range(1 << 30))

    def run() -> None:
        first = next(epochs) * len(shards)
        for start in range(first, first + len(shards), BATCH):
            dataset.batch(list(range(start, start + BATCH)))

    return run


def _their_epoch(shards: ShardSet) -> Callable[[], None]:
    import webdataset

    files = [str(shards.folder / entry.file) for entry in shards.index.shards]

    def decode(record: dict) -> Sample:
        members = {name: data for name, data in record.items() if not name.startswith("__")}
        return decode_record(record["__key__"], members)

    def run() -> None:
        dataset = webdataset.WebDataset(files, shardshuffle=False).map(decode)
        for _ in dataset.batched(BATCH, collation_fn=_stack):
            pass

    return run


def _stack(samples: list[Sample]) -> Batch:
    size = samples[0].sar.shape
    return Batch(
        positions=torch.zeros(len(samples), dtype=torch.int64),
        image=torch.from_numpy(np.stack([sample.sar[None] for sample in samples])),
        label=torch.full((len(samples), *size), IGNORE_INDEX, dtype=torch.uint8),
        teacher=torch.from_numpy(np.stack([sample.soft_label for sample in samples])),
        teacher_row=torch.arange(len(samples)),
        is_synthetic=torch.ones(len(samples), dtype=torch.bool),
        keys=[sample.key for sample in samples],
    )


def _feed_consumer(shards: ShardSet, num_steps: int) -> tuple[float, float]:
    """The share of steps that waited, and the longest wait in milliseconds."""
    batches = iter(make_loader(_dataset(shards), BATCH, 0, 1, 0, NUM_READERS))
    step_s = BATCH / CONSUMER_RATE
    for _ in range(4 * NUM_READERS):  # the readers start, and fill the queue
        next(batches)
    time.sleep(1.0)
    waits = list(_consume(batches, step_s, num_steps))
    return sum(wait > 0 for wait in waits) / num_steps, 1e3 * max(waits)


def _consume(batches: Iterator[Batch], step_s: float, num_steps: int) -> Iterator[float]:
    """How long each step waits for its batch, in seconds."""
    names = ("image", "label", "teacher")
    device = {name: torch.empty_like(getattr(next(batches), name)) for name in names}
    end = time.perf_counter() + step_s
    for _ in range(num_steps):
        batch = next(batches)
        for name in names:
            device[name].copy_(getattr(batch, name))
        wait = max(0.0, time.perf_counter() - end)
        yield wait
        time.sleep(max(0.0, end - time.perf_counter()))
        end += step_s + wait


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=int, default=512, help=f"a multiple of {SHARD}")
    parser.add_argument("--steps", type=int, default=1000, help="of the consumer")
    parser.add_argument("--folder", type=Path, help="where the shards are written; the system's temporary folder")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
