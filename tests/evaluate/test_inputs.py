"""Any folder of images and masks, and a student from anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_worlds import scene
from PIL import Image

from dakd.cli import run_step
from dakd.config import Config, StudentConfig, build_config
from dakd.data.prepare import resize_sample
from dakd.data.readers import BadDataset
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES
from dakd.data.shards import ShardSet
from dakd.evaluate.evaluate import evaluate
from dakd.evaluate.inputs import LabelledFolder, inputs_of
from dakd.evaluate.students import evaluate_student
from dakd.models.registry import build_student
from dakd.names import is_file_part
from dakd.runtime.sealed import read_json
from dakd.weights import save_student


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three scenes as PNGs: images, and masks in the classes' colours."""
    folder = tmp_path / "elsewhere" / "harbour"
    for number in range(3):
        one = scene(f"h{number}", 40 + number, wrong=9 * number)
        save(folder / "images" / f"h{number}.png", one.sar)
        save(folder / "masks" / f"h{number}.png", OSD_CLASSES.palette()[one.label])
    return folder


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def asking(config: Config, prepare: dict | None = None, **settings) -> Config:
    """The configuration with other settings of evaluate (and prepare)."""
    tree = config.model_dump()
    return build_config(tree | {"evaluate": tree["evaluate"] | settings, "prepare": tree["prepare"] | (prepare or {})})


@pytest.fixture
def grey_file(monkeypatch, grey_student):
    """The weight files' metadata too are those of the student of grey values."""
    metadata = {"kind": "student", "classes": OSD_CLASSES.to_dict()}
    monkeypatch.setattr("dakd.evaluate.inputs.read_student_metadata", lambda path: metadata)
    return grey_student


def test_a_folder_is_scored_beside_the_runs_own_evaluation(run_dir, config, grey_file, pictures):
    evaluate(config, run_dir)
    own = {path.name: path.read_bytes() for path in (run_dir / "evaluate").iterdir() if path.is_file()}
    evaluation = evaluate(asking(config, folder=str(pictures)), run_dir)
    assert {path.name: path.read_bytes() for path in (run_dir / "evaluate").iterdir() if path.is_file()} == own
    out = run_dir / "evaluate" / "harbour"
    table = json.loads((out / "table.json").read_text())
    assert (table["num_images"], table["folder"], table["skipped"]) == (3, str(pictures), [])
    assert list(table["students"]) == ["real", "real+synthetic"] and evaluation.generation is None
    expected = np.zeros((5, 5), np.int64)
    for number in range(3):
        label = scene(f"h{number}", 40 + number).label.ravel()
        shown = np.where(np.arange(label.size) < 9 * number, 4, label)
        np.add.at(expected, (label, shown), 1)
    assert table["students"]["real"]["counts"] == expected.tolist()
    with np.load(out / "real.images.npz") as arrays:
        assert arrays["keys"].tolist() == ["h0", "h1", "h2"]
    assert (out / "pictures" / "index.json").is_file() and "3 images of the folder" in (out / "table.txt").read_text()
    assert "synthetic set" not in evaluation.table and not (out / "generation.json").exists()


def test_images_are_brought_to_the_size_of_the_runs_images(run_dir, config, grey_file, pictures):
    asked = asking(config, {"resize": (8, 10)}, folder=str(pictures))
    read = LabelledFolder(asked, OSD_CLASSES)
    wanted = resize_sample(scene("h1", 41, wrong=9), (8, 10))
    assert (read.read(1).sar == wanted.sar).all() and (read.read(1).label == wanted.label).all()
    assert evaluate(asked, run_dir).scores["real"].num_pixels == 3 * 80


def test_a_split_of_a_packed_dataset_and_its_folder_score_alike(run_dir, config, grey_file, tmp_path):
    held_out = ShardSet(run_dir / "prepare" / "test")
    folder = tmp_path / "osd"
    for split, count in (("train", 1), ("test", 5)):
        for index in range(count):
            sample = held_out.read(index)
            save(folder / split / "images" / f"{sample.key}.png", sample.sar)
            save(folder / split / "labels_1D" / f"{sample.key}.png", sample.label)
    packed = evaluate_student(grey_file, held_out)
    for place in (folder, folder / "test"):
        evaluation = evaluate(asking(config, folder=str(place), dataset="osd"), run_dir)
        assert np.array_equal(evaluation.scores["real"].counts, packed.matrix.counts.numpy())


