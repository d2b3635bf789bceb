"""The commands that need no YAML: predict and sample with a weights file, card, and init."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_students import TINY_STUDENT
from worlds import teacher_file, with_teacher

import dakd
from dakd.check.check import check
from dakd.cli import main
from dakd.config import load_config
from dakd.data.sample import OSD_CLASSES
from dakd.generate.generate import generate
from dakd.runtime.runlog import save_config
from dakd.starter import parse_classes


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    dakd.Student(dakd.create_student(num_classes=5, **TINY_STUDENT), OSD_CLASSES).save(path)
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.tif"):
        Image.fromarray(rng.integers(0, 256, (40, 56), dtype=np.uint8)).save(folder / name)
    return folder


# --- predict and sample -----------------------------------------------------------------------------------------------


def test_predict_takes_files_and_folders_without_a_yaml(student, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", "--student", str(student), str(images / "a.png"), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir())[:2] == ["a_class.png", "a_overlay.png"]
    assert main(["predict", "--student", str(student), str(images), "--out", str(out), "--tile", "64"]) == 0
    assert len(list(out.glob("*_class.png"))) == 2 and "2 images" in capsys.readouterr().out
    label = np.asarray(Image.open(out / "b_class.png"))
    assert (label == dakd.load_student(student).predict(images / "b.tif").label).all()


@pytest.mark.parametrize("argv, message", [
    (["--student", "s", "--out", "o"], "--student needs at least one image"),
    (["--student", "s", "a.png"], "--out DIR"),
    (["--student", "s", "--config", "demo"], "not allowed with"),
    (["--config", "demo", "--out", "o"], "go with --student"),
    (["--student", "s", "a.png", "--out", "o", "--tile", "big"], "found 'big', expected a multiple of 32, 0 or auto"),
    (["--student", "s", "a.png", "--out", "o", "--tile", "100"], "tile is 100; expected a multiple of 32"),
    ([], "one of the arguments --config --student is required"),
])  # fmt: skip
def test_a_predict_that_names_too_much_or_too_little_is_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["predict", *argv])
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_predict_reports_bad_images_and_a_student_that_is_none(student, images, tmp_path, capsys):
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:60])
    assert main(["predict", "--student", str(student), str(images), "--out", str(tmp_path / "out")]) == 1
    assert "1 of 3 images could not be predicted (2 were)" in capsys.readouterr().err
    assert main(["predict", "--student", str(images / "a.png"), str(images), "--out", str(tmp_path / "o")]) == 1
    assert "a.png is not a whole safetensors file" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_sample_writes_the_pairs_of_generate_as_shards_and_pictures(tmp_path, capsys):
    config = with_teacher(tmp_path / "run", num_samples=3, micro_batch=2, deterministic=True, seed=5)
    height, width = config.generate.size
    argv = ["sample", "--teacher", str(teacher_file(config)), "--num", "3", "--out", str(tmp_path / "out")]
    argv += ["--size", str(height), str(width), "--steps", str(config.generate.sampling_steps), "--seed", "5"]
    argv += ["--micro-batch", "2", "--deterministic", "--png"]
    assert main(argv) == 0, capsys.readouterr().err
    ours, theirs = dakd.ShardSet(tmp_path / "out"), dakd.ShardSet(generate(config))
    for a, b in zip(ours, theirs, strict=True):
        assert a.key == b.key and (a.sar == b.sar).all() and (a.soft_label == b.soft_label).all()
    picture = Image.open(tmp_path / "out" / "synthetic-00000002_sar.png")
    assert (np.asarray(picture) == ours[2].sar).all()
    class_map = np.asarray(Image.open(tmp_path / "out" / "synthetic-00000002_class.png"))
    assert (class_map == ours[2].soft_label.argmax(axis=0)).all() and (tmp_path / "out" / "contact_sheet.png").exists()
    assert main(argv) == 1 and "holds a set of shards already" in capsys.readouterr().err
    assert main([*argv, "--overwrite", "--num", "2", "--solver", "dpmpp_2m"]) == 0
    meta = dakd.ShardSet(tmp_path / "out")[0].meta
    assert (meta["sampler"], meta["spacing"]) == ("dpmpp_2m", "logsnr")
    assert main([*argv, "--overwrite", "--solver", "heun", "--eta", "1"]) == 1
    assert "solver heun has no stochastic form" in capsys.readouterr().err
    assert dakd.ShardSet(tmp_path / "out")[0].meta == meta
    assert not (tmp_path / "out" / "synthetic-00000002_sar.png").exists()
    (tmp_path / "prepare").mkdir()
    (tmp_path / "prepare" / "contact_sheet.png").write_bytes(b"of a real set")
    argv[argv.index("--out") + 1] = str(tmp_path / "prepare")
    assert main(argv) == 1 and "contact_sheet.png is there already" in capsys.readouterr().err
    assert (tmp_path / "prepare" / "contact_sheet.png").read_bytes() == b"of a real set"


def test_card_writes_beside_the_final_weights(tmp_path, capsys):
    config = with_teacher(tmp_path / "run")
    save_config(config, tmp_path / "run")
    assert main(["card", str(tmp_path / "run"), "--licence", "cc-by-4.0"]) == 0, capsys.readouterr().err
    card = teacher_file(config).parent / "README.md"
    assert capsys.readouterr().out == f"card: {card}\n" and "license: cc-by-4.0" in card.read_text()
    assert main(["card", str(tmp_path / "nowhere")]) == 1


# --- init -------------------------------------------------------------------------------------------------------------


def own_data(root, size=(64, 80), values=(0, 1), splits=("train", "test"), num=3):
    rng = np.random.default_rng(0)
    for split in splits:
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(num):
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(root / split / "images" / f"{i}.png")
            Image.fromarray(rng.choice(values, size).astype(np.uint8)).save(root / split / "masks" / f"{i}.png")
    return root


def test_init_writes_a_commented_yaml_for_ones_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "data")
    assert main(["init", "mine", "--root", "data", "--classes", "sea,oil"]) == 0, capsys.readouterr().err
    text, config = (tmp_path / "mine.yaml").read_text(), load_config("mine.yaml")
    assert config.name == "mine" and config.prepare.root == str(tmp_path / "data")
    assert config.prepare.classes == {"sea": (0, 0, 0), "oil": (0, 255, 255)}
    assert config.train_jointnet.crop == (64, 64) and config.generate.num_samples == 3
    assert text.count("#") > 10 and "dakd pipeline --config mine.yaml" in text and len(text.splitlines()) < 60
    assert main(["init", "mine", "--root", "data", "--classes", "sea,oil"]) == 1
    assert "mine.yaml exists" in capsys.readouterr().err and (tmp_path / "mine.yaml").read_text() == text
    again = ["--classes", "sea,oil,2024", "--preset", "paper", "--overwrite"]
    assert main(["init", "mine", "--root", "data", *again]) == 0
    config = load_config("mine.yaml")
    assert list(config.prepare.classes) == ["sea", "oil", "2024"] and config.train_jointnet.stage2.steps == 250_000


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_init_sets_up_self_training_where_most_images_have_no_mask(preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # The paper's checkpoints take 47 GiB, which not every host has free.
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**40))
    own_data(tmp_path / "data", num=5)
    argv = ["init", "mine", "--root", "data", "--classes", "sea,oil", "--preset", preset, "--overwrite"]
    for masks, sets, share in ((4, ("real", "real+synthetic"), None), (2, ("real", "real+pseudo"), 0.5)):
        for path in (tmp_path / "data" / "train" / "masks").glob(f"[{masks}-9].png"):
            path.unlink()
        assert main([*argv, "--on-missing-mask", "image_only"]) == 0, capsys.readouterr().err
        config = load_config("mine.yaml")
        assert config.train_saross.training_sets == sets and config.train_saross.synthetic_share == share
        assert config.generate.num_samples == 5
        text = (tmp_path / "mine.yaml").read_text()
        assert f"{masks} training images with labels, {5 - masks} without" in text
        assert ("made where training_sets has real+synthetic" in text) == (masks == 2)
        assert not any(one.level == "refused" for one in check(config))


def test_prepare_runs_on_the_yaml_of_init(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "my data", splits=("train",))
    assert main(["init", "1e3", "--root", "my data", "--classes", "sea, oil"]) == 0, capsys.readouterr().err
    assert "There is no test split" in (tmp_path / "1e3.yaml").read_text()
    assert main(["prepare", "--config", "1e3.yaml"]) == 0, capsys.readouterr().err
    assert len(dakd.ShardSet("runs/1e3/prepare/train")) == 3


@pytest.mark.parametrize("dataset", ["simulated", "osd"])
def test_init_knows_the_other_datasets(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = []
    if dataset == "osd":
        for place in ("train/images", "train/labels_1D", "test/images", "test/labels_1D"):
            (tmp_path / "osd" / place).mkdir(parents=True)
            Image.new("L", (128, 96)).save(tmp_path / "osd" / place / "img_0001.png")
        root = ["--root", "osd"]
    assert main(["init", "mine", "--dataset", dataset, *root]) == 0, capsys.readouterr().err
    assert load_config("mine.yaml").prepare.dataset == dataset
    assert main(["init", "b", "--dataset", dataset, *root, "--classes", "a,b"]) == 1
    assert "has its own class table" in capsys.readouterr().err
    assert main(["init", "b", "--dataset", "simulated", "--root", "x"]) == 1
    assert "reads no folder" in capsys.readouterr().err


@pytest.mark.parametrize("name, folder, classes", [
    ("plain", "data", "sea,oil"),
    ("with, comma #1", "a b's \"data\"", "sea water, oil:00ffff"),
    ("öl 🛢", "daten 🛢 {x}", "mer,öl 🛢"),
    ("2024", "1e3", "null,true,~,1"),
    ("[dash]", "*star", "&a,!b,%c,@d,'e',\"f\",[g],{h}"),
])  # fmt: skip
def test_names_roots_and_classes_of_any_letters_are_read_as_they_were_given(
    name, folder, classes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / folder, num=1)
    assert main(["init", f"--out={tmp_path / 'e.yaml'}", "--root", folder, "--classes", classes, "--", name]) == 0, (
        capsys.readouterr().err
    )
    config = load_config("e.yaml")
    assert config.name == name and config.prepare.root == str(tmp_path / folder)
    assert list(config.prepare.classes) == [one.partition(":")[0].strip() for one in classes.split(",")]


@pytest.mark.parametrize("name", ["..", "a/b", "", "x\nname: y", "${HOME}", "a\\b"])
def test_a_name_that_cannot_name_a_folder_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--dataset", "simulated", "--", name]) == 1
    assert "expected a folder's name" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_root_that_a_yaml_would_expand_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "d${HOME}", num=1)
    assert main(["init", "mine", "--root", "d${HOME}", "--classes", "sea,oil"]) == 1
    assert "cannot be written in a YAML" in capsys.readouterr().err and not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize("data, argv, message", [
    ({}, ["--classes", "sea"], "expected at least two names"),
    ({}, ["--classes", "sea,sea :00ffff"], "names a class twice"),
    ({}, ["--classes", ":00ffff,oil"], "an empty name"),
    ({}, ["--classes", ",".join(f"c{i}" for i in range(300))], "expected at most 255"),
    ({}, ["--classes", "sea,oil", "--out", "."], "is a folder"),
    ({}, ["--classes", "sea,oil", "--root", ""], "give --root DIR"),
    ({}, ["--classes", "sea,oil:blue"], "the colour of 'oil' is 'blue'; expected six hexadecimal digits"),
    ({}, [], "--classes is missing"),
    ({"values": (0, 7)}, ["--classes", "sea,oil"], r"neither ids 0 to 1 .* nor class colours.*NAME:RRGGBB"),
    ({"values": (0, 255)}, ["--classes", "sea,oil"],
     r"255 means unknown.*; give dakd init --classes sea:000000,oil:ffffff, .* or --mask-values ids"),
    ({"values": (0, 255)}, ["--classes", "a sea,oil,land"], r"means unknown.*; give dakd init --classes NAME:RRGGBB,"),
    ({"size": (20, 64)}, ["--classes", "sea,oil"], "shortest side of the images is 20 pixels; expected at least 32"),
    ({"splits": ("test",)}, ["--classes", "sea,oil"], "expected train/"),
])  # fmt: skip
def test_init_refuses_data_that_make_no_experiment(data, argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "data", **data)
    assert main(["init", "mine", "--root", "data", *argv]) == 1
    assert re.search(message, capsys.readouterr().err, re.DOTALL) and not (tmp_path / "mine.yaml").exists()


def test_init_reads_the_masks_of_every_split(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "data", splits=("train",))
    own_data(tmp_path / "data", values=(0, 1, 2), splits=("test",))
    assert main(["init", "mine", "--root", "data", "--classes", "sea,oil"]) == 1
    assert re.search(r"test/masks/0\.png: .*neither ids 0 to 1", capsys.readouterr().err)
    own_data(tmp_path / "swapped", values=(0, 255), splits=("train",))
    own_data(tmp_path / "swapped", values=(0, 1), splits=("test",))
    assert main(["init", "mine", "--root", "swapped", "--classes", "oil:ffffff,sea:000000"]) == 1
    assert "the value 0 would mean" in capsys.readouterr().err and not (tmp_path / "mine.yaml").exists()


def test_what_init_names_for_black_and_white_masks_is_what_it_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "data", values=(0, 255))
    for option in (["--classes", "sea:000000,oil:ffffff"], ["--classes", "sea,oil", "--mask-values", "binary"]):
        assert main(["init", "mine", "--root", "data", "--overwrite", *option]) == 0, capsys.readouterr().err
    assert load_config("mine.yaml").prepare.mask_values == "binary"


def test_init_names_only_options_that_the_dataset_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        own_data(tmp_path / "sos", values=(2, 3), splits=(f"{split}/palsar",))
    sos = ["init", "mine", "--dataset", "sos", "--sensor", "palsar", "--root", "sos"]
    assert main(sos) == 1
    message = capsys.readouterr().err
    assert "every pixel would be black" in message
    assert message.endswith("; give dakd init --mask-threshold or --mask-values ids\n")
    own_data(tmp_path / "sos2" / "train", values=(0, 255), splits=("palsar",))
    own_data(tmp_path / "sos2" / "test", values=(0, 255), splits=("palsar",))
    (tmp_path / "sos2" / "train" / "palsar" / "images" / "0.png").write_bytes(b"damaged")
    assert main([*sos[:-1], "sos2"]) == 1
    assert capsys.readouterr().err.endswith("PNG, JPEG, TIFF or BMP); fix or remove it\n")


def test_what_init_names_for_the_masks_of_sos_is_what_it_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        own_data(tmp_path / "sos" / split, values=(2, 90), splits=("palsar",))
        for path in (tmp_path / "sos" / split / "palsar" / "masks").iterdir():  # oil is dark, and its mask is 2
            image = Image.open(path).point(lambda value: value + 9)
            image.save(tmp_path / "sos" / split / "palsar" / "images" / path.name)
    argv = ["init", "mine", "--dataset", "sos", "--sensor", "palsar", "--root", "sos"]
    assert main(argv) == 1 and "give dakd init --mask-threshold" in capsys.readouterr().err
    assert main([*argv, "--mask-threshold", "50"]) == 1
    assert capsys.readouterr().err.endswith("set prepare.polarity to oil_is_black; give dakd init --polarity\n")
    assert main([*argv, "--mask-threshold", "50", "--polarity", "oil_is_black"]) == 0, capsys.readouterr().err
    prepare = load_config("mine.yaml").prepare
    assert (prepare.mask_threshold, prepare.polarity) == (50, "oil_is_black")
    assert main([*argv, "--mask-threshold", "256", "--overwrite"]) == 1
    assert "mask_threshold" in capsys.readouterr().err
    assert main(["init", "b", "--root", "sos", "--classes", "a,b", "--mask-threshold", "9"]) == 1
    assert "dataset folder has no such setting; remove --mask-threshold" in capsys.readouterr().err


def test_init_without_masks_or_a_folder_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--classes", "sea,oil"]) == 1 and "give --root DIR" in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    Image.new("L", (64, 64)).save(tmp_path / "images" / "a.png")
    assert main(["init", "mine", "--root", ".", "--classes", "sea,oil"]) == 1
    assert "have no masks" in capsys.readouterr().err


def test_colours_that_are_left_open_differ_from_those_that_are_given():
    table = parse_classes("sea,oil:000000,ship," + ",".join(f"c{i}" for i in range(20)))
    assert table["oil"] == (0, 0, 0) and table["ship"] == (153, 76, 0)
    assert len(set(table.values())) == len(table) == 23
