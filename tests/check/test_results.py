"""What `dakd check` says of the pairs, the evaluation and the predictions of an experiment."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from check_worlds import folder, refusals, toy
from PIL import Image
from tiny_students import TINY_STUDENT
from worlds import teacher_file, with_teacher

from dakd.check.check import check
from dakd.config import StudentConfig
from dakd.data.prepare import prepare
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES
from dakd.models.registry import build_student
from dakd.train.saross import student_folder
from dakd.weights import save_student


def student_file(path, classes=OSD_CLASSES):
    settings = StudentConfig(**TINY_STUDENT)
    save_student(path, build_student(settings, classes.num_classes), settings, classes, {})
    return path


@pytest.fixture
def no_students(tmp_path) -> dict:
    """Paths in place of a student's weights, each with its message."""
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    (tmp_path / "folder").mkdir()
    return {
        str(tmp_path / "garbage.safetensors"): "is not a whole safetensors file",
        str(tmp_path / "folder"): "no weights file at|which is no file",
        str(teacher_file(with_teacher(tmp_path / "other"))): "holds jointnet, not a student",
        str(student_file(tmp_path / "sos.safetensors", SOS_CLASSES)): "knows the classes sea, ",
    }


def grey(path, value=None) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32)) if value is None else np.full((32, 32), value)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_test_images_without_masks_are_refused(tmp_path, is_prepared):
    data = folder(tmp_path / "data")
    for path in (tmp_path / "data" / "test" / "masks").iterdir():
        path.unlink()
    (tmp_path / "data" / "test" / "masks").rmdir()
    config = toy(tmp_path, prepare=data)
    if is_prepared:
        prepare(config)
    assert refusals(config).keys() == {"evaluate"}
    assert "the test split has labels for 0 of 6 images" in refusals(config)["evaluate"]
    assert refusals(toy(tmp_path, prepare=data, evaluate__split="train")) == {}


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_prediction_of_test_images_that_are_not_there_is_refused(tmp_path, is_prepared):
    data, images = folder(tmp_path / "data", splits=("train",)), tmp_path / "images"
    config = toy(tmp_path, prepare=data, evaluate__split="train")
    if is_prepared:
        prepare(config)
    assert refusals(config).keys() == {"predict"} and "no test split at" in refusals(config)["predict"]
    grey(images / "a.png")
    assert refusals(toy(tmp_path, prepare=data, evaluate__split="train", predict__inputs=str(images))) == {}


def test_a_prediction_by_a_student_that_is_not_trained_is_refused(tmp_path):
    config = toy(tmp_path, train_saross__training_sets=["real"], predict__training_set="real+synthetic")
    assert "training_sets (real) does not train" in refusals(config)["predict"]
    student_folder(config, "real+synthetic").mkdir(parents=True)  # of an earlier call
    assert refusals(config) == {}