@pytest.mark.parametrize(
    "layout", ["{n}_sat.png {n}_mask.png", "sat/{n}_sat.png gt/{n}_mask.png", "image/{n}.png label/{n}.png"]
)
def test_a_bare_folder_of_sos_pairs_is_read_with_its_soft_masks(config, tmp_path, layout):
    image, mask = layout.split()
    rng = np.random.default_rng(0)
    for number in range(3):
        oil = np.zeros((12, 14), bool)
        oil[2 : 5 + number, 3:9] = True
        save(tmp_path / "set" / image.format(n=number), np.where(oil, 40, 120).astype(np.uint8))
        soft = np.where(oil, 200, 30) + rng.integers(-20, 20, oil.shape)
        save(tmp_path / "set" / mask.format(n=number), soft.astype(np.uint8))
    asked = asking(config, folder=str(tmp_path / "set"), dataset="sos")
    read = LabelledFolder(asked, SOS_CLASSES)
    assert [int(read.read(index).label.sum()) for index in range(3)] == [18, 24, 30]
    with pytest.raises(ValueError, match=r"oil is dark in SAR; set prepare\.polarity to oil_is_white"):
        LabelledFolder(asking(asked, {"polarity": "oil_is_black"}), SOS_CLASSES)
    with pytest.raises(ValueError, match=r"classes sea, oil, the student distinguishes sea, oil, look-alike"):
        LabelledFolder(asked, OSD_CLASSES)


def test_what_is_wrong_with_a_folder_is_reported_at_once(config, pictures):
    save(pictures / "masks" / "h0.png", np.full((16, 20), 77, np.uint8))
    save(pictures / "masks" / "h1.png", np.zeros((9, 20), np.uint8))
    save(pictures / "images" / "h4.png", np.zeros((16, 20), np.uint8))
    asked = asking(config, folder=str(pictures))
    with pytest.raises(BadDataset) as error:
        LabelledFolder(asked, OSD_CLASSES)
    text = str(error.value)
    assert "3 problem(s) and 1 usable images" in text and "h4.png: has no label file" in text
    assert "neither ids 0 to 4 (255: unknown) nor class colours: (77, 77, 77)" in text
    assert "is 20 x 9, its image h1.png 20 x 16" in text
    kept = LabelledFolder(asking(asked, {"on_bad_file": "skip"}), OSD_CLASSES)
    assert len(kept) == 1 and kept.key(0) == "h2" and len(kept.skipped) == 3


def test_a_folder_without_masks_or_without_anything_is_refused(config, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"has 3 images and no masks.*let dakd predict draw them"):
        LabelledFolder(asking(config, folder=str(pictures / "images")), OSD_CLASSES)
    with pytest.raises(ValueError, match=r"no folder at .*nowhere"):
        LabelledFolder(asking(config, folder=str(tmp_path / "nowhere")), OSD_CLASSES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadDataset, match="is empty"):
        LabelledFolder(asking(config, folder=str(tmp_path / "empty")), OSD_CLASSES)
    with pytest.raises(ValueError, match=r"expected images and labels_1D or labels"):
        LabelledFolder(asking(config, folder=str(pictures), dataset="osd"), OSD_CLASSES)


def test_the_training_images_do_not_write_over_the_tables_of_the_test_images(run_dir, config, grey_file, pictures):
    evaluate(config, run_dir)
    before = (run_dir / "evaluate" / "table.json").read_bytes()
    evaluate(asking(config, folder=str(pictures.rename(pictures.with_name("train")))), run_dir)
    evaluate(asking(config, split="train"), run_dir)
    assert (run_dir / "evaluate" / "table.json").read_bytes() == before
    table = read_json(run_dir / "evaluate" / "train" / "table.json")
    assert table["inputs"] == {"folder": None, "student": None, "split": "train"}
    assert table["split"] == "train" and len(list((run_dir / "evaluate").glob("train~*/table.json"))) == 1


def test_the_only_split_of_a_run_is_its_own(run_dir, config, grey_file):
    shutil.rmtree(run_dir / "prepare" / "test")
    evaluate(asking(config, split="train"), run_dir)
    assert read_json(run_dir / "evaluate" / "table.json")["split"] == "train"


@pytest.mark.parametrize(
    "name", ["pictures", "Pictures", "features", "real.json", "table.txt", "real.images.npz", "nul", "a\nb"]
)
def test_a_folder_that_is_called_like_other_outputs_gets_a_name_of_its_own(name, run_dir, config, grey_file, pictures):
    asked = asking(config, folder=str(pictures.rename(pictures.with_name(name))))
    evaluate(asked, run_dir)
    evaluate(asked, run_dir)
    evaluate(config, run_dir)
    (table,) = (run_dir / "evaluate").glob("*/table.json")
    assert is_file_part(table.parent.name) and table.parent.name.startswith(f"{name.replace(chr(10), '_')}~"[:3])
    assert (run_dir / "evaluate" / "real.json").is_file() and (
        run_dir / "evaluate" / "pictures" / "index.json"
    ).exists()


def test_two_folders_of_one_name_and_two_students_on_one_folder_have_their_own_tables(
    run_dir, config, grey_file, pictures, tmp_path
):
    other = shutil.copytree(pictures, tmp_path / "another" / "harbour")
    save(other / "images" / "h2.png", np.full((16, 20), 9, np.uint8))
    students = [tmp_path / name / "best.safetensors" for name in ("one", "two")]
    for path in students:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    calls = [{"folder": str(folder)} for folder in (pictures, other)]
    calls += [{"student": str(path)} for path in students]
    calls += [{"folder": str(pictures), "student": str(path)} for path in students]
    calls += [{"folder": str(pictures / ".." / "harbour")}]  # the first again
    for call in calls:
        evaluate(asking(config, **call), run_dir)
    tables = {path.parent.name: read_json(path)["inputs"] for path in (run_dir / "evaluate").glob("*/table.json")}
    assert len(tables) == 6 and tables["harbour"] == {"folder": str(pictures), "student": None, "split": "test"}
    assert {(one["folder"], one["student"]) for one in tables.values()} == {
        (call.get("folder"), call.get("student")) for call in calls[:-1]
    }


