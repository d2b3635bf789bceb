"""The command line: one table, help from the models, one place for errors and exit statuses."""

from __future__ import annotations

import ast
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dakd
from dakd import cli
from dakd.cli import COMMANDS, STEPS, build_parser, main
from dakd.config.explain import settings
from dakd.runtime.stopping import PROOF_VARIABLE, Preempted, Stopped


def run(*argv, capsys) -> tuple[int, str, str]:
    try:
        status = main(list(argv))
    except SystemExit as left:  # raised by argparse
        status = left.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_every_command_is_listed_with_its_summary(capsys):
    status, out, _ = run("--help", capsys=capsys)
    assert status == 0
    for name, command in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, command.summary] for line in out.splitlines()), name
    assert run(capsys=capsys)[:2] == (0, out)
    assert run("--version", capsys=capsys)[:2] == (0, f"dakd {dakd.__version__}\n")


def test_an_unknown_command_is_status_2_with_the_nearest(capsys):
    status, out, _ = run("predcit", "--config", "demo", capsys=capsys)
    assert status == 2 and "no command is called 'predcit'; did you mean 'predict'?" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_of_its_own(name, capsys):
    status, out, _ = run(name, "--help", capsys=capsys)
    assert status == 0 and out.startswith(f"usage: dakd {name}") and COMMANDS[name].summary in out


@pytest.mark.parametrize("name, section", [("train_jointnet", "train_jointnet"), ("generate", "generate"),
                                           ("prepare", "prepare"), ("train_saross", "train_saross"),
                                           ("evaluate", "evaluate"), ("predict", "predict")])  # fmt: skip
def test_a_steps_help_lists_each_of_its_settings_with_default_and_meaning(name, section, capsys):
    _, out, _ = run(name, "--help", capsys=capsys)
    words = " ".join(out.split())
    for setting in settings(section):
        assert f"{setting.key} = {' '.join(setting.default.split())}" in words, setting.key
        assert " ".join(setting.meaning.split()) in words, setting.key


def test_the_settings_of_the_help_are_known_keys():
    for command in COMMANDS.values():
        for key in command.settings:
            assert settings(key), f"{command.name}: {key}"


