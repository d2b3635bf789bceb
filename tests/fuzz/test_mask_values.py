"""Masks of one meaning in many forms: every pixel has the class that was drawn, or the set is refused."""

from __future__ import annotations

import shutil

import numpy as np
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dakd.config import build_config
from dakd.data.prepare import prepare
from dakd.data.shards import ShardSet

SIDE, IGNORED = 10, 255
TABLES = (
    {"sea": [0, 0, 0], "oil": [255, 255, 255]},
    {"oil": [255, 255, 255], "sea": [0, 0, 0]},
    {"sea": [0, 0, 0], "oil": [0, 255, 255], "ship": [153, 76, 0]},
    {"land": [0, 153, 0], "sea": [0, 0, 0], "oil": [0, 255, 255], "ship": [255, 255, 255]},
)
IDS = ("L", "LA", "RGB ids", "I;16", "I", "F", "P, grey palette")
COLOURS = ("RGB", "RGBA", "P, colours in any order")


def draw_mask(kind: str, ids: np.ndarray, colours: np.ndarray, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """The picture of class ids, and the suffix of a format that holds it."""
    grey = Image.fromarray(ids)
    if kind == "RGB ids":
        return grey.convert("RGB"), "png"
    if kind in ("I;16", "I", "F"):
        return Image.fromarray(ids.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind])), "tif"
    if kind == "P, grey palette":
        grey.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
        return grey, "png"
    if kind == "P, colours in any order":
        order = rng.permutation(len(colours)).astype(np.uint8)
        picture = Image.fromarray(np.argsort(order).astype(np.uint8)[ids])
        picture.putpalette(colours[order].tobytes())
        return picture, "png"
    if kind in ("RGB", "RGBA"):
        return Image.fromarray(colours[ids]).convert(kind), "png"
    if kind == "1":
        return Image.fromarray(colours[ids][..., 0]).convert("1", dither=Image.Dither.NONE), "png"
    if kind == "0 and 255":
        return Image.fromarray(colours[ids][..., 0]), "png"
    return grey.convert(kind), "png"


@fuzzed
@given(data=st.data())
def test_each_pixel_has_the_class_that_was_drawn_or_the_set_is_refused(tmp_path, data):
    classes, rng = data.draw(st.sampled_from(TABLES)), np.random.default_rng(data.draw(st.integers(0, 2**16)))
    colours = np.array(list(classes.values()), np.uint8)
    kinds = (*IDS, *COLOURS, *(("1", "0 and 255") if len(classes) == 2 else ()))
    kind, hides = data.draw(st.sampled_from(kinds)), data.draw(st.booleans())
    present = data.draw(st.lists(st.integers(0, len(classes) - 1), min_size=1, unique=True))
    if kind in IDS and present == [0] and any(colours[0]):
        present.append(1)  # masks of nothing but 0 are black: that class, where the table has one
    root, run = tmp_path / "dataset", tmp_path / "run"
    for folder in (root, run):
        shutil.rmtree(folder, ignore_errors=True)
    for part in ("images", "masks"):
        (root / "train" / part).mkdir(parents=True)
    drawn, hidden = {}, {}
    for name in ("a", "b"):
        drawn[name] = rng.choice(present, (SIDE, SIDE)).astype(np.uint8)
        picture, suffix = draw_mask(kind, drawn[name], colours, rng)
        hidden[name] = np.zeros((SIDE, SIDE), bool)
        if kind in ("LA", "RGBA") and hides:
            hidden[name] = rng.random((SIDE, SIDE)) < 0.3
            picture.putalpha(Image.fromarray(np.where(hidden[name], 0, 255).astype(np.uint8)))
        picture.save(root / "train" / "masks" / f"{name}.{suffix}")
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)).save(root / f"train/images/{name}.png")
    settings = {"dataset": "folder", "root": str(root), "classes": classes}
    config = build_config({"name": "fuzz", "run_dir": str(run), "prepare": settings})

    def read() -> None:
        prepare(config, run)
        train = ShardSet(run / "prepare" / "train")
        assert len(train) == 2
        for sample in train:
            seen = ~hidden[sample.key]
            assert np.array_equal(sample.label[seen], drawn[sample.key][seen]), f"{kind}: another class was read"
            assert np.isin(sample.label[~seen], [IGNORED]).all(), f"{kind}: hidden pixels got a class"

    judge(f"masks, {kind}", read, root.name, "prepare")
