"""`dakd verify`: each kind of damage to each kind of file is found, named with its repair, and nothing is written."""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from PIL import Image
from sealed_edits import content_of
from worlds import finished_run, toy_config, with_teacher

from dakd.card import write_cards
from dakd.card.subject import read_config
from dakd.cli.main import main
from dakd.config import build_config, dump_config
from dakd.data.shards import ShardSet
from dakd.evaluate.evaluate import evaluate
from dakd.evaluate.inputs import inputs_of
from dakd.generate import generate as generating
from dakd.generate import summaries
from dakd.generate.generate import generate
from dakd.predict.predict import predict
from dakd.report.report import write_report
from dakd.runtime.kept_config import open_config
from dakd.runtime.runlog import read_records, save_config
from dakd.runtime.sealed import files_of, read_json, read_manifest, seal_yaml, write_json, write_manifest
from dakd.train.checkpoint import verified_facts
from dakd.verify import one_file, verify_run
from dakd.verify.made_with import as_overrides, evaluation_settings
from dakd.weights import load_student

FILES = {  # one of each kind, with the command that makes it again
    "prepare/train/index.json": "dakd prepare",
    "prepare/train/shard-000000.tar": "dakd prepare",
    "prepare/train/shard-000000.json": "made again from its tar",
    "prepare/report.json": "dakd prepare",
    "prepare/contact_sheet.png": "dakd prepare",
    "prepare/manifest.json": "dakd prepare",
    "balance/balance.json": "dakd balance",
    "generate/index.json": "dakd generate",
    "generate/shard-000000.tar": "--repair",
    "train_jointnet/stage3/weights_ema.safetensors": "dakd train_jointnet",
    "train_saross/real/student.safetensors": "dakd train_saross",
    "train_saross/real/metrics.jsonl": "dakd verify --accept",
    "train_saross/real/checkpoints/step-00000004/state.json": "dakd train_saross",
    "train_saross/real/checkpoints/step-00000004/state.safetensors": "dakd train_saross",
    "evaluate/real.json": "dakd evaluate",
    "evaluate/table.txt": "dakd evaluate",
    "evaluate/real.images.npz": "dakd evaluate",
    "evaluate/pictures/index.json": "dakd evaluate",
    "evaluate/pictures/000_image.png": "dakd evaluate",
    "predict/real/predict.json": "dakd predict",
    "predict/real/test-000000_class.png": "dakd predict",
    "report/index.html": "dakd report",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = finished_run(tmp_path_factory.mktemp("verify")).run_path
    write_report(run)
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "renamed run")


def states(run) -> dict[str, str]:
    return {str(one.path.relative_to(run)): one.state for one in verify_run(run) if one.state != "ok"}


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_finished_run_is_whole_wherever_it_was_copied_to_and_nothing_is_written(run, capsys):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" ok")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")} == before


def test_an_archive_whose_compressed_data_are_damaged_is_found(run):
    path = run / "evaluate" / "real.images.npz"
    content = bytearray(path.read_bytes())
    names, extras = struct.unpack_from("<HH", content, 26)  # of the first member's header, which has 30 bytes
    content[30 + names + extras] |= 0b110  # a kind of block that deflate does not have
    path.write_bytes(content)
    assert states(run) == {"evaluate/real.images.npz": "damaged"}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_an_emptied_file_and_a_lost_one_are_found_with_their_repair(run, name, capsys):
    path = run / name
    whole = path.read_bytes()
    for damage in (lambda: flip(path), lambda: path.write_bytes(b""), lambda: path.write_bytes(whole[:-1])):
        damage()
        assert main(["verify", str(run)]) == 1
        printed = capsys.readouterr().out
        assert f"damaged     {name}: " in printed and FILES[name] in printed.partition("to repair:")[2]
        path.write_bytes(whole)
    path.unlink()
    found = states(run)
    expected = "unfinished" if name == "generate/index.json" else "missing"
    in_a_checkpoint = "checkpoints" in name
    assert in_a_checkpoint or expected in found.values(), found


