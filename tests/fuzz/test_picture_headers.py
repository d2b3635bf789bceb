"""Whole pictures with odd headers: an image has the greys that were written, or is refused, never other ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from dakd.predict.images import read_image

SIDE = 8
MODES = ("L", "1", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")
SUFFIXES = {"png": "PNG", "tif": "TIFF", "jpg": "JPEG", "bmp": "BMP"}


@st.composite
def written(draw, folder: Path) -> tuple[Path, np.ndarray, bool]:
    """A picture, the grey values that were written, and whether all of them can be had without a choice."""
    mode, suffix = draw(st.sampled_from(MODES)), draw(st.sampled_from(tuple(SUFFIXES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    greys = rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    picture, is_plain, options = Image.fromarray(greys), True, {}
    if mode == "1":
        greys = np.where(greys > 127, 255, 0).astype(np.uint8)
        picture = Image.fromarray(greys).convert("1", dither=Image.Dither.NONE)
    elif mode in ("P", "PA"):
        order = rng.permutation(256).astype(np.uint8)  # the palette gives each index its grey
        indices = Image.fromarray(np.argsort(order).astype(np.uint8)[greys])
        indices.putpalette(np.repeat(order, 3).tobytes())
        picture = indices if mode == "P" else indices.convert("PA")
    elif mode in ("I;16", "I", "F"):
        deep = greys.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        picture, is_plain = Image.fromarray(deep * draw(st.sampled_from((1, 257)))), False
    elif mode != "L":
        picture = picture.convert(mode)
        is_plain = mode not in ("CMYK", "YCbCr")
    if mode in ("LA", "RGBA", "PA") and draw(st.booleans()):
        alpha = rng.choice(draw(st.sampled_from(([0, 255], [0, 100, 255], [254, 255]))), (SIDE, SIDE))
        picture.putalpha(Image.fromarray(alpha.astype(np.uint8)))
        is_plain = bool((alpha == 255).all())
    if draw(st.integers(0, 3)) == 0:
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(1, 8))
        options["exif"], is_plain = exif, is_plain and exif[0x0112] == 1
    if suffix == "tif" and draw(st.integers(0, 3)) == 0:
        options |= {"save_all": True, "append_images": [picture.copy()]}
        is_plain = False
    if suffix == "tif" and draw(st.integers(0, 3)) == 0:
        options["tiffinfo"] = TiffImagePlugin.ImageFileDirectory_v2()
        options["tiffinfo"][42113] = draw(st.sampled_from(("0", "255", "nan", "-9999", "x")))  # GDAL's no-data value
        is_plain = False
    if suffix == "jpg":  # JPEG errs most on noise, as these greys are
        options["quality"] = 95
    file = folder / f"scene.{suffix}"
    try:
        picture.save(file, SUFFIXES[suffix], **options)
    except (OSError, ValueError, KeyError, TypeError):  # a kind that this format cannot hold
        picture, is_plain = Image.fromarray(greys), True
        picture.save(file, SUFFIXES[suffix], **({"quality": 95} if suffix == "jpg" else {}))
    return file, greys, is_plain


@fuzzed
@given(data=st.data())
def test_a_picture_has_the_greys_that_were_written_or_is_refused(tmp_path, data):
    file, greys, is_plain = data.draw(written(tmp_path))
    found = []
    outcome = judge("picture headers", lambda: found.append(read_image(file)), file.name)
    if outcome == "read":
        limit = 40 if file.suffix == ".jpg" else 0  # JPEG's errors
        assert np.abs(found[0].astype(int) - greys).max() <= limit, "other greys were read"
    assert outcome == "read" or not is_plain or file.suffix == ".jpg"
