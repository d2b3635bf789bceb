"""What `dakd check` says of the place where an experiment runs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from check_worlds import refusals, toy

from dakd.check import capacity, host
from dakd.check.check import check
from dakd.check.experiment import Experiment
from dakd.runtime import precision
from dakd.train.dry_run import Cost


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


def test_bf16_on_a_cpu_that_emulates_it_is_refused(tmp_path, monkeypatch):
    config = toy(tmp_path, train_saross__engine={"precision": "autocast", "num_workers": 0}, generate__precision="bf16")
    monkeypatch.setattr(host.distributed, "device", lambda: torch.device("cpu"))
    for instructions in ("AMX", "AVX512-BF16", None):
        monkeypatch.setattr(precision, "cpu_bf16", lambda found=instructions: found)
        assert refusals(config) == {}
    monkeypatch.setattr(precision, "cpu_bf16", lambda: "")
    texts = [finding.text for finding in check(config) if finding.level == "refused"]
    assert [text.split()[0] for text in texts] == ["train_saross.engine.precision", "generate.precision"]
    assert all("set train_saross.engine.precision to fp32 or auto" in text for text in texts[:1])
    assert refusals(toy(tmp_path)) == {}


def test_more_reader_processes_than_cores_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(host.distributed, "num_cores", lambda: 3)
    assert warnings(toy(tmp_path, train_saross__engine__num_workers=3)) == []
    (text,) = warnings(toy(tmp_path, train_saross__engine__num_workers=4))
    assert "train_saross.engine.num_workers makes 4 reader processes for 3 cores" in text
    students = {"students_at_once": 2, "training_sets": ["real", "real+synthetic"], "engine": {"num_workers": 2}}
    (text,) = warnings(toy(tmp_path, train_saross=students))
    assert "train_saross.engine.num_workers makes 4 reader processes for 3 cores" in text


@pytest.mark.parametrize(("ranks", "at_once", "processes"), [(1, 1, 1), (2, 1, 2), (1, 4, 2), (2, 4, 2)])
def test_memory_is_that_of_all_ranks_or_students_of_a_host_and_tight_from_four_fifths_of_what_is_free(
    tmp_path, monkeypatch, ranks, at_once, processes
):
    sets = ["real", "real+synthetic"]
    config = toy(tmp_path, train_saross__training_sets=sets, train_saross__students_at_once=at_once)
    experiment = Experiment(config, ranks)
    experiment.costs["student"] = Cost(num_parameters=1000, num_trained=1000, macs=0.0, saved_bytes=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(capacity, "memory_parts", lambda *_: {"weights": 30.0 * 2**30, "gradients": 50.0 * 2**30})
    for free, level in ((99, "warn"), (101, "ok")):
        monkeypatch.setattr(capacity, "_free_memory", partial(tuple, (free * processes * 2**30, "host")))
        ((found, text),) = capacity.on_memory(experiment)
        assert found == level and f"about {80 * processes}.00 GiB of {free * processes}.00 GiB on the host" in text


def test_the_disk_that_pairs_take_is_that_of_their_codec(tmp_path):
    sizes = {}
    for codec in ("fp16", "logprob8"):
        experiment = Experiment(toy(tmp_path, generate__codec=codec, generate__num_samples=2**20), 1)
        ((_, text),) = capacity.on_disk(experiment)
        sizes[codec] = float(text.split()[1])
    # A GiB for each byte of a pixel: one grey, and five classes of two bytes, or of one that zstandard packs.
    assert sizes["fp16"] == 1 + 5 * 2 and 1 < sizes["logprob8"] < 1 + 5
    config = toy(tmp_path, generate__num_samples=2**20, refine__repeats=2)
    ((_, text),) = capacity.on_disk(Experiment(config, 1))  # half of the pairs stand in the refined set twice
    assert float(text.split()[1]) == 11 * (1 + 1.5)
