"""Faults of every kind at random instants; after each the work resumes and is compared with an undisturbed run.

Prints a table; --out writes it to a file. Exit status 1 if anything was lost, doubled, wrongly accepted or different.
--seed fixes the instants and places of the faults, as far as the machine's timing allows.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from hang_up import heed_signals
from torture import believed_files, damaged_shards, ends, full_disk, generation, preparing, scenes, training, walks
from torture.trials import Trials

from dakd.shipped import code_version

FAMILIES: dict[str, Callable[[Path, random.Random, Callable[[int], int]], list[Trials]]] = {
    "generate": lambda folder, chance, many: [generation.kill_workers(folder, chance, many(90))],
    "prepare": lambda folder, chance, many: [preparing.kill_prepares(folder, chance, many(50))],
    "checkpoint": lambda folder, chance, many: [walks.kill_walks(folder, chance, many(100))],
    "train": lambda folder, chance, many: [training.kill_trainings(folder, chance, many(40))],
    "ends": lambda folder, chance, many: ends.end_families(folder, chance, many(2)),
    "train-other": lambda folder, chance, many: training.other_faults(folder, chance, many(3)),
    "damage": lambda folder, chance, many: [
        *damaged_shards.damage_shards(folder / "shards", chance, many(40)),
        *walks.damage_walks(folder / "checkpoints", chance, many(64)),
    ],
    "believed": lambda folder, chance, many: believed_files.damage_believed_files(folder, chance, many(20)),
    "disk": lambda folder, chance, many: full_disk.fill(folder, chance, many),
    "scene": lambda folder, chance, many: scenes.disturb_scenes(folder, chance, many),
    "hang": lambda folder, chance, many: [
        generation.hang(folder / "generate", chance, many(15)),
        walks.hang_walks(folder / "checkpoints", chance, many(15)),
    ],
    "race": lambda folder, chance, many: [
        generation.race(folder / "generate", chance, many(20)),
        walks.race_walks(folder / "checkpoints", chance, many(10)),
    ],
    "clock": lambda folder, chance, many: [
        generation.jump(folder / "generate", chance, many(10)),
        walks.jump_walks(folder / "checkpoints", chance, many(10)),
    ],
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the instants and places of the faults")
    parser.add_argument("--only", action="append", choices=FAMILIES, help="repeatable; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of faults; at least one each")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args(arguments)
    heed_signals()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process with a CUDA context cannot be forked
    torch.set_num_threads(1)
    print(f"torture: seed {options.seed}, scale {options.scale:g}, {code_version()}", flush=True)
    start_s = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory(prefix="dakd-torture-") as folder:
        for name in options.only or FAMILIES:
            rows += run_family(name, Path(folder) / name, options.seed, options.scale)
    text = table(rows, options.seed, options.scale, time.monotonic() - start_s)
    print("\n" + text)
    if options.out:
        options.out.write_text(text)
    bad = [trials for trials in rows if not trials.is_good]
    for trials in bad:
        print(f"FAILED {trials.work}, {trials.fault}: {trials.survived} of {trials.tried} survived")
        for problem in trials.total.problems:
            print(f"  {problem}")
    return 1 if bad else 0


def run_family(name: str, folder: Path, seed: int, scale: float) -> list[Trials]:
    """The rows of a family; one that could not run is a row that says why."""
    (folder / "shards").mkdir(parents=True)
    for part in ("checkpoints", "generate"):
        (folder / part).mkdir()
    try:
        rows = FAMILIES[name](folder, random.Random(f"{seed} {name}"), lambda count: max(1, round(count * scale)))
    except RuntimeError as error:
        failed = Trials(name, "could not run")
        failed.total.problems.append(str(error))
        rows = [failed]
    for trials in rows:
        print(f"{line(trials)}  [--only {name}]", flush=True)
    return rows


def line(trials: Trials) -> str:
    most_first = sorted(trials.landed.items(), key=lambda pair: -pair[1])
    states = ", ".join(f"{count} {state}" for state, count in most_first)
    survived = f"{trials.survived} of {trials.tried} survived"
    return f"{trials.work}: {trials.fault}: {survived} ({states}; {trials.missed} missed)"


def table(all_trials: list[Trials], seed: int, scale: float, seconds: float) -> str:
    """Markdown: the machine, a row per kind of fault, and the states in which the faults hit the work."""
    kills = sum(trials.tried for trials in all_trials if trials.fault.startswith("kill -9"))
    rows = ["| work | fault | tried | survived | samples lost | samples doubled | corrupt files accepted | seconds |",
            "|---|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for trials in all_trials:
        found = trials.total
        numbers = (trials.tried, trials.survived, found.lost, found.doubled, found.accepted, round(trials.seconds))
        rows.append(f"| {trials.work} | {trials.fault} | " + " | ".join(map(str, numbers)) + " |")
    totals = [
        sum(trials.tried for trials in all_trials),
        sum(trials.survived for trials in all_trials),
        *(sum(getattr(trials.total, name) for trials in all_trials) for name in ("lost", "doubled", "accepted")),
        round(seconds),
    ]
    rows.append("| **all** | | " + " | ".join(f"**{total}**" for total in totals) + " |")
    head = (
        f"`make torture`, {date.today().isoformat()}, {code_version()}, seed {seed}, scale {scale:g}; "
        f"{_cpu_name()}, {os.cpu_count()} cores; torch {torch.__version__}, DeepSpeed {version('deepspeed')}. "
        f"{kills} kills -9 landed; one that came too late does not count as tried."
    )
    where = [f"- {line(trials)}" for trials in all_trials]
    return "\n".join([head, "", *rows, "", "The state of the work when the faults hit it:", "", *where]) + "\n"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
