"""Datasets in every published layout: an untouched sample is read as it was, a damaged one reported or counted."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from fuzz.mutations import mutated_bytes
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dakd.config import Config, build_config
from dakd.data.prepare import prepare
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES, ClassTable, Sample
from dakd.data.shards import ShardSet, verify
from dakd.evaluate.inputs import LabelledFolder

SIDE, KEYS = 12, {"0", "1"}
_FORMATS = {"jpg": "JPEG", "png": "PNG", "tif": "TIFF", "bmp": "BMP"}
# By layout: settings of prepare, and where the image and the label of sample i of a split stand.
LAYOUTS = {
    "osd, ids": ({"dataset": "osd"}, "{split}/images/{i}.jpg", "{split}/labels_1D/{i}.png"),
    "osd, colours": ({"dataset": "osd"}, "{split}/images/{i}.jpg", "{split}/labels/{i}.png"),
    "sos, original": ({"dataset": "sos", "sensor": "sentinel"}, "{split}/sentinel/{i}_sat.jpg",
                      "{split}/sentinel/{i}_mask.png"),
    "sos, folders": ({"dataset": "sos", "sensor": "sentinel"}, "{split}/Sentinel/image/{i}.png",
                     "{split}/Sentinel/label/{i}.png"),
    "sos, by kind": ({"dataset": "sos", "sensor": "palsar"}, "images/{split}/palsar_{i}.png",
                     "masks/{split}/palsar_{i}.png"),
    "folder": ({"dataset": "folder"}, "{split}/images/{i}.png", "{split}/masks/{i}.png"),
}  # fmt: skip
# The same without splits, as an evaluation takes them.
FLAT = {
    "osd": ("images/{i}.jpg", "labels_1D/{i}.png"),
    "sos": ("sat/{i}_sat.png", "gt/{i}_mask.png"),
    "folder": ("images/{i}.png", "masks/{i}.png"),
}
NAMES = (".png", "0", "0.png", "0.jpg", "1_mask.png", "1_sat.png", "a b.png", "\udcff.png", "palsar_.png", "x" * 250,
         "IMAGES", "val", "sentinel", "labels_1D", "0\n.png", "².png")  # fmt: skip


def picture(pixels: np.ndarray, suffix: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, _FORMATS[suffix])
    return stream.getvalue()


def write(root: Path, image: str, label: str, classes: ClassTable, splits: Iterable[str]) -> None:
    """A whole dataset; oil and other classes are darker than the sea."""
    rng = np.random.default_rng(0)
    for split in splits:
        for i in sorted(KEYS):
            ids = rng.integers(0, classes.num_classes, (SIDE, SIDE)).astype(np.uint8)
            sar = np.where(ids == 0, 180, 60).astype(np.uint8)
            mask = ids if "1D" in label or classes != SOS_CLASSES else ids * 255
            mask = classes.palette()[ids] if "/labels/" in label else mask
            for place, pixels in ((image, sar), (label, mask)):
                file = root / place.format(split=split, i=i)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture(pixels, file.suffix[1:]))


@st.composite
def damaged(draw, root: Path) -> set[str]:
    """One to three changes to the files below `root`: their bytes, kinds, names and places; whose samples they are."""
    touched = set()
    for _ in range(draw(st.integers(1, 3))):
        files = sorted(str(path.relative_to(root)) for path in root.rglob("*.*") if path.is_file())
        if not files:
            break
        file = root / draw(st.sampled_from(files))
        touched |= set(file.name)
        change = draw(st.integers(0, 6))
        if change <= 1:
            file.write_bytes(draw(mutated_bytes(file.read_bytes())))
        elif change == 2:
            mode = draw(st.sampled_from(("L", "RGB", "P", "1", "I;16", "RGBA")))
            side = draw(st.sampled_from((1, 7, SIDE)))
            image = Image.new("L", (side, side), draw(st.integers(0, 255))).convert(mode)
            suffix = draw(st.sampled_from(("png", "tif")))
            image.save(file.with_suffix(f".{suffix}"), _FORMATS[suffix])
        elif change == 3:
            file.unlink()
        elif change == 4:
            name = draw(st.sampled_from(NAMES))
            if not (file.parent / name).exists():
                file.rename(file.parent / name)
                touched |= set(name)
        elif change == 5:
            file.unlink()
            kind = draw(st.sampled_from(("folder", "link", "circle", "pipe")))
            if kind == "folder":
                file.mkdir()
            elif kind == "pipe":
                os.mkfifo(file)
            else:
                file.symlink_to("/dev/null" if kind == "link" else file.name)
        else:
            other = file.parent.with_name(draw(st.sampled_from(("Images", "IMAGE", "label", "masks", "old", "test"))))
            if not other.exists():
                touched |= KEYS
                file.parent.rename(other)
    return touched & KEYS


def refuse_changed(found: Iterable[Sample], whole: dict[str, Sample], touched: set[str]) -> None:
    for sample in found:
        # Where the masks' folder is gone, a folder's images are those of a set without masks.
        assert sample.label is None or sample.sar.shape == sample.label.shape, "a label that does not fit was accepted"
        if sample.key in KEYS - touched:
            true = whole[sample.key]
            assert np.array_equal(sample.sar, true.sar), "another image was accepted"
            assert np.array_equal(sample.label, true.label), "another label was accepted"


def by_key(shards: ShardSet | LabelledFolder) -> dict[str, Sample]:
    return {sample.key: sample for sample in map(shards.read, range(len(shards)))}


def configured(tmp_path: Path, settings: dict, on_bad_file: str, **others: dict) -> Config:
    known = dict(zip(OSD_CLASSES.names, map(list, OSD_CLASSES.colours)))
    own = {"classes": known} if settings["dataset"] == "folder" else {}
    root = {"root": str(tmp_path / "dataset"), "on_bad_file": on_bad_file}
    return build_config({"name": "fuzz", "run_dir": str(tmp_path / "run"), "prepare": settings | own | root} | others)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, tuple[Path, dict[str, dict[str, Sample]]]]:
    """By layout: the folder of a whole dataset, and what is read of it, by split and key."""
    found = {}
    for layout, (settings, image, label) in LAYOUTS.items():
        folder = tmp_path_factory.mktemp("whole")
        classes = SOS_CLASSES if settings["dataset"] == "sos" else OSD_CLASSES
        write(folder / "dataset", image, label, classes, ("train", "val" if "kind" in layout else "test"))
        splits = prepare(configured(folder, settings, "stop")).splits
        found[layout] = folder / "dataset", {split: by_key(ShardSet(place)) for split, place in splits.items()}
    return found


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("on_bad_file", ["stop", "skip"])
def test_files_of_a_dataset(datasets, tmp_path, on_bad_file, data):
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    original, whole = datasets[layout]
    root, run = tmp_path / "dataset", tmp_path / "run"
    for folder in (root, run):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, root)
    config = configured(tmp_path, LAYOUTS[layout][0], on_bad_file)
    touched = data.draw(damaged(root))

    def read() -> str:
        report = prepare(config, run).report
        for split in ("train", "test"):
            shards = ShardSet(run / "prepare" / split)
            assert verify(shards.folder) == []
            refuse_changed(by_key(shards).values(), whole[split], touched)
        return "skipped" if report["skipped"] else "read"

    outcome = judge(f"dataset, {layout}", read, root.name, "polarity")
    assert outcome in ("read", "refused") or on_bad_file == "skip"


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("kind", sorted(FLAT))
def test_files_of_a_folder_to_evaluate_on(tmp_path, kind, data):
    root = tmp_path / "dataset"
    shutil.rmtree(root, ignore_errors=True)
    classes = SOS_CLASSES if kind == "sos" else OSD_CLASSES
    write(root, *FLAT[kind], classes, ("all",))
    on_bad_file = data.draw(st.sampled_from(("stop", "skip")))
    settings = {"dataset": kind} | ({"sensor": "sentinel"} if kind == "sos" else {})
    config = configured(tmp_path, settings, on_bad_file, evaluate={"folder": str(root), "dataset": "auto"})
    whole = by_key(LabelledFolder(config, classes))
    touched = data.draw(damaged(root))

    def read() -> str:
        found = LabelledFolder(config, classes)
        refuse_changed(by_key(found).values(), whole, touched)
        return "skipped" if found.skipped else "read"

    outcome = judge(f"folder to evaluate on, {kind}", read, root.name, "polarity")
    assert outcome in ("read", "refused") or on_bad_file == "skip"
