"""The prepare step: whole or absent, repeatable, and honest about bad files."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sealed_edits import content_of

from dakd.cli import main
from dakd.config import build_config, dump_config, load_config
from dakd.data.prepare import describe, prepare, resize_sample
from dakd.data.prepared import open_prepared
from dakd.data.readers import BadDataset
from dakd.data.sample import Sample
from dakd.data.shards import ShardSet, verify
from dakd.runtime.files import write_text
from dakd.runtime.lock import locked

SIMULATED = {"simulation": {"num_train": 12, "num_test": 5, "size": (24, 32)}, "shard_size": 5}


def config(seed: int = 0, **prepare_settings):
    return build_config({"name": "test", "seed": seed, "prepare": prepare_settings})


def make_folder(root, count=6, shape=(10, 14)):
    """A folder dataset with two splits and its settings."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        for i in range(count):
            image, mask = rng.integers(0, 256, shape).astype(np.uint8), rng.integers(0, 2, shape).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{i}.jpg")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return {"dataset": "folder", "root": str(root), "classes": {"sea": (0, 0, 0), "oil": (0, 255, 255)}}


def test_run_folder_gets_shards_indexes_a_sheet_and_a_report(tmp_path):
    result = prepare(config(**SIMULATED), tmp_path)
    assert result.folder == tmp_path / "prepare" and not result.is_reused
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "contact_sheet.png",
        "manifest.json",
        "report.json",
        "test",
        "train",
    ]
    train = ShardSet(result.splits["train"])
    assert len(train) == 12 and len(ShardSet(result.splits["test"])) == 5
    assert [shard.num_samples for shard in train.index.shards] == [5, 5, 2]
    assert verify(result.splits["train"]) == []
    assert content_of(result.folder / "report.json") == result.report
    assert train.index.kind == "real" and train.index.sizes == {"24x32": 12}


def test_names_that_are_not_utf_8_stand_in_the_files_of_the_run_and_stop_no_step(tmp_path, capsys):
    settings = make_folder(tmp_path / os.fsdecode(b"d\xe9tente"))
    (tmp_path / os.fsdecode(b"d\xe9tente/p\xe9trole.txt")).touch()
    path = tmp_path / "c.yaml"
    write_text(path, dump_config(config(**settings).model_copy(update={"run_dir": str(tmp_path / "run")})))
    for _ in range(2):  # made, and found again
        assert main(["prepare", "--config", str(path)]) == 0
    assert "prepare: not read: p\\udce9trole.txt" in capsys.readouterr().out
    assert load_config(tmp_path / "run" / "config.yaml").prepare.root == settings["root"]
    assert len(open_prepared(load_config(path), "train")) == 6 and main(["verify", str(tmp_path / "run")]) == 0
    assert main(["report", "--config", str(path)]) == 0


@pytest.mark.parametrize("name", [b"p\xe9trole", b"back\\slash", b"a\x01b", b"\x7f"])
def test_a_name_that_no_tar_can_hold_is_found_before_packing_and_can_be_skipped(tmp_path, name):
    settings = make_folder(tmp_path / "data", count=2)
    for path in (tmp_path / "data" / "train").glob("*/1.*"):
        path.rename(path.with_name(os.fsdecode(name) + path.suffix))
    with pytest.raises(BadDataset, match=r"(?s)has 2 problem.*: rename it") as error:
        prepare(config(**settings), tmp_path / "run")
    named = [str(problem.path.relative_to(tmp_path / "data")) for problem in error.value.problems]
    assert named == [os.fsdecode(b"train/images/%s.jpg" % name), os.fsdecode(b"train/masks/%s.png" % name)]
    report = prepare(config(**settings, on_bad_file="skip"), tmp_path / "run").report
    assert report["splits"]["train"]["num_samples"] == 1 and len(report["skipped"]) == 2 and report["unread"] == []


