"""The codecs of soft labels: records a second on one core, bytes relative to half precision, and errors.

    python benchmarks/data/bench_codec.py [--shards FOLDER] [--csv FILE]

Records are 256 x 256. --shards takes the logits of a trained teacher from a set generated in fp16; smaller ones are
tiled. Without it logits are drawn: simulated scenes with soft edges and noise. The codecs take turns in one thread,
and its CPU time counts. Exit status 1: a bar was missed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.race import Races
from lib.table import Row, exit_status
from lib.timing import time_in_turns

from dakd.config import SimulationConfig
from dakd.data.shards import ShardSet
from dakd.data.simulate import blur, simulate
from dakd.data.soft_labels import CODECS, MAX_TARGET_ERROR, get_codec, range_for, target_error

SIDE, NUM_RECORDS = 256, 16
TEMPERATURES = (1.0, 2.0, 4.0)
# Of logprob8: records a second on a core, and bytes over those of fp16.
LEAST_RATES = {"encode": 500, "decode": 1200}
MOST_BYTES = 0.47
_SECONDS = 2.0


def main() -> int:
    options = _parse()
    torch.set_num_threads(1)
    races = Races("cpu", options.csv, _SECONDS)
    logits, source = teacher_logits(options.shards) if options.shards else (drawn_logits(), "drawn")
    print(f"logits  {len(logits)} records {logits[0].shape}, {source}")
    failures = _check_errors(logits)
    rows = _race(logits, source)
    races.keep(rows, prints=False)
    for row in rows:
        rate, share = row.images_per_s, row.least_mb * 1e6 / (2 * logits[0].size)
        print(f"{row.what:<8}{row.contestant:<10}{row.time_us:>8.0f} us{rate:>8.0f} records/s"
              f"{row.gb_s * 1e3:>8.0f} MB/s stored  {share:.3f} of fp16's bytes", flush=True)  # fmt: skip
        if row.contestant == "logprob8":
            failures += [] if rate >= LEAST_RATES[row.what] else [f"{row.what}: {rate:.0f} records/s"]
            failures += [] if share <= MOST_BYTES else [f"{row.what}: {share:.3f} of fp16's bytes"]
    print(f"bars    logprob8 encodes {LEAST_RATES['encode']} and decodes {LEAST_RATES['decode']} records/s, "
          f"at most {MOST_BYTES} of fp16's bytes, targets within {MAX_TARGET_ERROR}")  # fmt: skip
    return exit_status(failures)


def drawn_logits() -> list[np.ndarray]:
    """(5, 256, 256) float32 each: one class leads by 6 to 10 nats, edges are soft, the noise is a fifth of a nat."""
    scenes = SimulationConfig(size=(SIDE, SIDE))
    return [logits_like(simulate(index, scenes, seed=0).label, index) for index in range(NUM_RECORDS)]


def logits_like(label: np.ndarray, seed: int) -> np.ndarray:
    """A confident teacher's logits of a scene, float32."""
    rng = np.random.default_rng(seed)
    planes = np.stack([blur((label == number).astype(np.float64), 1.5) for number in range(5)])
    return (rng.uniform(6, 10, (5, 1, 1)) * planes + rng.normal(0, 0.2, planes.shape)).astype(np.float32)


def teacher_logits(folder: Path) -> tuple[list[np.ndarray], str]:
    """(K, 256, 256) float32 each, from a set in fp16; records of less than the size stand side by side."""
    shards = ShardSet(folder)
    if shards.index.codec != "fp16":
        raise SystemExit(f"{folder} holds {shards.index.codec}; expected logits, a set generated with codec fp16")
    height, width = shards.size(0)
    rows, columns = -(-SIDE // height), -(-SIDE // width)
    count = min(NUM_RECORDS, len(shards) // (rows * columns))
    if not count:
        raise SystemExit(f"{folder} has {len(shards)} records; expected {rows * columns} to fill {SIDE} x {SIDE}")
    records = []
    for first in range(0, count * rows * columns, rows * columns):
        tiles = [shards.read(first + place).soft_label for place in range(rows * columns)]
        strips = [np.concatenate(tiles[row * columns : (row + 1) * columns], axis=2) for row in range(rows)]
        records.append(np.concatenate(strips, axis=1)[:, :SIDE, :SIDE].astype(np.float32))
    tiled = "" if rows * columns == 1 else f", {rows * columns} of {height} x {width} in each"
    return records, f"of a trained teacher{tiled}"


def _check_errors(logits: list[np.ndarray]) -> list[str]:
    """Prints the largest error of a softened target and the stated bound, by temperature."""
    failures = []
    for temperature in TEMPERATURES:
        codec = get_codec("logprob8", temperature)
        error = max(_target_error(record, codec, temperature) for record in logits)
        num_classes = len(logits[0])
        bound = target_error(range_for(temperature, num_classes), temperature, num_classes)
        print(f"error   of targets softened by {temperature:g}: {error:.5f}, bound {bound:.5f}")
        failures += [] if error <= min(bound, MAX_TARGET_ERROR) else [f"error {error:.5f} at temperature {temperature}"]
    return failures


def _target_error(logits: np.ndarray, codec, temperature: float) -> float:
    codes, soft_range = codec.decode(codec.encode(logits), logits.shape)
    pair = (codes * (-soft_range / 255), logits)
    given, wanted = ((torch.from_numpy(values).double() / temperature).softmax(0) for values in pair)
    return float((given - wanted).abs().max())


def _race(logits: list[np.ndarray], source: str) -> list[Row]:
    codecs = {name: get_codec(name, temperature=2.0) for name in CODECS}
    stored = {name: [codec.encode(record) for record in logits] for name, codec in codecs.items()}
    mean_bytes = {name: sum(map(len, records)) / len(records) for name, records in stored.items()}
    calls = {}
    for name, codec in codecs.items():
        calls["encode", name] = [lambda codec=codec, record=record: codec.encode(record) for record in logits]
        calls["decode", name] = [
            lambda codec=codec, data=data: codec.decode(data, logits[0].shape) for data in stored[name]
        ]
    timings, failures = time_in_turns(calls, "cpu", _SECONDS)
    if failures:
        raise RuntimeError(f"not timed: {failures}")
    shape = "x".join(map(str, logits[0].shape))
    return [
        Row("soft_label_codec", shape, name, what, name, timing.called_us, timing.method, timing.called_us,
            least_mb=mean_bytes[name] / 1e6, gb_s=mean_bytes[name] / timing.called_us / 1e3,
            images_per_s=1e6 / timing.called_us, note=f"logits {source}")
        for (what, name), timing in sorted(timings.items())
    ]  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shards", type=Path, help="a folder of shards generated with codec fp16")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