def test_other_weights_scales_and_settings_of_labels_have_tables_of_their_own(run_dir, config, grey_file, pictures):
    for path in (run_dir / "train_saross").glob("*/student.safetensors"):
        shutil.copy(path, path.with_name("student_raw.safetensors"))
    calls = [({}, None), ({"weights": "raw"}, None), ({"scales": (0.5, 1.0)}, None), ({}, {"resize": (8, 10)}),
             ({}, {"mask_values": "colours"}), ({"dataset": "folder"}, None)]  # fmt: skip
    for settings, prepare in [*calls, *calls]:
        evaluation = evaluate(asking(config, prepare, folder=str(pictures), **settings), run_dir)
        assert ("at the scales 0.5, 1, percent" in evaluation.table) == ("scales" in settings)
    tables = {path.parent.name: read_json(path) for path in (run_dir / "evaluate").glob("*/table.json")}
    plain = {"folder": str(pictures), "student": None, "split": "test"}
    found = [dict(one["inputs"]) for one in tables.values()]
    own = [{"weights": "raw"}, {"scales": [0.5, 1.0]}, {"resize": [8, 10]}, {"mask_values": "colours"}]
    assert tables["harbour"]["inputs"] == plain and len(tables) == 5
    assert all(plain | one in found for one in own)


def test_how_masks_of_sos_are_read_is_among_the_inputs(config, run_dir, pictures):
    changed = {"sensor": "palsar", "polarity": "oil_is_black", "mask_threshold": 200}
    for dataset, own in (("sos", changed | {"dataset": "sos"}), ("folder", {})):
        asked = asking(config, changed, folder=str(pictures), dataset=dataset)
        plain = {"folder": str(pictures), "student": None, "split": "test"}
        assert inputs_of(asked, run_dir, {}) == plain | own


@pytest.mark.parametrize("name", ["table", "Generation", "manifest", "truth", "image", "NUL"])
def test_a_student_called_like_a_table_or_a_picture_gets_a_name_of_its_own(name, run_dir, config, grey_file, tmp_path):
    path = tmp_path / "elsewhere" / f"{name}.safetensors"
    path.parent.mkdir()
    path.touch()
    evaluate(asking(config, student=str(path)), run_dir)
    (folder,) = (run_dir / "evaluate").iterdir()
    (student,) = read_json(folder / "table.json")["students"]
    assert student.startswith(f"{name}~") and read_json(folder / f"{student}.json")["student"] == student
    files = read_json(folder / "pictures" / "index.json")["images"][0]["files"]
    assert len({one.lower() for one in files.values()}) == len(files) == 3


def test_one_weights_file_and_one_folder_need_no_run(tmp_path, pictures, capsys):
    cfg = StudentConfig(
        encoder="mamba_vision",
        encoder_options=dict(dim=8, in_dim=8, depths=[1, 1, 2, 2], num_heads=[1, 1, 2, 4], window_size=[8, 8, 4, 2]),
        caft_heads=(1, 1, 1),
        decoder_channels=(16, 16, 16, 8),
    )
    torch.manual_seed(0)
    weights = tmp_path / "from a friend" / "harbour master.safetensors"
    save_student(weights, build_student(cfg, 5), cfg, OSD_CLASSES, {})
    (tmp_path / "c.yaml").write_text(f"name: none\nrun_dir: {tmp_path / 'run'}\n")
    overrides = [f"evaluate.student={weights}", f"evaluate.folder={pictures}", "evaluate.num_pictures=1"]
    assert run_step("evaluate", ["--config", str(tmp_path / "c.yaml"), *overrides]) == 0
    table = json.loads((tmp_path / "run" / "evaluate" / "harbour" / "harbour master.json").read_text())
    assert table["num_pixels"] == 3 * 16 * 20 and table["weights"] == str(weights)
    assert "harbour master" in capsys.readouterr().out
    assert run_step("evaluate", ["--config", str(tmp_path / "c.yaml"), "evaluate.student=nowhere", *overrides[1:]]) == 1
    assert "no weights file at nowhere" in capsys.readouterr().err


def test_a_foreign_student_does_not_touch_the_runs_own_evaluation(run_dir, config, grey_file):
    foreign = run_dir.parent / "other run" / "best.safetensors"
    foreign.parent.mkdir()
    foreign.touch()
    evaluate(asking(config, student=str(foreign)), run_dir)
    assert [path.name for path in (run_dir / "evaluate").iterdir()] == ["best"]
    assert (run_dir / "evaluate" / "best" / "best.json").is_file()
