"""Each image has its own outputs, whatever it is called, and each prediction in a folder is of the student it names."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dakd.config import build_config
from dakd.data.readers.bad_file import BadFile
from dakd.data.sample import SOS_CLASSES, ClassTable, Sample
from dakd.data.shards import write_index, write_shard
from dakd.predict import images as images_module
from dakd.predict.images import BadImages
from dakd.predict.predict import predict
from dakd.predict.prediction import Prediction
from dakd.predict.student import Student
from dakd.runtime.files import file_hash
from dakd.runtime.sealed import read_manifest, write_json
from dakd.runtime.stopping import Preempted


class GreyIsOil(nn.Module):
    """Oil, of two or more classes, where the grey value is below 50."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("limit", torch.tensor(49.5))

    def forward(self, image):
        grey = (image[:, :1] * 0.229 + 0.485) * 255
        return torch.cat([torch.zeros_like(grey), self.limit - grey, *[grey - 1000] * (self.num_classes - 2)], dim=1)


def student(classes: ClassTable = SOS_CLASSES) -> Student:
    return Student(GreyIsOil(classes.num_classes), classes)


def save(path, num_oil: int) -> None:
    """A picture whose number of oil pixels tells it from others."""
    grey = np.full((8, 8), 120, np.uint8)
    grey.reshape(-1)[:num_oil] = 20
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path, format="TIFF" if path.suffix == ".tif" else "PNG")


