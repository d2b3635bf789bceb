"""Readers of the published layouts: good files are read, bad ones are named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dakd.config import PrepareConfig, SimulationConfig
from dakd.data.readers import BadFile, open_dataset
from dakd.data.readers.read_picture import read_grey
from dakd.data.sample import IGNORE_INDEX, OSD_CLASSES

RNG = np.random.default_rng(0)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def grey(shape=(10, 14)) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def rgb(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, axis=-1)


def osd(root: Path, **options):
    return open_dataset(PrepareConfig(dataset="osd", root=str(root), **options))


def sos(root: Path, **options):
    return open_dataset(PrepareConfig(**{"dataset": "sos", "root": str(root), "sensor": "sentinel", **options}))


def folder(root: Path, classes=None):
    classes = classes or {"sea": (0, 0, 0), "oil": (0, 255, 255), "land": (0, 153, 0)}
    return open_dataset(PrepareConfig(dataset="folder", root=str(root), classes=classes))


# --- simulated --------------------------------------------------------------------------------------------------------


def test_test_scenes_do_not_depend_on_the_number_of_training_scenes():
    few, many = (
        open_dataset(PrepareConfig(simulation=SimulationConfig(num_train=n, num_test=2, size=(16, 16))), seed=3)
        for n in (1, 5)
    )
    assert few.splits == ("train", "test") and len(many.entries("train")) == 5
    one, other = (dataset.read(dataset.entries("test")[1]) for dataset in (few, many))
    assert one.key == other.key == "test-000001" and np.array_equal(one.sar, other.sar)
    assert not np.array_equal(one.sar, many.read(many.entries("train")[1]).sar)


# --- OSD --------------------------------------------------------------------------------------------------------------


def make_osd(root: Path, labels_1d: bool = False) -> dict[str, np.ndarray]:
    truth = {}
    for split in ("train", "test"):
        for number in (1, 2, 10):
            name = f"img_{number:04d}"
            truth[f"{split}/{name}"] = RNG.integers(0, 5, (10, 14)).astype(np.uint8)
            save(root / split / "images" / f"{name}.jpg", rgb(grey()))
            save(root / split / "labels" / f"{name}.png", OSD_CLASSES.palette()[truth[f"{split}/{name}"]])
            if labels_1d:
                save(root / split / "labels_1D" / f"{name}.png", truth[f"{split}/{name}"])
    return truth


@pytest.mark.parametrize("labels_1d", [False, True])
def test_osd_labels_come_from_ids_or_from_colours(tmp_path, labels_1d):
    truth = make_osd(tmp_path, labels_1d)
    dataset = osd(tmp_path)
    assert dataset.problems() == [] and dataset.classes == OSD_CLASSES
    entries = dataset.entries("train")
    assert [entry.key for entry in entries] == ["img_0001", "img_0002", "img_0010"]
    assert entries[0].label_path.parent.name == ("labels_1D" if labels_1d else "labels")
    sample = dataset.read(entries[2])
    assert np.array_equal(sample.label, truth["train/img_0010"]) and sample.sar.shape == (10, 14)
    assert sample.meta["off_palette"] == 0


def test_off_palette_colours_go_to_the_nearest_class_and_are_counted_up_to_one_percent(tmp_path):
    colours = np.zeros((20, 30, 3), np.uint8)
    colours[0, :6] = [[0, 0, 0], [10, 250, 250], [250, 3, 1], [150, 80, 2], [0, 150, 0], [0, 153, 0]]
    wanted = np.zeros((20, 30), np.uint8)
    wanted[0, :6] = [0, 1, 2, 3, 4, 4]
    for split in ("train", "test"):
        save(tmp_path / split / "images" / "a.jpg", grey((20, 30)))
        save(tmp_path / split / "labels" / "a.png", colours)
    dataset = osd(tmp_path)
    sample = dataset.read(dataset.entries("train")[0])
    assert np.array_equal(sample.label, wanted) and sample.meta["off_palette"] == 4
    colours[1, :3] = (10, 250, 250)
    save(tmp_path / "train" / "labels" / "a.png", colours)
    dataset = osd(tmp_path)
    with pytest.raises(BadFile, match=r"holds 4 value\(s\) that are neither ids 0 to 4 nor class colours"):
        dataset.read(dataset.entries("train")[0])


def test_osd_ids_outside_the_table_are_named(tmp_path):
    make_osd(tmp_path, labels_1d=True)
    save(tmp_path / "train" / "labels_1D" / "img_0002.png", np.full((10, 14), 9))
    dataset = osd(tmp_path)
    with pytest.raises(BadFile, match=r"img_0002\.png: holds 1 value.* neither ids 0 to 4 .*\(9, 9, 9\)") as error:
        dataset.read(dataset.entries("train")[1])
    assert "prepare.classes" not in str(error.value), "its table is fixed"


def test_a_root_that_is_no_osd_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not an OSD folder"):
        osd(tmp_path)
    with pytest.raises(ValueError, match=r"is not a folder; set prepare.root"):
        osd(tmp_path / "absent")


# --- SOS --------------------------------------------------------------------------------------------------------------


def sos_pair(dark_side_is_oil: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, mask with soft edges, true label: oil on the left, dark."""
    label = np.zeros((8, 12), np.uint8)
    label[:, :5] = 1
    image = np.where(label == 1, 60, 150) if dark_side_is_oil else np.where(label == 1, 150, 60)
    mask = np.where(label == 1, 200, 90)
    return image, mask, label