@pytest.mark.parametrize("error, status, message", [
    (ValueError("found 1, expected 2"), 1, "dakd balance: found 1, expected 2\n"),
    (RuntimeError("no"), 1, "dakd balance: no\n(DAKD_TRACEBACK=1 shows where it happened)\n"),
    (FileNotFoundError("no file"), 1, "dakd balance: no file\n(DAKD_TRACEBACK=1 shows where it happened)\n"),
    (KeyboardInterrupt(), 130, "dakd balance: stopped; the same command resumes the work\n"),
    (Preempted("stopped after step 3"), 85, "dakd balance: stopped after step 3\n"),
])  # fmt: skip
def test_one_place_turns_errors_into_a_message_and_a_status(error, status, message, capsys, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setitem(COMMANDS, "balance", COMMANDS["balance"]._replace(run=fail))
    monkeypatch.delenv("DAKD_TRACEBACK", raising=False)
    assert run("balance", "--config", "demo", capsys=capsys) == (status, "", message)
    if status == 1:
        monkeypatch.setenv("DAKD_TRACEBACK", "1")
        with pytest.raises(type(error)):
            main(["balance", "--config", "demo"])


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_a_step_that_a_signal_stopped_ends_with_the_status_of_that_signal(number, status, capsys, monkeypatch):
    def stop(_):
        raise Stopped("stopped during balance", number)

    monkeypatch.setitem(COMMANDS, "balance", COMMANDS["balance"]._replace(run=stop))
    expected = (status, "", "dakd balance: stopped during balance\n")
    assert run("balance", "--config", "demo", capsys=capsys) == expected


@pytest.mark.parametrize("status", [0, 3])
def test_a_process_proves_its_end_only_with_status_0_and_a_call_from_python_never(status, tmp_path, monkeypatch):
    proof = tmp_path / "finished"
    monkeypatch.setenv(PROOF_VARIABLE, str(proof))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setitem(COMMANDS, "balance", COMMANDS["balance"]._replace(run=lambda _: status))
    monkeypatch.setattr(sys, "argv", ["dakd", "balance", "--config", "demo"])
    assert main(sys.argv[1:]) == status and not proof.exists()
    assert main() == status and proof.exists() == (status == 0)


def test_a_command_that_cannot_resume_does_not_say_that_it_does(capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "sample", COMMANDS["sample"]._replace(run=interrupt))
    assert run("sample", "--teacher", "t", "--out", "o", capsys=capsys) == (130, "", "dakd sample: stopped\n")


def test_only_rank_0_prints_that_a_training_was_stopped(capsys, monkeypatch):
    def stop(_):
        raise Preempted("stopped")

    monkeypatch.setitem(COMMANDS, "balance", COMMANDS["balance"]._replace(run=stop))
    monkeypatch.setenv("RANK", "1")
    assert run("balance", "--config", "demo", capsys=capsys) == (85, "", "")


@pytest.mark.parametrize("arguments", [
    ["balance", "--config", "demo"], ["sample", "--teacher", "t", "--out", "o"],
    *(["generate", "--config", "demo", one] for one in ("--verify", "--repair", "--preview=1", "--audit")),
], ids=" ".join)  # fmt: skip
def test_a_left_over_rank_does_not_make_a_command_of_one_process_do_nothing(arguments, capsys, monkeypatch):
    def refuse():
        raise ValueError("rank 0 is not there")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("dakd.runtime.distributed.init_if_many", refuse)
    assert run(*arguments, capsys=capsys) == (1, "", f"dakd {arguments[0]}: rank 0 is not there\n")


@pytest.mark.parametrize("arguments", [
    ["sample", "--teacher", "t", "--out"], ["predict", "image.png", "--student", "s", "--out"], ["stop"], ["verify"],
    ["verify", "--accept"], ["card"], ["init", "a", "--out"], ["ablate", "--config", "a", "--out"],
    ["ablate", "--config", "a", "--store"], ["ema", "--config", "a", "--of", "ddpm", "--length", "0.1", "--out"],
], ids=" ".join)  # fmt: skip
def test_a_url_or_an_empty_path_to_write_to_is_refused(arguments, capsys):
    for path, message in (("s3://bucket/x", "is a URL"), ("", "the path is ''")):
        status, _, error = run(*arguments, path, capsys=capsys)
        assert status == 2 and message in error


def test_a_launchers_rank_may_stand_before_the_command(capsys, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    seen = []
    monkeypatch.setitem(COMMANDS, "stop", COMMANDS["stop"]._replace(run=lambda args: seen.append(args.run)))
    assert run("--local_rank=3", "stop", "runs/a", capsys=capsys)[0] == 0
    assert os.environ.pop("LOCAL_RANK") == "3" and seen == [Path("runs/a")]


def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; from dakd.cli import main; sys.exit(main(['config', 'show', 'osd']))"
    pipes, env = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE), {"OSD_ROOT": "/data", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen([sys.executable, "-c", code], **pipes, env=env) as child:
        child.stdout.close()
        assert "Traceback" not in child.stderr.read().decode() and child.wait(60) == 141


def test_the_list_of_commands_needs_no_torch():
    code = """
import sys
from dakd.cli import main
main([]), main(["config", "explain", "seed"])
print("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("False\n"), done.stderr


@pytest.mark.parametrize("path", sorted(Path(cli.__path__[0]).glob("*.py")), ids=lambda path: path.name)
def test_what_commands_import_when_they_run_exists(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dakd"):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


# --- config -----------------------------------------------------------------------------------------------------------


def test_config_show_prints_all_settings(capsys):
    status, out, _ = run("config", "show", "demo", "seed=7", "train_jointnet.stage1.steps=5", capsys=capsys)
    tree = yaml.safe_load(out)
    assert status == 0 and tree["seed"] == 7 and tree["train_jointnet"]["stage1"]["steps"] == 5
    assert tree["evaluate"]["bootstrap"] == 1000  # a default that the file does not name


def test_config_explain_prints_meaning_default_and_value(capsys):
    _, out, _ = run("config", "explain", "train_jointnet.sigma_data", "--config", "demo", capsys=capsys)
    assert "default:  null" in out and "value:    auto (experiment demo)" in out
    status, _, error = run("config", "explain", "train_jointnet.sigma", capsys=capsys)
    assert status == 1 and "did you mean train_jointnet.sigma_data?" in error


def test_config_diff_prints_the_differences_and_nothing_else(capsys):
    _, out, _ = run("config", "diff", "demo", "smoke", capsys=capsys)
    lines = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert lines["generate.num_samples"].split() == ["generate.num_samples", "256", "12"] and "seed" not in lines
    assert "no settings differ" in run("config", "diff", "demo", "demo", capsys=capsys)[1]


def test_settings_of_a_step_may_stand_before_and_after_options():
    arguments = ["a=1", "--config", "demo", "b=2", "--stage", "2", "c=3"]
    args = build_parser("train_jointnet").parse_intermixed_args(arguments)
    assert args.overrides == ["a=1", "b=2", "c=3"] and args.stage == "2" and "train_jointnet" in STEPS