def num_oil(path) -> int:
    return int((np.asarray(Image.open(path)) == 1).sum())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls the step predict of a run whose weights file holds the given text."""
    monkeypatch.setattr(Student, "load", classmethod(lambda *_: student()))

    def call(inputs=None, weights="one", **settings):
        folder = tmp_path / "run" / "train_saross" / "real"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "student.safetensors").write_text(weights)
        tree = {"name": "tiny", "run_dir": str(tmp_path / "run"), **settings}
        tree["predict"] = {"training_set": "real"} | ({} if inputs is None else {"inputs": str(inputs)})
        return predict(build_config(tree))

    return call


def record_of(folder) -> dict:
    return json.loads((folder / "predict.json").read_text())


NASTY = [
    ("a.png", "a.png.tif", "a.tif"),
    ("a.png", "A.png", "a.PNG", "A.tif"),
    (unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")),
    ("a.png", "a_class.png", "a_overlay.png", "a_probability_oil.png", "a_probability_oil_class.png"),
    ("CON.png", "con.x.png", "NUL.png", "a\nb.png", "a_b.png", "a .png", "a..png", "-a.png", "~.png"),
    ("x" * 240 + ".png", "x" * 239 + "y.png", "油" * 80 + ".png"),
]


@pytest.mark.parametrize("names", NASTY, ids=lambda names: ascii(names[0])[:20])
def test_each_image_of_a_folder_has_its_own_outputs(names, tmp_path, run, capsys):
    for number, name in enumerate(names, 1):
        save(tmp_path / "in" / name, number)
    folder = run(tmp_path / "in")
    record = record_of(folder)
    assert len(list(folder.glob("*_class.png"))) == len(list(folder.glob("*_overlay.png"))) >= len(names)
    assert len(list(folder.glob("[!.]*"))) == 4 * len(names) + 2
    for name, where in record["sources"].items():
        assert num_oil(folder / f"{name}_class.png") == names.index(where.removeprefix(f"{tmp_path}/in/")) + 1
    said = capsys.readouterr().out
    assert all(f"outputs are called {name}_" in said or name in {n.rpartition(".")[0] for n in names}
               for name in record["images"])  # fmt: skip


def test_a_class_called_like_the_end_of_another_output_does_not_write_over_it(tmp_path):
    classes = ClassTable(("sea", "x_class", "X_CLASS", "b_probability_sea", "CON", "../up", "y" * 300),
                         tuple((i, i, i) for i in range(7)))  # fmt: skip
    for name in ("a.png", "a_probability_x.png", "a_probability_b.png"):
        save(tmp_path / "in" / name, 1)
    names = student(classes).predict_files(tmp_path / "in", tmp_path / "out")
    assert len(set(names)) == 3 and len(list((tmp_path / "out").glob("*.png"))) == 3 * 9


def test_keys_that_would_make_one_name_have_outputs_of_their_own(tmp_path, run):
    keys = ["a/b", "a_b", "a#1", "a%1", "a@1", "A@1", "CON"]
    samples = [Sample(key, np.full((6, 6), 20, np.uint8), label=np.ones((6, 6), np.uint8)) for key in keys]
    write_shard(tmp_path / "run" / "prepare" / "test", 0, samples, SOS_CLASSES)
    write_index(tmp_path / "run" / "prepare" / "test", kind="real", classes=SOS_CLASSES)
    folder = run()
    assert len(list(folder.glob("*_class.png"))) == len(keys)
    assert sorted(record_of(folder)["sources"].values()) == sorted(keys)


def test_an_input_that_lies_in_the_folder_of_the_outputs_is_not_written_over(tmp_path):
    for number, name in enumerate(("a.png", "a_class.png"), 1):
        save(tmp_path / name, number)
    before = (tmp_path / "a_class.png").read_bytes()
    names = student().predict_files([tmp_path / "a.png", tmp_path / "a_class.png"], tmp_path)
    assert names == ["a.png", "a_class"] and (tmp_path / "a_class.png").read_bytes() == before


def test_later_calls_in_a_folder_of_ones_own_write_over_nothing(tmp_path, capsys):
    save(tmp_path / "one" / "a.png", 1)
    save(tmp_path / "two" / "a.png", 2)
    out = tmp_path / "out"
    save(out / "b_class.png", 5)  # somebody's truth
    (out / "manifest.json").write_text("{}")
    save(tmp_path / "two" / "b.png", 3)
    before = (out / "b_class.png").read_bytes()
    assert student().predict_files(tmp_path / "one", out) == ["a"]
    other, b = student().predict_files(tmp_path / "two", out)
    assert student().predict_files(tmp_path / "one", out) == ["a"] and b == "b.png"
    sources = {name: where.removeprefix(f"{tmp_path}/") for name, where in record_of(out)["sources"].items()}
    assert sources == {"a": "one/a.png", other: "two/a.png", "b.png": "two/b.png"}
    assert [num_oil(out / f"{name}_class.png") for name in ("a", other, "b.png")] == [1, 2, 3]
    assert (out / "b_class.png").read_bytes() == before and (out / "manifest.json").read_text() == "{}"


def test_another_student_does_not_write_over_predictions_in_a_folder_of_ones_own(tmp_path):
    save(tmp_path / "in" / "a.png", 1)
    out = tmp_path / "out"
    student().predict_files(tmp_path / "in", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = student()
    other.net.bias = nn.Parameter(torch.zeros(1))
    same = student()
    same.net.register_module("_orig_mod", student().net)  # as torch.compile wraps a net
    assert same.predict_files(tmp_path / "in", out) == ["a"]
    for one in (other, Student(GreyIsOil(2), SOS_CLASSES, scales=[0.5])):
        with pytest.raises(ValueError, match=r"predictions of another student.*give another folder"):
            one.predict_files(tmp_path / "in", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("text", ["{", '{"sources": {}}', "[]"])
def test_a_predict_json_that_is_somebodys_is_kept(text, tmp_path):
    save(tmp_path / "in" / "a.png", 1)
    save(tmp_path / "out" / "b.png", 1)
    (tmp_path / "out" / "predict.json").write_text(text)
    with pytest.raises(ValueError, match=r"predict\.json .*another folder"):
        student().predict_files(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "predict.json").read_text() == text and len(list((tmp_path / "out").iterdir())) == 2


def test_an_image_that_fails_later_leaves_no_file_of_an_earlier_call(tmp_path):
    save(tmp_path / "in" / "a.png", 1)
    student().predict_files(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.png").write_bytes(b"cut")
    with pytest.raises(BadImages):
        student().predict_files(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predict.json"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("2 GiB"), MemoryError(), KeyError("x")])
@pytest.mark.parametrize("part", ["read", "predict", "overlay"])
def test_a_failure_of_a_readable_image_keeps_the_files_of_an_earlier_call(part, error, tmp_path, run, monkeypatch):
    def failing(*_):
        raise error

    save(tmp_path / "in" / "a.png", 1)
    folder = run(tmp_path / "in")
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    module = {"read": images_module, "predict": Student, "overlay": Prediction}[part]
    with monkeypatch.context() as broken:
        broken.setattr(module, "read_image" if part == "read" else part, failing)
        with pytest.raises(BadImages):
            run(tmp_path / "in")
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == before and len(before) == 4
    record = record_of(folder)
    assert record["sources"] == {"a": f"{tmp_path}/in/a.png"} and list(record["failed"]) == [f"{tmp_path}/in/a.png"]
    assert set(before) < set(read_manifest(folder))


@pytest.mark.parametrize("wrong, message", [
    ({"tile": 100}, "tile is 100; expected a multiple of 32"), ({"tile": 0}, "tile is 0"),
    ({"tile": "64"}, "tile is '64'"), ({"overlay_alpha": -1}, "alpha is -1; expected a number from 0"),
    ({"overlay_alpha": float("nan")}, "alpha is nan"), ({"overlay_alpha": "half"}, "alpha is 'half'"),
])  # fmt: skip
def test_an_option_that_is_no_tile_or_alpha_is_refused_before_anything_is_written(wrong, message, tmp_path):
    save(tmp_path / "in" / "a.png", 1)
    student().predict_files(tmp_path / "in", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=message) as caught:
        student().predict_files(tmp_path / "in", tmp_path / "out", **wrong)
    assert not isinstance(caught.value, BadImages)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_calls_with_one_student_add_up_and_an_image_keeps_its_name(tmp_path, run):
    save(tmp_path / "one" / "a.png", 1)
    save(tmp_path / "two" / "a.png", 2)
    run(tmp_path / "one")
    folder = run(tmp_path / "two")
    run(tmp_path / "one")
    sources = record_of(folder)["sources"]
    assert sources["a"] == f"{tmp_path}/one/a.png" and sorted(sources.values())[1] == f"{tmp_path}/two/a.png"
    assert [num_oil(folder / f"{name}_class.png") for name in sorted(sources)] == [1, 2]
    assert record_of(folder)["images"] == ["a"]


def test_damage_to_an_output_of_an_earlier_call_is_not_listed_as_right_by_a_later_one(tmp_path, run):
    for name in ("one", "two"):
        save(tmp_path / name / f"{name}.png", 1)
    folder = run(tmp_path / "one")
    save(folder / "one_class.png", 9)
    run(tmp_path / "two")
    for name, is_damaged in (("one_class.png", True), ("one_overlay.png", False), ("two_class.png", False)):
        assert (read_manifest(folder)[name] != file_hash(folder / name)) == is_damaged
    run(tmp_path / "one")
    assert read_manifest(folder)["one_class.png"] == file_hash(folder / "one_class.png")


@pytest.mark.parametrize("change", [{"weights": "two"}, {"evaluate": {"scales": [0.5]}}])
def test_predictions_of_another_student_do_not_stay_beside_those_of_this_one(change, tmp_path, run, capsys):
    save(tmp_path / "one" / "a.png", 1)
    save(tmp_path / "two" / "b.png", 2)
    (run(tmp_path / "one") / "notes.txt").write_text("mine")
    folder = run(tmp_path / "two", **change)
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        "b_class.png", "b_overlay.png", "b_probability_oil.png", "b_probability_sea.png", "manifest.json", "notes.txt",
        "predict.json",
    ]  # fmt: skip
    assert "1 predictions by other weights or at other scales are removed" in capsys.readouterr().out


@pytest.mark.parametrize("sources", [{"../../x": "y"}, {"a": "y"}, None, "text"])
def test_a_forged_record_removes_nothing_outside_the_folder(sources, tmp_path, run):
    save(tmp_path / "in" / "b.png", 1)
    folder = run(tmp_path / "in")
    (folder.parent.parent / "x_class.png").touch()
    record = record_of(folder) | {"student_sha256": "other", "sources": sources, "endings": ["_class.png", "/../x"]}
    write_json(folder / "predict.json", record)
    run(tmp_path / "in")
    assert (folder.parent.parent / "x_class.png").exists() and record_of(folder)["images"] == ["b"]
    (folder / "predict.json").write_text("{")
    run(tmp_path / "in")
    assert record_of(folder)["images"] == ["b"]


@pytest.mark.parametrize("error", [
    BadFile("x", "is cut"), OSError(28, "No space left on device"), PermissionError(13, "denied"), MemoryError(),
    RuntimeError("kernel size larger than the image"), torch.OutOfMemoryError("2 GiB"), KeyError("x"),
    SyntaxError("PNG"), AssertionError(),
], ids=lambda error: type(error).__name__)  # fmt: skip
@pytest.mark.parametrize("part", ["read", "predict", "save"])
def test_one_image_that_fails_costs_no_other_and_leaves_no_file(part, error, tmp_path, run, monkeypatch):
    for number, name in enumerate("abc", 1):
        save(tmp_path / "in" / f"{name}.png", number)

    def failing(real, is_b):
        def call(*args, **kwargs):
            if is_b(*args):
                raise error
            return real(*args, **kwargs)

        return call

    if part == "read":
        real = images_module.read_image
        monkeypatch.setattr(images_module, "read_image", failing(real, lambda path: path.stem == "b"))
    elif part == "predict":
        monkeypatch.setattr(Student, "predict", failing(Student.predict, lambda _, sar: (sar == 20).sum() == 2))
    else:
        real = Prediction.overlay
        monkeypatch.setattr(Prediction, "overlay", failing(real, lambda one, *_: (one.sar == 20).sum() == 2))
    with pytest.raises(BadImages, match=r"1 of 3 images could not be predicted \(2 were\):\n.*b\.png: .+") as caught:
        run(tmp_path / "in")
    assert ("free some space there" in str(caught.value)) == (getattr(error, "errno", None) == 28)
    folder = tmp_path / "run" / "predict" / "real"
    record = record_of(folder)
    assert record["images"] == ["a", "c"] and list(record["failed"]) == [f"{tmp_path}/in/b.png"]
    assert not list(folder.glob("b*")) and len(list(folder.glob("[ac]_*.png"))) == 8 and "b" not in record["sources"]


def test_a_stop_request_ends_the_call(tmp_path, run, monkeypatch):
    def stop(*_):
        raise Preempted("stopped")

    save(tmp_path / "in" / "a.png", 1)
    monkeypatch.setattr(images_module, "read_image", stop)
    with pytest.raises(Preempted):
        run(tmp_path / "in")


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "CON", "a/b", "x" * 300])
def test_a_prediction_is_saved_within_its_folder_only(name, tmp_path):
    prediction = student().predict(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="expected the start of a file's name"):
        prediction.save(tmp_path / "out", name)
    assert not list(tmp_path.rglob("*.png"))