def test_whole_files_of_another_run_are_found(run, tmp_path):
    other = finished_run(tmp_path / "other", seed=1).run_path
    write_report(other)
    for name in FILES:
        if (other / name).read_bytes() == (run / name).read_bytes() or "checkpoints" in name:
            continue
        whole = (run / name).read_bytes()
        shutil.copy(other / name, run / name)
        assert "damaged" in states(run).values(), name
        (run / name).write_bytes(whole)
    assert (other / "train_saross/real/student.safetensors").read_bytes() != (
        run / "train_saross/real/student.safetensors"
    ).read_bytes()


def test_a_whole_split_of_another_set_is_found(run):
    shutil.rmtree(run / "prepare" / "train")
    shutil.copytree(run / "prepare" / "test", run / "prepare" / "train")
    assert states(run) == {"prepare/train/index.json": "damaged"}


def test_files_that_a_step_at_work_writes_or_removes_are_not_damaged(tmp_path):
    log, page = tmp_path / "metrics.jsonl", tmp_path / "README.md"
    for text, state in (('{"step": 1}\n{"st', "ok"), ('{"step": 1}\n{"st\n', "damaged")):
        log.write_text(text)
        assert one_file.look_at(log).state == state
    assert one_file.look_at(tmp_path / "gone.json").state == "unfinished"
    page.write_text(" \n")
    assert one_file.look_at(page) == ("damaged", page, "is empty")


def test_files_in_other_folders_than_the_steps_are_unexpected_and_no_damage(run, capsys):
    path = run / "exported" / "config.json"
    path.parent.mkdir()
    path.write_text('{"kind": "student"}')
    assert main(["verify", str(run)]) == 0
    assert "unexpected  exported/config.json: no step writes into such a folder" in capsys.readouterr().out


