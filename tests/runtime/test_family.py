"""Whatever member of a family of processes dies, the others end: a training at a checkpoint, anything else at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dakd.runtime import family as families

ROOT = Path(__file__).resolve().parents[2]
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# A rank in small: it listens, and "trains" until it is asked to stop.
TRAINING = """
import os, pathlib, sys, time
from dakd.runtime.stopping import end_with_launcher, listen_for_stop, stop_reason
folder = pathlib.Path(sys.argv[1])
if os.environ.get("RANK"):
    end_with_launcher()
with listen_for_stop(folder) as listener:
    (folder / "rank").write_text(str(os.getpid()))
    while not (reason := stop_reason(listener.votes(None))):
        time.sleep(0.01)
(folder / "checkpoint").write_text(reason)
"""
# DeepSpeed's launch.py in small: it ends when a rank ends.
LAUNCH = (
    "import os, subprocess, sys; os.environ.update(RANK='0', WORLD_SIZE='2')\n"
    "sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"
)
WORK = "import pathlib, sys, os, time; pathlib.Path(sys.argv[1], 'rank').write_text(str(os.getpid())); time.sleep(60)"


def wait_until(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def family(tmp_path):
    """Starts a command below `tmp_path`; whatever is left of it in the end is killed."""
    started = []

    def start(command, **options):
        environment = {name: value for name, value in os.environ.items() if name not in PLACE}
        environment |= {"PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **options))
        wait_until(lambda: rank_of(tmp_path), "no rank has started")
        return started[-1]

    yield start
    for process in started:
        for pid in filter(None, (process.pid, rank_of(tmp_path))):  # 0 would be the tests' own group
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def rank_of(folder):
    path = folder / "rank"
    return int(path.read_text() or 0) if path.exists() else 0


def deepspeed_like(folder):
    """A runner that starts `deepspeed.launcher.launch`, which starts a training."""
    package = folder / "deepspeed" / "launcher"
    package.mkdir(parents=True)
    (package / "launch.py").write_text(LAUNCH)
    (folder / "train.py").write_text(TRAINING)
    launch = [sys.executable, str(package / "launch.py"), str(folder / "train.py"), str(folder)]
    return [sys.executable, "-c", f"import subprocess; subprocess.Popen({launch!r}).wait()"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_training_leaves_a_checkpoint_when_deepspeeds_first_process_dies_alone(tmp_path, family, number):
    runner = family(deepspeed_like(tmp_path))
    rank = rank_of(tmp_path)
    time.sleep(0.1)
    assert not (tmp_path / "checkpoint").exists() and is_running(rank)  # all launchers are there
    runner.send_signal(number)
    runner.wait()
    wait_until(lambda: not is_running(rank), "the rank outlived its launcher")
    assert (tmp_path / "checkpoint").read_text() == "end of the launcher"


def test_a_training_leaves_a_checkpoint_when_its_own_parent_is_killed(tmp_path, family):
    (tmp_path / "train.py").write_text(TRAINING)
    parent = family([sys.executable, "-c", LAUNCH, str(tmp_path / "train.py"), str(tmp_path)])
    rank = rank_of(tmp_path)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(rank), "the rank outlived its launcher")
    assert (tmp_path / "checkpoint").read_text() in ("SIGTERM", "end of the launcher")


def test_a_rank_that_starts_after_deepspeeds_first_process_died_ends_too(tmp_path, family):
    """It may be asked to before it listens; then it has done nothing that a checkpoint could hold."""
    command = deepspeed_like(tmp_path)
    late = tmp_path / "deepspeed" / "launcher" / "launch.py"
    orphan = "import time, os, signal; os.kill(os.getppid(), signal.SIGKILL); time.sleep(0.2)\n"
    late.write_text(orphan + LAUNCH)
    begun = '(folder / "rank").write_text(str(os.getpid()))\n'
    (tmp_path / "train.py").write_text(TRAINING.replace(f"    {begun}", "").replace("if os", f"{begun}if os", 1))
    family(command)
    rank = rank_of(tmp_path)
    wait_until(lambda: not is_running(rank), "the rank outlived its launcher")
    checkpoint = tmp_path / "checkpoint"
    assert not checkpoint.exists() or checkpoint.read_text() == "end of the launcher"


def test_a_rank_that_hangs_is_killed_some_time_after_its_launcher(tmp_path, family):
    hanging = "from dakd.runtime import stopping; stopping.STOP_MARGIN_S = 0.3\n" + TRAINING
    command = deepspeed_like(tmp_path)
    (tmp_path / "train.py").write_text(hanging.replace("while not", "while 1 or not"))
    runner = family(command)
    runner.kill()
    runner.wait()
    wait_until(lambda: not is_running(rank_of(tmp_path)), "the rank outlived its launcher")
    assert not (tmp_path / "checkpoint").exists()


def run_command(step, request=None):
    code = "import pathlib, sys; from dakd.pipeline import run_command; sys.exit(run_command({!r}, {})[0] % 256)"
    return [sys.executable, "-c", code.format(step, f"pathlib.Path({str(request)!r})" if request else None)]


def test_a_step_ends_when_its_pipeline_is_killed(tmp_path, family):
    pipeline = family(run_command([sys.executable, "-c", WORK, str(tmp_path)]))
    step = rank_of(tmp_path)
    pipeline.kill()
    pipeline.wait()
    wait_until(lambda: not is_running(step), "the step outlived its pipeline")
    assert not is_running(step)


def test_a_training_leaves_a_checkpoint_when_its_pipeline_is_killed(tmp_path, family):
    """Through the whole chain: pipeline, deepspeed, launch.py, rank."""
    pipeline = family(run_command(deepspeed_like(tmp_path), tmp_path / "stop.json"))
    rank = rank_of(tmp_path)
    pipeline.kill()
    pipeline.wait()
    wait_until(lambda: not is_running(rank), "the rank outlived its pipeline")
    assert (tmp_path / "checkpoint").read_text() == "end of the launcher"


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_ctrl_c_gives_130_once_the_step_has_ended(tmp_path, family, number, status):
    code = (
        "import pathlib, sys; from dakd import pipeline; from dakd.cli.main import main\n"
        f"step = {[sys.executable, '-c', WORK, str(tmp_path)]!r}\n"
        "def run(*_): pipeline.finish_step('prepare', step, pathlib.Path())\n"
        "pipeline.run_pipeline = run\nsys.exit(main(['pipeline', '--config', 'smoke']))"
    )
    pipeline = family([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    step = rank_of(tmp_path)
    pipeline.send_signal(number)
    assert pipeline.wait(30) == status
    assert not is_running(step)


def test_a_closed_terminal_is_a_stop_request_to_the_pipeline(tmp_path, family):
    (tmp_path / "train.py").write_text(TRAINING)
    pipeline = family(run_command([sys.executable, str(tmp_path / "train.py"), str(tmp_path)], tmp_path / "stop.json"))
    pipeline.send_signal(signal.SIGHUP)
    assert pipeline.wait(30) == 0
    assert (tmp_path / "checkpoint").read_text() == "request"
    assert not (tmp_path / "stop.json").exists()


def test_under_nohup_neither_pipeline_nor_training_stops_at_a_hang_up(tmp_path, family):
    (tmp_path / "train.py").write_text(TRAINING)
    command = run_command([sys.executable, str(tmp_path / "train.py"), str(tmp_path)], tmp_path / "stop.json")
    pipeline = family(["nohup", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for pid in (pipeline.pid, rank_of(tmp_path)):
        os.kill(pid, signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        pipeline.wait(0.5)
    assert is_running(rank_of(tmp_path)) and not (tmp_path / "checkpoint").exists()


def test_a_pipeline_whose_disk_is_full_stops_its_training_by_signal(tmp_path, family):
    (tmp_path / "train.py").write_text(TRAINING)
    step = [sys.executable, str(tmp_path / "train.py"), str(tmp_path)]
    # As a full disk does, no request can be written.
    code = (
        "import pathlib, errno, sys; from dakd import pipeline\n"
        "def refuse(folder): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "pipeline.request_stop = refuse\n"
        f"code, was_asked = pipeline.run_command({step!r}, pathlib.Path({str(tmp_path / 'stop.json')!r}))\n"
        "sys.exit(code)"
    )
    pipeline = family([sys.executable, "-c", code])
    pipeline.terminate()
    assert pipeline.wait(30) == 0
    assert (tmp_path / "checkpoint").read_text() == "SIGTERM"


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_training_whose_output_is_closed_leaves_a_checkpoint(tmp_path, family, kind):
    """`dakd train_saross | head`, or a window that is closed while the launcher has a session of its own."""
    reader, writer = os.pipe() if kind == "pipe" else os.openpty()
    (tmp_path / "train.py").write_text(TRAINING + "print('stopped', flush=True)\n")
    rank = family([sys.executable, str(tmp_path / "train.py"), str(tmp_path)], stdout=writer)
    os.close(writer)
    os.close(reader)
    assert rank.wait(30) == 0
    assert (tmp_path / "checkpoint").read_text() == "closed output"


def test_readers_die_with_their_rank(tmp_path, family):
    code = (
        "import multiprocessing, os, pathlib, sys, time\n"
        "from dakd.runtime.stopping import ignore_stop_signals\n"
        "def read():\n    ignore_stop_signals()\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'rank').write_text(str(os.getpid()))\n    time.sleep(60)\n"
        "multiprocessing.get_context('fork').Process(target=read).start()\ntime.sleep(60)"
    )
    rank = family([sys.executable, "-c", code])
    reader = rank_of(tmp_path)
    rank.kill()
    rank.wait()
    wait_until(lambda: not is_running(reader), "the reader outlived its rank")
    assert not is_running(reader)


def test_readers_live_on_when_the_thread_that_started_them_ends(tmp_path, family):
    code = (
        "import multiprocessing, os, pathlib, sys, threading, time\n"
        "from dakd.runtime.stopping import ignore_stop_signals\n"
        "context = multiprocessing.get_context('fork')\nbegun, asked, answered = (context.Event() for _ in range(3))\n"
        "def read():\n    ignore_stop_signals()\n    begun.set()\n    asked.wait()\n    answered.set()\n"
        "reader = context.Process(target=read)\nthread = threading.Thread(target=reader.start)\n"
        "thread.start()\nthread.join()\nbegun.wait()\n"
        "while len(os.listdir('/proc/self/task')) > 1: time.sleep(0.01)\n"
        "asked.set()\nreader.join()\n"
        f"pathlib.Path({str(tmp_path)!r}, 'answered').write_text(str(answered.is_set()))\n"
        f"pathlib.Path({str(tmp_path)!r}, 'rank').write_text(str(os.getpid()))\ntime.sleep(60)"
    )
    family([sys.executable, "-c", code])
    assert (tmp_path / "answered").read_text() == "True"


def test_a_parent_that_ended_before_the_kernel_was_asked_ends_the_process_too(monkeypatch):
    sent = []
    monkeypatch.setattr(families, "_libc", lambda: SimpleNamespace(prctl=lambda *_: 0))
    monkeypatch.setattr(families.os, "kill", lambda pid, number: sent.append(number))
    families._die_with(os.getppid(), signal.SIGTERM)
    assert sent == []
    families._die_with(os.getppid() + 1, signal.SIGTERM)
    assert sent == [signal.SIGTERM]


def test_the_processes_of_a_group_are_those_that_run_whatever_they_are_called():
    code = "open('/proc/self/comm', 'w').write('a) Z 1 1'); print(flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE) as leader:
        try:
            leader.stdout.readline()
            assert families.processes_of_group(leader.pid) == [leader.pid]
        finally:
            leader.kill()
        os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)  # it has ended and is not reaped
        assert families.processes_of_group(leader.pid) == []