def test_index_tells_shares_and_b_as_a_direct_computation_finds_them(tmp_path):
    train = ShardSet(prepare(config(**SIMULATED), tmp_path).splits["train"])
    samples = [train.read(i) for i in range(len(train))]
    b = np.sqrt(np.mean([np.mean((sample.sar / 127.5 - 1) ** 2) for sample in samples]))
    assert train.index.balancing_factor == pytest.approx(b, rel=1e-6)
    counts = np.bincount(np.concatenate([sample.label.ravel() for sample in samples]), minlength=5)
    assert train.index.class_pixel_shares == pytest.approx((counts / counts.sum()).tolist())


def test_second_call_reuses_what_is_there(tmp_path):
    first = prepare(config(**SIMULATED), tmp_path)
    written = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    second = prepare(config(**SIMULATED), tmp_path)
    assert second.is_reused and second.report == first.report and second.splits == first.splits
    assert written == {path: path.stat().st_mtime_ns for path in second.folder.rglob("*")}


def test_same_settings_give_the_same_fingerprint_and_another_seed_another(tmp_path):
    prints = [
        prepare(config(seed, **SIMULATED), tmp_path / str(i)).report["splits"]["train"]["fingerprint"]
        for i, seed in enumerate((3, 3, 4))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_other_settings_are_refused_unless_a_rebuild_is_asked_for(tmp_path):
    prepare(config(**SIMULATED), tmp_path)
    other = config(**{**SIMULATED, "max_samples": 3})
    with pytest.raises(ValueError, match="max_samples: None then, 3 now"):
        prepare(other, tmp_path)
    assert len(ShardSet(prepare(other, tmp_path, rebuild=True).splits["train"])) == 3


def test_a_second_prepare_at_the_same_time_is_refused_or_finds_what_is_finished(tmp_path):
    with locked(tmp_path), pytest.raises(RuntimeError, match="is being written by process"):
        prepare(config(**SIMULATED), tmp_path)
    prepare(config(**SIMULATED), tmp_path)
    with locked(tmp_path):
        assert prepare(config(**SIMULATED), tmp_path).is_reused


def test_what_another_process_finished_before_the_lock_was_had_is_reused(tmp_path, monkeypatch):
    @contextmanager
    def late(folder):
        monkeypatch.setattr("dakd.data.prepare.locked", locked)
        prepare(config(**SIMULATED), folder)
        with locked(folder):
            yield

    monkeypatch.setattr("dakd.data.prepare.locked", late)
    assert prepare(config(**SIMULATED), tmp_path).is_reused


def test_a_rebuild_that_fails_leaves_the_finished_folder(tmp_path, monkeypatch):
    before = prepare(config(**SIMULATED), tmp_path).report
    rename = Path.rename

    def fail(path, target):
        if path.name == "prepare.partial":
            raise OSError("disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk is gone"):
        prepare(config(**{**SIMULATED, "max_samples": 3}), tmp_path, rebuild=True)
    assert prepare(config(**SIMULATED), tmp_path).report == before
    rename(tmp_path / "prepare", tmp_path / "prepare.old")  # as a killed process would leave it
    monkeypatch.undo()
    assert prepare(config(**SIMULATED), tmp_path).is_reused
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "prepare"]


def test_a_folder_that_prepare_did_not_make_is_left_alone(tmp_path):
    (tmp_path / "prepare").mkdir()
    (tmp_path / "prepare" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="prepare did not make it"):
        prepare(config(**SIMULATED), tmp_path, rebuild=True)
    assert (tmp_path / "prepare" / "mine.txt").read_text() == "keep"


