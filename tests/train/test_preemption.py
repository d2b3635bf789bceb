"""A training that is asked to stop writes a checkpoint, ends, and resumes as if it had never stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch
from worlds import prepared, replaced

from dakd.config import build_config
from dakd.runtime.runlog import read_records
from dakd.runtime.stopping import Preempted, listen_for_stop, request_stop
from dakd.runtime.tensor_files import load_state
from dakd.train.checkpoint import list_checkpoints
from dakd.train.engine import Engine
from dakd.train.jointnet import train_jointnet
from dakd.train.teacher import stage_folder, stage_weights


def without_checkpoints(tmp_path, **engine):
    """A prepared run whose trainings write no checkpoint of their own before the last step."""
    config = prepared(tmp_path)
    settings = config.train_jointnet.engine.model_dump(mode="json") | {"checkpoint_every": 100} | engine
    return replaced(config, engine=settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    config = without_checkpoints(tmp_path_factory.mktemp("undisturbed"))
    train_jointnet(config, (1, 2))
    return config


def at_step(monkeypatch, number, do):
    """Call `do` while step `number` (counted over the process) runs."""
    train_step, calls = Engine.train_step, []

    def step(*args):
        calls.append(None)
        if len(calls) == number:
            do()
        return train_step(*args)

    monkeypatch.setattr(Engine, "train_step", step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_in_a_checkpoint_and_a_marker_and_the_run_goes_on_bit_for_bit(
    undisturbed, tmp_path, monkeypatch, number
):
    config = without_checkpoints(tmp_path, num_workers=1)

    def signal_rank_and_readers():
        for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
            os.kill(process.pid, number)

    # It comes during the step, after the votes were cast: the next step is the one that all leave at.
    at_step(monkeypatch, 2, signal_rank_and_readers)
    with pytest.raises(Preempted, match=rf"stopped after step 3 of 4 \({number.name}\)"):
        train_jointnet(config, (1, 2))
    monkeypatch.undo()
    folder = stage_folder(config, "stage1")
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step-00000003"]
    marker = json.loads((folder / "requeue.json").read_text())
    assert {"reason": number.name, "step": 3, "total_steps": 4}.items() <= marker.items()
    train_jointnet(config, (1, 2))
    assert not (folder / "requeue.json").exists()
    for stage in (1, 2):
        for kind in ("raw", "ema"):
            ours, theirs = (load_state(stage_weights(c, f"stage{stage}", kind)) for c in (config, undisturbed))
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        records = read_records(stage_folder(config, f"stage{stage}") / "metrics.jsonl")
        assert [record["step"] for record in records] == [1, 2, 3, 4]


def test_a_request_in_the_last_step_lets_the_stage_finish_and_the_next_not_begin(tmp_path, monkeypatch):
    config = without_checkpoints(tmp_path)
    at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with listen_for_stop(config.run_path), pytest.raises(Preempted, match=r"stage2: stopped after step 0 of 4"):
        train_jointnet(config, (1, 2))
    assert stage_weights(config, "stage1", "ema").exists()
    assert not (stage_folder(config, "stage1") / "requeue.json").exists()
    assert (stage_folder(config, "stage2") / "requeue.json").exists()
    assert not list_checkpoints(stage_folder(config, "stage2") / "checkpoints")


def test_a_request_in_the_run_folder_and_a_time_limit_stop_it_too(tmp_path, monkeypatch):
    config = without_checkpoints(tmp_path)
    at_step(monkeypatch, 1, lambda: request_stop(config.run_path))
    with pytest.raises(Preempted, match=r"after step 2 of 4 \(request\)"):
        train_jointnet(config, (1,))
    assert not (config.run_path / "stop.json").exists()
    tree = config.model_dump(mode="json")
    tree["train_jointnet"]["engine"]["max_hours"] = 1e-9
    with pytest.raises(Preempted, match=r"after step 2 of 4 \(time limit\)"):
        train_jointnet(build_config(tree), (1,))
    train_jointnet(config, (1,))
    assert stage_weights(config, "stage1", "ema").exists()


def test_what_is_drawn_without_a_position_is_drawn_again_alike_after_a_stop(tmp_path, monkeypatch):
    """A foreign net's dropout draws from the process's generators."""

    def draws(config, steps):
        tree = config.model_dump(mode="json")
        tree["train_jointnet"]["stage1"]["steps"] = steps
        drawn, train_step = [], Engine.train_step

        def step(*args):
            drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))
            return train_step(*args)

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "train_step", step)
            train_jointnet(build_config(tree), (1,))
        return drawn

    straight = draws(without_checkpoints(tmp_path / "straight"), 4)
    stopped = without_checkpoints(tmp_path / "stopped")
    assert draws(stopped, 2) + draws(stopped, 4) == straight
    assert len({number for three in straight for number in three}) == 12
