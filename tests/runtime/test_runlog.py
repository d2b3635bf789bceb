"""The log of a run: records that survive a kill, lines with units, W&B that never holds a training up."""

from __future__ import annotations

import json
import socket
import time

import pytest

from dakd.config import Config
from dakd.runtime import runlog
from dakd.runtime.runlog import RunLog, drop_records_after, format_count, format_duration, progress, read_records


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now[0])
    return now


def start(folder, start_step=0, mode="off", total_steps=8):
    return RunLog(folder, "stage2", total_steps, start_step, mode, Config(name="a"))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (9980, "9980"),
        (13_100, "13.1k"),
        (999_900, "1M"),
        (1.31e6, "1.31M"),
        (2.5e9, "2.5G"),
        (1.0152e12, "1.02T"),
    ],
)
def test_counts_are_short(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0s"), (59.4, "59s"), (185, "3m05s"), (15_120, "4h12m")])
def test_durations_are_short(seconds, text):
    assert format_duration(seconds) == text


def test_a_report_is_one_line_with_units_and_one_record(tmp_path, clock, capsys):
    log = start(tmp_path)
    clock[0] += 60
    log.report(2, 13_100, {"loss": 0.041234, "lr": 1e-4}, 412.3)
    log.close()
    line = "stage2  step 2/8  images 13.1k  loss 0.04123  lr 0.0001  412 img/s  eta 3m00s\n"
    assert capsys.readouterr().out == line
    record = {"step": 2, "images_seen": 13_100, "loss": 0.041234, "lr": 1e-4, "images_per_s": 412.3}
    assert read_records(tmp_path / "metrics.jsonl") == [record]


def test_the_rest_of_a_resumed_run_is_estimated_from_its_own_steps(tmp_path, clock, capsys):
    log = start(tmp_path, start_step=6)
    clock[0] += 10
    log.report(7, 70, {}, 1.0)
    assert "eta 10s" in capsys.readouterr().out


def test_reports_are_due_at_the_interval_at_the_end_and_after_half_a_minute(tmp_path, clock):
    log = start(tmp_path)
    assert [step for step in range(1, 9) if log.is_due(step, 3)] == [3, 6, 8]
    clock[0] += 31
    assert log.is_due(1, 3)
    log.report(1, 4, {}, 1.0)
    assert not log.is_due(2, 3)


def test_other_ranks_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    log = start(tmp_path / "run")
    log.advance()
    log.report(1, 4, {"loss": 1.0}, 1.0)
    log.close()
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


def test_a_resumed_run_drops_the_records_it_will_make_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)) + '{"step": 5, "lo')
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4]
    start(tmp_path, start_step=2).report(3, 12, {"loss": 0.5}, 1.0)
    records = read_records(path)
    assert [record["step"] for record in records] == [1, 2, 3] and records[2]["loss"] == 0.5


def test_records_that_all_stay_are_not_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    before = path.stat().st_ino
    drop_records_after(path, 1)
    drop_records_after(tmp_path / "none.jsonl", 1)
    assert path.stat().st_ino == before and read_records(tmp_path / "none.jsonl") == []


def test_progress_passes_all_items_and_speaks_every_half_minute(clock, capsys):
    passed = []
    for item in progress("abcd", 4, "prepare"):
        passed.append(item)
        clock[0] += 20
    assert passed == list("abcd")
    assert capsys.readouterr().out.splitlines() == ["prepare  2/4  eta 40s", "prepare  4/4  eta 0s"]


def test_progress_is_silent_on_other_ranks(monkeypatch, clock, capsys):
    monkeypatch.setenv("RANK", "1")
    for _ in progress(range(3), 3, "prepare"):
        clock[0] += 60
    assert capsys.readouterr().out == ""


# --- W&B --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """wandb as a user has it who never logged in."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield wandb
    wandb.teardown()


def offline_runs(folder) -> set[str]:
    """Ids of the runs whose files lie in the folder."""
    names = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert names and all(list((folder / "wandb" / name).glob("*.wandb")) for name in names)
    return {name.split("-")[3] for name in names}


@pytest.mark.parametrize("mode", ["offline", "auto"])
def test_two_offline_runs_in_one_process_go_on_under_one_id(wandb, tmp_path, mode, capsys):
    for first in (0, 4):
        log = start(tmp_path, first, mode)
        log.report(first + 1, 4, {"loss": 1.0}, 1.0)
        log.close()
    assert offline_runs(tmp_path) == {(tmp_path / "wandb_id").read_text()}
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
    assert all(line.startswith("stage2  step") for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_auto_with_a_key_and_no_network_is_soon_offline_and_says_so(wandb, tmp_path, monkeypatch, capsys, place):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    else:
        host = url.removeprefix("http://")
        (tmp_path / "netrc").write_text(f"machine {host} login user password {'0' * 40}\n")
    since = time.monotonic()
    start(tmp_path, mode="auto").close()
    assert time.monotonic() - since < 20
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"stage2  wandb offline: {url} does not answer within 3 s") and "wandb sync" in line
    assert offline_runs(tmp_path) == {(tmp_path / "wandb_id").read_text()}


def test_online_without_a_key_or_with_one_of_another_form_is_refused_without_the_network(wandb, monkeypatch):
    for mode in ("off", "auto", "offline"):
        runlog.refuse_wandb(mode)
    with pytest.raises(RuntimeError, match=r"has no key; run `wandb login`, set WANDB_API_KEY, or set engine\.wandb"):
        runlog.refuse_wandb("online")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    wandb.teardown()
    with pytest.raises(RuntimeError, match=r"W&B says: .*WANDB_API_KEY"):
        runlog.refuse_wandb("online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()
    runlog.refuse_wandb("online")


def test_auto_goes_offline_when_the_server_refuses_the_run(wandb, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(runlog, "_server_answers", lambda url: True)
    init, modes = wandb.init, []

    def refuse_online(**settings):
        modes.append(settings["mode"])
        if settings["mode"] == "online":
            raise wandb.errors.CommError("the key is unknown\nand more")
        return init(**settings)

    monkeypatch.setattr(wandb, "init", refuse_online)
    start(tmp_path, mode="auto").close()
    assert modes == ["online", "offline"] and offline_runs(tmp_path)
    assert "wandb offline: W&B says: the key is unknown; upload later" in capsys.readouterr().out


@pytest.mark.parametrize("mode, remedy", [("online", "run .* to offline or auto$"), ("offline", "set .* to off$")])
def test_a_mode_by_name_does_not_become_another_and_its_error_says_what_to_do(
    wandb, tmp_path, monkeypatch, mode, remedy
):
    def refuse(**settings):
        raise wandb.errors.CommError("the key is unknown\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(RuntimeError, match=f"^wandb is {mode}, and W&B says: the key is unknown; {remedy}"):
        start(tmp_path, mode=mode)


def test_online_without_a_key_is_refused_in_plain_words(wandb, tmp_path):
    with pytest.raises(RuntimeError, match=r"wandb is online, and W&B says: .*; run `wandb login`"):
        start(tmp_path, mode="online")


def test_the_probe_asks_the_server_or_the_proxy_before_it(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        assert runlog._server_answers(f"http://{there}")
        monkeypatch.setenv("http_proxy", there)
        assert runlog._server_answers("http://wandb.invalid")
    assert not runlog._server_answers("http://wandb.invalid")
    monkeypatch.delenv("http_proxy")
    assert not runlog._server_answers(f"http://{there}")
