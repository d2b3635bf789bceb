"""`dakd check`: all that a step would refuse, found before the first of them, and nothing written."""

from __future__ import annotations

import pytest
import yaml
from check_worlds import folder, refusals, toy
from PIL import Image

from dakd.check.check import check, format_findings, is_refused
from dakd.check.findings import Finding
from dakd.cli import main
from dakd.data.prepare import prepare
from dakd.generate.plan import GenerationPlan, record_provenance
from dakd.generate.teacher import provenance_of
from dakd.train.checkpoint import write_state
from dakd.train.jointnet import training_of_stage
from dakd.train.saross import StudentTraining


def test_an_experiment_that_runs_is_refused_nothing_and_nothing_is_written(tmp_path):
    findings = check(toy(tmp_path))
    assert not is_refused(findings) and list(tmp_path.iterdir()) == []
    topics = {finding.topic for finding in findings if finding.level == "ok"}
    assert {"data", "teacher", "generate", "student", "memory", "disk", "backend", "run folder"} <= topics


def test_all_faults_are_found_at_once(tmp_path):
    (tmp_path / "file").touch()
    config = toy(
        tmp_path,
        run_dir=str(tmp_path / "file"),
        train_jointnet__crop=[31, 31],
        train_jointnet__stage1__extra_images=[str(tmp_path / "absent")],
        generate__size=[33, 33],
        generate__capture=True,
        generate__audit={"student": str(tmp_path / "absent.safetensors")},
        train_saross__batch_norm="sync",
        train_saross__loss__class_weights=[1.0, 2.0],
        evaluate__folder=str(tmp_path / "absent"),
        evaluate__student=str(tmp_path / "absent.safetensors"),
        predict__inputs=str(tmp_path / "absent"),
    )
    found = refusals(config)
    assert set(found) == {
        "run folder", "backend", "teacher", "extra images", "generate", "student", "training sets", "evaluate",
        "predict",
    }  # fmt: skip
    assert "is a file" in found["run folder"] and "must be multiples of" in found["teacher"]
    assert "sync" in found["student"] and "2 values for 5 classes" in found["training sets"]
    assert "evaluate.folder" in found["evaluate"] and "evaluate.student" in found["evaluate"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"train_saross__loss__dice_samples": "all"}, "softened by 1 they may be off"),
        ({"train_saross__loss__kd_form": "confidence"}, "softened by 1 they may be off"),
        ({"train_saross__loss__kd_form": "standardized"}, "needs the teacher's logits"),
        ({"generate__temperature": 5.0}, "for the temperature 5; softened by 2"),
        ({"train_saross__num_synthetic": 99}, "num_synthetic is 99 of 7"),
        ({"generate__num_samples": 3, "train_saross__mosaic": True}, "at least 4"),
        ({"train_saross__synthetic": "nowhere"}, "nowhere"),
    ],
)
def test_students_that_the_generated_pairs_would_not_fit_are_found_before_these_are_made(tmp_path, changes, what):
    assert what in refusals(toy(tmp_path, generate__codec="logprob8", **changes))["training sets"]


@pytest.mark.parametrize("num_classes", [10, 11, 12, 40])
def test_codes_of_many_classes_are_fine(tmp_path, num_classes):
    classes = {f"class {i}": [i, 255 - i, i] for i in range(num_classes)}
    data = folder(tmp_path / "data") | {"classes": classes}
    assert refusals(toy(tmp_path, prepare=data, generate__codec="logprob8", evaluate__object_classes=[])) == {}


