"""The tables of kernels' resources, one per version of Triton; spills and growth are failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import compile_check
import pytest
from compile_check import Usage, Versions, compare, over_the_bars

ROOT = Path(__file__).resolve().parents[2]
NAME = "seg_loss.forward_kernel 16x5x512x512x8 bf16 contiguous"
USAGE = Usage(registers=96, spill_bytes=0, shared_bytes=1024, tensor_core=0, wide_loads=4, wide_stores=2, byte_stores=0)
FOUND = {NAME: {"80": USAGE, "90": USAGE}}
TABLES = {"3.7.1": compile_check.as_table(FOUND, Versions("3.7.1", "2.13.0", "13.0"))}


def test_nothing_differs_from_the_own_table():
    assert compare(FOUND, TABLES, "3.7.1", is_complete=True) == []


def test_difference_names_architecture_kernel_and_both_numbers():
    found = {NAME: {"80": USAGE, "90": USAGE._replace(registers=104, wide_loads=0)}}
    (line,) = compare(found, TABLES, "3.7.1", is_complete=True)
    assert line == f"changed  sm_90 {NAME}: registers 96 -> 104, wide_loads 4 -> 0"


def test_new_kernels_are_reported_and_gone_ones_if_nothing_was_left_out():
    found = {"other": {"90": USAGE}}
    assert compare(found, TABLES, "3.7.1", is_complete=False) == ["new      sm_90 other"]
    assert compare(found, TABLES, "3.7.1", is_complete=True) == ["new      sm_90 other", f"gone     {NAME}"]


def test_version_without_a_table_is_reported_in_one_line():
    (line,) = compare(FOUND, TABLES, "3.6.0", is_complete=True)
    assert "a table for Triton 3.6.0" in line and "3.7.1" in line and "--update" in line


def test_update_leaves_the_tables_of_other_versions_as_they_are(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    monkeypatch.setattr(compile_check, "TABLE", path)
    compile_check.write(TABLES)
    found = {NAME: {"90": USAGE._replace(registers=40)}}
    compile_check.write(TABLES | {"3.6.0": compile_check.as_table(found, Versions("3.6.0", "2.11.0", "13.0"))})
    read = json.loads(path.read_text())
    assert list(read) == ["3.6.0", "3.7.1"] and read["3.7.1"] == TABLES["3.7.1"]
    assert read["3.6.0"]["torch"] == "2.11.0" and read["3.6.0"]["kernels"][NAME]["90"]["registers"] == 40
    # A line for each kernel and architecture.
    assert len([line for line in path.read_text().splitlines() if '"registers"' in line and "}" in line]) == 3


def test_checked_in_tables_are_within_the_bars():
    tables = json.loads(compile_check.TABLE.read_text())
    for version, table in tables.items():
        assert {"torch", "nvcc", "kernels"} <= set(table), version
        problems = [problem for name, usages in table["kernels"].items() for arch, usage in usages.items()
                    for problem in over_the_bars(name, int(arch), Usage(**usage))]  # fmt: skip
        assert problems == [], version


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(spill_bytes=8), "spills 8 bytes"),
        (dict(registers=169), "169 registers; at most 168"),
        (dict(registers=241, tensor_core=4), "241 registers; at most 240"),
        (dict(shared_bytes=228 << 10), "bytes of shared memory"),
        (dict(byte_stores=3), "3 stores of one byte"),
    ],
)
def test_spills_and_growth_over_the_bars_are_failures(change, words):
    assert list(over_the_bars(NAME, 90, USAGE)) == []
    (problem,) = over_the_bars(NAME, 90, USAGE._replace(**change))
    assert problem.startswith(f"sm_90 {NAME}: ") and words in problem


def test_bf16_apply_without_tensor_cores_is_a_failure():
    (problem,) = over_the_bars("transposed_attention.apply_kernel 16x64 bf16 contiguous", 90, USAGE)
    assert problem.endswith("no tensor-core instruction")


def test_what_is_compiled_lies_as_the_models_call_it():
    # In a process of its own: the tests' own Triton interprets.
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
import compile_check
from dakd.testing.inputs import MODEL_LAYOUT
for op, layout in MODEL_LAYOUT.items():
    names = [launch.name for launch in compile_check.record(op)]
    print(op, layout, sum(layout in name for name in names), len(names))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    counts = [line.split() for line in done.stdout.splitlines()]
    assert len(counts) == 6, done.stderr
    # A layout that was not applied would ask for the contiguous one's kernels, and have none of its own.
    assert all(int(number) > 0 for op, _, number, _ in counts if op != "ddim_step"), counts


def test_missing_nvcc_is_a_failure(monkeypatch):
    monkeypatch.setattr(compile_check.shutil, "which", lambda name: None)
    assert "nvcc" in compile_check._compile("no op", [90], 1)[1][0]
