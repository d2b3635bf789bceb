"""All steps in a row, and the real commands on several processes: launched, stopped, continued."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from worlds import toy_config, with_teacher

from dakd import pipeline
from dakd.cli import COMMANDS, STEPS, build_parser, main, run_step
from dakd.config import build_config, load_config
from dakd.data.shards import ShardSet
from dakd.pipeline import finish_step, fitting_processes, pipeline_calls, run_pipeline, step_command, step_environment
from dakd.runtime.distributed import free_port
from dakd.runtime.files import file_hash
from dakd.runtime.lock import locked
from dakd.runtime.runlog import read_records
from dakd.runtime.sealed import write_json
from dakd.runtime.stopping import Preempted, write_requeue_marker
from dakd.runtime.tensor_files import load_state, weights_hash
from dakd.train.checkpoint import list_checkpoints
from dakd.verify import verify_run
from dakd.weights import load_student

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def write_config(folder: Path, overrides: dict | None = None) -> Path:
    tree = toy_config(folder / "run").model_dump(mode="json")
    tree["train_jointnet"]["crop"] = [32, 32]
    tree["generate"]["size"] = [32, 32]
    tree["train_jointnet"]["engine"] |= {"sample_every": 4, "num_samples": 2, "sample_steps": 2}
    for key, value in (overrides or {}).items():
        tree[key] |= value
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_steps_stand_in_pipeline_order():
    steps = "prepare balance train_jointnet generate refine pseudo_label train_saross evaluate predict report pipeline"
    assert " ".join(STEPS) == steps
    assert {path.stem for path in (ROOT / "launch").glob("*.py")} == {*STEPS, "ablate"}


def test_all_steps_run_one_after_the_other(tmp_path, capsys):
    config = write_config(tmp_path)
    for (step,) in pipeline_calls(load_config(config), STEPS[:-1]):
        assert run_step(step, ["--config", str(config)]) == 0, capsys.readouterr().err
    run = tmp_path / "run"
    synthetic = ShardSet(run / "generate")
    assert len(synthetic) == 7 and synthetic.read(0).soft_label.shape == (5, 32, 32)
    for training_set in ("real", "real+synthetic"):
        _, facts = load_student(run / "train_saross" / training_set / "student.safetensors")
        assert facts["training_set"] == training_set
        scores = json.loads((run / "evaluate" / f"{training_set}.json").read_text())
        assert scores
    assert "mIoU" in (run / "evaluate" / "table.txt").read_text()
    classes = [path for path in (run / "predict").rglob("*_class.png")]
    assert len(classes) == 2 and np.asarray(Image.open(classes[0])).max() < 5
    page = (run / "report" / "index.html").read_text()
    assert "data:image/png;base64" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert (run / "train_jointnet" / "stage3" / "samples" / "step-00000004.png").exists()
    assert [one for one in verify_run(run) if one.state != "ok"] == []


def test_the_student_of_real_images_is_trained_before_the_first_step_that_reads_it(tmp_path):
    config, real = toy_config(tmp_path), ("train_saross", "--training-set", "real")

    def calls(**sections):
        return pipeline_calls(build_config(config.model_dump(mode="json") | sections), STEPS[:-1])

    plain = [(step,) for step in STEPS[:-1] if step not in ("refine", "pseudo_label")]
    gate = {"generate": {"gate": {"enabled": True, "student": "real"}}}
    assert calls() == calls(generate={"gate": {"student": "real"}}) == plain
    assert calls(**gate) == [*plain[:3], real, *plain[3:]]
    refined = [*plain[:4], real, ("refine",), *plain[4:]]
    assert calls(refine={"pixel_gate": 1.25}) == calls(refine={"repeats": 2}) == refined
    assert calls(**gate, refine={"repeats": 2}) == [*plain[:3], real, plain[3], ("refine",), *plain[4:]]


def test_a_run_whose_own_student_judges_and_refines_the_pairs(tmp_path, capsys):
    gate = {"enabled": True, "student": "real", "agreement": {"at_least": 0.0}}
    path = write_config(tmp_path, {"generate": {"gate": gate}, "refine": {"pixel_gate": 1.0, "repeats": 2}})
    run, config = tmp_path / "run", load_config(path)
    for step, *options in pipeline_calls(config, STEPS[:-1]):
        if step == "generate":
            assert [one.name for one in (run / "train_saross").iterdir()] == ["real"]
        assert run_step(step, ["--config", str(path), *options]) == 0, capsys.readouterr().err
    own = weights_hash(run / "train_saross" / "real" / "student.safetensors")
    pairs, made = ShardSet(run / "generate"), ShardSet(run / "refine")
    assert pairs.index.provenance["gate"]["student"] == own and len(pairs) == 7
    assert made.index.provenance["refined"] == {
        "pairs": pairs.fingerprint, "student": own, "pixel_gate": 1.0, "repeats": 2,
    }  # fmt: skip
    assert len(made) == made.index.num_labelled == 7 + 4 and made.index.ignored_pixels > 0
    _, facts = load_student(run / "train_saross" / "real+synthetic" / "student.safetensors")
    assert made.fingerprint in facts["data"] and facts["num_synthetic"] == 11
    assert [one for one in verify_run(run) if one.state != "ok"] == []
    capsys.readouterr()
    assert run_step("train_saross", ["--config", str(path), "refine.repeats=3"]) == 1
    assert "was made with another repeats" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["balance", "train_saross", "evaluate", "predict", "report"])
def test_a_step_refuses_images_that_were_prepared_with_other_settings(tmp_path, capsys, step):
    config = write_config(tmp_path, {"predict": {"training_set": "real"}})
    assert run_step("prepare", ["--config", str(config)]) == 0
    student = tmp_path / "run" / "train_saross" / "real" / "student.safetensors"
    student.parent.mkdir(parents=True)
    student.touch()
    assert run_step(step, ["--config", str(config), "prepare.shard_size=4"]) == 1
    assert "prepared with other settings (prepare.shard_size: 5 then, 4 now)" in capsys.readouterr().err


def test_a_training_refuses_pairs_that_were_generated_with_other_settings(tmp_path, capsys):
    path = write_config(tmp_path, {"train_saross": {"training_sets": ["real+synthetic"], "steps": 2}})
    with_teacher(tmp_path / "run")
    for step in ("prepare", "generate"):
        assert run_step(step, ["--config", str(path)]) == 0
    command = ["--config", str(path), "generate.eta=0.5"]
    assert run_step("train_saross", command) == 1
    assert "was made with another eta; set it back" in capsys.readouterr().err
    assert run_step("train_saross", [*command, "--training-set", "real"]) == 0
    # How the pairs are computed says nothing against those that are there.
    assert run_step("train_saross", [*command[:2], "generate.deterministic=true"]) == 0


@pytest.mark.slow
def test_students_side_by_side_are_those_of_one_after_the_other_also_after_a_stop(tmp_path):
    runs = {}
    for name, at_once in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        engine = {"threads": 1, "num_workers": 0, "wandb": "off"}
        settings = {"steps": 12, "students_at_once": at_once, "engine": engine}
        config, runs[name] = write_config(tmp_path / name, {"train_saross": settings}), tmp_path / name / "run"
        with_teacher(runs[name])
        for step in ("prepare", "generate"):
            assert run_step(step, ["--config", str(config)]) == 0
        command = [sys.executable, "-m", "dakd", "train_saross", "--config", str(config)]
        if at_once == 2:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            until_s = time.monotonic() + 120
            folders = [runs[name] / "train_saross" / one for one in ("real", "real+synthetic")]
            while time.monotonic() < until_s and not all((folder / "metrics.jsonl").exists() for folder in folders):
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            output = process.communicate(timeout=120)[0]
            assert process.returncode == 85, output
            assert output.endswith("(SIGTERM); the same command resumes the work\n")
            assert all(list_checkpoints(folder / "checkpoints") for folder in folders)
        assert subprocess.run(command).returncode == 0
    for training_set in ("real", "real+synthetic"):
        files = [runs[name] / "train_saross" / training_set / "student.safetensors" for name in runs]
        one, two = map(load_state, files)
        assert all(torch.equal(one[name], two[name]) for name in one) and one.keys() == two.keys()


def test_students_side_by_side_are_refused_together_where_one_lacks_its_data(tmp_path, capsys):
    sets = {"training_sets": ["real", "real+synthetic"], "students_at_once": 2}
    config = write_config(tmp_path, {"train_saross": sets})
    assert run_step("prepare", ["--config", str(config)]) == 0
    assert run_step("train_saross", ["--config", str(config)]) == 1
    assert "/run/generate is not a set of shards" in capsys.readouterr().err
    assert not (tmp_path / "run" / "train_saross").exists()


def test_a_users_mistake_is_one_message_and_status_1(tmp_path, capsys):
    config = write_config(tmp_path)
    assert run_step("generate", ["--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dakd generate: no trained teacher at") and error.count("\n") == 1
    assert run_step("prepare", ["--config", str(config), "prepare.datset=osd"]) == 1
    assert "did you mean 'dataset'" in capsys.readouterr().err


def test_command_without_or_with_unknown_step_lists_the_steps(capsys):
    assert main([]) == 0 and main(["traim"]) == 2
    printed = capsys.readouterr().out
    assert all(step in printed for step in (*STEPS, "doctor"))


def test_report_of_a_run_that_is_not_there_is_refused(tmp_path, capsys):
    assert run_step("report", ["--config", str(write_config(tmp_path))]) == 1
    assert "no run folder" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_interrupted_step_says_that_it_goes_on(tmp_path, capsys, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "balance", COMMANDS["balance"]._replace(run=interrupt))
    assert run_step("balance", ["--config", str(write_config(tmp_path))]) == 130
    assert "the same command resumes the work" in capsys.readouterr().err


def test_launchers_extra_argument_is_accepted(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert run_step("prepare", ["--local_rank=0", "--config", str(write_config(tmp_path))]) == 0
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_settings_may_stand_before_and_after_options():
    arguments = ["--config", "c.yaml", "name=a", "--stage", "2", "seed=1", "--local_rank=3"]
    args = build_parser("train_jointnet").parse_intermixed_args(arguments)
    assert args.overrides == ["name=a", "seed=1"] and args.stage == "2" and args.local_rank == 3


def test_trainings_run_under_deepspeed_and_the_rest_in_plain_python(tmp_path):
    command = step_command("train_jointnet", tmp_path / "c.yaml", ["seed=1"], 2)
    assert command[:5] == [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    arguments = ["train_jointnet", "--config", str(tmp_path / "c.yaml"), "seed=1"]
    assert command[-7:] == ["--no_local_rank", "--module", "dakd", *arguments]
    assert step_command("evaluate", tmp_path / "c.yaml", [], 2)[:4] == [sys.executable, "-m", "dakd", "evaluate"]


def test_trainings_without_deepspeed_say_what_to_install(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find_spec(name))
    with pytest.raises(RuntimeError, match=r"DeepSpeed, which is not installed; run: pip install -e '\.\[train\]'"):
        step_command("train_saross", tmp_path / "c.yaml", [], 1)


def test_dry_run_tells_sizes_and_leaves(tmp_path, capsys):
    overrides = {"train_jointnet": {"unet": {}, "crop": [256, 256], "micro_batch": 16, "global_batch": 32}}
    config = write_config(tmp_path, overrides)
    assert run_step("train_jointnet", ["--config", str(config), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "113.67 M parameters" in printed and "231.53 M parameters, 117.86 M trained" in printed
    assert "GMAC" in printed and "GiB a rank" in printed and "name: toy" in printed
    assert run_step("train_saross", ["--config", str(config), "--dry-run"]) == 0
    assert "SAROSS-Net" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def launcher(name: str) -> list[str]:
    port = str(free_port())
    if name == "deepspeed":
        return [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", port]
    return [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", port]


def launch(name: str, step: str, *arguments: str, timeout: int = 240) -> str:
    command = [*launcher(name), str(ROOT / "launch" / f"{step}.py"), *arguments]
    done = subprocess.run(command, env=quiet(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def wait_for_lock(folder: Path) -> None:
    """Until the killed ranks are gone: the kernel then lets go of their lock."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with locked(folder):
                return
        except RuntimeError:
            time.sleep(0.1)
    raise AssertionError("ranks of the killed run are still there")


