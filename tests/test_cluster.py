"""What a cluster does to a run, on one machine: SLURM's scripts under a stand-in, two nodes a launcher, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import pytest
import torch
import yaml
from worlds import losses_of, toy_config

from dakd.cli import main, run_step
from dakd.pipeline import step_environment
from dakd.runtime.distributed import free_port
from dakd.runtime.lock import locked
from dakd.runtime.tensor_files import load_state
from dakd.train.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SCRIPTS = sorted((ROOT / "launch" / "slurm").iterdir())
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ENDLESS = "train_jointnet.stage1.steps=100000"


def environment(**changes):
    """That of a shell: without what a training in this very process has left in it."""
    mine = {name: value for name, value in step_environment().items() if name not in PLACE}
    return mine | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | changes


def write_config(folder, run_dir=None, **engine):
    tree = toy_config(run_dir or folder / "run").model_dump(mode="json")
    tree["train_jointnet"]["engine"] |= {"checkpoint_every": 5, "num_workers": 1} | engine
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_valid_shell_and_tells_how_it_is_submitted(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    text = script.read_text()
    if script.suffix == ".sbatch":
        assert text.startswith("#!/bin/bash\n# ") and f"launch/slurm/{script.name} configs/" in text
        assert "#SBATCH --requeue" in text and "set -euo pipefail" in text
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


def test_scripts_that_train_ask_for_the_signal_that_trainings_listen_to():
    trainings = [script for script in SCRIPTS if script.name.startswith("train_") and script.suffix == ".sbatch"]
    assert len(trainings) == 2
    assert all("#SBATCH --signal=USR1@300" in script.read_text() for script in trainings)


def test_stop_asks_a_training_and_refuses_where_there_is_none(tmp_path, capsys):
    with locked(tmp_path / "train_saross" / "real"):
        assert main(["stop", str(tmp_path)]) == 0 and (tmp_path / "stop.json").exists()
    assert f"real, process {os.getpid()} on " in capsys.readouterr().out
    (tmp_path / "stop.json").unlink()
    assert main(["stop", str(tmp_path)]) == 1 and not (tmp_path / "stop.json").exists()
    assert f"found no training in {tmp_path}; expected one at work" in capsys.readouterr().err
    assert main(["stop", str(tmp_path / "absent")]) == 1
    assert "no run folder" in capsys.readouterr().err


def test_a_stop_of_a_run_whose_training_lies_in_another_one_reaches_it_there(tmp_path):
    scores, student, moved = (tmp_path / name for name in ("scores", "student", "disk"))
    with locked(student / "train_saross" / "real"), locked(moved / "train_jointnet" / "stage1"):
        (student / "config.yaml").touch()
        for step, run in (("train_saross", student), ("train_jointnet", moved)):
            scores.mkdir(exist_ok=True)
            (scores / step).symlink_to(run / step)
        assert main(["stop", str(scores)]) == 0
    assert (student / "stop.json").is_file() and (scores / "stop.json").is_file()
    assert not (moved / "stop.json").exists()  # a folder on another disk, in which no run looks


def test_pipeline_turns_its_signal_into_a_request_and_asks_until_the_step_has_ended(tmp_path):
    """The step drops the first request, as one that is only starting does, and obeys the second."""
    request = tmp_path / "stop.json"
    step = (
        f"import pathlib, sys, time\nrequest = pathlib.Path({str(request)!r})\n"
        f"pathlib.Path({str(tmp_path / 'started')!r}).touch()\n"
        "for _ in range(2):\n    while not request.exists(): time.sleep(0.01)\n    request.unlink()\nsys.exit(85)"
    )
    code = (
        "import pathlib, sys; from dakd.pipeline import run_command; "
        f"print(run_command([sys.executable, '-c', {step!r}], pathlib.Path({str(request)!r})))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True)
    wait_for((tmp_path / "started").exists)
    parent.send_signal(signal.SIGUSR1)
    assert parent.communicate(timeout=60)[0] == f"(85, {signal.SIGUSR1:d})\n"
    assert not request.exists()


@pytest.mark.slow
def test_job_is_signalled_queued_again_and_finished_by_its_next_start(tmp_path):
    """The script of the teacher on two one-task nodes: the first start is stopped before its end, the second is not."""
    config = write_config(tmp_path)
    assert run_step("prepare", ["--config", config]) == 0
    stage = tmp_path / "run" / "train_jointnet" / "stage1"
    log = tmp_path / "scontrol.log"
    slurm = environment(
        PATH=f"{fake_slurm.install(tmp_path / 'bin')}:{os.environ['PATH']}",
        PYTHON=sys.executable,
        SLURM_JOB_ID="4711",
        SLURM_NTASKS="2",
        SLURM_SUBMIT_DIR=str(ROOT),
        FAKE_SCONTROL_LOG=str(log),
        FAKE_SRUN_SIGNAL_WHEN=str(stage / "checkpoints" / "step-*"),
    )
    command = ["bash", str(ROOT / "launch" / "slurm" / "train_jointnet.sbatch"), config, "--stage", "1"]
    first = subprocess.run([*command, ENDLESS], env=slurm, capture_output=True, text=True, timeout=240)
    assert first.returncode == 0 and "was stopped before its end; job 4711" in first.stdout, first.stderr[-3000:]
    assert log.read_text() == "requeue 4711\n"
    marker = json.loads((stage / "requeue.json").read_text())
    newest = int(list_checkpoints(stage / "checkpoints")[-1].name[5:])
    assert marker["reason"] == "SIGUSR1" and marker["step"] == newest
    steps = f"train_jointnet.stage1.steps={newest + 3}"
    del slurm["FAKE_SRUN_SIGNAL_WHEN"]
    again = subprocess.run([*command, steps], env=slurm, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0 and f"resumes after step {newest}" in again.stdout, again.stderr[-3000:]
    assert log.read_text() == "requeue 4711\n" and not (stage / "requeue.json").exists()
    assert (stage / "weights_ema.safetensors").exists() and len(losses_of(stage)) == newest + 3


def two_torchruns(script):
    """The command line of each of two nodes."""
    port = str(free_port())
    shared = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port]
    return [[str(BIN / "torchrun"), "--node_rank", str(node), *shared, *script] for node in range(2)]


def two_deepspeeds(script, folder):
    """The same from a hostfile, started on each node by hand: --no_ssh."""
    hostfile = folder / "hostfile"
    hostfile.write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    shared = ["--hostfile", str(hostfile), "--no_ssh", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return [[str(BIN / "deepspeed"), *shared, "--node_rank", str(node), *script] for node in range(2)]


def start(commands):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env=environment(), cwd=ROOT, **streams) for command in commands]


@pytest.mark.slow
def test_run_moves_from_two_torchrun_nodes_to_two_deepspeed_nodes_and_loses_nothing(tmp_path):
    """One torchrun agent gets SIGTERM, and both leave; deepspeed continues until `dakd stop`, and then to the end."""
    config = write_config(tmp_path)
    assert run_step("prepare", ["--config", config]) == 0
    stage = tmp_path / "run" / "train_jointnet" / "stage1"
    script = [str(ROOT / "launch" / "train_jointnet.py"), "--config", config, "--stage", "1"]

    nodes = start(two_torchruns([*script, ENDLESS]))
    wait_for(lambda: list_checkpoints(stage / "checkpoints"))
    nodes[1].send_signal(signal.SIGTERM)
    printed = [node.communicate(timeout=120)[0] for node in nodes]
    marker = json.loads((stage / "requeue.json").read_text())
    assert marker["reason"] == "SIGTERM", printed
    first_stop = marker["step"]

    nodes = start(two_deepspeeds([*script, ENDLESS], tmp_path))
    wait_for(lambda: int(list_checkpoints(stage / "checkpoints")[-1].name[5:]) > first_stop)
    assert main(["stop", str(tmp_path / "run")]) == 0
    printed = [node.communicate(timeout=120)[0] for node in nodes]
    marker = json.loads((stage / "requeue.json").read_text())
    assert marker["reason"] == "request" and all(node.returncode == 85 for node in nodes), printed
    last = marker["step"] + 2

    steps = f"train_jointnet.stage1.steps={last}"
    nodes = start(two_torchruns([*script, steps]))
    printed = [node.communicate(timeout=120)[0] for node in nodes]
    assert all(node.returncode == 0 for node in nodes), printed

    alone = write_config(tmp_path, tmp_path / "alone", num_workers=0)
    assert run_step("prepare", ["--config", alone]) == 0
    assert run_step("train_jointnet", ["--config", alone, "--stage", "1", steps]) == 0
    straight = tmp_path / "alone" / "train_jointnet" / "stage1"
    assert len(losses_of(stage)) == last
    assert losses_of(stage)[:20] == pytest.approx(losses_of(straight)[:20], rel=1e-3)
    for name, value in load_state(stage / "weights_ema.safetensors").items():
        assert bool(torch.isfinite(value).all()), name


@pytest.mark.slow
def test_stopped_pipeline_stops_after_the_step_that_was_preempted(tmp_path):
    config = write_config(tmp_path)
    command = [sys.executable, str(ROOT / "launch" / "pipeline.py"), "--config", config, "--processes", "2", ENDLESS]
    pipeline = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    checkpoints = tmp_path / "run" / "train_jointnet" / "stage1" / "checkpoints"
    wait_for(lambda: list_checkpoints(checkpoints))
    pipeline.send_signal(signal.SIGUSR1)
    printed = pipeline.communicate(timeout=120)[0]
    newest = int(list_checkpoints(checkpoints)[-1].name[5:])
    assert pipeline.returncode == 85, printed
    assert f"stopped in train_jointnet at step {newest} of 100000" in printed and "generate ===" not in printed
