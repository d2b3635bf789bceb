"""Checkpoints are whole or absent; a damaged one is never loaded, nor another experiment's; the newest few are kept."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from importlib import metadata

import pytest
import torch
from worlds import write_checkpoints

from dakd.train import checkpoint
from dakd.train.checkpoint import check_identity, list_checkpoints, load_latest, save_checkpoint, verified_facts

STATE = {"master/w": torch.arange(6.0).reshape(2, 3), "ema/w": torch.zeros(2, 3)}
IDENTITY = {"b": 0.5, "crop": (64, 64)}


def save(folder, step, keep=2):
    save_checkpoint(folder, step, STATE, {"identity": IDENTITY, "position": step * 16}, keep)


def test_state_and_facts_come_back(tmp_path):
    save(tmp_path, 7)
    state, facts = load_latest(tmp_path, IDENTITY)
    assert torch.equal(state["master/w"], STATE["master/w"]) and set(state) == set(STATE)
    assert facts["step"] == 7 and facts["position"] == 112
    assert facts["versions"]["torch"] == metadata.version("torch") and "python" in facts["versions"]


def test_a_check_of_the_settings_passes_over_damaged_checkpoints(tmp_path):
    save(tmp_path, 1)
    for step, content in enumerate(("[]", '{"identity": 5}', "[" * 100_000, ""), 2):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / "state.json").write_text(content)
    check_identity(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match=r"step-00000001 was made with other settings:\n  b: 0\.5 there, 0\.6 now"):
        check_identity(tmp_path, IDENTITY | {"b": 0.6})


def test_the_newest_are_kept_in_the_order_of_steps(tmp_path):
    for step in (5, 9_999_999, 100_000_000):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-09999999", "step-100000000"]
    assert load_latest(tmp_path, IDENTITY)[1]["step"] == 100_000_000


def test_what_a_killed_writer_left_is_not_a_checkpoint_and_is_removed(tmp_path):
    save(tmp_path, 1)
    leftovers = [tmp_path / ".step-00000002.4711", tmp_path / ".step-00000000.4711.old"]
    for leftover in leftovers:
        leftover.mkdir()
        (leftover / "state.safetensors").write_bytes(b"half")
    assert load_latest(tmp_path, IDENTITY)[1]["step"] == 1
    save(tmp_path, 3)
    assert not any(leftover.exists() for leftover in leftovers)


def test_each_file_is_on_the_disk_before_the_next_one_refers_to_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(checkpoint, "sync", lambda path: synced.append((path.name, sorted(os.listdir(tmp_path)))))
    save(tmp_path, 1)
    aside = f".step-00000001.{os.getpid()}"
    assert [name for name, _ in synced] == ["state.safetensors", aside, tmp_path.name]
    assert [there for _, there in synced] == [[aside], [aside], ["step-00000001"]]


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path / "absent", IDENTITY) is None


def test_another_experiments_checkpoint_is_refused_naming_what_differs(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"b: 0.5 there, 0.4 now"):
        load_latest(tmp_path, IDENTITY | {"b": 0.4})


def test_a_nested_setting_is_named_alone(tmp_path):
    nested = {"optimizer": {"lr": 0.1, "eps": 1e-8}}
    save_checkpoint(tmp_path, 1, STATE, {"identity": nested, "position": 16}, keep=2)
    with pytest.raises(ValueError, match=r"optimizer\.lr: 0.1 there, 0.2 now") as caught:
        load_latest(tmp_path, {"optimizer": {"lr": 0.2, "eps": 1e-8}})
    assert "eps" not in str(caught.value)


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 99; expected 2; remove it"):
        load_latest(tmp_path, IDENTITY)


def flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut_the_tail(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def remove(path, rng):
    path.unlink()


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("harm", [flip_a_bit, cut_the_tail, remove])
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_it_taken(tmp_path, capsys, harm, file):
    rng = random.Random(0)
    for trial in range(1 if harm is remove else 25):
        folder = tmp_path / str(trial)
        save(folder, 1)
        save(folder, 2)
        harm(folder / "step-00000002" / file, rng)
        assert load_latest(folder, IDENTITY)[1]["step"] == 1
        assert f"damaged checkpoint: {folder / 'step-00000002' / file}" in capsys.readouterr().out
        assert [path.name for path in list_checkpoints(folder)] == ["step-00000001"]
        assert (folder / "damaged-step-00000002").is_dir()


def test_a_checkpoint_that_was_renamed_to_a_newer_step_is_set_aside(tmp_path, capsys):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000009")
    assert load_latest(tmp_path, IDENTITY)[1]["step"] == 1
    assert "holds step 2: its folder was renamed; the one before it is taken" in capsys.readouterr().out


def test_where_all_checkpoints_are_damaged_the_run_is_not_started_again(tmp_path):
    save(tmp_path / "checkpoints", 1)
    cut_the_tail(tmp_path / "checkpoints" / "step-00000001" / "state.safetensors", random.Random(0))
    with pytest.raises(ValueError, match=f"is damaged; to start again, remove {tmp_path}"):
        load_latest(tmp_path / "checkpoints", IDENTITY)


def test_a_full_disk_is_reported_and_leaves_the_checkpoint_before_and_nothing_else(tmp_path):
    """A limit on the size of files stands in for the end of the disk."""
    save(tmp_path, 1)
    large = {"master/w": torch.zeros(100_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match=r"step-00000002.*could not be written"):
            save_checkpoint(tmp_path, 2, large, {"identity": IDENTITY}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_latest(tmp_path, IDENTITY)[1]["step"] == 1


def test_a_kill_at_any_instant_leaves_the_newest_checkpoint_whole(tmp_path):
    """Twenty kills -9 at random instants of an endless writer; each time the newest checkpoint is whole, not older."""
    rng, context = random.Random(1), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dakd.train.checkpoint"])
    newest, caught_writing = 0, 0
    for _ in range(20):
        writer = context.Process(target=write_checkpoints, args=(tmp_path, newest + 1, IDENTITY))
        writer.start()
        deadline = time.monotonic() + 60
        while newest + 1 > max((int(path.name[5:]) for path in list_checkpoints(tmp_path)), default=0):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        caught_writing += any(tmp_path.glob(".step-*"))
        for path in list_checkpoints(tmp_path):
            verified_facts(path)
        state, facts = load_latest(tmp_path, IDENTITY)
        assert facts["step"] > newest
        newest = facts["step"]
        assert all(bool((value == newest).all()) for value in state.values()) and len(state) == 3
    assert caught_writing > 3 and not list(tmp_path.glob("damaged-*"))
