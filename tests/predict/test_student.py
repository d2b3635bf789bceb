"""A student from its file alone: arrays, pictures, paths, large images; the prediction's label, pictures and files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_students import TINY_STUDENT

from dakd.config import StudentConfig
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES, ClassTable
from dakd.data.transforms import to_student
from dakd.models.registry import build_student
from dakd.predict.images import read_image
from dakd.predict.prediction import Prediction
from dakd.predict.student import Student
from dakd.runtime.tensor_files import save_weights
from dakd.weights import save_student

TINY = StudentConfig(**TINY_STUDENT)


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
    (torch.zeros(4, 4, dtype=torch.bfloat16), "cannot be read as an array"),
    (np.ma.masked_less(np.arange(16, dtype=np.uint8).reshape(4, 4), 4), "hides 4 of its pixels by a mask"),
    (None, "expected uint8 grey values"),
])  # fmt: skip
def test_an_image_that_is_not_8_bit_grey_is_refused(file, image, found):
    with pytest.raises(ValueError, match=found):
        Student.load(file).predict(image)


def test_a_path_that_leads_nowhere_and_a_truncated_picture_are_refused(file, sar, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image at '/nowhere/a\.png'"):
        Student.load(file).predict("/nowhere/a.png")
    content = io.BytesIO()
    Image.fromarray(sar).save(content, format="PNG")
    (tmp_path / "cut.png").write_bytes(content.getvalue()[:200])
    with pytest.raises(ValueError, match=r"cut\.png: cannot be read"):
        Student.load(file).predict(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="truncated"):
        Student.load(file).predict(Image.open(tmp_path / "cut.png"))


def test_arrays_of_any_memory_order_and_right_are_taken_without_a_warning(file, sar, recwarn):
    student, frozen = Student.load(file), sar.copy()
    frozen.flags.writeable = False
    wanted = student.predict(sar).probability
    for image in (frozen, torch.as_tensor(sar), sar[::-1][::-1], np.asfortranarray(sar)):
        assert np.array_equal(student.predict(image).probability, wanted)
    assert not [one for one in recwarn if "writable" in str(one.message)]


def test_a_picture_beyond_pils_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(tmp_path / "scene.png")
    assert read_image(tmp_path / "scene.png").shape == (30, 30) and Image.MAX_IMAGE_PIXELS == 100


def test_a_net_in_training_mode_predicts_in_eval_mode_and_keeps_its_modes_and_statistics(file, sar):
    student = Student.load(file)
    wanted = student.predict(sar).probability
    student.net.train()
    student.net.encoder.eval()
    modes, state = [m.training for m in student.net.modules()], student.net.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    assert np.array_equal(student.predict(sar).probability, wanted)
    assert [m.training for m in student.net.modules()] == modes and True in modes and False in modes
    assert all(torch.equal(before[name], tensor) for name, tensor in student.net.state_dict().items())


def test_a_table_of_another_number_of_classes_is_refused(file, sar):
    net = Student.load(file).net
    with pytest.raises(ValueError, match="the net has 5 classes and the table 2"):
        Student(net, SOS_CLASSES)
    foreign = torch.nn.Conv2d(3, 5, 1)
    foreign.num_classes = 5
    with pytest.raises(ValueError, match="the net has 5 classes and the table 2"):
        Student(foreign, SOS_CLASSES)
    bare = torch.nn.Conv2d(3, 5, 1)  # it does not say how many it has
    with pytest.raises(ValueError, match="the net gives 5 classes; the table has 2"):
        Student(bare, SOS_CLASSES).predict(sar)


class _Foreign(torch.nn.Module):
    """A net that is not one of dakd's; give: image -> what it gives."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, image):
        return self.give(image)


