"""Pictures of a dataset, and pictures to predict, are read, skipped and counted, or refused by name."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from fuzz.mutations import mutated_bytes
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dakd.config import build_config
from dakd.data.prepare import prepare
from dakd.data.shards import ShardSet, verify
from dakd.predict.images import read_image

CLASSES = {"sea": [0, 0, 0], "oil": [0, 255, 255], "ship": [153, 76, 0]}


def picture(suffix: str, mode: str = "L", side: int = 12) -> bytes:
    rng, stream = np.random.default_rng(0), io.BytesIO()
    values = rng.integers(0, 3 if mode == "P" else 256, (side, side), dtype=np.uint8)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 255, 255, 153, 76, 0])
    elif mode != "L":
        image = image.convert(mode)
    image.save(stream, {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP"}[suffix])
    return stream.getvalue()


PICTURES = [(suffix, picture(suffix, mode)) for suffix, mode in
            (("png", "L"), ("png", "RGB"), ("png", "P"), ("png", "I;16"), ("png", "1"), ("jpg", "L"), ("jpg", "RGB"),
             ("tif", "L"), ("tif", "RGB"), ("tif", "F"), ("tif", "LA"), ("tif", "CMYK"), ("jpg", "CMYK"), ("png", "LA"),
             ("bmp", "L"), ("bmp", "P"))]  # fmt: skip


@fuzzed
@given(data=st.data())
def test_pictures_to_predict(tmp_path, data):
    suffix, content = data.draw(st.sampled_from(PICTURES))
    file = tmp_path / f"scene.{suffix}"
    file.write_bytes(data.draw(mutated_bytes(content)))

    def read() -> None:
        sar = read_image(file)
        assert sar.dtype == np.uint8 and sar.ndim == 2 and sar.size

    judge("pictures to predict", read, file.name)


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("on_bad_file", ["stop", "skip"])
def test_pictures_of_a_dataset(tmp_path, on_bad_file, data):
    root, run = tmp_path / "dataset", tmp_path / "run"
    for folder in (root, run):
        shutil.rmtree(folder, ignore_errors=True)
    for kind in ("images", "masks"):
        (root / "train" / kind).mkdir(parents=True)
    for name in ("a", "b"):
        (root / "train" / "images" / f"{name}.png").write_bytes(picture("png"))
        (root / "train" / "masks" / f"{name}.png").write_bytes(picture("png", "P"))
    kind = data.draw(st.sampled_from(("images", "masks")))
    suffix, content = data.draw(st.sampled_from(PICTURES))
    (root / "train" / kind / "b.png").unlink()
    (root / "train" / kind / f"b.{suffix}").write_bytes(data.draw(mutated_bytes(content)))
    config = build_config(
        {
            "name": "fuzz",
            "run_dir": str(run),
            "prepare": {"dataset": "folder", "root": str(root), "classes": CLASSES, "on_bad_file": on_bad_file},
        }
    )

    def read() -> str:
        prepare(config, run)
        train = ShardSet(run / "prepare" / "train")
        assert verify(train.folder) == [] and 1 <= len(train) <= 2
        return "read" if len(train) == 2 else "skipped"

    judge(f"dataset, {on_bad_file}", read, root.name)
