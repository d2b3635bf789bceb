"""Trainings under DeepSpeed, started by its launcher or by torchrun: faults of every kind.

A kill hits one rank, the launcher above the ranks, or all of them; the same command, started again, is the next victim.
After each kill the log and the checkpoints must equal the undisturbed run's up to that point; after the last one, all
of them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
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
from torture.damage import DAMAGES
from torture.full_disk import FULL_DISK_WORDS, Disk, on_small_disk
from torture.pair_sets import TINY_UNET
from torture.training_trace import Trace, compare, is_writing, read_trace
from torture.trials import Findings, Trials
from torture.victim import wait_until

from dakd.config import Config, build_config
from dakd.data.prepare import prepare
from dakd.pipeline import step_environment
from dakd.runtime.distributed import free_port
from dakd.train.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parents[2]
_STEPS, _EVERY, _BATCH = 120, 5, 4
_RESUME_AT = 110  # the step at which faults other than kills hit a training
_LONGEST_LIFE_S = 3.0  # after its first step
_START_S = 6.0
_POLL_S = 0.1
_SHARE_OF_EARLY_KILLS = 0.15  # that may come before the first step
_COUNTING = threading.Lock()  # two chains share a row
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launcher:
    """A way to start a training."""

    name: str
    ranks: int
    zero_stage: int

    def command(self, script: list[str]) -> list[str]:
        port = ["--master_port", str(free_port())]
        runner = str(Path(sys.executable).parent / self.name)
        if self.name == "deepspeed":
            return [runner, "--num_gpus", str(self.ranks), *port, "--log_level", "error", *script]
        return [runner, "--nproc_per_node", str(self.ranks), "--master_addr", "127.0.0.1", *port, *script]


LAUNCHERS = (Launcher("torchrun", 1, 3), Launcher("deepspeed", 2, 2))


class TrainingRun:
    """A training of stage 1 in a run folder: a command that may be started again and again."""

    def __init__(self, run: Path, launcher: Launcher, keep: int = 2) -> None:
        self.run, self.launcher = run, launcher
        self.stage = run / "train_jointnet" / "stage1"
        self._config, self._log = run.with_suffix(".yaml"), run.with_suffix(".log")
        self._config.write_text(yaml.safe_dump(train_config(run, launcher.zero_stage, keep).model_dump(mode="json")))
        self.process: subprocess.Popen | None = None

    def start(
        self, wrapper: tuple[str, ...] = (), before: Callable[[], None] | None = None, log: Path | None = None
    ) -> None:
        """wrapper: a script and its arguments, which runs the training's script.  before: called in the new process."""
        script = [*wrapper, str(ROOT / "launch" / "train_jointnet.py"), "--config", str(self._config), "--stage", "1"]
        environment = {name: value for name, value in step_environment().items() if name not in _RANK_VARIABLES}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(log or self._log, "w") as stream:
            self.process = subprocess.Popen(
                self.launcher.command(script), cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=before,
            )  # fmt: skip

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def has_stepped(self) -> bool:
        return "stage1  step " in self.output()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def has_finished(self) -> bool:
        return (self.stage / "weights_ema.safetensors").exists()

    def finish(self, wrapper: tuple[str, ...] = ()) -> None:
        """Start it and wait; RuntimeError if it fails."""
        self.start(wrapper)
        self.wait()

    def wait(self) -> None:
        try:
            status = self.process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            status = "a timeout"
        if status != 0:
            self.kill_all()
            raise RuntimeError(f"{self._config}: the training ended with {status}:\n{self.output()[-2000:]}")

    # -- its processes ------------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """All processes with the run's configuration on their command line: launchers, ranks, data readers."""
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

    def launch_py(self) -> int:
        """DeepSpeed's launch.py, the parent of the ranks."""
        return _parent(self.ranks()[0])

    def kill(self, chance: random.Random, ranks: list[int]) -> str:
        """SIGKILL to a rank, to the launcher above the ranks, or to all; returns which, empty if none was left."""
        launchers = sorted({_parent(pid) for pid in ranks} & set(self.pids()))
        kinds = {"a rank": [chance.choice(ranks)], "the launcher": launchers[:1], "all": self.pids()} if ranks else {}
        kind = chance.choice(list(kinds) or ["all"])
        victims = kinds.get(kind, self.pids())
        return kind if sum(_send(pid, signal.SIGKILL) for pid in victims) else ""

    def kill_all(self) -> None:
        for pid in self.pids():
            _send(pid, signal.SIGKILL)

    def wait_for_orphans(self) -> Findings:
        """Wait until no process of the run is left."""
        found = Findings()
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
        "unet": TINY_UNET,
        "crop": [16, 16],
        "global_batch": _BATCH,
        "micro_batch": 2,
        "optimizer": {"warmup_steps": 2, "ema_decay": 0.9},
        "engine": {"num_workers": 1, "log_every": 1, "checkpoint_every": _EVERY, "keep_checkpoints": keep,
                   "wandb": "off", "sample_every": 0, "threads": 1,
                   "deepspeed": f"configs/deepspeed/zero{zero_stage}.json"},
        "stage1": {"steps": _STEPS, "lr": 1e-3},
    }  # fmt: skip
    simulation = {"num_train": 12, "num_test": 4, "size": [32, 32]}
    settings = {"prepare": {"simulation": simulation, "shard_size": 5}, "train_jointnet": train}
    return build_config({"name": "torture", "run_dir": str(run), **settings})


