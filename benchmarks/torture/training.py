"""Trainings under DeepSpeed, started by its launcher or by torchrun, and every kind of fault that may meet them.

A kill takes one rank, or the launcher above the ranks, or all at once; the same command, started again, is the next
victim. After each the log and the checkpoints must be those of the undisturbed run, up to where it died; at its end all
of it must be.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from machine import ROOT
from paper_nets import unet_config
from torture.full_disk import FULL_DISK_WORDS, Disk, on_small_disk
from torture.tally import Outcome, Tally
from torture.traces import Trace, compare, is_writing, read_trace
from torture.victims import HARMS, wait_until

from dakd.config import Config, build_config
from dakd.data.prepare import prepare
from dakd.pipeline import step_environment
from dakd.runtime.distributed import free_port
from dakd.train.checkpoint import list_checkpoints

_STEPS, _EVERY, _BATCH = 120, 5, 4
_RESUME_AT = 110  # where the faults that are no kills find a training
_LONGEST_LIFE_S = 3.0  # after its first step
_START_S = 6.0
_POLL_S = 0.1
_SHARE_OF_EARLY_KILLS = 0.15  # that may come before the first step
_COUNTING = threading.Lock()  # two chains share a row
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """How a training is started."""

    launcher: str
    ranks: int
    zero_stage: int

    def command(self, script: list[str]) -> list[str]:
        port = ["--master_port", str(free_port())]
        runner = str(Path(sys.executable).parent / self.launcher)
        if self.launcher == "deepspeed":
            return [runner, "--num_gpus", str(self.ranks), *port, "--log_level", "error", *script]
        return [runner, "--nproc_per_node", str(self.ranks), "--master_addr", "127.0.0.1", *port, *script]


LAUNCHES = (Launch("torchrun", 1, 3), Launch("deepspeed", 2, 2))


class Run:
    """A training of stage 1 in a run folder, as a command that may be started again and again."""

    def __init__(self, run: Path, launch: Launch, keep: int = 2) -> None:
        self.run, self.launch = run, launch
        self.stage = run / "train_jointnet" / "stage1"
        self._config, self._log = run.with_suffix(".yaml"), run.with_suffix(".log")
        self._config.write_text(yaml.safe_dump(train_config(run, launch.zero_stage, keep).model_dump(mode="json")))
        self.process: subprocess.Popen | None = None

    def start(
        self, wrapper: tuple[str, ...] = (), before: Callable[[], None] | None = None, log: Path | None = None
    ) -> None:
        """wrapper: a script, with its options, that runs the training's script.  before: called by the new process."""
        script = [*wrapper, str(ROOT / "launch" / "train_jointnet.py"), "--config", str(self._config), "--stage", "1"]
        place_free = {name: value for name, value in step_environment().items() if name not in _PLACE}
        environment = place_free | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(log or self._log, "w") as stream:
            self.process = subprocess.Popen(
                self.launch.command(script), cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=before,
            )  # fmt: skip

    def told(self) -> str:
        return self._log.read_text(errors="replace")

    def has_stepped(self) -> bool:
        return "stage1  step " in self.told()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def has_finished(self) -> bool:
        return (self.stage / "weights_ema.safetensors").exists()

    def finish(self, wrapper: tuple[str, ...] = ()) -> None:
        """Start it and wait for its end; RuntimeError where that is not a good one."""
        self.start(wrapper)
        self.wait()

    def wait(self) -> None:
        try:
            status = self.process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            status = "no end"
        if status != 0:
            self.kill_all()
            raise RuntimeError(f"{self._config}: the training ended with {status}:\n{self.told()[-2000:]}")

    # -- its processes ------------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """Of all that have the run's configuration on their command line: launchers, ranks, readers."""
        wanted = os.fsencode(self._config)
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (folder / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def ranks(self) -> list[int]:
        """The ranks' main processes."""
        pids = self.pids()
        ranks = [pid for pid in pids if _has_variable(pid, "RANK")]
        return [pid for pid in ranks if _parent(pid) not in ranks]

    def kill(self, chance: random.Random, ranks: list[int]) -> str:
        """SIGKILL to a rank, to the launcher above the ranks, or to all; which. Empty where nothing was there."""
        launchers = sorted({_parent(pid) for pid in ranks} & set(self.pids()))
        kinds = {"a rank": [chance.choice(ranks)], "the launcher": launchers[:1], "all": self.pids()} if ranks else {}
        kind = chance.choice(list(kinds) or ["all"])
        victims = kinds.get(kind, self.pids())
        return kind if sum(_send(pid, signal.SIGKILL) for pid in victims) else ""

    def kill_all(self) -> None:
        for pid in self.pids():
            _send(pid, signal.SIGKILL)

    def outlived(self) -> Outcome:
        """Wait until no process of the run is left."""
        found = Outcome()
        try:
            wait_until(lambda: not self.pids(), "processes outlived the kill", _POLL_S)
        except RuntimeError as error:
            found.problems.append(f"{error}: {self.pids()}")
            self.kill_all()
        self.process.wait()
        return found


def _has_variable(pid: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return any(entry.startswith(f"{name}=".encode()) for entry in entries)
    return False


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _send(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def train_config(run: Path, zero_stage: int, keep: int) -> Config:
    """Stage 1 of a tiny net on simulated images, with a checkpoint every few steps."""
    train = {
        "unet": unet_config(is_tiny=True).model_dump(mode="json"),
        "crop": [16, 16],
        "global_batch": _BATCH,
        "micro_batch": 2,
        "optimizer": {"lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "engine": {"num_workers": 1, "log_every": 1, "checkpoint_every": _EVERY, "keep_checkpoints": keep,
                   "wandb": "off", "sample_every": 0, "threads": 1,
                   "deepspeed": f"configs/deepspeed/zero{zero_stage}.json"},
        "stage1": {"steps": _STEPS, "lr": 1e-3},
    }  # fmt: skip
    simulation = {"num_train": 12, "num_test": 4, "size": [32, 32]}
    settings = {"prepare": {"simulation": simulation, "shard_size": 5}, "train_jointnet": train}
    return build_config({"name": "torture", "run_dir": str(run), **settings})


@dataclass(frozen=True)
class Whole:
    """An undisturbed training that kept all its checkpoints."""

    run: Run
    trace: Trace

    def begin(self, run: Path) -> Run:
        """The same training, nothing done."""
        shutil.copytree(self.run.run / "prepare", run / "prepare")
        return Run(run, self.run.launch)

    def begin_late(self, run: Path) -> Run:
        """The same training, stopped after one of its last checkpoints, of which there are two, and one step more."""
        begun = self.begin(run)
        for step in (_RESUME_AT - _EVERY, _RESUME_AT):
            name = f"checkpoints/step-{step:08d}"
            shutil.copytree(self.run.stage / name, begun.stage / name)
        lines = (self.run.stage / "metrics.jsonl").read_text().splitlines(keepends=True)
        (begun.stage / "metrics.jsonl").write_text("".join(lines[: _RESUME_AT + 1]))
        return begun


def kill_trainings(folder: Path, chance: random.Random, kills: int) -> Tally:
    """Two chains of victims beside one another, one for each way to launch; a single kill is torchrun's."""
    launches = LAUNCHES[: min(len(LAUNCHES), kills)]
    row = Tally("training under DeepSpeed", "kill -9")
    with ThreadPoolExecutor(2) as pool:
        wholes = _make_wholes(folder, launches, pool)
        shares = [kills // len(launches) + (i < kills % len(launches)) for i in range(len(launches))]
        seeds = [chance.randrange(1 << 30) for _ in wholes]
        list(pool.map(lambda *chain: _kill_one_after_the_other(folder, row, *chain), wholes, shares, seeds))
    return row


def other_faults(folder: Path, chance: random.Random, times: int) -> list[Tally]:
    """Faults of the other kinds, near a training's end."""
    rows = []
    with ThreadPoolExecutor(2) as pool:
        wholes = _make_wholes(folder, LAUNCHES, pool)
        for name, (work, do) in _TRIALS.items():
            rows.append(row := Tally(work, name))
            seeds = [chance.randrange(1 << 30) for _ in range(times)]
            trials = [(wholes[i % len(wholes)], folder / f"{name}-{i}", seed) for i, seed in enumerate(seeds)]
            for state, found in pool.map(lambda trial, do=do: _told(do, *trial), trials):
                row.count(state, found)

    def on_disk(disk: Disk) -> list[Tally]:
        row = Tally("training under DeepSpeed", disk.means)
        for i in range(times):
            row.count(*_told(_fill, wholes[i % len(wholes)], disk, chance))
        return [row]

    # Forked once the threads have ended.
    return rows + on_small_disk(folder / "disk", 64, on_disk)


def _told(trial: Callable[..., tuple[str, Outcome]], *arguments: object) -> tuple[str, Outcome]:
    """What a trial found; that it came to no end is a finding too."""
    try:
        return trial(*arguments)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return "which came to no end", Outcome(problems=[str(error)])


def _make_wholes(folder: Path, launches: Sequence[Launch], pool: ThreadPoolExecutor) -> list[Whole]:
    prepare(train_config(folder / "prepared", 1, 2))
    return list(pool.map(lambda launch: _make_whole(folder, launch), launches))


def _make_whole(folder: Path, launch: Launch) -> Whole:
    path = folder / f"alone-{launch.launcher}"
    shutil.copytree(folder / "prepared" / "prepare", path / "prepare")
    run = Run(path, launch, keep=_STEPS)
    run.finish()
    return Whole(run, read_trace(run.stage, _BATCH))


def _kill_one_after_the_other(folder: Path, row: Tally, whole: Whole, kills: int, seed: int) -> None:
    """Runs, each started, killed and started again to its end, until enough kills have landed."""
    chance, done, number = random.Random(seed), 0, 0
    while done < kills:
        number += 1
        run = whole.begin(folder / f"run-{whole.run.launch.launcher}-{number}")
        while done < kills and not run.has_finished():
            run.start()
            _wait_for_the_moment(run, chance)
            ranks = run.ranks()
            is_over = run.has_ended() or run.has_finished()
            kind = "" if is_over else run.kill(chance, ranks)
            found = run.outlived()
            if not kind:
                found.expect(run.process.returncode == 0, f"it ended by itself:\n{run.told()[-1000:]}")
                with _COUNTING:
                    row.missed += 1
                    row.note(found)
                break
            state = "between two checkpoints" if run.has_stepped() else "starting"
            state = "writing a checkpoint" if is_writing(run.stage, ranks) else state
            found.add(compare(run.stage, whole.trace, is_finished=False))
            with _COUNTING:
                row.count(f"{state} ({whole.run.launch.launcher}, {kind} killed)", found)
            done += 1
        run.finish()
        found = compare(run.stage, whole.trace, is_finished=True)
        with _COUNTING:
            row.note(found)
        shutil.rmtree(run.run)


def _wait_for_the_moment(run: Run, chance: random.Random) -> None:
    """Mostly while steps are taken and checkpoints written, at times while it starts."""
    if chance.random() < _SHARE_OF_EARLY_KILLS:
        time.sleep(chance.uniform(0, _START_S))
        return
    wait_until(lambda: run.has_stepped() or run.has_ended(), f"{run.run} has taken no step", _POLL_S)
    time.sleep(chance.uniform(0, _LONGEST_LIFE_S))


# --- faults of the other kinds, near a training's end -----------------------------------------------------------------


def _damage(whole: Whole, path: Path, seed: int, do: Callable[[Path, random.Random], str]) -> tuple[str, Outcome]:
    """The newest checkpoint is harmed: the one before it is taken."""
    chance, run = random.Random(seed), whole.begin_late(path)
    newest = list_checkpoints(run.stage / "checkpoints")[-1]
    told = do(chance.choice(sorted(newest.iterdir())), chance)
    run.finish()
    found = compare(run.stage, whole.trace, is_finished=True)
    is_aside = newest.with_name(f"damaged-{newest.name}").is_dir()
    found.accepted += not is_aside
    found.expect(is_aside, f"{told}: the checkpoint was not set aside")
    return "in the newest checkpoint", found


def _hang(whole: Whole, path: Path, seed: int) -> tuple[str, Outcome]:
    """A rank stands still while the others wait for it; a second start is refused; then it goes on."""
    chance, run = random.Random(seed), whole.begin_late(path)
    run.start()
    wait_until(lambda: run.has_stepped() or run.has_ended(), f"{run.run} has taken no step", _POLL_S)
    rank = chance.choice(run.ranks())
    has_landed = _send(rank, signal.SIGSTOP) and not run.has_finished()
    second = Run(path, whole.run.launch)
    log_of_second = path.with_suffix(".second.log")
    second.start(log=log_of_second)
    status = second.process.wait(timeout=300)
    _send(rank, signal.SIGCONT)
    run.wait()
    found = compare(run.stage, whole.trace, is_finished=True)
    found.expect(has_landed, "the training had ended before the rank was stopped")
    is_refused = status != 0 and "is being written by process" in log_of_second.read_text()
    found.expect(is_refused, f"a second start was not refused: {log_of_second.read_text()[-500:]}")
    return "at work", found


def _jump(whole: Whole, path: Path, seed: int) -> tuple[str, Outcome]:
    """The ranks' clocks run wildly from their start on."""
    run = whole.begin_late(path)
    run.finish((str(Path(__file__).with_name("wild_clock.py")), str(seed)))
    return "at work", compare(run.stage, whole.trace, is_finished=True)


_TRIALS: dict[str, tuple[str, Callable[[Whole, Path, int], tuple[str, Outcome]]]] = {
    **{harm: ("checkpoints of DeepSpeed trainings", functools.partial(_damage, do=do)) for harm, do in HARMS.items()},
    "a rank hangs (SIGSTOP)": ("training under DeepSpeed", _hang),
    "the clock jumps": ("training under DeepSpeed", _jump),
}


def _fill(whole: Whole, disk: Disk, chance: random.Random) -> tuple[str, Outcome]:
    """The disk fills in the last steps: the training stops and says why; with room again, it goes on."""
    path = disk.folder / f"run-{chance.randrange(1 << 30)}"
    path.mkdir()
    run, found = whole.begin_late(path), Outcome()
    newest = list_checkpoints(run.stage / "checkpoints")[-1]
    # Less than a checkpoint and the little that is written before it.
    disk.squeeze(chance.randrange(sum(file.stat().st_size for file in newest.iterdir())))
    run.start(before=disk.enter)
    status = run.process.wait(timeout=300)
    run.outlived()
    is_told = any(words in run.told() for words in FULL_DISK_WORDS)
    found.expect(status != 0 and is_told, f"on a full disk it ended with {status}: {run.told()[-1000:]}")
    found.add(compare(run.stage, whole.trace, is_finished=False))
    disk.free()
    run.finish()
    found.add(compare(run.stage, whole.trace, is_finished=True))
    shutil.rmtree(path)
    return "while it went on", found
