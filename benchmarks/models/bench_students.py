"""Training steps of two students side by side, a process and half of the cores each, against one after the other.

    python benchmarks/models/bench_students.py [--steps 20] [--csv FILE]

The demo's student, loss and batch (configs/demo.yaml) in the engine, on batches in memory. One after the other: a
process with all cores takes the steps of two. Side by side, as with `train_saross.students_at_once=2`: two processes
that start together; the later end counts. The processes take turns, and the least of the rounds counts. Exit status 1:
the ratio is below its bar.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lib.nets import NUM_CLASSES, student_batch
from lib.race import Races, parse
from lib.table import Row, exit_status

from dakd.config import EngineConfig, TrainSarossConfig
from dakd.models.registry import build_student
from dakd.runtime import distributed
from dakd.runtime.kept_config import open_config
from dakd.train.batch_loss import StudentLoss
from dakd.train.engine import Engine

OURS, RIVAL = "side by side", "one after the other"
BAR = 1.3  # the least ratio of the rival's time to ours, on two cores or more
_ROUNDS, _WARM_UPS = 4, 3


def main() -> int:
    options = parse(__doc__.splitlines()[0], further=_add_options)
    cfg, cores = open_config("demo", []).train_saross, distributed.num_cores()
    if options.threads:
        _answer(cfg, options.threads, options.steps)
        return 0
    races = Races.of(options)
    steps, rounds = (1, 1) if races.is_tiny else (options.steps, _ROUNDS)
    half, seconds = max(1, cores // 2), {RIVAL: [], OURS: []}
    with Process(cores, steps) as alone, Process(half, steps) as first, Process(half, steps) as second:
        for _ in range(rounds):
            seconds[RIVAL].append(2 * _time(alone))
            seconds[OURS].append(_time(first, second))
    rows = rows_of({name: min(times) / steps for name, times in seconds.items()}, cfg.global_batch, cfg.crop[0], cores)
    races.keep(rows)
    return exit_status([] if races.is_tiny or cores < 2 else missed(rows))


def rows_of(seconds: dict[str, float], size: int, side: int, cores: int) -> list[Row]:
    """seconds: by contestant, of one step of both students."""
    rows = []
    for name, taken in seconds.items():
        row = Row("train", f"demo's student, B {size}, {side}x{side}", "fp32", "two students", name, taken * 1e6,
                  "wall clock", taken * 1e6, images_per_s=2 * size / taken)  # fmt: skip
        row.times_eager = seconds[RIVAL] / taken
        row.note = f"{cores} cores"
        rows.append(row)
    return rows


def missed(rows: list[Row]) -> list[str]:
    """The bar, if our row does not reach it."""
    return [
        f"{row.shape}: {row.times_eager:.2f}x one after the other; the bar is {BAR:.2f}x"
        for row in rows
        if row.contestant == OURS and row.times_eager < BAR
    ]


class Process:
    """A process that takes `steps` steps each time that it is asked to."""

    def __init__(self, threads: int, steps: int) -> None:
        command = [sys.executable, __file__, "--threads", str(threads), "--steps", str(steps), "--device", "cpu"]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Process:
        self.wait()  # until it is set up and warm
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()

    def ask(self) -> None:
        self.child.stdin.write("\n")
        self.child.stdin.flush()

    def wait(self) -> None:
        while (line := self.child.stdout.readline()) != "done\n":
            if not line:
                raise RuntimeError(f"a process of the benchmark ended with status {self.child.wait()}")


def _time(*processes: Process) -> float:
    """Seconds until all have taken their steps, from a common start."""
    start = time.perf_counter()
    for process in processes:
        process.ask()
    for process in processes:
        process.wait()
    return time.perf_counter() - start


def _answer(cfg: TrainSarossConfig, threads: int, steps: int) -> None:
    """In a process: take the steps once for every line that comes."""
    torch.set_num_threads(threads)
    distributed.init_process_group()
    module = StudentLoss(build_student(cfg.student, NUM_CLASSES), cfg.loss, 0, torch.channels_last)
    given = student_batch(cfg.global_batch, cfg.crop[0], "cpu")
    engine = Engine(module, cfg.optimizer, EngineConfig(wandb="off"), global_batch=cfg.global_batch,
                    micro_batch=cfg.micro_batch, precision="fp32", decays_vectors=False)  # fmt: skip
    torch.set_num_threads(threads)  # the engine's set-up takes all cores
    batches = itertools.repeat(given)
    for count in itertools.chain([_WARM_UPS], (steps for _ in sys.stdin)):
        for _ in range(count):
            engine.train_step(batches, cfg.optimizer.lr)
        sys.stdout.write("done\n")
        sys.stdout.flush()


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=20, help="of a student and round")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)  # in a process of the benchmark


if __name__ == "__main__":
    sys.exit(main())
