"""Processes of a step side by side: their shares, their stop, and the failure of one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from dakd.runtime.side_by_side import run_side_by_side
from dakd.runtime.stopping import PREEMPTED, REQUEST_FILE, Preempted, listen_for_stop

# A process like a training: it waits for SIGTERM, then writes what a checkpoint would be.
LISTENER = f"""
import os, signal, sys, time
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
def stop(*_):
    (folder / (name + ".stopped")).touch()
    sys.exit({PREEMPTED})
signal.signal(signal.SIGTERM, stop)
(folder / (name + ".ready")).touch()
time.sleep(60)
"""


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def listeners(folder, *names: str) -> dict[str, list[str]]:
    return {name: python(LISTENER, folder, name) for name in names}


def once_ready(folder, names, call) -> threading.Thread:
    def wait() -> None:
        until_s = time.monotonic() + 30
        while time.monotonic() < until_s and not all((folder / f"{name}.ready").exists() for name in names):
            time.sleep(0.05)
        call()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def names_in(folder, suffix: str) -> list[str]:
    return sorted(path.stem for path in folder.glob(f"*.{suffix}"))


def test_no_more_than_asked_for_run_at_once_and_each_knows_its_share(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; me = Path(sys.argv[1]); me.touch(); time.sleep(1)\n"
        "seen = len(list(me.parent.glob('*'))); me.unlink()\n"
        "Path(sys.argv[2]).write_text(f\"{seen} {os.environ['DAKD_CORES_SHARED_BY']}\")\n"
    )
    (tmp_path / "now").mkdir()
    names = "abcd"
    run_side_by_side({name: python(code, tmp_path / "now" / name, tmp_path / name) for name in names}, 2)
    found = [(tmp_path / name).read_text().split() for name in names]
    assert max(int(seen) for seen, _ in found) == 2 and {share for _, share in found} == {"2"}


def test_the_share_is_that_of_those_that_there_are_and_the_rank_is_not_handed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    code = (
        "import os, sys\n"
        "open(sys.argv[1], 'w').write(os.environ['DAKD_CORES_SHARED_BY'] + os.environ.get('RANK', ''))"
    )
    run_side_by_side({"a": python(code, tmp_path / "a")}, 8)
    assert (tmp_path / "a").read_text() == "1"


def test_a_stop_request_reaches_all_that_run_and_none_is_begun_after_it(tmp_path):
    with listen_for_stop(tmp_path), pytest.raises(Preempted, match=r"stopped \(SIGUSR1\); the same command resumes"):
        thread = once_ready(tmp_path, "ab", lambda: os.kill(os.getpid(), signal.SIGUSR1))
        run_side_by_side(listeners(tmp_path, "a", "b", "c"), 2)
    thread.join()
    assert names_in(tmp_path, "stopped") == ["a", "b"] and names_in(tmp_path, "ready") == ["a", "b"]


def test_where_one_has_stopped_on_request_so_do_the_others(tmp_path):
    leaves = python(f"import sys, time; time.sleep(1); sys.exit({PREEMPTED})")
    with listen_for_stop(tmp_path), pytest.raises(Preempted, match="one of them stopped"):
        run_side_by_side(listeners(tmp_path, "a") | {"b": leaves} | listeners(tmp_path, "c"), 2)
    assert names_in(tmp_path, "stopped") == ["a"] and names_in(tmp_path, "ready") == ["a"]


def test_one_that_stops_leaves_the_request_to_the_others(tmp_path):
    """Each listens by itself, and whoever ends first would else remove the file before another has looked."""
    code = (
        "import sys; from pathlib import Path; from dakd.runtime.stopping import listen_for_stop\n"
        "with listen_for_stop(Path(sys.argv[1])): (Path(sys.argv[1]) / 'stop.json').write_text('{}')\n"
    )
    run_side_by_side({"a": python(code, tmp_path)}, 2)
    assert (tmp_path / REQUEST_FILE).exists()


def test_one_that_fails_ends_no_other_and_is_named(tmp_path):
    works = python("import sys, time; time.sleep(1); open(sys.argv[1], 'w')", tmp_path / "done")
    commands = {"student a": python("raise SystemExit(3)"), "student b": works, "student c": works}
    commands["student d"] = python("import os; os.kill(os.getpid(), 9)")
    wanted = r"student a ended with status 3; student d was ended by SIGKILL; the same command resumes what is unfin"
    with pytest.raises(RuntimeError, match=wanted):
        run_side_by_side(commands, 4)
    assert (tmp_path / "done").exists()


def test_ctrl_c_waits_until_all_have_stopped(tmp_path):
    thread = once_ready(tmp_path, "ab", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(listeners(tmp_path, "a", "b"), 2)
    thread.join()
    assert names_in(tmp_path, "stopped") == ["a", "b"]


def test_they_stop_when_the_process_that_started_them_is_killed(tmp_path):
    code = f"from dakd.runtime.side_by_side import run_side_by_side; run_side_by_side({listeners(tmp_path, 'a')}, 1)"
    pid = os.spawnv(os.P_NOWAIT, sys.executable, python(code))
    once_ready(tmp_path, "a", lambda: os.kill(pid, signal.SIGKILL)).join()
    os.waitpid(pid, 0)
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s and not (tmp_path / "a.stopped").exists():
        time.sleep(0.05)
    assert names_in(tmp_path, "stopped") == ["a"]