def test_objects_of_a_class_that_there_is_not_are_refused_before_the_run(tmp_path):
    found = refusals(toy(tmp_path, evaluate__object_classes=["ship", "oill"]))["evaluate"]
    assert "evaluate.object_classes is ship, oill; expected names of the class table: no class is called" in found
    assert "did you mean 'oil'?" in found
    data = folder(tmp_path / "data") | {"classes": {"sea": [0, 0, 0], "oil": [255, 255, 255]}}
    assert refusals(toy(tmp_path, prepare=data)) == {}  # the default list names ships too
    elsewhere = {"folder": data["root"], "dataset": "folder", "object_classes": ["kelp"]}
    changes = {f"evaluate__{key}": value for key, value in elsewhere.items()}
    assert "no class is called 'kelp'" in refusals(toy(tmp_path, prepare=data, **changes))["evaluate"]


def test_the_data_are_looked_at(tmp_path):
    data = folder(tmp_path / "data")
    assert refusals(toy(tmp_path, prepare=data)) == {}
    (tmp_path / "data" / "train" / "masks" / "3.png").write_bytes(b"no picture")
    assert "3.png" in refusals(toy(tmp_path, prepare=data))["data"]
    texts = [finding.text for finding in check(toy(tmp_path, prepare=data | {"on_bad_file": "skip"}))]
    assert any("3.png" in text for text in texts)
    assert not is_refused(check(toy(tmp_path, prepare=data | {"on_bad_file": "skip"})))


def test_files_of_a_large_split_are_looked_at_from_its_beginning_to_its_end(tmp_path):
    data = folder(tmp_path / "data", count=30)
    images = sorted((tmp_path / "data" / "train" / "images").iterdir())
    for path in images[:-1]:
        Image.new("L", (32, 32), 7).save(path)
    assert refusals(toy(tmp_path, prepare=data)) == {}  # the last one was not read, and is of more than one grey
    levels = [one.level for one in check(toy(tmp_path, prepare=data)) if "one grey in all pixels" in one.text]
    assert levels == ["warn"]
    images[-2].write_bytes(b"no picture")
    assert images[-2].name in refusals(toy(tmp_path, prepare=data))["data"]


def test_a_dataset_that_is_absent_or_lacks_a_split_is_refused_and_small_images_are_reported(tmp_path):
    absent = folder(tmp_path / "a") | {"root": str(tmp_path / "absent")}
    assert "absent" in refusals(toy(tmp_path, prepare=absent))["data"]
    only_train = toy(tmp_path, prepare=folder(tmp_path / "b", splits=("train",)))
    assert "evaluate.split is test, which the dataset lacks" in refusals(only_train)["data"]
    small = check(toy(tmp_path, prepare=folder(tmp_path / "c", size=(20, 40))))
    assert any("crop 32x32 is larger than images of 20x40" in finding.text for finding in small)


def test_a_run_that_was_made_with_other_settings_is_refused(tmp_path):
    config = toy(tmp_path)
    prepare(config)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert refusals(config) == {}
    other = [one for one in check(toy(tmp_path, prepare__shard_size=3)) if one.level == "refused"]
    assert other[0].topic == "data" and "made with other settings (shard_size" in other[0].text
    assert len({one.text for one in other}) == len(other)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_every_training_that_was_begun_with_other_settings_is_named(tmp_path):
    config = toy(tmp_path)
    prepare(config)
    for training in (training_of_stage(config, "stage1"), StudentTraining(config, "real")):
        write_state(training.checkpoints / "step-00000001", {}, {"identity": training.identity, "step": 1})
    assert refusals(config) == {}
    found = refusals(toy(tmp_path, train_jointnet__flip=True, train_saross__flip=False))["resume"]
    assert "stage1" in found and "flip: False there, True now" in found
    assert "train_saross/real" in found and "flip: True there, False now" in found


def test_a_disk_that_is_too_small_and_memory_that_is_are_found(tmp_path):
    config = toy(tmp_path, generate__num_samples=10**12)
    assert "GiB free" in refusals(config)["disk"]


def test_a_backend_that_cannot_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DAKD_BACKEND", "causal_conv1d")
    assert "DAKD_BACKEND is 'causal_conv1d'" in refusals(toy(tmp_path))["backend"]