def test_a_run_in_progress_says_what_is_not_finished(run, capsys):
    (run / "train_saross" / "real" / "manifest.json").unlink()
    (run / "evaluate" / ".table.json.host.1.abcd.tmp").write_text("{")
    (run / "generate" / "index.json").unlink()
    assert main(["verify", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "unfinished  train_saross/real: its step has not finished" in printed
    assert "unfinished  generate: generate has not finished" in printed and "3 unfinished" in printed


def test_a_checkpoint_that_its_training_removes_meanwhile_is_no_damage(run, monkeypatch):
    old, *_ = sorted((run / "train_saross" / "real" / "checkpoints").glob("step-*"))

    def remove_and_verify(folder):
        if folder == old and old.exists():
            shutil.rmtree(old)
        return verified_facts(folder)

    monkeypatch.setattr(one_file, "verified_facts", remove_and_verify)
    found = states(run)
    assert {path for path in found if old.name in path} and set(found.values()) == {"unfinished"}


def test_a_run_of_which_only_other_images_were_evaluated_has_no_unfinished_evaluation(run):
    own, other = run / "evaluate", run / "evaluate" / "harbour"
    files = [path for path in own.iterdir() if path.name != "features"]
    shutil.rmtree(own / "features", ignore_errors=True)
    other.mkdir()
    for path in files:
        path.rename(other / path.name)
    assert states(run) == {}
    (other / "manifest.json").unlink()
    assert states(run) == {"evaluate/harbour": "unfinished"}
    for begun in ("pictures", "features"):
        (own / begun).mkdir()
        assert states(run) == {"evaluate": "unfinished", "evaluate/harbour": "unfinished"}
        (own / begun).rmdir()


def test_files_that_no_step_writes_are_listed_and_no_fault(run, capsys):
    (run / "evaluate" / "notes.docx").write_text("mine")
    assert main(["verify", str(run)]) == 0
    assert "unexpected  evaluate/notes.docx" in capsys.readouterr().out


def test_an_edit_of_ones_own_can_be_accepted(run, capsys):
    path = run / "evaluate" / "table.json"
    path.write_text(path.read_text().replace('"num_images": 4', '"num_images": 5'))
    with pytest.raises(ValueError, match="dakd verify --accept"):
        read_json(path)
    assert main(["verify", "--accept", str(path)]) == 0
    assert read_json(path)["num_images"] == 5 and states(run) == {}
    weights = run / "train_saross" / "real" / "student.safetensors"
    shutil.copy(weights.with_name("student_raw.safetensors"), weights)
    with pytest.raises(ValueError, match="is not the file that its step wrote here"):
        load_student(weights)
    assert main(["verify", "--accept", str(weights)]) == 0
    load_student(weights)
    assert states(run) == {}


def test_to_accept_one_file_accepts_no_other_one_of_its_folder(run, finished, capsys):
    folder = run / "evaluate"
    shutil.copy(folder / "real.json", folder / "table.json")
    (folder / "pictures" / "index.json").write_bytes((folder / "real.json").read_bytes())
    (folder / "table.txt").write_text("mine")
    assert main(["verify", "--accept", str(folder / "pictures" / "index.json")]) == 0
    assert main(["verify", "--accept", str(folder / "table.txt")]) == 0
    assert states(run) == {"evaluate/table.json": "damaged"}
    (folder / "real.images.npz").unlink()
    (folder / "table.json").unlink()
    assert main(["verify", "--accept", str(folder / "real.images.npz")]) == 0
    assert states(run) == {"evaluate/table.json": "missing"}


def test_the_log_of_a_finished_training_is_believed_as_it_was_written_and_its_whole_lines_can_be_kept(run, capsys):
    path = run / "train_saross" / "real" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 0.5', '"loss": 0.4').replace('{"step": 3', '{"sfep": 3'))
    with pytest.raises(ValueError, match=r"metrics\.jsonl is not the file that its step wrote .* --accept"):
        write_report(run)
    assert states(run) == {"train_saross/real/metrics.jsonl": "damaged"}
    assert main(["verify", "--accept", str(path)]) == 0
    assert states(run) == {} and [record["step"] for record in read_records(path)] == [1, 2, 4]
    assert "sfep" not in path.read_text()


@pytest.mark.parametrize("name, reason", [
    ("notes.txt", "notes.txt holds no checksum of its own and no manifest.json lists it"),
    ("foreign.json", "foreign.json has no content_sha256, so dakd did not write it"),
    ("cut.json", "cut.json is not JSON"),
    ("gone.json", "there is no "),
    ("experiment.yaml", "experiment.yaml is no file that dakd verify checks; expected the config.yaml of a run"),
    ("evaluate/experiment.yaml", "is no file that dakd verify checks"),
    ("../elsewhere/config.yaml", "is no file that dakd verify checks"),
    ("../elsewhere/metrics.jsonl", "holds no checksum of its own"),
    ("../elsewhere/predict/metrics.jsonl", "holds no checksum of its own"),
    ("evaluate/notes.jsonl", "holds no checksum of its own"),
    ("train_saross/real/config.yaml", "is not valid YAML"),
])  # fmt: skip
def test_a_file_that_dakd_did_not_write_is_not_accepted(run, name, reason, capsys):
    content, path = '{"a": 1' + "}" * (name not in ("cut.json", "train_saross/real/config.yaml")), run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name != "gone.json":
        path.write_text(content)
    assert main(["verify", "--accept", str(path)]) == 1
    assert reason in capsys.readouterr().err
    assert not path.exists() if name == "gone.json" else path.read_text() == content


def test_a_damaged_manifest_is_no_damage_to_the_files_that_it_lists(run):
    flip(run / "evaluate" / "manifest.json")
    assert states(run) == {"evaluate/manifest.json": "damaged"}


def carry_out(commands: str) -> None:
    """Runs commands as a shell would, those of dakd in this process."""
    for line in commands.splitlines():
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            if words[0] == "dakd":
                assert main(words[1:]) == 0, command
            else:
                subprocess.run(words, check=True)


def repairs_of(run, capsys) -> str:
    assert main(["verify", str(run)]) == 1
    return capsys.readouterr().out.partition("to repair:\n")[2]


def test_repairs_of_what_a_finished_training_leaves_alone_remove_it(run, capsys):
    folder = run / "train_saross" / "real"
    older = folder / "checkpoints" / "step-00000002"
    shutil.copytree(folder / "checkpoints" / "step-00000004", older)
    shutil.copytree(older, older.with_name("damaged-step-00000003"))
    (folder / "samples").mkdir()
    for path in (older / "state.json", older.with_name("damaged-step-00000003") / "state.json",
                 folder / "samples" / "step-00000002.png", folder / "config.yaml"):  # fmt: skip
        path.write_text("damaged")
    repairs = repairs_of(run, capsys)
    assert "dakd train_saross" not in repairs and repairs.count("\n") == 3
    carry_out(repairs)
    assert set(states(run).values()) == {"unfinished"}


def test_settings_that_are_damaged_are_not_the_settings_of_a_repair(run, capsys):
    (run / "config.yaml").write_text("name: [")
    (run / "balance" / "balance.json").write_text("")
    assert main(["verify", str(run)]) == 1
    printed = capsys.readouterr().out
    assert "damaged     config.yaml: " in printed and "dakd balance --config EXPERIMENT.yaml run_dir=" in printed


def test_settings_of_a_run_that_were_edited_are_found_and_can_be_accepted(run, capsys):
    path = run / "config.yaml"
    path.write_text(path.read_text().partition("\n")[2])
    assert states(run) == {"config.yaml": "damaged"}
    path.write_text(path.read_text().replace("seed: 3", "seed: 4"))
    assert states(run) == {"config.yaml": "damaged"}
    for read in (read_config, write_report):
        with pytest.raises(ValueError, match=r"config\.yaml has changed .* dakd verify --accept"):
            read(run)
    assert main(["verify", "--accept", str(path)]) == 0
    assert states(run) == {} and read_config(run).seed == 4


def test_another_runs_settings_are_found_refused_and_can_be_accepted(run, tmp_path, capsys):
    path = run / "config.yaml"
    save_config(toy_config(tmp_path / "other"), tmp_path / "other" / "prepare")
    shutil.copy(tmp_path / "other" / "config.yaml", path)
    assert states(run) == {"config.yaml": "damaged"}
    for read in (read_config, write_report, open_config):
        with pytest.raises(ValueError, match=r"config\.yaml is not the file .* wrote here.* dakd verify --accept"):
            read(path if read is open_config else run)
    assert main(["report", "--config", str(path), f"run_dir={run}"]) == 1
    assert f"dakd verify --accept '{path}'" in capsys.readouterr().err
    assert main(["verify", "--accept", str(path)]) == 0
    assert states(run) == {} and read_config(run).name == "toy"


def test_settings_that_are_lost_are_found_with_the_manifest_and_without(run):
    path = run / "config.yaml"
    path.unlink()
    assert states(run) == {"config.yaml": "missing"}
    for read in (read_config, write_report):
        with pytest.raises(ValueError, match=r"config\.yaml does not exist, though .* lists it; .*--accept"):
            read(run)
    (run / "manifest.json").unlink()
    assert states(run) == {"config.yaml": "missing"}


def test_settings_of_an_older_run_that_no_manifest_lists_are_read(run, capsys):
    (run / "manifest.json").unlink()
    assert main(["verify", str(run)]) == 0
    assert "unfinished  config.yaml: it has no checksum that is of this run" in capsys.readouterr().out
    assert read_config(run).name == "toy" and write_report(run).is_file()
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 3", "seed: 4"))
    assert main(["verify", "--accept", str(path)]) == 0
    assert states(run) == {"config.yaml": "unfinished"} and read_config(run).seed == 4
    flip(run / "config.yaml")
    assert states(run) == {"config.yaml": "damaged"}


def test_settings_are_refused_by_their_own_checksum_where_the_manifest_is_damaged_or_gone(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("bootstrap: ", "bootstrap: 1"))
    for spoil in (lambda: os.truncate(run / "manifest.json", 40), (run / "manifest.json").unlink):
        spoil()
        with pytest.raises(ValueError, match=r"config\.yaml has changed|manifest\.json"):
            open_config(path)


def test_settings_of_a_copied_run_are_not_those_of_the_original(run):
    with pytest.raises(ValueError, match=r"config\.yaml is of the run in .*; expected its own folder: add run_dir="):
        open_config(run / "config.yaml")
    assert open_config(run / "config.yaml", [f"run_dir={run}"]).run_path == run
    assert open_config(run / "config.yaml", ["name=other"]).name == "other"
    assert open_config(run / "config.yaml", only_shown=True).name == "toy"


def test_a_steps_folder_that_was_moved_and_linked_is_looked_at(run, tmp_path):
    (run / "evaluate").rename(tmp_path / "elsewhere")
    (run / "evaluate").symlink_to(tmp_path / "elsewhere")
    (run / "loop").symlink_to(run)
    assert not [name for name, state in states(run).items() if state != "unexpected"]
    flip(tmp_path / "elsewhere" / "table.json")
    assert states(run)["evaluate/table.json"] == "damaged"


def test_the_settings_of_a_training_are_its_own(run):
    path = run / "train_saross" / "real" / "config.yaml"
    path.write_text(seal_yaml(dump_config(toy_config(run, flip=False))))
    assert states(run) == {"train_saross/real/config.yaml": "damaged"}
    with pytest.raises(ValueError, match=r"real/config\.yaml is not the file that its step wrote here"):
        read_config(run, path.parent)
    path.unlink()
    assert states(run) == {"train_saross/real/config.yaml": "missing"}
    with pytest.raises(ValueError, match=r"real/config\.yaml does not exist, though"):
        read_config(run, path.parent)


def test_the_settings_of_prepare_are_listed_beside_its_files(run):
    config = toy_config(run)
    listed = read_manifest(run / "prepare")
    save_config(config, run / "prepare", is_finished=True)
    assert read_manifest(run / "prepare").items() > listed.items() and states(run) == {}
    save_config(toy_config(run, flip=False), run / "prepare", is_finished=True)
    assert states(run) == {}
    (run / "prepare" / "config.yaml").unlink()
    assert states(run) == {"prepare/config.yaml": "missing"}


def test_a_step_that_writes_its_settings_again_takes_its_manifest_back(run):
    save_config(toy_config(run, flip=False), run / "train_saross" / "real")
    assert states(run) == {"train_saross/real": "unfinished"}


def test_a_checkpoint_whose_folder_was_renamed_is_found(run, capsys):
    folder = run / "train_saross" / "real" / "checkpoints"
    (folder / "step-00000004").rename(folder / "step-00000008")
    assert set(states(run).values()) == {"damaged"}
    main(["verify", str(run)])
    assert "holds step 4: its folder was renamed" in capsys.readouterr().out


def test_another_runs_page_and_a_lost_picture_of_a_training_are_found(run):
    (run / "report" / "index.html").write_text("<p>of another run")
    assert states(run) == {"report/index.html": "damaged"}
    write_report(run)
    assert states(run) == {}
    (run / "report" / "manifest.json").unlink()
    assert states(run) == {"report": "unfinished"}
    write_report(run)
    folder = run / "train_saross" / "real"
    (folder / "samples").mkdir()
    for name in ("1", "2"):
        shutil.copy(run / "prepare" / "contact_sheet.png", folder / "samples" / f"{name}.png")
    write_manifest(folder, [*files_of(folder), *files_of(folder / "samples")])
    shutil.copy(run / "evaluate" / "pictures" / "000_image.png", folder / "samples" / "1.png")
    (folder / "samples" / "2.png").unlink()
    found = {f"train_saross/real/samples/{name}.png": state for name, state in (("1", "damaged"), ("2", "missing"))}
    assert states(run) == found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Generated pairs of a run with nothing else but its teacher."""
    config = with_teacher(tmp_path_factory.mktemp("pairs") / "run")
    teacher = config.run_path / "train_jointnet" / "stage3"
    write_manifest(teacher, files_of(teacher))
    generate(config)
    return config.run_path


@pytest.fixture
def pairs_run(pairs, tmp_path):
    return shutil.copytree(pairs, tmp_path / "pairs")


@pytest.mark.parametrize(
    "name", ["index.json", "manifest.jsonl", "contact_sheet.png", "provenance.json", "config.yaml"]
)
def test_a_file_of_generated_pairs_that_is_changed_or_lost_is_found_and_made_again(pairs_run, name):
    path = pairs_run / "generate" / name
    whole = path.read_bytes()
    flip(path)
    assert states(pairs_run)[f"generate/{name}"] == "damaged"
    path.unlink()
    assert states(pairs_run)[f"generate/{name}"] == "missing"
    tree = yaml.safe_load((pairs_run / "config.yaml").read_text()) | {"run_dir": str(pairs_run)}
    generate(build_config(tree))
    assert states(pairs_run) == {}
    assert path.read_bytes() == whole or name == "config.yaml"


def test_whole_files_of_other_pairs_are_found(pairs_run):
    folder = pairs_run / "generate"
    Image.new("L", (4, 4)).save(folder / "contact_sheet.png")
    write_json(folder / "provenance.json", content_of(folder / "provenance.json") | {"seed": 9})
    found = {"generate/contact_sheet.png": "damaged", "generate/provenance.json": "damaged"}
    assert states(pairs_run) == found
    (folder / "manifest.json").unlink()  # as in a run of an older version
    assert states(pairs_run) == {"generate": "unfinished", "generate/provenance.json": "damaged"}
    (folder / "provenance.json").unlink()
    lines = (folder / "manifest.jsonl").read_text().replace('"file": "shard-000000', '"file": "shard-000009')
    (folder / "manifest.jsonl").write_text(lines)  # of one shard of several
    found = {"generate/provenance.json": "missing", "generate/manifest.jsonl": "damaged"}
    assert states(pairs_run) == {"generate": "unfinished"} | found


def test_pairs_are_unfinished_until_their_last_file_is_written(pairs_run, monkeypatch):
    tree = yaml.safe_load((pairs_run / "config.yaml").read_text()) | {"run_dir": str(pairs_run)}
    tree["generate"]["num_samples"] = 8
    steps = {name: getattr(summaries, name) for name in ("_write_lines", "save_index", "draw_sheet", "write_manifest")}
    for name in steps:
        monkeypatch.setattr(summaries, name, Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(build_config(tree))
        assert set(states(pairs_run).values()) == {"unfinished"}, name
        monkeypatch.setattr(summaries, name, steps[name])
    generate(build_config(tree))
    assert states(pairs_run) == {} and content_of(pairs_run / "generate" / "index.json")["num_samples"] == 8


@pytest.mark.parametrize(
    "lost, module, stopped_in",
    [("contact_sheet.png", summaries, "draw_sheet"), ("shard-000002.*", generating, "Worker")],
)
def test_pairs_whose_lost_file_is_being_made_again_are_unfinished(pairs_run, monkeypatch, lost, module, stopped_in):
    tree = yaml.safe_load((pairs_run / "config.yaml").read_text()) | {"run_dir": str(pairs_run)}
    generate(build_config(tree))  # with the settings of this folder
    for path in (pairs_run / "generate").glob(lost):
        path.unlink()
    monkeypatch.setattr(module, stopped_in, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        generate(build_config(tree))
    assert states(pairs_run) == {"generate": "unfinished"}


@pytest.mark.parametrize("name", ["prepare", "prepare/train", "train_saross/real", "evaluate", "report"])
def test_a_steps_folder_is_not_taken_for_a_run(run, name, monkeypatch, capsys):
    for path in (str(run / name), "."):
        monkeypatch.chdir(run / name)
        assert main(["verify", path]) == 1
        expected = f"found a step's folder of {run}: {path}; expected a run's folder; run: dakd verify '{run}'"
        assert expected in capsys.readouterr().err


def test_a_run_may_be_called_like_a_step(run, tmp_path):
    for name in ("prepare", "report"):
        shutil.copytree(run, tmp_path / "runs" / name)
    assert states(tmp_path / "runs" / "report") == {}


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    write_json(tmp_path / "a.json", {})
    assert main(["verify", str(tmp_path)]) == 1
    assert "is not a run folder: found none of config.yaml, prepare" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none")]) == 1


def overridden(run, *overrides):
    return open_config(run / "config.yaml", [f"run_dir={run}", *overrides])


def labelled_folder(run, folder: Path) -> Path:
    """Images of the run's test split with their masks, as files."""
    test = ShardSet(run / "prepare" / "test")
    for index in range(len(test)):
        sample = test.read(index)
        for name, values in (("images", sample.sar), ("masks", sample.label)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / name / f"{index}.png")
    return folder


def test_the_repair_of_an_evaluation_has_the_settings_that_it_was_made_with(run, tmp_path, capsys):
    folder = labelled_folder(run, tmp_path / "new scenes")
    evaluate(overridden(run, f"evaluate.folder={folder}", "evaluate.scales=[1, 0.5]", "prepare.mask_values=ids"))
    evaluate(overridden(run, f"evaluate.student={run}/train_saross/real/student_raw.safetensors"))
    evaluate(overridden(run, "evaluate.weights=raw"))
    tables = [run / "evaluate" / place / "table.json" for place in (".", "new scenes", "real")]
    whole = [path.read_bytes() for path in tables]
    assert states(run) == {}
    for path in tables:
        path.write_bytes(b"")
    repairs = repairs_of(run, capsys)
    assert repairs.count("\n") == 3 and "'evaluate.scales=[1.0, 0.5]' " in repairs, repairs
    carry_out(repairs)
    assert [path.read_bytes() for path in tables] == whole and states(run) == {}


@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluate.split=train", "evaluate.folder=/a b/c", "evaluate.dataset=sos", "prepare.sensor=palsar",
         "prepare.polarity=oil_is_black", "prepare.mask_threshold=9", "evaluate.weights=raw"],
        ["evaluate.folder=/a", "evaluate.scales=[0.5,1]", "prepare.resize=[32,64]", "prepare.mask_values=ids"],
        ["evaluate.student=/x.safetensors", "evaluate.scales=[2]"],
        ["evaluate.split=train"],
    ],
)  # fmt: skip
def test_the_settings_of_an_evaluation_come_back_from_its_files(run, tmp_path, overrides):
    asked = overridden(run, *overrides)
    students = {"x": Path("/x.safetensors")} if asked.evaluate.student else {}
    facts = {"inputs": inputs_of(asked, run, students), "split": asked.evaluate.split, "skipped": []}
    facts |= {"scales": list(asked.evaluate.scales), "weights": asked.evaluate.weights}
    write_json(tmp_path / "tables" / "table.json", facts)
    config = overridden(run)
    typed = as_overrides(evaluation_settings(run, tmp_path / "tables"), config)
    assert overridden(run, *typed) == asked and len(typed) == len(overrides)


def test_an_evaluation_of_which_no_file_says_the_inputs_is_removed(run, tmp_path, capsys):
    folder = labelled_folder(run, tmp_path / "scenes")
    evaluate(overridden(run, f"evaluate.folder={folder}"))
    for path in (run / "evaluate" / "scenes").glob("*.json"):
        path.write_bytes(b"")
    repairs = repairs_of(run, capsys)
    assert repairs.count("\n") == 1 and "with its evaluate.folder" in repairs
    carry_out(repairs)
    assert states(run) == {} and (run / "evaluate" / "real.json").is_file()


def test_the_repair_of_a_prediction_predicts_its_image(run, tmp_path, capsys):
    folder = labelled_folder(run, tmp_path / "new scenes") / "images"
    predict(overridden(run, f"predict.inputs={folder}"))
    place = run / "predict" / "real"
    pictures = [place / "0_class.png", place / "1_overlay.png", place / "test-000001_class.png"]
    whole = [path.read_bytes() for path in pictures]
    for path in pictures:
        flip(path)
    repairs = repairs_of(run, capsys)
    assert f"'predict.inputs={folder}/1.png'" in repairs
    carry_out(repairs)
    assert [path.read_bytes() for path in pictures] == whole and states(run) == {}


def test_the_repair_of_a_record_predicts_by_the_same_student(run, capsys):
    predict(overridden(run, "evaluate.weights=raw"))
    (run / "predict" / "real" / "manifest.json").write_text("{")
    repairs = repairs_of(run, capsys)
    assert "evaluate.weights=raw" in repairs
    carry_out(repairs)
    assert states(run) == {}


def test_the_repair_of_an_emptied_card_writes_it(run, capsys):
    write_cards(run)
    path = run / "train_saross" / "real" / "README.md"
    whole = path.read_text()
    path.write_text("")
    carry_out(repairs_of(run, capsys))
    assert path.read_text() == whole and states(run) == {}
