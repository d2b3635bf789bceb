"""A full disk: a tmpfs of a few MiB in a user namespace, filled up to a random rest.

Where the kernel refuses such a namespace, a limit on the size of files stands in, and the table says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from torture.damage import tree_hash
from torture.generation import finish
from torture.pair_sets import compare_begun, compare_finished, make_undisturbed_set
from torture.preparing import prepare_config
from torture.training_trace import compare
from torture.trials import Findings, Trials
from torture.victim import Victim
from torture.walks import run_to_end, undisturbed_walk, walk

from dakd.data.prepare import prepare
from dakd.generate.claims import living_claims
from dakd.generate.generate import generate
from dakd.train.checkpoint import list_checkpoints

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h
FULL_DISK_WORDS = ("No space left on device", "File too large")


class SmallDisk:
    """A mounted tmpfs."""

    means = "disk full (tmpfs)"

    def __init__(self, folder: Path, mebibytes: int) -> None:
        """Mount it at a folder, for this process and its children. OSError if the kernel refuses."""
        self.folder, self._ballast = folder, folder / "ballast"
        libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        _check(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _check(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={mebibytes}m".encode()))

    def squeeze(self, num_bytes: int) -> None:
        """Fill the disk until about `num_bytes` are free."""
        state = os.statvfs(self.folder)
        with open(self._ballast, "wb") as stream:
            stream.write(bytes(max(0, state.f_bavail * state.f_bsize - num_bytes)))

    def enter(self) -> None:
        """Called by the process that is to meet the full disk."""

    def free(self) -> None:
        self._ballast.unlink()


class FileSizeLimit:
    """A stand-in: in a process that enters it, no file may grow beyond the bytes left."""

    means = "disk full (stand-in: limited file size)"

    def __init__(self, folder: Path) -> None:
        self.folder, self._left = folder, 0

    def squeeze(self, num_bytes: int) -> None:
        self._left = num_bytes

    def enter(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._left, self._left))

    def free(self) -> None:
        pass


Disk = SmallDisk | FileSizeLimit


def _check(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def on_small_disk(folder: Path, mebibytes: int, work: Callable[[Disk], list[Trials]]) -> list[Trials]:
    """The rows of `work`, which runs in a fork that sees a small disk at `folder`.

    RuntimeError if the fork dies before it has sent them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        disk: Disk = FileSizeLimit(folder)
        with contextlib.suppress(OSError):
            disk = SmallDisk(folder, mebibytes)
        theirs.send_bytes(json.dumps([asdict(trials) for trials in work(disk)]).encode())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    theirs.close()
    try:
        rows = json.loads(ours.recv_bytes())
    except EOFError:
        raise RuntimeError("the process with the small disk died; its output stands above") from None
    finally:
        process.join()
    return [Trials(**row | {"total": Findings(**row["total"])}) for row in rows]


def fill(folder: Path, chance: random.Random, many: Callable[[int], int]) -> list[Trials]:
    """The disk fills while shards are generated, while shards are prepared, and while checkpoints are written."""

    def work(disk: Disk) -> list[Trials]:
        return [
            _fill_generation(disk, folder, chance, many(20)),
            _fill_prepare(disk, folder, chance, many(20)),
            _fill_walks(disk, folder, chance, many(30)),
        ]

    return on_small_disk(folder / "disk", 64, work)


def meets_full_disk(disk: Disk, work: Callable[[], object], log: Path, found: Findings) -> bool:
    """Whether a process that does the work failed; if so, its output must name the full disk."""

    def in_it() -> None:
        disk.enter()
        work()

    victim = Victim(in_it, log)
    if victim.wait() == 0:
        return False
    names_reason = any(words in victim.output() for words in FULL_DISK_WORDS)
    found.expect(names_reason, f"it failed for another reason: {victim.output()[-300:]}")
    return True


def _fill_generation(disk: Disk, folder: Path, chance: random.Random, times: int) -> Trials:
    trials = Trials("generation, writing shards", disk.means)
    undisturbed = make_undisturbed_set(folder / "alone", 4)
    total = sum(path.stat().st_size for path in undisturbed.folder.glob("shard-*"))
    # A limit on the size of a file takes effect only below the size of a tar.
    largest = total if isinstance(disk, SmallDisk) else total // 4
    while trials.tried < times:
        config, found = undisturbed.begin(disk.folder / "run"), Findings()
        disk.squeeze(_rest(chance, largest))
        has_failed = meets_full_disk(disk, lambda config=config: generate(config), folder / "victim.log", found)
        found.add(compare_begun(config, undisturbed))
        left = list((config.run_path / "generate").glob(".*.tmp"))
        found.expect(not left, f"{left[:1]} was left on the full disk")
        claimed = living_claims(config.run_path / "generate")
        found.expect(not claimed, f"shards {claimed} stay claimed by dead workers")
        disk.free()
        finish(config, folder)
        found.add(compare_finished(config, undisturbed))
        _count(trials, has_failed, "making shards", found)
    return trials


def _fill_prepare(disk: Disk, folder: Path, chance: random.Random, times: int) -> Trials:
    trials = Trials("preparing shards", disk.means)
    prepare(prepare_config(folder / "prepared", 1))
    wanted = tree_hash(folder / "prepared" / "prepare")
    files = [path.stat().st_size for path in (folder / "prepared" / "prepare").rglob("*") if path.is_file()]
    run = disk.folder / "run"
    while trials.tried < times:
        shutil.rmtree(run, ignore_errors=True)
        config, found = prepare_config(run, 1), Findings()
        disk.squeeze(_rest(chance, sum(files) if isinstance(disk, SmallDisk) else max(files)))
        has_failed = meets_full_disk(disk, lambda config=config: prepare(config), folder / "victim.log", found)
        is_whole = (run / "prepare").exists()
        found.accepted += has_failed and is_whole
        found.expect(not (has_failed and is_whole), f"{run / 'prepare'} is there though it could not be written")
        disk.free()
        last = Victim(lambda config=config: prepare(config), folder / "last.log")
        found.expect(last.wait() == 0, f"prepare could not resume: {last.output()[-300:]}")
        found.expect(tree_hash(run / "prepare") == wanted, f"{run / 'prepare'} is not the undisturbed set")
        _count(trials, has_failed, "writing shards", found)
    return trials


def _fill_walks(disk: Disk, folder: Path, chance: random.Random, times: int) -> Trials:
    trials = Trials("writing checkpoints and logs", disk.means)
    steps = 10
    trace = undisturbed_walk(folder / "walk", steps)
    checkpoint = list_checkpoints(folder / "walk" / "checkpoints")[0]
    num_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    while trials.tried < times:
        run, found = disk.folder / "run", Findings()
        shutil.rmtree(run, ignore_errors=True)
        run_to_end(run, 4)
        (run / "weights.safetensors").unlink()
        disk.squeeze(_rest(chance, num_bytes))
        has_failed = meets_full_disk(disk, lambda run=run: walk(run, steps), folder / "victim.log", found)
        found.add(compare(run, trace, is_finished=not has_failed))
        disk.free()
        run_to_end(run, steps)
        _count(trials, has_failed, "after step 4", found.add(compare(run, trace, is_finished=True)))
    return trials


def _rest(chance: random.Random, largest: int) -> int:
    """Bytes to leave free: half of the times a few pages, so that small files hit the full disk too."""
    return chance.randrange(16) * 4096 if chance.random() < 0.5 else chance.randrange(largest)


def _count(trials: Trials, has_failed: bool, state: str, found: Findings) -> None:
    """A disk that sufficed is no fault; the comparison must be clean all the same."""
    trials.count_if(has_failed, state, found)
