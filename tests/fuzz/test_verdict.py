"""The fuzzer's verdict detects hangs, execution, and unclear errors."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import time

import pytest
from fuzz import verdict
from fuzz.mutations import planted_pickle

from dakd.config import build_config
from dakd.data.soft_labels import get_codec


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr(verdict, "COUNTS", type(verdict.COUNTS)(verdict.COUNTS.default_factory))
    return lambda read, *names: verdict.judge("itself", read, *names)


def raise_from_the_depths() -> None:
    int("x")


def swallow(read) -> str:
    try:
        read()
    except BaseException:
        return "read"


def test_errors_of_ours_that_name_their_input_pass(judge):
    assert judge(lambda: build_config({"nme": 1}), "nme") == judge(lambda: get_codec("zip")) == "refused"
    assert judge(lambda: None) == "read" and judge(lambda: "skipped") == "skipped"
    assert verdict.COUNTS["itself"] == {"tried": 4, "refused": 2, "read": 1, "skipped": 1}


def test_errors_from_the_depths_or_without_a_name_do_not_pass(judge):
    with pytest.raises(AssertionError, match="from the depths: ValueError"):
        judge(raise_from_the_depths)
    with pytest.raises(AssertionError, match="names none of"):
        judge(lambda: get_codec("zip"), "shard-000000.tar")


@pytest.mark.parametrize("hide", [lambda read: read(), swallow], ids=["open", "swallowed"])
def test_code_that_is_executed_is_seen_also_where_its_error_is_swallowed(judge, tmp_path, hide):
    marker = tmp_path / "executed"
    for read in (
        lambda: pickle.loads(planted_pickle(marker)),
        lambda: os.system(f"touch {marker}"),
        lambda: subprocess.run(["touch", str(marker)], check=True),
    ):
        with pytest.raises(AssertionError, match=r"a bad input led to|executed"):
            judge(lambda read=read: hide(read))
    assert not marker.exists()


def test_a_reading_that_hangs_or_takes_all_memory_is_stopped(judge, monkeypatch):
    with pytest.raises(AssertionError, match="MemoryError"):
        judge(lambda: bytearray(int(4 * verdict.MEMORY_GIB * 2**30)) and None)
    monkeypatch.setattr(verdict, "SECONDS", 0.2)
    monkeypatch.setattr(verdict, "WAITING_SECONDS", 5.0)
    with pytest.raises(AssertionError, match=r"not ready within 0\.2 s of its own"):
        judge(lambda: any(number < 0 for number in itertools.count()) and None)
    monkeypatch.setattr(verdict, "WAITING_SECONDS", 0.2)
    with pytest.raises(AssertionError, match=r"or 0\.2 s"):
        judge(lambda: time.sleep(60))