@dataclass(frozen=True)
class UndisturbedTraining:
    """An undisturbed training that kept all its checkpoints."""

    run: TrainingRun
    trace: Trace

    def begin(self, run: Path) -> TrainingRun:
        """The same training, not yet started."""
        shutil.copytree(self.run.run / "prepare", run / "prepare")
        return TrainingRun(run, self.run.launcher)

    def begin_late(self, run: Path) -> TrainingRun:
        """The same training near its end: two checkpoints, and a log one step longer than the newer of them."""
        begun = self.begin(run)
        for step in (_RESUME_AT - _EVERY, _RESUME_AT):
            name = f"checkpoints/step-{step:08d}"
            shutil.copytree(self.run.stage / name, begun.stage / name)
        lines = (self.run.stage / "metrics.jsonl").read_text().splitlines(keepends=True)
        (begun.stage / "metrics.jsonl").write_text("".join(lines[: _RESUME_AT + 1]))
        return begun


def kill_trainings(folder: Path, chance: random.Random, kills: int) -> Trials:
    """Two chains of victims at once, one per launcher; a single kill goes to torchrun's."""
    launchers = LAUNCHERS[:kills]
    row = Trials("training under DeepSpeed", "kill -9")
    with ThreadPoolExecutor(2) as pool:
        all_undisturbed = _make_undisturbed(folder, launchers, pool)
        shares = [kills // len(launchers) + (i < kills % len(launchers)) for i in range(len(launchers))]
        seeds = [chance.randrange(1 << 30) for _ in all_undisturbed]
        list(pool.map(lambda *chain: _kill_one_after_the_other(folder, row, *chain), all_undisturbed, shares, seeds))
    return row


def other_faults(folder: Path, chance: random.Random, times: int) -> list[Trials]:
    """Other faults than kills, near a training's end."""
    rows = []
    with ThreadPoolExecutor(2) as pool:
        all_undisturbed = _make_undisturbed(folder, LAUNCHERS, pool)
        for name, (work, do) in _TRIALS.items():
            rows.append(row := Trials(work, name))
            seeds = [chance.randrange(1 << 30) for _ in range(times)]
            turns = itertools.cycle(all_undisturbed)
            trials = [(next(turns), folder / f"{name}-{i}", seed) for i, seed in enumerate(seeds)]
            for state, found in pool.map(lambda trial, do=do: _try(do, *trial), trials):
                row.count(state, found)

    def on_disk(disk: Disk) -> list[Trials]:
        row = Trials("training under DeepSpeed", disk.means)
        for i in range(times):
            row.count(*_try(_fill, all_undisturbed[i % len(all_undisturbed)], disk, chance))
        return [row]

    # Forks, so the threads must have ended.
    return rows + on_small_disk(folder / "disk", 64, on_disk)


def _try(trial: Callable[..., tuple[str, Findings]], *arguments: object) -> tuple[str, Findings]:
    """The findings of a trial; a timeout is a finding too."""
    try:
        return trial(*arguments)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return "that timed out", Findings(problems=[str(error)])


def _make_undisturbed(
    folder: Path, launchers: Sequence[Launcher], pool: ThreadPoolExecutor
) -> list[UndisturbedTraining]:
    prepare(train_config(folder / "prepared", 1, 2))
    return list(pool.map(lambda launcher: _train_undisturbed(folder, launcher), launchers))


def _train_undisturbed(folder: Path, launcher: Launcher) -> UndisturbedTraining:
    path = folder / f"alone-{launcher.name}"
    shutil.copytree(folder / "prepared" / "prepare", path / "prepare")
    run = TrainingRun(path, launcher, keep=_STEPS)
    run.finish()
    return UndisturbedTraining(run, read_trace(run.stage, _BATCH))


def _kill_one_after_the_other(
    folder: Path, row: Trials, undisturbed: UndisturbedTraining, kills: int, seed: int
) -> None:
    """Runs, each started, killed and started again to its end, until enough kills have landed."""
    chance, done, number = random.Random(seed), 0, 0
    while done < kills:
        number += 1
        run = undisturbed.begin(folder / f"run-{undisturbed.run.launcher.name}-{number}")
        while done < kills and not run.has_finished():
            run.start()
            _wait_for_the_moment(run, chance)
            ranks = run.ranks()
            is_over = run.has_ended() or run.has_finished()
            kind = "" if is_over else run.kill(chance, ranks)
            found = run.wait_for_orphans()
            if not kind:
                found.expect(run.process.returncode == 0, f"it ended by itself:\n{run.output()[-1000:]}")
                with _COUNTING:
                    row.missed += 1
                    row.note(found)
                break
            state = "between two checkpoints" if run.has_stepped() else "starting"
            state = "writing a checkpoint" if is_writing(run.stage, ranks) else state
            found.add(compare(run.stage, undisturbed.trace, is_finished=False))
            with _COUNTING:
                row.count(f"{state} ({undisturbed.run.launcher.name}, {kind} killed)", found)
            done += 1
        run.finish()
        found = compare(run.stage, undisturbed.trace, is_finished=True)
        with _COUNTING:
            row.note(found)
        shutil.rmtree(run.run)


def _wait_for_the_moment(run: TrainingRun, chance: random.Random) -> None:
    """Mostly while it takes steps and writes checkpoints, sometimes while it starts."""
    if chance.random() < _SHARE_OF_EARLY_KILLS:
        time.sleep(chance.uniform(0, _START_S))
        return
    wait_until(lambda: run.has_stepped() or run.has_ended(), f"{run.run} has taken no step", _POLL_S)
    time.sleep(chance.uniform(0, _LONGEST_LIFE_S))


# --- other faults, near a training's end -----------------------------------------------------------------


def _damage(
    undisturbed: UndisturbedTraining, path: Path, seed: int, do: Callable[[Path, random.Random], str]
) -> tuple[str, Findings]:
    """The newest checkpoint is damaged: the one before it is taken."""
    chance, run = random.Random(seed), undisturbed.begin_late(path)
    newest = list_checkpoints(run.stage / "checkpoints")[-1]
    damaged = do(chance.choice(sorted(newest.iterdir())), chance)
    run.finish()
    found = compare(run.stage, undisturbed.trace, is_finished=True)
    is_aside = newest.with_name(f"damaged-{newest.name}").is_dir()
    found.accepted += not is_aside
    found.expect(is_aside, f"{damaged}: the checkpoint was not renamed to damaged-*")
    return "in the newest checkpoint", found


def _hang(undisturbed: UndisturbedTraining, path: Path, seed: int) -> tuple[str, Findings]:
    """A rank is stopped while the others wait for it; a second start is refused; then the rank resumes."""
    chance, run = random.Random(seed), undisturbed.begin_late(path)
    run.start()
    wait_until(lambda: run.has_stepped() or run.has_ended(), f"{run.run} has taken no step", _POLL_S)
    rank = chance.choice(run.ranks())
    has_landed = _send(rank, signal.SIGSTOP) and not run.has_finished()
    second = TrainingRun(path, undisturbed.run.launcher)
    log_of_second = path.with_suffix(".second.log")
    second.start(log=log_of_second)
    status = second.process.wait(timeout=300)
    _send(rank, signal.SIGCONT)
    run.wait()
    found = compare(run.stage, undisturbed.trace, is_finished=True)
    found.expect(has_landed, "the training had ended before the rank was stopped")
    is_refused = status != 0 and "is being written by process" in log_of_second.read_text()
    found.expect(is_refused, f"a second start was not refused: {log_of_second.read_text()[-500:]}")
    return "at work", found


def _jump(undisturbed: UndisturbedTraining, path: Path, seed: int) -> tuple[str, Findings]:
    """The ranks' clocks jump from their start on."""
    run = undisturbed.begin_late(path)
    run.finish((str(Path(__file__).with_name("clock_jumps.py")), str(seed)))
    return "at work", compare(run.stage, undisturbed.trace, is_finished=True)


_TRIALS: dict[str, tuple[str, Callable[[UndisturbedTraining, Path, int], tuple[str, Findings]]]] = {
    **{name: ("checkpoints of DeepSpeed trainings", functools.partial(_damage, do=do)) for name, do in DAMAGES.items()},
    "a rank hangs (SIGSTOP)": ("training under DeepSpeed", _hang),
    "the clock jumps": ("training under DeepSpeed", _jump),
}


def _fill(undisturbed: UndisturbedTraining, disk: Disk, chance: random.Random) -> tuple[str, Findings]:
    """The disk fills in the last steps: the training stops and says why; with room again, it resumes."""
    path = disk.folder / f"run-{chance.randrange(1 << 30)}"
    path.mkdir()
    run, found = undisturbed.begin_late(path), Findings()
    newest = list_checkpoints(run.stage / "checkpoints")[-1]
    # Less than a checkpoint and the few log lines before it.
    disk.squeeze(chance.randrange(sum(file.stat().st_size for file in newest.iterdir())))
    run.start(before=disk.enter)
    status = run.process.wait(timeout=300)
    run.wait_for_orphans()
    names_reason = any(words in run.output() for words in FULL_DISK_WORDS)
    found.expect(status != 0 and names_reason, f"on a full disk it ended with {status}: {run.output()[-1000:]}")
    found.add(compare(run.stage, undisturbed.trace, is_finished=False))
    disk.free()
    run.finish()
    found.add(compare(run.stage, undisturbed.trace, is_finished=True))
    shutil.rmtree(path)
    return "while resuming", found
