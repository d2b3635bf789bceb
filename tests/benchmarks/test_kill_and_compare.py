"""The command that kills generating workers: it kills, compares, and would see a difference."""

from __future__ import annotations

import argparse

import pytest
import torch
from generate import kill_and_compare as script


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="forks, which a process with a CUDA context cannot")
def test_killed_workers_make_the_undisturbed_set_and_a_difference_would_be_seen(tmp_path, monkeypatch):
    options = argparse.Namespace(pairs=384, kills=5, workers=2, seed=3)
    rows, is_equal = script.compare(tmp_path / "sound", options)
    table = dict(rows)
    assert is_equal and table["samples lost"] == table["samples doubled"] == table["faults that verify finds"] == 0
    assert table["pairs, shards"] == "384, 6" and table["tars equal byte for byte"] == "6 of 6"

    disturb = script.disturb

    def damaging(config, options):
        deaths = disturb(config, options)
        tar = config.run_path / "generate" / "shard-000002.tar"
        content = bytearray(tar.read_bytes())
        content[3000] ^= 1
        tar.write_bytes(content)
        return deaths

    monkeypatch.setattr(script, "disturb", damaging)
    rows, is_equal = script.compare(tmp_path / "damaged", options)
    assert not is_equal and dict(rows)["tars equal byte for byte"] == "5 of 6"
