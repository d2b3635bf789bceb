"""What `dakd check` says of the place where an experiment runs."""

from __future__ import annotations

import pytest
import torch
from check_worlds import refusals, toy

from dakd.check import host
from dakd.check.check import check


def warnings(config) -> list[str]:
    return [finding.text for finding in check(config) if finding.level == "warn" and finding.topic == "backend"]


def test_a_run_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for below, what in (("file", "file is a file"), ("file/a/run", "file is a file"), ("link/run", "a broken link")):
        assert what in refusals(toy(tmp_path, run_dir=str(tmp_path / below)))["run folder"]
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path)
    assert refusals(toy(tmp_path, run_dir=str(tmp_path / "link" / "new" / "run"))) == {}


def test_logging_online_without_a_key_is_refused(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    config = toy(tmp_path, train_saross__engine={"wandb": "online", "num_workers": 0})
    assert "online, and W&B has no key; run `wandb login`" in refusals(config)["packages"]
    assert refusals(toy(tmp_path, train_saross__engine={"wandb": "offline", "num_workers": 0})) == {}
    wandb.teardown()


def test_bf16_on_a_cpu_that_emulates_it_is_reported(tmp_path, monkeypatch):
    config = toy(tmp_path, train_saross__engine={"precision": "autocast", "num_workers": 0}, generate__precision="bf16")
    monkeypatch.setattr(host.distributed, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(host, "_computes_bf16", lambda: True)
    assert warnings(config) == []
    monkeypatch.setattr(host, "_computes_bf16", lambda: False)
    assert [text.split()[0] for text in warnings(config)] == ["train_saross.engine.precision", "generate.precision"]
    assert warnings(toy(tmp_path)) == []


def test_more_reader_processes_than_cores_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(host.distributed, "num_cores", lambda: 3)
    assert warnings(toy(tmp_path, train_saross__engine__num_workers=3)) == []
    (text,) = warnings(toy(tmp_path, train_saross__engine__num_workers=4))
    assert "train_saross.engine.num_workers makes 4 reader processes for 3 cores" in text
