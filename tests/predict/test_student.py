"""A student from its file alone: arrays, pictures, paths, large images; the prediction's label, pictures and files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dakd.config import StudentConfig
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES
from dakd.models.zoo import build_student
from dakd.predict.prediction import Prediction
from dakd.predict.student import Student
from dakd.weights import save_student

TINY = StudentConfig(
    encoder="resnet18", encoder_options={"width": 4}, decoder_channels=(8, 8, 8, 8), caft_heads=(1, 1, 1)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(path, build_student(TINY, 5), TINY, OSD_CLASSES, {"training_set": "real"})
    return path


@pytest.fixture
def sar():
    return np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)


def test_an_array_a_picture_and_a_path_give_one_answer(file, sar, tmp_path):
    student = Student.load(file)
    Image.fromarray(sar).save(tmp_path / "a.png")
    of_array = student.predict(sar)
    assert of_array.label.shape == (37, 53) and of_array.label.dtype == np.uint8
    assert of_array.probability.shape == (5, 37, 53) and of_array.probability.dtype == np.float32
    assert np.allclose(of_array.probability.sum(axis=0), 1, atol=1e-5)
    assert (of_array.label == of_array.probability.argmax(axis=0)).all()
    others = [Image.fromarray(sar), Image.fromarray(sar).convert("RGB"), tmp_path / "a.png", str(tmp_path / "a.png")]
    for image in [*others, np.asfortranarray(sar)]:
        assert (student.predict(image).probability == of_array.probability).all()


def test_a_student_shows_its_classes_device_and_facts(file):
    student = Student.load(file, "cpu")
    assert student.classes == OSD_CLASSES and student.device.type == "cpu" and not student.net.training
    assert student.facts["training_set"] == "real" and "oil" in repr(student) and "saross" in repr(student)


@pytest.mark.parametrize("image, found", [
    (np.zeros((4, 4), np.float32), "float32"),
    (np.zeros((4, 4), np.uint16), "uint16"),
    (np.zeros((4, 4, 3), np.uint8), r"\(4, 4, 3\)"),
    (np.zeros((0, 4), np.uint8), "not empty"),
    (Image.new("I;16", (4, 4)), "I;16"),
    (Image.fromarray(np.dstack([np.zeros((4, 4), np.uint8)] * 2 + [np.full((4, 4), 90, np.uint8)])), "colour picture"),
    ("/nowhere/a.png", "cannot be read"),
])  # fmt: skip
def test_an_image_that_is_not_8_bit_grey_is_refused(file, image, found):
    with pytest.raises(ValueError, match=found):
        Student.load(file).predict(image)


def test_a_large_image_is_taken_in_tiles_by_itself_and_a_small_one_whole(file, monkeypatch):
    student, seen = Student.load(file), []

    def probabilities(sar):
        seen.append(sar.shape)
        return np.full((5, *sar.shape), 0.2, np.float32)

    monkeypatch.setattr(student, "_probabilities", probabilities)
    large = np.zeros((1100, 1500), np.uint8)
    assert student.predict(large).probability.shape == (5, 1100, 1500)
    assert len(seen) == 4 and max(max(shape) for shape in seen) <= 1024
    seen.clear()
    student.predict(large, tile=None)
    student.predict(np.zeros((650, 1250), np.uint8))
    student.predict(np.zeros((100, 90), np.uint8), tile=64)
    assert seen[:2] == [(1100, 1500), (650, 1250)] and len(seen) == 2 + 6


def test_tiles_agree_with_the_whole_image_where_the_student_sees_enough(file):
    student = Student.load(file)
    sar = np.random.default_rng(1).integers(0, 256, (256, 320), dtype=np.uint8)
    whole, in_tiles = student.predict(sar, tile=None), student.predict(sar, tile=256)
    assert np.abs(whole.probability - in_tiles.probability).mean() < 0.02


def test_scales_of_a_student_change_its_answer(file, sar):
    plain, scaled = Student.load(file), Student.load(file, scales=(0.5, 1.0))
    assert not np.array_equal(plain.predict(sar).probability, scaled.predict(sar).probability)


def test_files_and_folders_are_written_and_names_that_clash_refused(file, sar, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(sar).save(tmp_path / folder / "a.png")
    Image.fromarray(sar).save(tmp_path / "one" / "b.tif")
    student = Student.load(file)
    names = student.predict_files([tmp_path / "one", tmp_path / "one" / "a.png"], tmp_path / "out")
    assert names == ["a", "b"] and len(list((tmp_path / "out").iterdir())) == 2 * 7
    assert (np.asarray(Image.open(tmp_path / "out" / "b_class.png")) == student.predict(sar).label).all()
    with pytest.raises(ValueError, match=r"two images are called a\.png"):
        student.predict_files([tmp_path / "one", tmp_path / "two"], tmp_path / "out")


def test_a_prediction_shows_itself_in_a_notebook(tmp_path):
    probability = np.zeros((2, 4, 8), np.float32)
    probability[0], probability[1, :, :2] = 0.5, 0.75
    prediction = Prediction(np.full((4, 8), 100, np.uint8), probability, SOS_CLASSES)
    assert prediction.shares == {"sea": 0.75, "oil": 0.25}
    assert repr(prediction) == "Prediction(4 x 8; sea 75.00%, oil 25.00%)"
    shown = Image.open(io.BytesIO(prediction._repr_png_()))
    assert shown.size == (8, 4) and (np.asarray(shown) == np.asarray(prediction.overlay())).all()
    assert (np.asarray(prediction.overlay())[:, 2:] == 100).all()
    assert (np.asarray(prediction.overlay())[:, :2] != 100).any()
