"""Faults of every kind, at random instants; after each the work goes on and is compared with the undisturbed one.

Prints a table, and writes it with --out. Exit status 1 where anything was lost, doubled, wrongly accepted or different.
The moments and places of the faults follow from --seed, as far as a machine's timing lets them.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import commit, device_name, version
from torture import damage, full_disk, generation, training, writing
from torture.tally import Tally

FAMILIES: dict[str, Callable[[Path, random.Random, Callable[[int], int]], list[Tally]]] = {
    "generate": lambda folder, chance, many: [generation.kill_workers(folder, chance, many(90))],
    "prepare": lambda folder, chance, many: [writing.kill_prepares(folder, chance, many(50))],
    "checkpoint": lambda folder, chance, many: [writing.kill_walks(folder, chance, many(100))],
    "train": lambda folder, chance, many: [training.kill_trainings(folder, chance, many(40))],
    "train-other": lambda folder, chance, many: training.other_faults(folder, chance, many(3)),
    "damage": lambda folder, chance, many: [
        *damage.damage_shards(folder / "shards", chance, many(40)),
        *writing.damage_walks(folder / "checkpoints", chance, many(64)),
    ],
    "disk": lambda folder, chance, many: full_disk.fill(folder, chance, many),
    "hang": lambda folder, chance, many: [
        generation.hang(folder / "generate", chance, many(15)),
        writing.hang_walks(folder / "checkpoints", chance, many(15)),
    ],
    "race": lambda folder, chance, many: [
        generation.race(folder / "generate", chance, many(20)),
        writing.race_walks(folder / "checkpoints", chance, many(10)),
    ],
    "clock": lambda folder, chance, many: [
        generation.jump(folder / "generate", chance, many(10)),
        writing.jump_walks(folder / "checkpoints", chance, many(10)),
    ],
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments and places of the faults")
    parser.add_argument("--only", action="append", choices=FAMILIES, help="repeatable; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of faults; at least one of each kind")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    options = parser.parse_args(arguments)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process with a CUDA context cannot be forked
    torch.set_num_threads(1)
    print(f"torture: seed {options.seed}, scale {options.scale:g}, commit {commit()}", flush=True)
    start_s = time.monotonic()
    tallies = []
    with tempfile.TemporaryDirectory(prefix="dakd-torture-") as folder:
        for name in options.only or FAMILIES:
            tallies += run_family(name, Path(folder) / name, options.seed, options.scale)
    text = table(tallies, options.seed, options.scale, time.monotonic() - start_s)
    print("\n" + text)
    if options.out:
        options.out.write_text(text)
    bad = [tally for tally in tallies if not tally.is_good]
    for tally in bad:
        print(f"FAILED {tally.work}, {tally.fault}: {tally.survived} of {tally.tried} survived")
        for problem in tally.total.problems:
            print(f"  {problem}")
    return 1 if bad else 0


def run_family(name: str, folder: Path, seed: int, scale: float) -> list[Tally]:
    """The rows of a family; one that could not be carried out is a row that says why."""
    (folder / "shards").mkdir(parents=True)
    for part in ("checkpoints", "generate"):
        (folder / part).mkdir()
    try:
        tallies = FAMILIES[name](folder, random.Random(f"{seed} {name}"), lambda count: max(1, round(count * scale)))
    except RuntimeError as error:
        failed = Tally(name, "could not be carried out")
        failed.total.problems.append(str(error))
        tallies = [failed]
    for tally in tallies:
        print(f"{line(tally)}  [--only {name}]", flush=True)
    return tallies


def line(tally: Tally) -> str:
    most_first = sorted(tally.landed.items(), key=lambda pair: -pair[1])
    states = ", ".join(f"{count} {state}" for state, count in most_first)
    return f"{tally.work}: {tally.fault}: {tally.survived} of {tally.tried} survived ({states}; {tally.missed} missed)"


def table(tallies: list[Tally], seed: int, scale: float, seconds: float) -> str:
    """Markdown: what it was run on, a row a kind of fault, and in which states the faults found the work."""
    kills = sum(tally.tried for tally in tallies if tally.fault.startswith("kill -9"))
    rows = ["| work | fault | tried | survived | samples lost | samples doubled | corrupt files accepted | seconds |",
            "|---|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for tally in tallies:
        found = tally.total
        numbers = (tally.tried, tally.survived, found.lost, found.doubled, found.accepted, round(tally.seconds))
        rows.append(f"| {tally.work} | {tally.fault} | " + " | ".join(map(str, numbers)) + " |")
    totals = [
        sum(tally.tried for tally in tallies),
        sum(tally.survived for tally in tallies),
        *(sum(getattr(tally.total, name) for tally in tallies) for name in ("lost", "doubled", "accepted")),
        round(seconds),
    ]
    rows.append("| **all** | | " + " | ".join(f"**{total}**" for total in totals) + " |")
    head = (
        f"`make torture`, {date.today().isoformat()}, commit {commit()}, seed {seed}, scale {scale:g}; "
        f"{device_name('cpu').partition(',')[0]}, {os.cpu_count()} cores; torch {torch.__version__}, "
        f"DeepSpeed {version('deepspeed')}. {kills} kills -9 landed; one that came too late is not counted as tried."
    )
    where = [f"- {line(tally)}" for tally in tallies]
    return "\n".join([head, "", *rows, "", "In which state the faults found the work:", "", *where]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