def test_the_command_prints_a_table_and_ends_with_1_where_something_would_be_refused(tmp_path, capsys):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(toy(tmp_path).model_dump(mode="json")))
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("ok       run folder ")
    assert main(["check", "predict.inputs=/nowhere", "--config", str(path)]) == 1
    assert "\nrefused  predict " in capsys.readouterr().out
    with pytest.raises(SystemExit) as wrong:
        main(["check"])
    assert wrong.value.code == 2


def test_pairs_that_were_begun_with_other_settings_are_refused(tmp_path):
    config = toy(tmp_path)
    facts = provenance_of(
        config.generate.model_copy(update={"seed": 0}), checkpoint="c", b=0.5, precision="float32", threads=1,
        temperature=config.soft_label_temperature,
    )  # fmt: skip
    plan = GenerationPlan(config.run_path / "generate", 7, 7, config.generate.shard_size, facts)
    record_provenance(plan)
    assert refusals(config) == {}
    assert "was made with another eta; set it back" in refusals(toy(tmp_path, generate__eta=0.5))["generate"]
    assert "another shard_size" in refusals(toy(tmp_path, generate__shard_size=5))["generate"]


def test_variables_of_another_launcher_are_refused(tmp_path, monkeypatch):
    config = toy(tmp_path)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert "OMPI_COMM_WORLD_SIZE is 4" in refusals(config)["launcher"]
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE")
    for name, value in dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR="gone", MASTER_PORT="29500").items():
        monkeypatch.setenv(name, value)
    assert "to run alone: unset" in refusals(config)["launcher"]


def test_compiling_without_a_compiler_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = refusals(toy(tmp_path, train_saross__engine={"compile": True}))
    assert "train_saross.engine.compile is true, and there is no no-such-compiler" in found["packages"]


def test_the_folder_of_an_evaluation_is_looked_into(tmp_path):
    folder(tmp_path / "data", splits=("test",))
    classes = {"sea": [0, 0, 0], "oil": [0, 255, 255]}
    data = folder(tmp_path / "train_data")
    config = toy(tmp_path, prepare=data, evaluate__folder=str(tmp_path / "data"))
    assert refusals(config) == {}
    (tmp_path / "data" / "test" / "masks" / "3.png").write_bytes(b"no picture")
    assert "3.png" in refusals(config)["evaluate"]
    for path in (tmp_path / "data" / "test" / "masks").iterdir():
        path.unlink()
    assert "no label" in refusals(config)["evaluate"]
    other = toy(tmp_path, prepare=data | {"classes": classes | {"land": [1, 2, 3]}}, evaluate__dataset="osd",
                evaluate__folder=str(tmp_path / "data"))  # fmt: skip
    assert "evaluate" in refusals(other)


def test_images_of_one_grey_and_masks_of_unknown_pixels_are_refused_before_they_are_packed(tmp_path):
    data = folder(tmp_path / "data", mask_value=255)
    for path in (tmp_path / "data" / "train").rglob("*.png"):
        Image.new("L", (32, 32), 255 if path.parent.name == "masks" else 7).save(path)
    found = refusals(toy(tmp_path, prepare=data | {"mask_values": "ids"}))["data"]
    assert "one grey in all pixels" in found and "is unknown" in found


def test_the_pipeline_refuses_before_its_first_step(tmp_path, capsys):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(toy(tmp_path).model_dump(mode="json")))
    assert main(["pipeline", "--config", str(path), "predict.inputs=/nowhere", "evaluate.folder=/neither"]) == 1
    error = capsys.readouterr().err
    assert "2 finding(s) that a step would refuse" in error and "/nowhere" in error and "/neither" in error
    assert not (tmp_path / "run").exists()


def test_further_lines_of_a_finding_are_indented():
    text = format_findings([Finding("data", "warn", "two\nlines"), Finding("run folder", "ok", "one")])
    assert text.splitlines()[1] == " " * 21 + "lines"