def test_stopping_the_pipeline_stops_the_step(tmp_path):
    """SIGTERM to the parent reaches a grandchild that its launcher would not reach."""
    marker = tmp_path / "alive"
    grandchild = f"import time, pathlib\nwhile True:\n    pathlib.Path({str(marker)!r}).touch(); time.sleep(0.05)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    command = f"[sys.executable, '-c', {child!r}]"
    code = f"import sys; from dakd.pipeline import run_command; sys.exit(run_command({command})[0] != 0)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not marker.exists():
        time.sleep(0.05)
    parent.terminate()
    assert parent.wait(timeout=30) == 1
    time.sleep(0.3)
    last = marker.stat().st_mtime_ns
    time.sleep(0.3)
    assert marker.stat().st_mtime_ns == last


def finish(tmp_path: Path, code: str) -> None:
    """A step that runs under DeepSpeed, with a line of Python in place of it."""
    finish_step("generate", [sys.executable, "-c", f"import os, signal, subprocess, sys\n{code}"], tmp_path)


PROVE = "open(os.environ['DAKD_PROOF_OF_END'], 'w').close()"


@pytest.mark.parametrize("code, message", [
    ("pass", "stopped during generate: its launcher was ended"),  # as DeepSpeed's runner, when launch.py was killed
    (f"{PROVE}; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL, as the kernel does where memory runs out"),
    ("sys.exit(-9)", "a process of generate was ended by SIGKILL"),  # as launch.py, when a rank was killed
    ("sys.exit(-11)", "ended by SIGSEGV; the same command resumes"),
    ("sys.exit(-15)", "stopped during generate; the same command resumes"),
    (f"{PROVE}; sys.exit(1)", "step generate ended with status 1; fix the error above"),
])  # fmt: skip
def test_a_step_that_was_ended_is_not_taken_for_finished(tmp_path, code, message):
    with pytest.raises(RuntimeError, match=message):
        finish(tmp_path, code)