def make_sos(root: Path, layout: str, numbers=(1, 2, 11), dark_side_is_oil: bool = True) -> None:
    image, mask, _ = sos_pair(dark_side_is_oil)
    for split in ("train", "test"):
        for n in numbers:
            if layout == "original":
                inner = ("", "") if split == "train" else ("sat", "gt")
                save(root / split / "Sentinel" / inner[0] / f"{n}_sat.png", rgb(image))
                save(root / split / "Sentinel" / inner[1] / f"{n}_mask.png", rgb(mask))
                save(root / split / "palsar" / inner[0] / f"9{n}_sat.png", rgb(image))
                save(root / split / "palsar" / inner[1] / f"9{n}_mask.png", rgb(mask))
            elif layout == "image-label":
                save(root / split / "SENTINEL" / "image" / f"{n}.png", image)
                save(root / split / "SENTINEL" / "label" / f"{n}.png", mask)
            else:
                part = "train" if split == "train" else "val"
                save(root / "images" / part / f"sentinel_{n}.png", image)
                save(root / "masks" / part / f"sentinel_{n}.png", mask)
                save(root / "images" / part / f"palsar_{n}.png", image)
                save(root / "masks" / part / f"palsar_{n}.png", mask)


@pytest.mark.parametrize("layout", ["original", "image-label", "images-masks"])
def test_sos_is_read_in_its_three_layouts(tmp_path, layout):
    make_sos(tmp_path, layout)
    dataset = sos(tmp_path)
    assert dataset.problems() == [] and dataset.splits == ("train", "test")
    for split in dataset.splits:
        assert [entry.key for entry in dataset.entries(split)] == ["1", "2", "11"]
        sample = dataset.read(dataset.entries(split)[2])
        assert np.array_equal(sample.label, sos_pair()[2]) and sample.meta["sensor"] == "sentinel"
    dataset.check()


def test_sos_root_may_be_the_folder_above_dataset(tmp_path):
    make_sos(tmp_path / "dataset", "original")
    assert len(sos(tmp_path, sensor="palsar").entries("test")) == 3