def _logits(image, value=0.0, stride=1):
    return torch.full((len(image), 5, image.shape[2] // stride, image.shape[3] // stride), value)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
@pytest.mark.parametrize("give, message", [
    (lambda image: _logits(image, torch.nan), r"NaN or infinite at \d+ of \d+ pixels; expected finite"),
    (lambda image: _logits(image, torch.inf), r"NaN or infinite at \d+ of \d+ pixels; expected finite"),
    (lambda image: _logits(image, stride=4), r"gives logits of shape \(1, 5, .*; expected one tensor \(1, classes, "),
    (lambda image: _logits(image)[0], r"gives logits of shape \(5, .*expected one tensor \(1, classes, "),
    (lambda image: {"out": _logits(image)}, r"the net gives a dict; expected one tensor \(1, classes, .*wrap it"),
    (lambda image: None, "the net gives a NoneType; expected one tensor"),
])  # fmt: skip
def test_a_net_that_gives_no_finite_logits_of_the_images_size_is_refused(give, message, scales):
    student = Student(_Foreign(give), OSD_CLASSES, scales=scales)
    for tile in (None, 64):
        with pytest.raises(ValueError, match=message):
            student.predict(np.zeros((96, 96), np.uint8), tile=tile)


def test_a_net_may_rule_a_class_out_by_an_infinite_logit():
    def give(image):
        logits = _logits(image)
        logits[:, 3] = -torch.inf
        return logits

    assert Student(_Foreign(give), OSD_CLASSES).predict(np.zeros((32, 32), np.uint8)).probability[3].max() == 0


def test_what_predicts_is_saved_also_when_trained_further_replaced_or_compiled(file, sar, tmp_path):
    student, path = Student.load(file, scales=(0.5, 1.0)), tmp_path / "again.safetensors"
    with torch.no_grad():
        student.net.head.bias.add_(torch.arange(5.0))
    student.save(path, facts={"training_set": "mine"})
    again = Student.load(path, scales=(0.5, 1.0))
    assert np.array_equal(again.predict(sar).probability, student.predict(sar).probability)
    assert again.facts["training_set"] == "mine"
    student.net = build_student(TINY, 5).eval()
    student.save(path)
    again = Student.load(path, scales=(0.5, 1.0))
    assert np.array_equal(again.predict(sar).probability, student.predict(sar).probability)
    compiled = Student(torch.compile(student.net, backend="eager"), OSD_CLASSES)
    compiled.save(path)
    assert np.array_equal(Student.load(path).predict(sar).probability, compiled.predict(sar).probability)


def test_a_file_that_is_no_student_is_not_written_over(file, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    save_weights(tmp_path / "teacher.safetensors", {"w": torch.zeros(1)}, {"kind": "jointnet"})
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path in before:
        with pytest.raises(ValueError, match=r"not written by dakd|of the kind jointnet, not student"):
            Student.load(file).save(path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("scales", [1.0, (1.0, "a"), (float("nan"),)])
def test_scales_that_are_no_positive_numbers_are_refused(file, scales):
    with pytest.raises(ValueError, match="expected one or more positive numbers"):
        Student.load(file, scales=scales)


def test_names_are_no_class_table(file):
    with pytest.raises(TypeError, match=r"classes is a tuple; expected a dakd\.ClassTable"):
        Student(Student.load(file).net, ("sea", "oil"))


def test_a_student_is_not_saved_as_a_folder(file, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; give a file's name, such as .*student\.safetensors"):
        Student.load(file).save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alpha", [-1, 2, float("nan"), "0.5"])
def test_a_strength_of_the_overlay_beyond_0_to_1_is_refused_before_anything_is_written(file, sar, tmp_path, alpha):
    student = Student.load(file)
    Image.fromarray(sar).save(tmp_path / "a.png")
    prediction = student.predict(sar)
    calls = [lambda: prediction.overlay(alpha), lambda: prediction.save(tmp_path / "out", "a", alpha),
             lambda: student.predict_files(tmp_path / "a.png", tmp_path / "out", overlay_alpha=alpha)]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=r"alpha is .*; expected a number from 0"):
            call()
    assert not (tmp_path / "out").exists()


def test_no_input_is_refused(file, tmp_path):
    with pytest.raises(ValueError, match=r"inputs are \[\]; expected at least one image or folder"):
        Student.load(file).predict_files([], tmp_path / "out")


def test_an_overlap_is_checked_for_an_image_without_tiles_too(file, sar):
    student = Student.load(file)
    for tile in ("auto", None):
        with pytest.raises(ValueError, match="overlap is 7; expected a multiple of 32"):
            student.predict(sar, tile=tile, overlap=7)
    wanted = student.predict(sar, tile=64, overlap=32).probability
    assert np.array_equal(student.predict(sar, tile=np.int64(64), overlap=np.int64(32)).probability, wanted)
    assert np.array_equal(student.predict(sar, overlap=64).probability, student.predict(sar).probability)


@pytest.mark.parametrize("device, message", [("gpu", "device is 'gpu'; expected cpu, cuda"), ("cuda:99", "torch sees"),
                                             ("meta", "'meta', which this torch does not compute on; use cpu"),
                                             ("xpu", "'xpu', which this torch does not compute on; use cpu"),
                                             (1.5, "device is '1.5'; expected cpu")])  # fmt: skip
def test_a_device_that_is_not_there_is_refused(file, device, message):
    with pytest.raises(ValueError, match=message):
        Student.load(file, device)


def test_a_student_is_found_in_its_folder(file):
    assert Student.load(file.parent).classes == OSD_CLASSES


def test_classes_whose_names_make_one_file_name_have_two_files(tmp_path):
    classes = ClassTable(("a/b", "a_b"), ((0, 0, 0), (1, 1, 1)))
    Prediction(np.zeros((2, 2), np.uint8), np.full((2, 2, 2), 0.5, np.float32), classes).save(tmp_path, "x")
    names = {path.name for path in tmp_path.iterdir()}
    parts = ("class", "overlay", "probability_a_b~c14cddc033", "probability_a_b~648fa9b31b")
    assert names == {f"x_{part}.png" for part in parts}


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
    difference = np.abs(whole.probability - in_tiles.probability)
    assert difference.max() < 0.05 and difference.mean() < 0.002


def test_scales_of_a_student_change_its_answer(file, sar):
    plain, scaled = Student.load(file), Student.load(file, scales=(0.5, 1.0))
    assert not np.array_equal(plain.predict(sar).probability, scaled.predict(sar).probability)


def test_files_and_folders_are_written_and_names_that_clash_made_different(file, sar, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(sar).save(tmp_path / folder / "a.png")
    Image.fromarray(sar).save(tmp_path / "one" / "b.tif")
    student = Student.load(file)
    names = student.predict_files([tmp_path / "one", tmp_path / "one" / "a.png"], tmp_path / "out")
    assert names == ["a", "b"] and len(list((tmp_path / "out").glob("*.png"))) == 2 * 7
    assert (np.asarray(Image.open(tmp_path / "out" / "b_class.png")) == student.predict(sar).label).all()
    names = student.predict_files([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert names[1] == "b" and len(set(names)) == 3 and names[0].startswith("a~") and names[2].startswith("a~")
    assert len(list((tmp_path / "both").glob("*.png"))) == 3 * 7


def test_a_url_is_not_written_to(file, sar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student, url = Student.load(file), "s3://bucket/x"
    calls = [lambda: student.save(url), lambda: student.save_pretrained(url), lambda: student.predict_files(file, url),
             lambda: student.predict(sar).save(url, "a")]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="'s3://bucket/x' is a URL"):
            call()
    assert list(tmp_path.iterdir()) == []


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


def test_probabilities_are_rounded_to_the_nearest_grey(tmp_path):
    classes = ClassTable(("sea", "oil"), ((0, 0, 0), (255, 255, 255)))
    sea = np.array([[0.997, 0.9985, 1.0]], np.float32)
    Prediction(np.zeros((1, 3), np.uint8), np.stack([sea, 1 - sea]), classes).save(tmp_path, "a")
    assert np.array(Image.open(tmp_path / "a_probability_sea.png")).tolist() == [[254, 255, 255]]


class PerTile(torch.nn.Module):
    """Random logits by the image's sum: of two tiles that overlap, each has its own."""

    def forward(self, image):
        generator = torch.Generator().manual_seed(int(image.sum().abs() * 100))
        return 3 * torch.randn(len(image), 5, *image.shape[2:], generator=generator)


@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_probabilities_are_of_the_logits_over_the_temperature_and_no_class_changes(sar, temperature):
    plain = Student(PerTile(), OSD_CLASSES)
    student = Student(PerTile(), OSD_CLASSES, facts={"temperature": temperature})
    assert student.temperature == temperature and plain.temperature == 1
    logits = PerTile()(to_student(torch.as_tensor(sar)[None, None]))
    found, before = student.predict(sar), plain.predict(sar)
    assert (found.probability == (logits / temperature).softmax(1)[0].numpy()).all()
    assert (found.label == before.label).all() and found.label.dtype == np.uint8
    assert len(np.unique(found.label)) == 5 and np.abs(found.probability - before.probability).max() > 0.1
    large = np.random.default_rng(1).integers(0, 256, (150, 190), dtype=np.uint8)
    options = {"tile": 96, "overlap": 32}
    found, before = student.predict(large, **options), plain.predict(large, **options)
    assert (found.label == before.label).all()
    np.testing.assert_allclose(found.probability.sum(axis=0), 1, atol=1e-5)
    # Where tiles are blended, the calibrated probabilities would decide otherwise.
    assert 10 < (found.probability.argmax(axis=0) != found.label).sum() < 0.2 * found.label.size


def test_a_temperature_that_makes_all_alike_keeps_the_classes(file, sar):
    plain = Student.load(file)
    flat = Student(plain.net, plain.classes, facts={"temperature": 1e9})
    assert (flat.predict(sar).label == plain.predict(sar).label).all()
    assert np.ptp(flat.predict(sar).probability) < 1e-6


def test_the_temperature_is_saved_with_the_facts_and_goes_with_other_ones(file, sar, tmp_path):
    plain = Student.load(file)
    student = Student(plain.net, plain.classes, facts=plain.facts | {"temperature": 2.5})
    student.save(tmp_path / "student.safetensors")
    student.save_pretrained(tmp_path / "hub")
    for place in (tmp_path / "student.safetensors", tmp_path / "hub"):
        again = Student.load(place)
        assert again.temperature == 2.5
        assert (again.predict(sar).probability == student.predict(sar).probability).all()
    student.save(tmp_path / "student.safetensors", facts={})  # trained further: its logits are others
    assert Student.load(tmp_path / "student.safetensors").temperature == 1


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), True, "2", None])
def test_a_temperature_that_is_no_positive_number_is_refused(file, temperature):
    plain = Student.load(file)
    with pytest.raises(ValueError, match=r"temperature of the facts is .*expected a positive number"):
        Student(plain.net, plain.classes, facts={"temperature": temperature})


def test_predictions_with_another_temperature_are_another_students(file, sar, tmp_path):
    Image.fromarray(sar).save(tmp_path / "a.png")
    plain = Student.load(file)
    plain.predict_files(tmp_path / "a.png", tmp_path / "out")
    calibrated = Student(plain.net, plain.classes, facts=plain.facts | {"temperature": 2.5})
    with pytest.raises(ValueError, match="predictions of another student"):
        calibrated.predict_files(tmp_path / "a.png", tmp_path / "out")
    plain.predict_files(tmp_path / "a.png", tmp_path / "out")
