"""What counts as an image to predict."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dakd.data.readers import BadFile
from dakd.predict.images import list_images, read_image

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_values_are_read_as_they_are(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(path)
    assert (read_image(path) == GREY).all()


def test_equal_channels_are_one_image(tmp_path):
    Image.fromarray(np.repeat(GREY[..., None], 3, axis=-1)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == GREY).all()


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(BadFile, match=r"1 channel of 16-bit.*expected 8-bit grey"):
        read_image(tmp_path / "a.png")


def test_colour_is_refused(tmp_path):
    pixels = np.repeat(GREY[..., None], 3, axis=-1)
    pixels[0, 0, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(BadFile, match="expected grey"):
        read_image(tmp_path / "a.png")


def test_several_pages_are_refused(tmp_path):
    page = Image.fromarray(GREY)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(BadFile, match="has 2 pages"):
        read_image(tmp_path / "a.tif")


def test_files_and_folders_beside_the_images_are_named(tmp_path):
    (tmp_path / "more.png").mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png", "._a.jpg", "Thumbs.db", "more.png/c.png", "x.tif.gz"):
        (tmp_path / name).touch()
    (tmp_path / "gone.tif").symlink_to(tmp_path / "nowhere")  # it is reported when it is read
    images, unread = list_images(tmp_path)
    assert [path.name for path in images] == ["a.jpg", "b.PNG", "gone.tif"]
    assert unread == ["more.png/ (1 file)", "notes.txt", "x.tif.gz"]


def test_nothing_to_predict_is_an_error(tmp_path):
    (tmp_path / "s1").mkdir()
    for name in ("s1/a.png", "a.jp2", "b.jp2", "c.jp2", "d.jp2"):
        (tmp_path / name).touch()
    found = r"found \*\.jp2 \(4 files, such as a\.jp2\), s1/ \(1 file\)"
    with pytest.raises(ValueError, match=rf"no image in .*expected files that end in \.png.*sub-folders; {found}"):
        list_images(tmp_path)
    with pytest.raises(ValueError, match="no file or folder"):
        list_images(tmp_path / "absent")


def test_a_tiff_whose_pages_cannot_be_counted_is_named(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    data = path.read_bytes()
    start = int.from_bytes(data[4:8], "little")
    tags = int.from_bytes(data[start : start + 2], "little")
    end = start + 2 + 12 * tags
    # A second page without dimensions: its directory has no entry.
    path.write_bytes(data[:end] + len(data).to_bytes(4, "little") + data[end + 4 :] + bytes(2) + bytes(4))
    with pytest.raises(BadFile, match=r"a\.tif: (cannot be read as a picture|has 2 pages)"):
        read_image(path)


def test_what_a_picture_loses_or_hides_is_said(tmp_path, capsys):
    """A place on Earth, a black border, and greys that the student has never seen."""
    from dakd.data.radiometry import Radiometry
    from dakd.predict.images import remarks_on

    greys = np.random.default_rng(0).integers(90, 130, (40, 60), dtype=np.uint8)
    radiometry = Radiometry(greys=(5, 110, 250), image_greys=(20, 110, 200), image_medians=(60, 180))
    assert remarks_on(tmp_path / "none.png", greys, radiometry) == []
    placed = TiffImagePlugin.ImageFileDirectory_v2()
    placed[33550], placed[33922] = (40.0, 40.0, 0.0), (0.0, 0.0, 0.0, 5e5, 4.6e6, 0.0)
    Image.fromarray(greys).save(tmp_path / "placed.tif", tiffinfo=placed)
    (remark,) = remarks_on(tmp_path / "placed.tif", greys, radiometry)
    assert "place on Earth" in remark and "dakd scene" in remark
    Image.fromarray(greys).save(tmp_path / "plain.tif")
    assert remarks_on(tmp_path / "plain.tif", greys, radiometry) == []
    bordered = greys.copy()
    bordered[:, :15] = 0
    (remark,) = remarks_on(tmp_path / "none.png", bordered, radiometry)
    assert remark.startswith("25.0% of it is a black border")
    (remark,) = remarks_on(tmp_path / "none.png", greys // 10, radiometry)
    assert "darker than the student's training images" in remark and "--window match" in remark