def test_all_bad_files_stand_in_one_report_and_nothing_is_written(tmp_path):
    settings = make_folder(tmp_path / "data")
    images, masks = tmp_path / "data" / "train" / "images", tmp_path / "data" / "train" / "masks"
    (images / "0.jpg").write_bytes((images / "0.jpg").read_bytes()[:200])
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(masks / "1.png")
    Image.fromarray(np.full((10, 14), 9, np.uint8)).save(masks / "2.png")
    (masks / "3.png").unlink()
    (tmp_path / "data" / "test" / "images" / "4.jpg").unlink()
    with pytest.raises(BadDataset) as caught:
        prepare(config(**settings), tmp_path / "run")
    message = str(caught.value)
    assert len(caught.value.problems) == 5 and "has 5 problem(s)" in message
    reasons = (
        "0.jpg: cannot be read",
        "1.png: is 3 x 3",
        "2.png: holds 1 value",
        "3.jpg: has no label",
        "4.png: has no",
    )
    assert all(reason in message for reason in reasons)
    assert "set prepare.on_bad_file to skip" in message
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_bad_files_are_skipped_when_asked_and_named_in_the_report(tmp_path):
    settings = make_folder(tmp_path / "data")
    (tmp_path / "data" / "train" / "images" / "2.jpg").write_bytes(b"no picture")
    (tmp_path / "data" / "train" / "masks" / "3.png").unlink()
    result = prepare(config(**settings, on_bad_file="skip"), tmp_path / "run")
    keys = [ShardSet(result.splits["train"]).key(i) for i in range(4)]
    assert keys == ["0", "1", "4", "5"]
    assert sorted(skipped["path"].rsplit("/", 1)[1] for skipped in result.report["skipped"]) == ["2.jpg", "3.jpg"]


def test_an_empty_split_cannot_be_skipped(tmp_path):
    settings = make_folder(tmp_path / "data", count=2)
    for path in (tmp_path / "data" / "test").rglob("*.*"):
        path.unlink()
    for choice in ("stop", "skip"):
        with pytest.raises(BadDataset, match="the split 'test' is empty"):
            prepare(config(**settings, on_bad_file=choice), tmp_path / "run")


def test_a_split_of_bad_files_alone_cannot_be_skipped(tmp_path):
    settings = make_folder(tmp_path / "data", count=2)
    for path in (tmp_path / "data" / "test" / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadDataset, match="no usable sample in test"):
        prepare(config(**settings, on_bad_file="skip"), tmp_path / "run")


def test_max_samples_are_spread_over_the_split(tmp_path):
    settings = make_folder(tmp_path / "data")
    train = ShardSet(prepare(config(**settings, max_samples=3), tmp_path / "run").splits["train"])
    assert [train.key(i) for i in range(len(train))] == ["0", "2", "4"]


def test_resize_averages_the_image_and_picks_labels_without_mixing(tmp_path):
    image = np.array([[0, 10, 100, 200], [20, 30, 100, 200]], np.uint8)
    label = np.array([[1, 1, 4, 4], [1, 1, 4, 4]], np.uint8)
    small = resize_sample(Sample("a", image, label), (1, 2))
    assert small.sar.tolist() == [[15, 150]] and small.label.tolist() == [[1, 4]]
    mixed = np.where(np.random.default_rng(0).random((12, 12)) < 0.5, 4, 0).astype(np.uint8)
    assert set(np.unique(resize_sample(Sample("a", mixed, mixed), (5, 7)).label)) == {0, 4}
    settings = make_folder(tmp_path / "data")
    result = prepare(config(**settings, resize=(5, 7)), tmp_path / "run")
    sample = ShardSet(result.splits["test"]).read(0)
    assert sample.sar.shape == sample.label.shape == (5, 7) and set(np.unique(sample.label)) <= {0, 1}