def test_sos_threshold_and_polarity_are_settings(tmp_path):
    make_sos(tmp_path, "original")
    label = sos_pair()[2]
    for options, wanted in (
        ({"mask_threshold": 91}, label),
        ({"mask_threshold": 201, "mask_values": "binary"}, np.zeros_like(label)),
        ({"mask_threshold": 90, "mask_values": "binary"}, np.ones_like(label)),
        ({"polarity": "oil_is_black"}, 1 - label),
    ):
        dataset = sos(tmp_path, **options)
        assert np.array_equal(dataset.read(dataset.entries("train")[0]).label, wanted)


def test_sos_masks_of_0_and_1_are_no_jpegs_and_those_that_are_cut_may_be(tmp_path):
    make_sos(tmp_path, "images-masks")
    masks = sorted((tmp_path / "masks").rglob("sentinel_*.png"))
    for path in masks:
        Image.open(path).convert("L").save(path, "JPEG", quality=95)
    dataset = sos(tmp_path)
    assert np.array_equal(dataset.read(dataset.entries("train")[0]).label, sos_pair()[2])
    for path in masks:
        Image.fromarray((np.asarray(Image.open(path)) > 99).astype(np.uint8)).save(path, "PNG")
    dataset = sos(tmp_path)
    assert np.array_equal(dataset.read(dataset.entries("train")[0]).label, sos_pair()[2])
    Image.open(masks[0]).save(masks[0], "JPEG", quality=100)
    for options in ({}, {"mask_values": "ids"}):
        dataset = sos(tmp_path, **options)
        (entry,) = (one for one in dataset.entries("train") if one.label_path == masks[0])
        with pytest.raises(BadFile, match=r"is a JPEG, whose compression changes ids"):
            dataset.read(entry)


def test_wrong_polarity_is_refused_with_both_means_and_the_remedy(tmp_path):
    make_sos(tmp_path, "original")
    with pytest.raises(ValueError, match=r"mean grey 150\.0, sea 60\.0.*set prepare\.polarity to oil_is_white"):
        sos(tmp_path, polarity="oil_is_black").check()


def test_missing_mates_are_all_listed(tmp_path):
    make_sos(tmp_path, "original")
    (tmp_path / "train" / "Sentinel" / "2_mask.png").unlink()
    (tmp_path / "test" / "Sentinel" / "sat" / "11_sat.png").unlink()
    dataset = sos(tmp_path)
    found = [f"{problem.path.name}: {problem.reason}" for problem in dataset.problems()]
    assert found == ["2_sat.png: has no label file", "11_mask.png: has no image file"]
    assert [entry.key for entry in dataset.entries("train")] == ["1", "11"]


def test_an_empty_split_is_a_problem_and_an_absent_sensor_an_error(tmp_path):
    make_sos(tmp_path, "image-label")
    for path in (tmp_path / "test" / "SENTINEL").rglob("*.png"):
        path.unlink()
    (empty,) = sos(tmp_path).problems()
    assert empty.reason.startswith("the split 'test' is empty; expected files that end in .png")
    assert "found nothing; dakd reads SENSOR/" in empty.reason
    with pytest.raises(ValueError, match="has no folder palsar"):
        sos(tmp_path, sensor="palsar")
    with pytest.raises(ValueError, match="is not an SOS folder"):
        sos(tmp_path / "test")


# --- folder -----------------------------------------------------------------------------------------------------------


def test_folder_masks_hold_ids_or_colours(tmp_path):
    ids = RNG.integers(0, 3, (10, 14)).astype(np.uint8)
    ids[0, 0] = IGNORE_INDEX
    colours = np.array([[0, 0, 0], [0, 255, 255], [0, 153, 0]])
    save(tmp_path / "train" / "images" / "a.png", grey())
    save(tmp_path / "train" / "masks" / "a.png", ids)
    save(tmp_path / "test" / "images" / "b.png", grey())
    save(tmp_path / "test" / "labels" / "b.png", colours[np.minimum(ids, 2)])
    dataset = folder(tmp_path)
    assert dataset.splits == ("train", "test") and dataset.classes.names == ("sea", "oil", "land")
    assert np.array_equal(dataset.read(dataset.entries("train")[0]).label, ids)
    assert np.array_equal(dataset.read(dataset.entries("test")[0]).label, np.minimum(ids, 2))