def test_a_step_that_proves_its_end_has_finished(tmp_path):
    finish(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w').close(); {PROVE}")
    assert (tmp_path / "ran").exists()


def test_what_a_step_leaves_after_a_proven_end_is_not_waited_for(tmp_path):
    """Such as a service of W&B, which ends when it likes."""
    left = f"import time, pathlib; time.sleep(6); pathlib.Path({str(tmp_path / 'ended')!r}).touch()"
    finish(tmp_path, f"{PROVE}; subprocess.Popen([sys.executable, '-c', {left!r}])")
    assert not (tmp_path / "ended").exists()


def test_a_step_proves_nothing_to_the_pipeline_around_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DAKD_PROOF_OF_END", str(tmp_path / "of another"))
    seen = tmp_path / "seen"
    code = f"import os; open({str(seen)!r}, 'w').write(os.environ.get('DAKD_PROOF_OF_END', 'none'))"
    finish_step("prepare", [sys.executable, "-c", code], tmp_path)
    assert seen.read_text() == "none" and not (tmp_path / "of another").exists()


def test_a_marker_says_that_a_training_stopped_and_one_of_an_earlier_start_nothing(tmp_path):
    write_requeue_marker(tmp_path / "train_saross" / "real", "SIGTERM", 3, 9)
    finish_step("train_saross", [sys.executable, "-c", f"import os; {PROVE}"], tmp_path)
    marker = "from dakd.runtime.stopping import write_requeue_marker; from pathlib import Path\n"
    marker += f"write_requeue_marker(Path({str(tmp_path / 'train_saross' / 'real')!r}), 'SIGTERM', 4, 9)"
    with pytest.raises(Preempted, match="stopped in train_saross at step 4 of 9; the same command resumes"):
        finish_step("train_saross", [sys.executable, "-c", marker], tmp_path)


def test_rank_0_proves_its_end_and_no_failed_step_does(tmp_path):
    """The real command: `predict` of a run that is not there fails, `balance` of prepared pairs does not."""
    config = str(write_config(tmp_path))
    assert run_step("prepare", ["--config", config]) == 0
    for step, is_proven in (("balance", True), ("predict", False)):
        proof = tmp_path / step
        command = [sys.executable, "-m", "dakd", step, "--config", config]
        environment = quiet() | {"DAKD_PROOF_OF_END": str(proof)}
        status = subprocess.run(command, env=environment, capture_output=True).returncode
        assert (status == 0) == is_proven and proof.exists() == is_proven


def test_a_stop_request_after_the_last_step_of_a_training_stops_the_pipeline(tmp_path):
    """`dakd stop` has said that it asked; the generation, which may take days, must not begin."""
    folder = str(tmp_path)
    training = (
        "from pathlib import Path; from dakd.runtime.stopping import listen_for_stop, prove_end, request_stop\n"
        f"with listen_for_stop(Path({folder!r})):\n    request_stop(Path({folder!r}))\nprove_end()"
    )
    with pytest.raises(Preempted, match="stopped in train_jointnet; the same command resumes"):
        finish_step("train_jointnet", [sys.executable, "-c", training], tmp_path)
    assert not (tmp_path / "stop.json").exists()


def test_what_a_killed_launcher_leaves_is_waited_for(tmp_path):
    """Ranks write their checkpoint after it, and the same command would find the run's lock taken."""
    rank = f"import time, pathlib; time.sleep(1); pathlib.Path({str(tmp_path / 'checkpoint')!r}).touch()"
    with pytest.raises(RuntimeError, match="its launcher was ended"):
        finish(tmp_path, f"subprocess.Popen([sys.executable, '-c', {rank!r}])")
    assert (tmp_path / "checkpoint").exists()


def test_what_outlives_a_killed_launcher_for_too_long_is_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "STOP_MARGIN_S", 0.2)
    monkeypatch.setattr(pipeline, "_REST_SAID_AFTER_S", 0.1)
    with pytest.raises(RuntimeError, match="its launcher was ended"):
        finish(tmp_path, "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])")
    assert capsys.readouterr().out.count("waiting for its processes") == 1


