"""Any number of workers, killed at any instant, make the set that one undisturbed worker makes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dakd.data.shards import ShardSet
from dakd.generate import worker as working
from dakd.generate.claims import Claims, clear_dead_claims, living_claims
from dakd.generate.generate import generate, verify
from dakd.generate.plan import open_plan
from dakd.generate.status import Progress
from dakd.generate.worker import Share, share_from_environment
from dakd.runtime.files import file_hash
from dakd.runtime.runlog import format_count

CONTEXT = multiprocessing.get_context("fork")


def tars(folder) -> dict[str, str]:
    return {path.name: file_hash(path) for path in sorted(folder.glob("shard-*.tar"))}


def start(config, environment: dict[str, str] | None = None, before=lambda: None):
    """A worker process; `before` may change what it will meet."""

    def work():
        os.setsid()
        torch.set_num_threads(1)
        os.environ.update(environment or {})
        before()
        generate(config)

    process = CONTEXT.Process(target=work)
    process.start()
    return process


def assert_equals_the_whole_set(config, whole_set):
    folder = config.run_path / "generate"
    verify(config)
    assert tars(folder) == tars(whole_set / "generate")
    assert ShardSet(folder).index == ShardSet(whole_set / "generate").index


def test_workers_started_at_once_by_hand_make_the_set_once(new_set, tmp_path, whole_set):
    config = new_set(tmp_path / "run")
    workers = [start(config) for _ in range(3)]
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0, 0]
    assert_equals_the_whole_set(config, whole_set)
    assert list((tmp_path / "run" / "generate" / "claims").iterdir()) == []
    assert list((tmp_path / "run" / "generate").glob(".*")) == []


def test_workers_that_are_killed_at_random_instants_lose_and_double_nothing(new_set, tmp_path, whole_set):
    config, chance = new_set(tmp_path / "run"), random.Random(7)
    for _ in range(12):
        workers = [start(config) for _ in range(2)]
        for process in workers:
            time.sleep(chance.uniform(0, 0.12))
            process.kill()
            process.join()
    generate(config)
    assert_equals_the_whole_set(config, whole_set)


@pytest.mark.parametrize("instant", ["publish", "publish_sidecar"])
def test_a_kill_between_tar_and_sidecar_blocks_nothing(new_set, tmp_path, whole_set, instant, monkeypatch):
    """Killed before the tar is linked, or after it and before its sidecar is."""
    from dakd.data import publish as publishing

    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    config = new_set(tmp_path / "run")
    folder = tmp_path / "run" / "generate"
    process = start(config, before=lambda: setattr(publishing, instant, killed))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    there = {"publish": [], "publish_sidecar": ["shard-000000.tar"]}[instant]
    assert sorted(path.name for path in folder.glob("shard-*")) == there
    if instant == "publish_sidecar":
        made = (folder / "shard-000000.tar").stat()
        monkeypatch.setattr(working.Worker, "_make", only_other_shards(working.Worker._make))
    generate(config)
    assert instant == "publish" or (folder / "shard-000000.tar").stat().st_ino == made.st_ino
    assert_equals_the_whole_set(config, whole_set)
    facts = json.loads((folder / "shard-000000.json").read_text())["facts"]
    assert ("images_per_s" in facts) == (instant == "publish") and facts["sample_range"] == [0, 3]


def only_other_shards(make):
    def checked(self, shard):
        assert shard != 0, "a shard that is there was made again"
        make(self, shard)

    return checked


def kill_at(count: int, folder: Path) -> None:
    """End this process just before the `count`-th time that it touches a file of the folder."""
    events = {"open", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir"}
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event in events and any(str(folder) in str(argument) for argument in arguments):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def assert_published_files_are_whole(folder, whole_set) -> None:
    wanted = tars(whole_set / "generate")
    assert all(wanted[name] == found for name, found in tars(folder).items())
    for sidecar in folder.glob("shard-*.json"):
        tar = sidecar.with_suffix(".tar")
        assert tar.exists() and json.loads(sidecar.read_text())["sha256"] == wanted[tar.name]
    for path in folder.glob("[!.s]*.json*"):  # provenance, index, manifest
        content = path.read_text()
        assert all(map(json.loads, content.splitlines() if path.suffix == ".jsonl" else [content]))


@pytest.mark.slow
def test_a_kill_before_any_touch_of_a_file_leaves_whole_files_and_the_next_worker_finishes(
    new_set, tmp_path, whole_set
):
    """One after the other, all of them, from the first to the last."""
    for count in range(1, 1000):
        config = new_set(tmp_path / str(count), num_samples=4)
        folder = config.run_path / "generate"
        process = start(config, before=lambda: kill_at(count, folder))  # noqa: B023
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert_published_files_are_whole(folder, whole_set)
        generate(config)
        verify(config)
        assert tars(folder).items() <= tars(whole_set / "generate").items() and len(tars(folder)) == 2
    assert 40 < count < 999


def test_a_worker_that_hangs_is_overtaken_and_replaces_nothing_when_it_resumes(
    new_set, tmp_path, whole_set, monkeypatch
):
    config = new_set(tmp_path / "run", claim_patience_s=0.3)
    claims = tmp_path / "run" / "generate" / "claims"

    def hang_in_the_first_shard():
        real = working.Progress.report

        def hanging(self, count=0):
            os.kill(os.getpid(), signal.SIGSTOP)
            working.Progress.report = real

        working.Progress.report = hanging

    hung = start(config, before=hang_in_the_first_shard)
    while not list(claims.glob("*")):
        time.sleep(0.01)
    os.waitid(os.P_PID, hung.pid, os.WSTOPPED | os.WNOWAIT)
    said, is_stale = [], Claims.is_stale
    monkeypatch.setattr(working, "say", said.append)
    # However long the other shards take, there is a wait for this one.
    monkeypatch.setattr(Claims, "is_stale", lambda self, shard: is_stale(self, shard) and bool(said))
    generate(config)
    owner = f"process {hung.pid} on {socket.gethostname()}"
    assert any(f"waits for other workers' shards (1), such as 000000 of {owner}" in line for line in said)
    assert_equals_the_whole_set(config, whole_set)
    before = [path.stat().st_ino for path in sorted((tmp_path / "run" / "generate").glob("shard-*"))]
    os.kill(hung.pid, signal.SIGCONT)
    hung.join()
    assert hung.exitcode == 0
    assert before == [path.stat().st_ino for path in sorted((tmp_path / "run" / "generate").glob("shard-*"))]
    assert_equals_the_whole_set(config, whole_set)


def test_two_workers_that_ignore_claims_and_race_for_every_shard_publish_each_once(new_set, tmp_path, whole_set):
    config = new_set(tmp_path / "run")
    blind = lambda: setattr(Claims, "take", lambda self, shard: True)  # noqa: E731
    workers = [start(config, before=blind) for _ in range(2)]
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0]
    assert_equals_the_whole_set(config, whole_set)


def test_a_clock_that_jumps_changes_nothing(new_set, tmp_path, whole_set):
    """The wall clock jumps; files get times of the past and of the future."""

    def jump():
        chance = random.Random(os.getpid())
        time.time = lambda: chance.uniform(0, 4e9)
        time.time_ns = lambda: chance.randrange(4 * 10**18)

    config = new_set(tmp_path / "run")
    folder = tmp_path / "run" / "generate"
    workers = [start(config, before=jump) for _ in range(2)]
    time.sleep(0.2)
    for turn, path in enumerate(sorted(folder.rglob("*"))):
        if path.is_file():
            os.utime(path, (turn % 2 * 4e9, turn % 2 * 4e9))
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0]
    assert_equals_the_whole_set(config, whole_set)


def test_a_claim_is_stale_when_its_owner_is_dead_or_stands_still(tmp_path):
    claims, path = Claims(tmp_path, patience_s=0.05), tmp_path / "claims" / "000004"
    dead = subprocess.Popen(["true"])
    dead.wait()
    assert claims.take(4) and not Claims(tmp_path, patience_s=60).take(4)
    path.write_text(f"{socket.gethostname()} {dead.pid}\n...")
    assert claims.take(4)
    for content in (f"another-host {dead.pid}\n", ""):  # a number means nothing on another host
        path.write_text(content)
        assert not claims.take(4)
        time.sleep(0.06)
        path.write_text(content + "another-host 1\n..")  # it moves
        assert not claims.take(4)
        time.sleep(0.06)
        assert claims.take(4)  # it stood still
    claims.release(4)
    assert not path.exists() and claims.take(4)


@pytest.mark.parametrize("pid", [str(2**70), "\u00b2"])
def test_a_claim_of_no_possible_process_and_files_that_are_no_claims_hold_nobody_up(tmp_path, pid):
    claims = Claims(tmp_path, patience_s=0)
    (claims.folder / "000004").write_text(f"{socket.gethostname()} {pid}\n")
    (claims.folder / "000005 (copy)").write_text("")
    claims.is_stale(4)  # begins to watch an owner that it cannot judge
    assert claims.take(4) and living_claims(tmp_path) == [4] and clear_dead_claims(tmp_path) == 0


def test_a_full_disk_leaves_no_claim_without_an_owner(tmp_path):
    """For a new claim and for one that is taken over; a limit on the size of files stands in for the full disk."""
    claims, path = Claims(tmp_path, patience_s=60), tmp_path / "claims" / "000004"
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale = f"{socket.gethostname()} {dead.pid}\n"
    for there in (None, stale):
        if there is not None:
            path.write_text(there)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            with pytest.raises(OSError, match="File too large"):
                claims.take(4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert (path.read_text() if path.exists() else None) == there
        assert [entry.name for entry in tmp_path.iterdir()] == ["claims"]
    assert claims.take(4)


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, Share(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Share(3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "5"}, Share(2, 5)),
        ({"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2",
          "SLURM_ARRAY_TASK_COUNT": "5"}, Share(2, 5)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3", "RANK": "1", "WORLD_SIZE": "4"}, Share(5, 12)),
    ],
)  # fmt: skip
def test_launchers_give_a_worker_its_share(monkeypatch, environment, share):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert share_from_environment() == share


def test_a_rank_that_may_be_alone_says_which_it_is_and_how_to_run_alone(copy_of_set, monkeypatch, capsys):
    config, folder = copy_of_set
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    generate(config)
    printed = capsys.readouterr().out
    assert f"rank 1 of 2 works at {folder}" in printed and "to run alone: unset RANK WORLD_SIZE" in printed


def test_tasks_of_an_array_start_apart_and_the_last_ones_work_is_swept_up(new_set, tmp_path, whole_set):
    """Of four tasks two are never started; with their claims, the other two make no shard twice."""
    config, made = new_set(tmp_path / "run"), tmp_path / "made"
    make, first_shard = working.Worker._make, CONTEXT.Barrier(2)

    def noting(self, shard):
        if shard == self.share.index:
            first_shard.wait(120)  # both are at their first one: a slow start leaves not all shards to the other
        with open(made, "a") as stream:
            stream.write(f"{self.share.index} {shard}\n")
        make(self, shard)

    def note():
        working.Worker._make = noting

    task = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "1"}
    workers = [start(config, task | {"SLURM_ARRAY_TASK_ID": number}, before=note) for number in ("1", "3")]
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0]
    assert_equals_the_whole_set(config, whole_set)
    visits = [tuple(map(int, line.split())) for line in made.read_text().splitlines()]
    assert sorted(shard for _, shard in visits) == [0, 1, 2, 3]
    assert [next(shard for worker, shard in visits if worker == own) for own in (1, 3)] == [1, 3]


def test_reports_give_the_rates_of_one_and_all_workers_the_time_left_and_the_final_size(copy_of_set):
    config, folder = copy_of_set
    for shard in (1, 2, 3):
        for suffix in ("tar", "json"):
            (folder / f"shard-{shard:06d}.{suffix}").rename(folder / f"gone-{shard}.{suffix}")
    progress = Progress(open_plan(config))
    assert "0 img/s here, 0 in all  eta unknown" in progress.line(0, 10.0)
    for shard in (1, 2):
        for suffix in ("tar", "json"):
            (folder / f"gone-{shard}.{suffix}").rename(folder / f"shard-{shard:06d}.{suffix}")
    progress.count(3)  # one of the two is this worker's
    line = progress.line(2, 10.0)
    assert line.startswith("generate  shards 3/4  0.5 img/s here, 0.8 in all  eta 1s  ")
    tar_bytes = (folder / "shard-000000.tar").stat().st_size
    assert line.endswith(f"{format_count(3 * tar_bytes)}B of {format_count(4 * tar_bytes)}B")


def test_a_worker_needs_neither_deepspeed_nor_a_process_group():
    code = (
        "import sys, dakd.generate.generate; import torch.distributed as dist; "
        "assert not dist.is_initialized(); assert not {'deepspeed', 'wandb', 'timm', 'triton'} & set(sys.modules)"
    )
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": root})