def test_folder_reads_palette_pictures_by_their_ids(tmp_path):
    ids = RNG.integers(0, 3, (10, 14)).astype(np.uint8)
    save(tmp_path / "images" / "a.png", grey())
    picture = Image.fromarray(ids, "P")
    picture.putpalette([7, 7, 7, 8, 8, 8, 9, 9, 9])
    (tmp_path / "masks").mkdir()
    picture.save(tmp_path / "masks" / "a.png")
    dataset = folder(tmp_path)
    assert np.array_equal(dataset.read(dataset.entries("train")[0]).label, ids)


def test_folder_black_and_white_masks_are_colours_where_white_is_a_class(tmp_path):
    label = (grey() > 100).astype(np.uint8)
    save(tmp_path / "images" / "a.png", grey())
    save(tmp_path / "masks" / "a.png", 255 * label)
    dataset = folder(tmp_path, {"sea": (0, 0, 0), "oil": (255, 255, 255)})
    assert np.array_equal(dataset.read(dataset.entries("train")[0]).label, label)


def test_folder_names_unknown_mask_values(tmp_path):
    save(tmp_path / "images" / "a.png", grey())
    save(tmp_path / "masks" / "a.png", np.full((10, 14), 77))
    dataset = folder(tmp_path)
    with pytest.raises(BadFile, match=r"neither ids 0 to 2 \(255: unknown\) nor class colours: \(77, 77, 77\)"):
        dataset.read(dataset.entries("train")[0])


def test_folder_of_images_alone_has_no_labels(tmp_path):
    save(tmp_path / "scene 1.v2.png", grey())
    dataset = folder(tmp_path)
    sample = dataset.read(dataset.entries("train")[0])
    assert dataset.problems() == [] and sample.label is None and sample.key == "scene_1_v2"


def test_folder_with_two_files_of_one_name_is_refused(tmp_path):
    save(tmp_path / "images" / "a.png", grey())
    save(tmp_path / "images" / "a.bmp", grey())
    with pytest.raises(ValueError, match="would both be sample 'a'"):
        folder(tmp_path)


# --- damaged files ----------------------------------------------------------------------------------------------------


def test_a_truncated_jpeg_is_named(tmp_path):
    save(tmp_path / "a.jpg", rgb(grey((64, 64))))
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadFile, match=r"a\.jpg: cannot be read as a picture .*truncated"):
        read_grey(tmp_path / "a.jpg")


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_broken_png_is_named(tmp_path, keep):
    save(tmp_path / "a.png", grey((64, 64)))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:keep])
    with pytest.raises(BadFile, match="cannot be read as a picture"):
        read_grey(tmp_path / "a.png")


def test_a_mask_of_another_size_is_named_with_both_sizes(tmp_path):
    make_osd(tmp_path)
    save(tmp_path / "train" / "labels" / "img_0001.png", np.zeros((9, 14, 3)))
    dataset = osd(tmp_path)
    with pytest.raises(BadFile, match=r"is 14 x 9, its image img_0001\.jpg 14 x 10"):
        dataset.read(dataset.entries("train")[0])


def test_colour_and_deep_pictures_are_refused_and_jpeg_grain_is_not(tmp_path):
    save(tmp_path / "colour.png", RNG.integers(0, 256, (4, 4, 3)))
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    save(tmp_path / "grain.png", np.full((4, 4, 3), (100, 101, 102)))
    with pytest.raises(BadFile, match="is a colour picture"):
        read_grey(tmp_path / "colour.png")
    with pytest.raises(BadFile, match="expected 8-bit grey"):
        read_grey(tmp_path / "deep.png")
    assert (read_grey(tmp_path / "grain.png") == 101).all()


def test_a_pipe_called_a_picture_is_reported_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadFile, match=r"a\.png: is not a regular file"):
        read_grey(tmp_path / "a.png")
