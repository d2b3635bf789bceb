"""A visit to a GPU host, rehearsed on a CPU with the host's software, the kit, and planted faults.

`make visit-venv gpu-kit` makes software and kit; without them the tests' Python rehearses, with a warning. The visit
skips what only a GPU can do, and says why.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST_PYTHON = ROOT / ".venv-visit" / "bin" / "python"
KIT = ROOT / ".gpu_kit"
FAULTS = {
    "seg_loss cpu bf16": ("crash", "crashed (SIGSEGV)"),
    "ddim_step reference fp32": ("hang", "timed out"),
    "depthwise_conv1d cpu fp32": ("wrong", "WRONG"),
}
PHASES = ("facts", "correct", "races", "unet", "loop", "train", "compile", "tests")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A copy of what travels, and how the run is called there."""
    if not (HOST_PYTHON.exists() and (KIT / "go.sh").exists()):
        warnings.warn(
            f"rehearsed by Python {sys.version.split()[0]} without a kit; make visit-venv gpu-kit makes both",
            stacklevel=1,
        )
        return ROOT, [sys.executable, "benchmarks/gpu_run.py"]
    copy = tmp_path_factory.mktemp("host")
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    shutil.copytree(KIT, copy / KIT.name)
    return copy, ["bash", f"{KIT.name}/go.sh"]


def rehearse(host, out, *arguments):
    """The finished run, its seconds, and the tables that it left."""
    folder, command = host
    # Nothing of the tests' own environment: the host's Python finds what is there and what the kit brings.
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    environment |= {"OUT": str(out), "DAKD_PYTHON": str(HOST_PYTHON)}
    start = time.monotonic()
    done = subprocess.run([*command, "--device", "cpu", "--tiny", *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    return done, time.monotonic() - start, {path.stem: read(path) for path in out.glob("*.csv")}


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def jobs_of(tables):
    """How each job ended, by name."""
    return {row["name"].removeprefix("job "): row["value"] for row in tables["facts"] if row["name"].startswith("job ")}


@pytest.fixture(scope="module")
def first(host, tmp_path_factory):
    planted = [word for job, (fault, _) in FAULTS.items() for word in ("--plant", f"{fault}:{job}")]
    out = tmp_path_factory.mktemp("first")
    return (*rehearse(host, out, *planted), out)


def test_planted_faults_cost_their_own_jobs_alone(first):
    done, _, tables, _ = first
    assert done.returncode == 1, done.stdout + done.stderr
    jobs = jobs_of(tables)
    for job, (_, status) in FAULTS.items():
        assert jobs.pop(job) == status, job
    assert set(jobs.values()) <= {"ok", "skipped"}, jobs
    assert "WRONG: depthwise_conv1d cpu fp32" in done.stdout
    assert "ddim_step reference fp32 (timed out)" in done.stdout
    checked = {(row["op"], row["backend"], row["dtype"]) for row in tables["correct"] if row["verdict"] == "ok"}
    assert ("seg_loss", "reference", "bf16") in checked and ("seg_loss", "cpu", "fp32") in checked
    assert ("seg_loss", "cpu", "bf16") not in checked
    wrong = {(row["op"], row["backend"], row["dtype"]) for row in tables["correct"] if row["verdict"] == "wrong"}
    assert wrong == {("depthwise_conv1d", "cpu", "fp32")}


def test_every_phase_leaves_its_rows_within_the_limit(first):
    _, seconds, tables, out = first
    assert seconds < 900
    assert {row["phase"] for row in tables["facts"] if row["name"] == "phase"} == set(PHASES)
    races = tables["races"]
    assert len({row["op"] for row in races}) >= 6 and all(float(row["time_us"]) > 0 for row in races)
    assert {"unet_step", "conv3x3", "encoder", "gen_loop", "train_step"} == {row["op"] for row in tables["nets"]}
    assert {"gn_silu", "res_block"} <= {row["op"] for row in races}
    assert {row["layout"] for row in tables["families"]} == {"contiguous", "channels_last"}
    assert abs(sum(float(row["share"]) for row in tables["families"] if row["kernel"] == "all") - 2) < 1e-3
    for table in tables.values():
        assert all(row["device"] and row["torch"] and row["commit"] and row["date"] for row in table)
    assert any(row["name"] == "tests passed" and int(row["value"]) > 5 for row in tables["facts"])
    files = list(out.iterdir())
    assert len(files) <= 8 and all(path.stat().st_size < 16 << 20 for path in files)


def test_the_host_has_its_own_software_and_the_kit_the_rest(first, host):
    _, _, tables, _ = first
    facts = {row["name"]: row["value"] for row in tables["facts"]}
    if host[0] == ROOT:
        pytest.skip("rehearsed without a kit")
    assert facts["torch"].startswith("2.11.0") and facts["dakd/_C.so"] == "has CUDA operations"
    assert all(facts[f"package {name}"] != "absent" for name in ("pydantic", "webdataset", "zstandard", "deepspeed"))
    assert facts["job train stage3"] == "ok"  # DeepSpeed works there
    assert {row["commit"] for row in tables["facts"]} == {(KIT / "commit").read_text().strip()}


def test_the_second_visit_ends_well(host, tmp_path):
    done, seconds, tables = rehearse(host, tmp_path, "--second")
    assert done.returncode == 0 and seconds < 900, done.stdout + done.stderr
    jobs = jobs_of(tables)
    assert jobs["pipeline"] == "ok" and set(jobs.values()) == {"ok", "skipped"}, jobs
    steps = [row["name"] for row in tables["facts"] if row["name"].startswith("dakd ")]
    assert steps == ["dakd prepare", "dakd train_jointnet", "dakd generate", "dakd generate --verify"]
    assert {row["verdict"] for row in tables["correct"]} == {"ok"}
    assert len(list(tmp_path.iterdir())) <= 8