def test_images_to_predict_that_cannot_be_read_are_refused(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    config = toy(tmp_path, predict__inputs=str(images))
    assert "no image in" in refusals(config)["predict"]
    (images / "notes.txt").write_text("text")
    (images / "a.png").write_bytes(b"no picture")
    assert "a.png" in refusals(config)["predict"]
    assert "a.png" in refusals(toy(tmp_path, predict__inputs=str(images / "a.png")))["predict"]
    grey(images / "a.png")
    found = {finding.text: finding.level for finding in check(config) if finding.topic == "predict"}
    assert found.pop(f"1 images in {images}; the first was read") == "ok"
    assert ["notes.txt" in text for text in found] == [True] and set(found.values()) == {"warn"}


def test_predictions_into_the_folder_of_their_images_are_refused(tmp_path):
    images = tmp_path / "run" / "predict" / "real"
    grey(images / "a.png")
    config = toy(tmp_path, predict__inputs=str(images), predict__training_set="real")
    assert "inputs and outputs are one folder" in refusals(config)["predict"]


def test_a_student_to_evaluate_that_is_none_or_of_other_classes_is_refused(tmp_path, no_students):
    for path, what in no_students.items():
        assert re.search(what, refusals(toy(tmp_path, evaluate__student=path))["evaluate"])
    good = str(student_file(tmp_path / "good.safetensors"))
    assert refusals(toy(tmp_path, evaluate__student=good)) == {}
    data = folder(tmp_path / "data")
    found = refusals(toy(tmp_path, evaluate__student=good, prepare=data, evaluate__folder=data["root"]))["evaluate"]
    assert "is read as a dataset with the classes sea, oil, the student distinguishes sea, oil, look-alike" in found


def test_students_of_the_gate_and_the_audit_that_are_none_are_refused(tmp_path, no_students):
    for path, what in no_students.items():
        gate = {"enabled": True, "student": path, "agreement": {"at_least": 0.5}}
        assert re.search(what, refusals(toy(tmp_path, generate__gate=gate))["generate"])
        if "sos" not in path:  # an encoder has no classes
            assert re.search(what, refusals(toy(tmp_path, generate__audit={"student": path}))["generate"])
    good = {"student": str(student_file(tmp_path / "good.safetensors"))}
    assert refusals(toy(tmp_path, generate__gate=good | {"enabled": True}, generate__audit=good)) == {}


def test_weights_of_inception_that_are_others_are_refused_and_a_download_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("dakd.check.host.import_torch_fidelity", lambda: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    torch.save({"fc.weight": torch.zeros(10, 10)}, tmp_path / "other.pth")
    for name, what in (("garbage", "cannot be read as weights"), ("other", "another net"), ("absent", "no weights of")):
        fidelity = {"extractor": "inception", "weights": str(tmp_path / f"{name}.pth")}
        assert what in refusals(toy(tmp_path, evaluate__fidelity=fidelity))["evaluate"]
    config = toy(tmp_path, evaluate__fidelity={"extractor": "inception"})
    assert [one.level for one in check(config) if "will download the weights of InceptionV3" in one.text] == ["warn"]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"garbage")
    assert "cannot be read as weights" in refusals(config)["evaluate"]


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_folder_to_evaluate_whose_masks_mean_something_else_is_refused(tmp_path, is_prepared):
    data, other = folder(tmp_path / "data"), folder(tmp_path / "other")
    for path in (tmp_path / "data").glob("*/masks/*.png"):  # oil is index 0 of a palette
        mask = Image.fromarray(1 - np.array(Image.open(path)), "P")
        mask.putpalette([0, 255, 255, 0, 0, 0])
        mask.save(path)
    config = toy(tmp_path, prepare=data, evaluate__folder=other["root"])
    if is_prepared:
        prepare(config)
    assert "'oil' in the masks of 'train' and 'sea' in those of 'evaluate.folder'" in refusals(config)["evaluate"]
    assert refusals(toy(tmp_path, prepare=data, evaluate__folder=data["root"])) == {}


def test_the_runs_own_student_need_not_be_there_before_it_is_trained_and_must_fit_where_it_is(tmp_path):
    gate = {"enabled": True, "student": "real"}
    asked = {"generate__gate": gate, "refine__pixel_gate": 1.25}
    config = toy(tmp_path, **asked)
    assert refusals(config) == {} and refusals(toy(tmp_path, generate__gate={"student": "real"})) == {}
    texts = [finding.text for finding in check(config) if finding.topic in ("generate", "refine")]
    assert sum("the student of the set real, which the pipeline trains before" in text for text in texts) == 2
    no_class = toy(tmp_path, **asked | {"generate__gate": gate | {"areas": {"ice": {"at_most": 0.5}}}})
    assert "no class is called 'ice'" in refusals(no_class)["generate"]
    student_file(config.real_student)
    assert refusals(config) == {}
    student_file(config.real_student, SOS_CLASSES)
    assert re.search("the student .* knows the classes sea, oil, the teacher", refusals(config)["generate"])
    assert re.search("the student .* knows the classes sea, oil, the pairs", refusals(config)["refine"])
