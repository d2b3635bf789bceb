"""`dakd verify`: each kind of damage to each kind of file is found, named with its repair, and nothing is written."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest
from worlds import finished_run

from dakd.card.subject import read_config
from dakd.cli.main import main
from dakd.report.report import write_report
from dakd.runtime.runlog import read_records
from dakd.runtime.sealed import read_json, write_json
from dakd.verify import verify_run
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
    "predict/real/predict.json": "dakd predict",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("verify")).run_path


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


def test_a_run_in_progress_says_what_is_not_finished(run, capsys):
    (run / "train_saross" / "real" / "manifest.json").unlink()
    (run / "evaluate" / ".table.json.host.1.abcd.tmp").write_text("{")
    (run / "generate" / "index.json").unlink()
    assert main(["verify", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "unfinished  train_saross/real: its step has not finished" in printed
    assert "unfinished  generate: generate has not finished" in printed and "3 unfinished" in printed


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


@pytest.mark.parametrize("name, reason", [
    ("notes.txt", "notes.txt holds no checksum of its own and no manifest.json lists it"),
    ("foreign.json", "foreign.json has no content_sha256, so dakd did not write it"),
    ("cut.json", "cut.json is not JSON"),
    ("gone.json", "there is no "),
])  # fmt: skip
def test_a_file_that_dakd_did_not_write_is_not_accepted(run, name, reason, capsys):
    if name != "gone.json":
        (run / name).write_text('{"a": 1' + "}" * (name != "cut.json"))
    assert main(["verify", "--accept", str(run / name)]) == 1
    assert reason in capsys.readouterr().err and (run / "manifest.json").exists() is False


def test_a_damaged_manifest_is_no_damage_to_the_files_that_it_lists(run):
    flip(run / "evaluate" / "manifest.json")
    assert states(run) == {"evaluate/manifest.json": "damaged"}


def test_repairs_of_what_a_finished_training_leaves_alone_remove_it(run, capsys):
    folder = run / "train_saross" / "real"
    older = folder / "checkpoints" / "step-00000002"
    shutil.copytree(folder / "checkpoints" / "step-00000004", older)
    shutil.copytree(older, older.with_name("damaged-step-00000003"))
    (folder / "samples").mkdir()
    for path in (older / "state.json", older.with_name("damaged-step-00000003") / "state.json",
                 folder / "samples" / "step-00000002.png", folder / "config.yaml"):  # fmt: skip
        path.write_text("damaged")
    assert main(["verify", str(run)]) == 1
    repairs = capsys.readouterr().out.partition("to repair:\n")[2]
    assert "dakd train_saross" not in repairs and repairs.count("\n") == 3
    subprocess.run(repairs, shell=True, check=True)
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


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    write_json(tmp_path / "a.json", {})
    assert main(["verify", str(tmp_path)]) == 1
    assert "is not a run folder: found none of config.yaml, prepare" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none")]) == 1