def quiet() -> dict[str, str]:
    """The environment of a shell: without what a training in this very process has left in it."""
    place = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    mine = {name: value for name, value in step_environment().items() if name not in place}
    return mine | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepspeed", "torchrun"])
def test_two_processes_train_stop_continue_and_generate(name, tmp_path):
    """Killed in the middle of stage 1, then the same command again: every step of the log once, in order.

    The kill reaches only the launcher's process group; torchrun's ranks have groups of their own, and die with it.
    """
    config = str(write_config(tmp_path))
    assert run_step("prepare", ["--config", config]) == 0
    arguments = ["--config", config, "train_jointnet.stage1.steps=400"]
    checkpoints = tmp_path / "run" / "train_jointnet" / "stage1" / "checkpoints"
    command = [*launcher(name), str(ROOT / "launch" / "train_jointnet.py"), *arguments]
    running = subprocess.Popen(
        command, env=quiet(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list_checkpoints(checkpoints) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait(timeout=60)
    wait_for_lock(checkpoints.parent)
    stopped_at = int(list_checkpoints(checkpoints)[-1].name[5:])
    assert 0 < stopped_at < 400
    shorter = [*arguments[:-1], f"train_jointnet.stage1.steps={stopped_at + 6}"]
    printed = launch(name, "train_jointnet", *shorter)
    assert "resumes after step" in printed
    records = read_records(checkpoints.parent / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, stopped_at + 7))
    launch(name, "generate", *shorter)
    assert len(ShardSet(tmp_path / "run" / "generate")) == 7
    launch(name, "train_saross", *shorter)
    assert (tmp_path / "run" / "train_saross" / "real+synthetic" / "student.safetensors").exists()
    printed = launch(name, "evaluate", *shorter)
    assert "mIoU" in printed


def test_the_pipelines_table_says_where_its_scores_are_of_an_earlier_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dakd.pipeline._refuse_what_a_step_would_refuse", lambda *_: None)
    config = toy_config(tmp_path / "run")
    student, folder = config.run_path / "train_saross" / "real" / "student.safetensors", config.run_path / "evaluate"
    student.parent.mkdir(parents=True)
    student.write_text("first")
    write_json(folder / "table.json", {"students": {"real": {}}})
    write_json(folder / "real.json", {"student": "real", "weights": "ema", "sha256": file_hash(student)})
    (folder / "table.txt").write_text("the table\n")
    run_pipeline(config, tmp_path / "toy.yaml", [], [], 1)
    assert "earlier training" not in capsys.readouterr().out
    student.write_text("second")
    run_pipeline(config, tmp_path / "toy.yaml", [], [], 1)
    assert "the table\nreal: scores of an earlier training of this student; run:" in capsys.readouterr().out


def test_the_pipeline_says_that_it_trains_no_teacher(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dakd.pipeline._refuse_what_a_step_would_refuse", lambda *_: None)
    ran = []
    monkeypatch.setattr("dakd.pipeline.finish_step", lambda step, *_: ran.append(step))
    run_pipeline(toy_config(tmp_path / "run"), tmp_path / "toy.yaml", [], ["train_jointnet", "generate"], 1)
    assert ran == ["train_jointnet", "generate"] and "without" not in capsys.readouterr().out
    config = toy_config(tmp_path / "run").model_dump(mode="json")
    config["train_saross"]["training_sets"] = ["real", "real+pseudo"]
    run_pipeline(build_config(config), tmp_path / "toy.yaml", [], ["train_jointnet", "generate"], 1)
    said = "pipeline: without train_jointnet and generate, whose pairs no student of real, real+pseudo learns from"
    assert ran == ["train_jointnet", "generate"] and said in capsys.readouterr().out


@pytest.mark.slow
def test_plain_python_runs_the_same_script(tmp_path):
    config = str(write_config(tmp_path))
    for step in ("prepare", "train_jointnet"):
        command = [sys.executable, str(ROOT / "launch" / f"{step}.py"), "--config", config]
        done = subprocess.run(command, env=quiet(), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "train_jointnet" / "stage3" / "weights_ema.safetensors").exists()


@pytest.mark.real_data
@pytest.mark.slow
def test_all_steps_run_on_real_images(tmp_path, monkeypatch):
    """SOS Sentinel-1 as it is on disk, a few steps of everything."""
    root = os.environ.get("DAKD_REAL_DATA")
    if not root:
        pytest.skip("DAKD_REAL_DATA is not set; it names the folder of the real images")
    source = toy_config(tmp_path / "run").model_dump(mode="json")
    source["prepare"] |= {"dataset": "sos", "sensor": "sentinel", "root": f"{root}/sos/dataset", "resize": [32, 32],
                          "max_samples": 40}
    source["train_jointnet"]["crop"] = source["generate"]["size"] = [32, 32]
    path = tmp_path / "real.yaml"
    path.write_text(yaml.safe_dump(source))
    for (step,) in pipeline_calls(load_config(path), STEPS[:-1]):
        assert run_step(step, ["--config", str(path)]) == 0
    assert "oil" in (tmp_path / "run" / "evaluate" / "table.txt").read_text()
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_processes_share_the_batches_of_both_trainings():
    batches = {"train_jointnet": SimpleNamespace(global_batch=6), "train_saross": SimpleNamespace(global_batch=4)}
    found = [fitting_processes(SimpleNamespace(**batches), available) for available in (0, 1, 2, 3, 8)]
    assert found == [1, 1, 2, 2, 2]
