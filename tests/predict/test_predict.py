"""Class maps, overlays and probabilities of files and of held-out images."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_students import TINY_MAMBA_STUDENT
from torch import Tensor, nn

from dakd.config import StudentConfig, build_config
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES, Sample
from dakd.data.shards import write_index, write_shard
from dakd.data.transforms import to_student
from dakd.models.registry import build_student
from dakd.predict.images import BadImages
from dakd.predict.predict import predict
from dakd.predict.prediction import Prediction
from dakd.predict.student import Student
from dakd.report.report import write_report
from dakd.runtime.lock import locked
from dakd.weights import save_student

TINY = StudentConfig(**TINY_MAMBA_STUDENT)


class DarkIsOil(nn.Module):
    """Oil below grey 50, sure by one logit a grey value."""

    def forward(self, image: Tensor) -> Tensor:
        grey = (image[:, :1] * 0.229 + 0.485) * 255
        return torch.cat([torch.zeros_like(grey), 49.5 - grey], dim=1)


@pytest.fixture
def dark_is_oil(monkeypatch):
    def load(path, device):
        return DarkIsOil().eval(), {"classes": SOS_CLASSES.to_dict()}

    monkeypatch.setattr("dakd.predict.student.load_student", load)


@pytest.fixture
def images(tmp_path):
    """A grey PNG of odd size, a truncated one, a colour one, a TIFF."""
    folder = tmp_path / "in"
    folder.mkdir()
    grey = np.full((7, 11), 120, np.uint8)
    grey[2:5, 3:9] = 30
    Image.fromarray(grey).save(folder / "slick.png")
    Image.fromarray(grey).save(folder / "scan.tif")
    (folder / "cut.png").write_bytes((folder / "slick.png").read_bytes()[:60])
    Image.fromarray(np.dstack([grey, grey + 90, grey])).save(folder / "photo.png")
    return folder


def test_the_class_map_holds_ids_in_the_palette_of_the_classes(images, tmp_path, dark_is_oil):
    Student.load("w").predict_files(images / "slick.png", tmp_path / "out")
    class_map = Image.open(tmp_path / "out" / "slick_class.png")
    assert class_map.mode == "P" and class_map.size == (11, 7)
    ids = np.array(class_map)
    assert ids[2:5, 3:9].all() and ids.sum() == 18
    assert class_map.getpalette()[:6] == [0, 0, 0, 255, 255, 255]


def test_probabilities_are_in_steps_of_one_255th_and_sum_to_one(images, tmp_path, dark_is_oil):
    Student.load("w").predict_files(images / "slick.png", tmp_path / "out")
    oil, sea = (np.array(Image.open(tmp_path / "out" / f"slick_probability_{name}.png")) for name in ("oil", "sea"))
    assert oil.dtype == np.uint8 and oil[3, 4] == 255 and oil[0, 0] == 0
    assert abs(oil.astype(int) + sea - 255).max() <= 1


def test_the_overlay_leaves_the_sea_as_it_was(images, tmp_path, dark_is_oil):
    Student.load("w").predict_files(images / "slick.png", tmp_path / "out", overlay_alpha=0.5)
    laid = np.array(Image.open(tmp_path / "out" / "slick_overlay.png"))
    assert laid.shape == (7, 11, 3) and (laid[0, 0] == 120).all() and laid[3, 4].max() > 120


def test_bad_images_are_reported_together_and_the_others_written(images, tmp_path, dark_is_oil):
    with pytest.raises(BadImages) as caught:
        Student.load("w").predict_files(images, tmp_path / "out")
    assert [where.rpartition("/")[2] for where, _ in caught.value.failures] == ["cut.png", "photo.png"]
    assert "2 of 4 images could not be predicted (2 were)" in str(caught.value)
    written = {path.name for path in (tmp_path / "out").glob("*.png")}
    kinds = ("class", "overlay", "probability_sea", "probability_oil")
    assert written == {f"{name}_{kind}.png" for name in ("slick", "scan") for kind in kinds}


def test_outputs_do_not_go_among_the_inputs(images, dark_is_oil):
    with pytest.raises(ValueError, match="one folder"):
        Student.load("w").predict_files(images, images)


def test_ranks_take_their_share_of_the_images(images, tmp_path, dark_is_oil, monkeypatch):
    (images / "cut.png").unlink()
    (images / "photo.png").unlink()
    monkeypatch.setattr("dakd.predict.images.world_size", lambda: 2)
    monkeypatch.setattr("dakd.predict.images.rank", lambda: 1)
    Student.load("w").predict_files(images, tmp_path / "out")
    assert not (tmp_path / "out" / "scan_class.png").exists()
    assert (tmp_path / "out" / "slick_class.png").exists()


def test_without_inputs_the_first_held_out_images_are_predicted(tmp_path, dark_is_oil):
    run_dir = tmp_path / "run"
    samples = [Sample(f"set/{i}", np.full((6, 6), 20, np.uint8), label=np.ones((6, 6), np.uint8)) for i in range(3)]
    write_shard(run_dir / "prepare" / "test", 0, samples, SOS_CLASSES)
    write_index(run_dir / "prepare" / "test", kind="real", classes=SOS_CLASSES)
    weights = run_dir / "train_saross" / "real+synthetic" / "student.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    tree = {"name": "tiny", "run_dir": str(run_dir), "predict": {"num_images": 2}}
    out_dir = predict(build_config(tree))
    assert sorted(path.name for path in out_dir.glob("*_class.png")) == ["set_0_class.png", "set_1_class.png"]
    with locked(out_dir), pytest.raises(RuntimeError, match=r"real\+synthetic is being written by process"):
        predict(build_config(tree))
    with pytest.raises(ValueError, match=r"no student at .*student_raw.safetensors"):
        predict(build_config(tree | {"evaluate": {"weights": "raw"}}))
    shutil.move(run_dir / "prepare" / "test", run_dir / "prepare" / "train")
    with pytest.raises(ValueError, match=r"no test split at .*name images: predict\.inputs="):
        predict(build_config(tree))


def test_images_are_seen_at_the_scales_that_are_evaluated(images, tmp_path, dark_is_oil):
    run_dir = tmp_path / "run"
    (run_dir / "train_saross" / "real").mkdir(parents=True)
    (run_dir / "train_saross" / "real" / "student.safetensors").touch()
    grey = np.full((8, 8), 50, np.uint8)
    grey[2:5, 3:6] = 48
    Image.fromarray(grey).save(images / "slick.png")

    def oil(scales):
        settings = {"training_set": "real", "inputs": str(images / "slick.png")}
        tree = {"name": "tiny", "run_dir": str(run_dir), "predict": settings, "evaluate": {"scales": scales}}
        folder = predict(build_config(tree))
        assert json.loads((folder / "predict.json").read_text())["scales"] == scales
        return np.asarray(Image.open(folder / "slick_probability_oil.png")).astype(int)

    # The other class scores 0 at every scale, so that another scale can but raise oil's probability.
    fused, alone = oil([0.75, 1.0]), oil([1.0])
    assert (fused >= alone).all() and (fused > alone).any()


def test_the_step_takes_images_whole_as_the_evaluation_does(images, tmp_path, dark_is_oil, monkeypatch):
    monkeypatch.setattr("dakd.predict.student.is_large", lambda shape: True)
    monkeypatch.setattr("dakd.predict.student.tiled", lambda *_: pytest.fail("taken in tiles"))
    run_dir = tmp_path / "run"
    (run_dir / "train_saross" / "real").mkdir(parents=True)
    (run_dir / "train_saross" / "real" / "student.safetensors").touch()
    settings = {"training_set": "real", "inputs": str(images / "slick.png")}
    folder = predict(build_config({"name": "tiny", "run_dir": str(run_dir), "predict": settings}))
    assert np.asarray(Image.open(folder / "slick_class.png")).shape == (7, 11)


def test_the_last_call_of_each_student_is_recorded(images, tmp_path, dark_is_oil, monkeypatch):
    run_dir = tmp_path / "run"
    for name in ("real", "real+synthetic"):
        (run_dir / "train_saross" / name).mkdir(parents=True)
        (run_dir / "train_saross" / name / "student.safetensors").write_text(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(training_set, inputs):
        settings = {"training_set": training_set, "inputs": inputs}
        return predict(build_config({"name": "tiny", "run_dir": str(run_dir), "predict": settings}))

    assert call("real", "~/in/scan.tif") == run_dir / "predict" / "real"
    with pytest.raises(BadImages):
        call("real+synthetic", "~/in")
    call("real", "~/in/slick.png")
    records = {path.parent.name: json.loads(path.read_text()) for path in run_dir.rglob("predict.json")}
    assert records["real"]["images"] == ["slick"] and records["real"]["inputs"] == str(images / "slick.png")
    assert records["real+synthetic"]["images"] == ["scan", "slick"]
    assert records["real"]["student_sha256"] == hashlib.sha256(b"real").hexdigest()
    page = write_report(run_dir).read_text()
    assert "trained on real (sha256" in page and "trained on real+synthetic (sha256" in page
    assert "1 of 1 images" in page and "2 of 2 images" in page


def test_an_untrained_student_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="run the step train_saross"):
        predict(build_config({"name": "tiny", "run_dir": str(tmp_path)}))


def test_a_saved_student_predicts_any_size(tmp_path):
    torch.manual_seed(0)
    save_student(tmp_path / "student.safetensors", build_student(TINY, 2), TINY, SOS_CLASSES, {})
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 45), dtype=np.uint8)).save(tmp_path / "a.png")
    student = Student.load(tmp_path / "student.safetensors")
    student.predict_files(tmp_path / "a.png", tmp_path / "out")
    sar = np.array(Image.open(tmp_path / "a.png"))
    probabilities = student.predict(sar).probability
    with torch.no_grad():
        logits = student.net(to_student(torch.as_tensor(sar)[None, None]))[0].numpy()
    assert probabilities.shape == (2, 37, 45)
    assert (np.array(Image.open(tmp_path / "out" / "a_class.png")) == logits.argmax(axis=0)).all()


def test_the_share_of_a_class_that_there_is_not_is_an_error_with_the_classes():
    prediction = Prediction(np.zeros((2, 2), np.uint8), np.full((5, 2, 2), 0.2, np.float32), OSD_CLASSES)
    assert prediction.shares["sea"] == 1.0
    with pytest.raises(KeyError) as caught:
        prediction.shares["Oil"]
    table = "sea, oil, look-alike, ship, land"
    assert str(caught.value) == f"no class is called 'Oil'; the table has {table}; did you mean 'oil'?"


def test_scenes_of_a_run_are_outlined_beside_its_predictions_and_shown_in_the_report(tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    from scene_worlds import toy_student

    from dakd.scene.simulated import SimulatedScene

    run_dir = tmp_path / "run"
    weights = run_dir / "train_saross" / "real+synthetic" / "student.safetensors"
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    save_student(weights, build_student(TINY, 5), TINY, OSD_CLASSES, toy_student().facts)
    samples = [Sample("0", np.full((6, 6), 20, np.uint8), label=np.ones((6, 6), np.uint8))]
    write_shard(run_dir / "prepare" / "test", 0, samples, OSD_CLASSES)
    write_index(run_dir / "prepare" / "test", kind="real", classes=OSD_CLASSES)
    monkeypatch.setattr("dakd.predict.predict.SIMULATED_SCENE", SimulatedScene(120, 150))
    cfg = build_config({"name": "tiny", "run_dir": str(run_dir), "predict": {"scenes": ["simulated"]}})
    predict(cfg)
    folder = run_dir / "scene" / "real+synthetic"
    assert {"simulated.tif", "simulated.truth.geojson", "simulated.polygons.gpkg", "simulated.json"} <= {
        path.name for path in folder.iterdir()
    }
    before = (folder / "simulated.json").read_bytes()
    predict(cfg)
    assert (folder / "simulated.json").read_bytes() == before, "a finished scene was made again"
    text = write_report(run_dir).read_text()
    assert "Slicks in scenes" in text and "simulated, by the student trained on real+synthetic" in text
