"""What `dakd check` says of the pairs, the evaluation and the predictions of an experiment."""

from __future__ import annotations

import numpy as np
import pytest
from check_worlds import folder, refusals, toy
from PIL import Image

from dakd.check.check import check
from dakd.data.prepare import prepare


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
