"""Checkpoints are whole or absent, the newest few are kept, and another experiment's are refused."""

from __future__ import annotations

import json

import pytest
import torch

from dakd.train.checkpoint import list_checkpoints, load_latest, save_checkpoint

STATE = {"master/w": torch.arange(6.0).reshape(2, 3), "ema/w": torch.zeros(2, 3)}
IDENTITY = {"b": 0.5, "crop": (64, 64)}


def save(folder, step, keep=2):
    save_checkpoint(folder, step, STATE, {"identity": IDENTITY, "position": step * 16}, keep)


def test_state_and_facts_come_back(tmp_path):
    save(tmp_path, 7)
    state, facts = load_latest(tmp_path, IDENTITY)
    assert torch.equal(state["master/w"], STATE["master/w"]) and set(state) == set(STATE)
    assert facts["step"] == 7 and facts["position"] == 112


def test_the_newest_are_kept_in_the_order_of_steps(tmp_path):
    for step in (5, 9_999_999, 100_000_000):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-09999999", "step-100000000"]
    assert load_latest(tmp_path, IDENTITY)[1]["step"] == 100_000_000


def test_what_a_killed_writer_left_is_not_a_checkpoint_and_is_removed(tmp_path):
    save(tmp_path, 1)
    leftover = tmp_path / ".step-00000002.4711"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    assert load_latest(tmp_path, IDENTITY)[1]["step"] == 1
    save(tmp_path, 3)
    assert not leftover.exists()


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


def test_another_format_is_refused(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load_latest(tmp_path, IDENTITY)