def test_images_without_masks_are_prepared_for_the_first_stage(tmp_path):
    (tmp_path / "data").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "data" / "a.png")
    classes = {"sea": (0, 0, 0), "oil": (0, 255, 255)}
    result = prepare(config(dataset="folder", root=str(tmp_path / "data"), classes=classes), tmp_path / "run")
    assert list(result.splits) == ["train"] and ShardSet(result.splits["train"]).index.num_labelled == 0
    facts = "train: 1 samples (1 of 8x8)  no labels (they serve stage 1 only)  b 0.9990"
    assert describe(result.report) == [facts, "train: one image; what holds for it may hold for no other"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_black_and_white_masks_without_a_white_class_stop_with_the_remedy(tmp_path, split):
    settings = make_folder(tmp_path / "data")
    for path in (tmp_path / "data" / split / "masks").iterdir():
        Image.fromarray(255 * np.array(Image.open(path))).save(path)
    with pytest.raises(ValueError, match=rf"the split '{split}' hold only 0 and 255.* the colour \[255, 255, 255\]"):
        prepare(config(**settings), tmp_path / "run")
    assert not (tmp_path / "run" / "prepare").exists()


def test_unknown_pixels_and_absent_classes_are_reported(tmp_path):
    settings = make_folder(tmp_path / "data")
    settings["classes"]["ship"] = (1, 1, 1)
    path = tmp_path / "data" / "train" / "masks" / "0.png"
    mask = np.array(Image.open(path))
    mask[0] = 255  # 14 of 6 x 140 pixels
    Image.fromarray(mask).save(path)
    train, test, absent = describe(prepare(config(**settings), tmp_path / "run").report)
    assert "ship 0.00%  (unknown: 1.67% of all)" in train and "unknown" not in test
    assert absent == "train: no pixel is of the class ship; it cannot be learnt"


def repaint(root: Path, folder: str, value: int, split: str = "*", shape=(10, 14)) -> None:
    """One value in all pixels of all images or masks."""
    for path in root.glob(f"{split}/{folder}/*"):
        Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_masks_of_nothing_but_unknown_are_refused_before_any_training(tmp_path, split):
    settings = make_folder(tmp_path / "data")
    repaint(tmp_path / "data", "masks", 255, split)
    with pytest.raises(ValueError, match=f"^{split} of the dataset at .*: every pixel of its 6 labels is unknown"):
        prepare(config(**settings), tmp_path)
    assert not (tmp_path / "prepare").exists() and not (tmp_path / "prepare.partial").exists()


def test_one_labelled_pixel_is_a_label(tmp_path):
    settings = make_folder(tmp_path / "data")
    repaint(tmp_path / "data", "masks", 255)
    for split in ("train", "test"):
        mask = np.full((10, 14), 255, np.uint8)
        mask[3, 4] = 1
        Image.fromarray(mask).save(tmp_path / "data" / split / "masks" / "0.png")
    report = prepare(config(**settings), tmp_path).report
    assert report["splits"]["train"]["class_pixel_shares"] == {"sea": 0.0, "oil": 1.0}
    lines = "\n".join(describe(report))
    assert "no pixel is of the class sea" in lines and "every labelled pixel is oil" in lines


@pytest.mark.parametrize("grey", [0, 127, 255])
def test_images_of_one_grey_are_refused_and_few_among_others_are_reported(tmp_path, grey):
    settings = make_folder(tmp_path / "data")
    Image.fromarray(np.full((10, 14), grey, np.uint8)).save(tmp_path / "data" / "train" / "images" / "0.jpg")
    report = prepare(config(**settings), tmp_path / "some").report
    assert "train: 1 of 6 images have one grey in all pixels" in "\n".join(describe(report))
    repaint(tmp_path / "data", "images", grey, "train")
    with pytest.raises(ValueError, match="each of its 6 images has one grey in all pixels"):
        prepare(config(**settings), tmp_path / "all")


def test_images_close_to_the_middle_grey_are_reported_for_b_would_be_next_to_nothing(tmp_path):
    settings = make_folder(tmp_path / "data", count=1)
    rng = np.random.default_rng(0)
    for path in (tmp_path / "data").glob("*/images/*"):
        Image.fromarray(rng.integers(126, 130, (10, 14)).astype(np.uint8)).save(path)
    lines = "\n".join(describe(prepare(config(**settings), tmp_path).report))
    assert "train: b is 0.00" in lines and "train: one image" in lines
