"""Datasets in other layouts than those that are read: what lies there and is not read is named."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dakd.config import PrepareConfig, build_config
from dakd.data.prepare import describe, prepare
from dakd.data.readers import BadDataset, open_dataset
from dakd.data.readers.unread import list_unread
from dakd.data.sample import ClassTable
from dakd.evaluate.inputs import LabelledFolder

CLASSES = {"sea": (0, 0, 0), "oil": (0, 255, 255)}
GREY = np.arange(80, dtype=np.uint8).reshape(8, 10)


def write(root: Path, *places: str) -> None:
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        is_mask = any(name in place for name in ("masks", "label", "annotations"))
        Image.fromarray(GREY % 2 if is_mask else GREY).save(root / place, "PNG")


def folder(root: Path):
    return open_dataset(PrepareConfig(dataset="folder", root=str(root), classes=CLASSES))


def configured(tmp_path: Path, **others):
    settings = {"dataset": "folder", "root": str(tmp_path / "data"), "classes": CLASSES}
    return build_config({"name": "test", "run_dir": str(tmp_path / "run"), "prepare": settings} | others)


def problems(dataset) -> str:
    return "\n".join(map(str, dataset.problems()))


def test_masks_in_a_folder_that_is_not_read_are_named_with_those_that_are(tmp_path):
    write(tmp_path / "data", *(f"train/{kind}/{i}.png" for kind in ("images", "annotations") for i in range(2)))
    report = prepare(configured(tmp_path)).report
    assert report["unread"] == ["train/annotations/ (2 files)"]
    assert json.loads((tmp_path / "run" / "prepare" / "report.json").read_text())["unread"] == report["unread"]
    (line,) = [line for line in describe(report) if line.startswith("not read")]
    assert "train/annotations/ (2 files); dakd reads images/ or image/ with masks/, mask/, labels/ or label/" in line


def test_pictures_in_sub_folders_leave_a_split_empty_and_are_named(tmp_path):
    write(tmp_path / "data", "train/images/s1/a.png", "train/masks/s1/a.png")
    with pytest.raises(BadDataset) as error:
        prepare(configured(tmp_path))
    for words in ("data/train/images: the split 'train' is empty", "not in sub-folders; found s1/ (1 file)",
                  ".tiff, .bmp", "dakd reads images/ or image/"):  # fmt: skip
        assert words in str(error.value)


@pytest.mark.parametrize(
    "names", [("train", "test", "val"), ("Training", "testing", "valid"), ("TRAIN", "Test", "validation")]
)
def test_splits_have_their_usual_names(tmp_path, names):
    for name in names:
        write(tmp_path, f"{name}/images/{name}.png", f"{name}/masks/{name}.png")
    dataset = folder(tmp_path)
    assert dataset.splits == ("train", "test", "val") and problems(dataset) == "" and dataset.unread() == []
    assert [dataset.entries(split)[0].key for split in dataset.splits] == list(names)


def test_a_second_folder_of_one_split_is_named(tmp_path):
    write(tmp_path, *(f"{name}/images/a.png" for name in ("train", "val", "valid", "holdout")), "images/a.png")
    assert folder(tmp_path).unread() == ["holdout/ (1 folder)", "images/ (1 file)", "valid/ (1 folder)"]


@pytest.mark.parametrize("suffix", [".jp2", ".npy", ".gif", ".webp", ".tif.gz"])
def test_files_of_other_kinds_are_named_by_their_suffix(tmp_path, suffix):
    write(tmp_path, *(f"images/{name}{suffix}" for name in "abcd"))
    assert "the split 'train' is empty" in problems(folder(tmp_path))
    assert f"found *{suffix} (4 files, such as a{suffix})" in problems(folder(tmp_path))
    write(tmp_path, "images/e.png", "images/one more.jp2k")
    dataset = folder(tmp_path)
    assert problems(dataset) == ""
    assert dataset.unread() == [f"images/*{suffix} (4 files, such as a{suffix})", "images/one more.jp2k"]


def test_images_below_the_kind_of_file_are_named_with_the_layout(tmp_path):
    write(tmp_path, "images/train/a.png", "masks/train/a.png")
    assert "found train/ (1 file); dakd reads images/" in problems(folder(tmp_path))


def test_files_that_systems_leave_are_neither_read_nor_named(tmp_path):
    write(tmp_path, "images/a.png", "images/._a.png", "images/.b.png", "masks/a.png", "masks/._a.png")
    write(tmp_path, ".DS_Store", "images/Thumbs.db", "desktop.ini", "__MACOSX/images/a.png", "images/@eaDir/a.png")
    dataset = folder(tmp_path)
    assert problems(dataset) == "" and dataset.unread() == [] and len(dataset.entries("train")) == 1


def test_names_that_differ_in_form_or_case_are_paired(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Ölfläche 1") for form in ("NFC", "NFD"))
    assert composed != decomposed
    write(tmp_path, f"images/{decomposed}.png", "images/IMG_2.PNG", "images/c.Tif")
    write(tmp_path, f"masks/{composed}.png", "masks/img_2.png", "masks/C.png")
    dataset = folder(tmp_path)
    assert problems(dataset) == ""
    pairs = {entry.key: entry.label_path.name for entry in dataset.entries("train")}
    assert pairs == {"IMG_2": "img_2.png", "c": "C.png", composed.replace(" ", "_"): f"{composed}.png"}


def test_names_that_case_alone_tells_apart_are_not_mixed_up(tmp_path):
    write(tmp_path, "images/a.png", "images/A.png", "images/Bc.png", "images/bC.png", "images/d.png")
    write(tmp_path, "masks/a.png", "masks/A.png", "masks/BC.png", "masks/d.png")
    dataset = folder(tmp_path)
    assert {entry.key: entry.label_path.stem for entry in dataset.entries("train")} == {"A": "A", "a": "a", "d": "d"}
    assert [f"{problem.path.name} {problem.reason}" for problem in dataset.problems()] == [
        "Bc.png has no label file", "bC.png has no label file", "BC.png has no image file",
    ]  # fmt: skip


def test_one_name_in_two_forms_is_refused(tmp_path):
    write(tmp_path, *(f"images/{unicodedata.normalize(form, 'ö')}.png" for form in ("NFC", "NFD")))
    with pytest.raises(ValueError, match="would both be sample"):
        folder(tmp_path)


def test_masks_that_all_have_other_names_are_reported_once(tmp_path):
    write(tmp_path, *(f"images/{i}.png" for i in range(3)), *(f"masks/{i}_mask.png" for i in range(3)))
    (problem,) = folder(tmp_path).problems()
    assert "no label of the split 'train' belongs to an image by its name" in problem.reason
    assert "0.png and so on, the labels 0_mask.png; give both the same names" in problem.reason


def test_masks_of_another_kind_of_file_are_reported_once(tmp_path):
    write(tmp_path, *(f"images/{i}.png" for i in range(3)), *(f"masks/{i}.npy" for i in range(3)))
    (problem,) = folder(tmp_path).problems()
    assert problem.path.name == "masks" and "3 images and no label; found here: 0.npy, 1.npy, 2.npy" in problem.reason


def test_published_layouts_name_what_is_beside_them(tmp_path):
    for split in ("train", "test"):
        write(tmp_path, *(f"{split}/{kind}/0.png" for kind in ("images", "labels_1D", "extra")))
    dataset = open_dataset(PrepareConfig(dataset="osd", root=str(tmp_path)))
    assert dataset.unread() == ["test/extra/ (1 file)", "train/extra/ (1 file)"]
    for kind in ("images", "masks"):
        write(tmp_path, *(f"{kind}/{split}/sentinel_{i}.png" for split in ("train", "val") for i in range(2)))
    write(tmp_path, "images/train/palsar_1.png")
    dataset = open_dataset(PrepareConfig(dataset="sos", root=str(tmp_path), sensor="sentinel"))
    assert problems(dataset) == ""
    assert dataset.unread() == ["images/train/palsar_1.png", "test/ (3 folders)", "train/ (3 folders)"]


def test_a_folder_to_evaluate_names_what_is_not_read(tmp_path, capsys):
    write(tmp_path / "data", "images/a.png", "masks/a.png", "masks/notes.txt", "annotations/a.png")
    config = configured(tmp_path, evaluate={"folder": str(tmp_path / "data")})
    assert len(LabelledFolder(config, ClassTable(tuple(CLASSES), tuple(CLASSES.values())))) == 1
    assert "not read: annotations/ (1 file), masks/notes.txt" in capsys.readouterr().out


def test_many_unread_things_are_counted(tmp_path):
    for i in range(40):
        (tmp_path / f"a.{i}").touch()
        (tmp_path / f"folder{i:02}").mkdir()
    found = list_unread(tmp_path, ())
    assert found[0] == "*/ (40 folders, such as folder00/)" and len(found) == 31 and found[-1] == "and 11 more"


MASKS = (
    "a_mask a", "a_Label a", "a-gt a", "a_seg a", "1_sat 1_mask", "1_image 1_mask", "1_img 1_mask", "1_rgb 1_gt",
    "1_vv 1_vh 1_mask", "image_1 mask_1", "image1 mask1", "x_leftImg8bit x_gtFine_labelIds", "a a_labelIds",
    "x_leftImg8bit x_gtFine_color", "a a_color", "a a_segmentation", "a a_groundtruth", "a a_L", "a a_binary",
    "a a_target", "a a_bin_mask", "a a_manual1", "a.img a.mask",
    "a a_msk", "a a_lbl", "a a_trainIds", "a a_ground-truth", "a a_truth", "a a_anno", "a a_mask_0 a_mask_1",
    "1_rgb 1_mask2", "1_vv 1_label-12",
)  # fmt: skip


@pytest.mark.parametrize("names", MASKS)
@pytest.mark.parametrize("split", ["", "test/"])
def test_masks_among_the_images_are_not_read_as_images(tmp_path, names, split):
    write(tmp_path, *(f"{split}{name}.png" for name in names.split()), f"{split}another.png")
    if split:
        write(tmp_path, "train/images/0.png", "train/masks/0.png")
    with pytest.raises(ValueError, match=r"has the name of a mask of \S+ beside it .*the masks into masks/") as error:
        folder(tmp_path)
    assert ("set prepare.dataset to sos" in str(error.value)) == ("1_sat" in names)


IMAGES = (
    "1_mask 2_mask", "label_1 label_2", "gt_1 seg_2", "target_1 clutter_1", "a_color a_vv", "a_L a_C", "a_vv a_vh",
    "mask_1 2", "masked seg1 labels", "a_mask a_label", "1_sat 2_mask", "L_1 L_2",
    "a_mask_1 a_mask_2", "a_seg1 a", "mask_1_x 2_x",
)  # fmt: skip


@pytest.mark.parametrize("names", IMAGES)
def test_images_with_the_words_of_masks_and_no_partner_are_images(tmp_path, names):
    write(tmp_path, *(f"{name}.png" for name in names.split()))
    assert len(folder(tmp_path).entries("train")) == len(names.split())


def test_a_folder_that_cannot_be_entered_is_named(tmp_path, monkeypatch):
    write(tmp_path, "a.png", "locked/a.png")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "locked":  # permissions do not hold root back
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list_unread(tmp_path, [tmp_path / "a.png"]) == ["locked/ (Permission denied)"]
