"""Three workers, started and killed at random, make 4,480 small pairs; one undisturbed worker makes them too. Equal?

Every worker is killed with SIGKILL after a random time and started again, each at its own moment, until --kills of them
have died; then those that are left finish. Deterministic mode on the CPU, so the sets must be equal byte for byte.
Exit status 3: they are not.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from paper_nets import B_FACTOR, NUM_CLASSES, joint_net, unet_config

from dakd.config import Config, ScheduleConfig, build_config
from dakd.data.sample import OSD_CLASSES
from dakd.data.shards import ShardSet
from dakd.generate.generate import generate
from dakd.generate.survey import find_faults, open_plan
from dakd.generate.teacher import PairMaker, teacher_file_name
from dakd.runtime.files import file_hash
from dakd.weights import save_weights

_LONGEST_LIFE_S = 1.0
_WAIT_S = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4480)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process with a CUDA context cannot be forked
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="dakd-kill-") as folder:
        rows, is_equal = compare(Path(folder), options)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    if not is_equal:
        raise SystemExit(3)


def compare(folder: Path, options: argparse.Namespace) -> tuple[list[tuple[str, object]], bool]:
    """The rows of the table, and whether the disturbed set is the undisturbed one."""
    alone, disturbed = tiny_run(folder / "alone", options.pairs), tiny_run(folder / "disturbed", options.pairs)
    # What torch imports at its first step, the workers will have from here.
    list(PairMaker.from_config(alone).pairs(range(1)))
    start_s = time.monotonic()
    start_worker(alone).join()
    alone_s, start_s = time.monotonic() - start_s, time.monotonic()
    deaths = disturb(disturbed, options)
    disturbed_s = time.monotonic() - start_s
    plan = open_plan(disturbed)
    left = len(list(plan.folder.glob(".*.tmp")))
    faults = find_faults(plan, OSD_CLASSES)
    ours, theirs = ShardSet(plan.folder), ShardSet(open_plan(alone).folder)
    our_keys, their_keys = ([shards.key(i) for i in range(len(shards))] for shards in (ours, theirs))
    equal_tars = sum(
        file_hash(ours.folder / shard["file"]) == file_hash(theirs.folder / shard["file"])
        for shard in theirs.index["shards"]
    )
    lost, doubled = len(set(their_keys) - set(our_keys)), len(our_keys) - len(set(our_keys))
    same = ours.index == theirs.index
    num_shards = len(theirs.index["shards"])
    rows = [
        ("pairs, shards", f"{len(theirs)}, {num_shards}"),
        ("workers killed", f"{sum(deaths.values())} of {options.workers} at a time"),
        ("  killed while a shard was being written", f"{left} unfinished files lay aside"),
        ("seconds alone, disturbed", f"{alone_s:.1f}, {disturbed_s:.1f}"),
        ("samples lost", lost),
        ("samples doubled", doubled),
        ("faults that verify finds", len(faults)),
        ("tars equal byte for byte", f"{equal_tars} of {num_shards}"),
        ("index and fingerprint equal", "yes" if same else "no"),
    ]
    return rows, not (lost or doubled or faults) and same and equal_tars == num_shards


def tiny_run(run: Path, num_pairs: int) -> Config:
    """A run of a small net with random weights, ready to generate."""
    size, settings = (16, 16), {"sampling_steps": 4, "micro_batch": 32, "shard_size": 64, "deterministic": True}
    tree = {"name": "kill", "run_dir": str(run), "generate": {"num_samples": num_pairs, "size": size, **settings}}
    config = build_config(tree)
    facts = {
        "kind": "jointnet",
        "unet": unet_config(is_tiny=True).model_dump(mode="json"),
        "num_classes": NUM_CLASSES,
        "schedule": ScheduleConfig().model_dump(mode="json"),
        "b": B_FACTOR,
        "classes": OSD_CLASSES.to_dict(),
    }
    save_weights(teacher_file_name(config), joint_net(True, "cpu").state_dict(), facts)
    return config


def start_worker(config: Config) -> multiprocessing.Process:
    """A worker in a process of its own, which starts at once: it is forked from one that has imported everything."""

    def work() -> None:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            generate(config)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def disturb(config: Config, options: argparse.Namespace) -> dict[int, int]:
    """Start, kill and start again until enough workers have died, then let them finish; deaths by worker."""
    chance = random.Random(options.seed)
    deaths = dict.fromkeys(range(options.workers), 0)

    def restart(worker: int) -> None:
        running[worker] = start_worker(config)
        ends_s[worker] = time.monotonic() + chance.uniform(0, _LONGEST_LIFE_S)

    running: dict[int, multiprocessing.Process] = {}
    ends_s: dict[int, float] = {}
    for worker in deaths:
        restart(worker)
        time.sleep(chance.uniform(0, 0.2))
    while sum(deaths.values()) < options.kills and not (config.run_path / "generate" / "index.json").exists():
        for worker, process in list(running.items()):
            if time.monotonic() >= ends_s[worker]:
                process.kill()
                process.join()
                deaths[worker] += process.exitcode == -signal.SIGKILL
                restart(worker)
        time.sleep(_WAIT_S)
    for process in running.values():
        process.join()
    start_worker(config).join()  # whatever the last kill left
    return deaths


if __name__ == "__main__":
    main()
