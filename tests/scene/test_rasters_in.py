"""Scenes of every kind are read right, or refused with a remedy; nothing is lost without a word."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rasterio")

from scene_worlds import utm, write_tif

from dakd.scene.bad_scene import BadScene
from dakd.scene.rasters_in import collar_of, open_raster, scenes_in, time_in

GREYS = np.random.default_rng(0).integers(1, 256, (40, 50)).astype(np.uint8)


def read(path, **options):
    raster = open_raster(str(path), **options)
    values, valid = raster.read(0, raster.place.height)
    return raster, values, valid


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}])
def test_numbers_of_any_type_and_layout_are_read_as_they_are(tmp_path, dtype, layout):
    path = write_tif(tmp_path / "a.tif", GREYS.astype(dtype), **layout, **utm())
    raster, values, valid = read(path)
    assert raster.dtype == dtype and values.dtype == np.float32 and valid.all()
    assert (values == GREYS).all()


def test_rows_are_the_same_however_many_are_read(tmp_path):
    raster, values, _ = read(write_tif(tmp_path / "a.tif", GREYS, **utm()))
    parts = [raster.read(top, min(top + 7, 40))[0] for top in range(0, 40, 7)]
    assert (np.concatenate(parts) == values).all()


def test_vv_is_chosen_by_its_name_and_the_band_left_out_is_named(tmp_path):
    two = np.stack([GREYS, GREYS[::-1]])
    path = write_tif(tmp_path / "a.tif", two, descriptions=("VH", "VV"), **utm())
    raster, values, _ = read(path)
    assert raster.band == "VV" and (values == GREYS[::-1]).all()
    assert any("1 VH" in note and "--band" in note for note in raster.notes)
    for band in ("VH", "vh", "1"):
        assert (read(path, band=band)[1] == GREYS).all()
    with pytest.raises(BadScene, match=r"no band 'HH'; it has: 1 VH, 2 VV; choose"):
        read(path, band="HH")


def test_of_bands_without_names_the_first_is_read_and_the_note_says_so(tmp_path):
    raster, values, _ = read(write_tif(tmp_path / "a.tif", np.stack([GREYS, GREYS // 2]), photometric="minisblack"))
    assert (values == GREYS).all() and any("not read: 2" in note for note in raster.notes)


def test_grey_stored_as_colours_is_taken_and_a_colour_picture_is_not(tmp_path):
    same = write_tif(tmp_path / "a.tif", np.stack([GREYS] * 3), photometric="rgb")
    assert (read(same)[1] == GREYS).all()
    other = write_tif(tmp_path / "b.tif", np.stack([GREYS, GREYS, GREYS // 2]), photometric="rgb")
    with pytest.raises(BadScene, match="colour picture; choose one band"):
        read(other)
    assert (read(other, band="3")[1] == GREYS // 2).all()


def test_overviews_are_no_pages_and_a_cog_is_read_at_full_size(tmp_path):
    import rasterio
    from rasterio.enums import Resampling

    path = write_tif(tmp_path / "a.tif", np.tile(GREYS, (20, 20)), tiled=True, blockxsize=64, blockysize=64, **utm())
    with rasterio.open(path, "r+") as made:
        made.build_overviews([2, 4], Resampling.average)
    assert read(path)[1].shape == (800, 1000)


@pytest.mark.parametrize("nodata, dtype", [(7, "uint8"), (-99.0, "float32"), (float("nan"), "float32"),
                                           (-3.4028234663852886e38, "float32")])  # fmt: skip
def test_the_files_value_without_data_is_not_valid(tmp_path, nodata, dtype):
    array = GREYS.astype(dtype)
    array[GREYS == 7] = 8
    array[3:5, 4:9] = nodata
    _, values, valid = read(write_tif(tmp_path / "a.tif", array, nodata=nodata, **utm()))
    assert (~valid).sum() == 10 and not valid[3:5, 4:9].any() and (values[~valid] == 0).all()


def test_nan_infinity_a_mask_alpha_and_a_value_of_the_users_are_not_valid(tmp_path):
    array = GREYS.astype(np.float32)
    array[0, 0], array[1, 1] = np.nan, np.inf
    assert (~read(write_tif(tmp_path / "a.tif", array))[2]).sum() == 2
    mask = np.full(GREYS.shape, 255, np.uint8)
    mask[:, :6] = 0
    assert (read(write_tif(tmp_path / "b.tif", GREYS, mask=mask))[2] == (mask > 0)).all()
    alpha = write_tif(tmp_path / "c.tif", np.stack([GREYS, mask]), photometric="minisblack", alpha="yes")
    raster, _, valid = read(alpha)
    assert (valid == (mask > 0)).all() and raster.notes == [], "transparency is no band that is lost"
    marked = write_tif(tmp_path / "d.tif", np.where(mask > 0, GREYS, 0).astype(np.uint8))
    assert (read(marked, nodata=0)[2] == (mask > 0)).all()


def test_a_black_collar_is_not_valid_and_black_pixels_of_the_sea_are(tmp_path):
    array = GREYS.copy()
    for row in range(40):
        array[row, : max(0, 20 - row)] = 0
    array[20, 20:30] = 0
    array[39] = 0
    _, _, valid = read(write_tif(tmp_path / "a.tif", array))
    for row in range(39):
        width = max(0, 20 - row)
        assert (valid[row] == (np.arange(50) >= (width if width >= 8 else 0))).all()
    assert not valid[39].any() and valid[20, 20:30].all()
    assert not collar_of(np.ones((3, 20), np.float32)).any()


def test_the_scale_of_a_band_is_applied(tmp_path):
    import rasterio

    path = write_tif(tmp_path / "a.tif", GREYS.astype(np.int16), nodata=-1, **utm())
    with rasterio.open(path, "r+") as made:
        made.scales, made.offsets = (0.01,), (-30.0,)
    assert np.allclose(read(path)[1], GREYS * 0.01 - 30, atol=1e-5)


def test_a_transform_without_a_crs_asks_for_one(tmp_path):
    path = write_tif(tmp_path / "a.tif", GREYS, transform=utm()["transform"])
    with pytest.raises(BadScene, match=r"no CRS.*--crs EPSG:CODE, or --crs none"):
        read(path)
    assert read(path, crs="none")[0].place.kind == "pixels"
    assert read(path, crs="EPSG:32632")[0].place.kind == "transform"
    with pytest.raises(BadScene, match="expected a code"):
        read(path, crs="EPSG:999999")


def test_a_crs_with_the_transform_of_plain_pixels_is_no_place(tmp_path):
    raster, *_ = read(write_tif(tmp_path / "a.tif", GREYS, crs="EPSG:4326"))
    assert raster.place.kind == "pixels" and any("not georeferenced" in note for note in raster.notes)


def test_a_complex_image_a_palette_and_rational_polynomials_are_refused(tmp_path):
    import rasterio

    with pytest.raises(BadScene, match="single-look complex"):
        read(write_tif(tmp_path / "a.tif", GREYS.astype(np.complex64)))
    path = write_tif(tmp_path / "b.tif", GREYS, photometric="palette")
    with rasterio.open(path, "r+") as made:
        made.write_colormap(1, {i: (i, 0, 0, 255) for i in range(256)})
    with pytest.raises(BadScene, match="palette"):
        read(path)
    path = write_tif(tmp_path / "c.tif", GREYS)
    with rasterio.open(path, "r+") as made:
        ones = [1.0] + [0.0] * 19
        made.rpcs = rasterio.rpc.RPC(0, 1, 40, 1, ones, ones, 20, 20, 11, 1, ones, ones, 20, 20, 0, 0)
    with pytest.raises(BadScene, match="RPC"):
        read(path)


def test_files_that_are_no_scene_are_refused_with_a_remedy(tmp_path):
    whole = write_tif(tmp_path / "a.tif", np.tile(GREYS, (20, 20)), compress="deflate", **utm()).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (tmp_path / "spoilt.tif").write_bytes(whole[:middle] + bytes(5000) + whole[middle + 5000 :])
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "x.zip").write_bytes(b"PK")
    for name, reason in (
        ("cut.tif", "cannot be read"),
        ("spoilt.tif", "in rows 0 to 799"),
        ("text.tif", "cannot be read"),
        ("x.zip", "SAFE"),
        ("none.tif", "no file"),
    ):
        with pytest.raises(BadScene, match=reason):
            read(tmp_path / name)


def test_a_picture_is_read_as_images_of_a_dataset_are(tmp_path):
    Image.fromarray(GREYS).save(tmp_path / "S1A_20211223T051122.png")
    raster, values, valid = read(tmp_path / "S1A_20211223T051122.png", pixel_size_m=80.0)
    assert (values == GREYS).all() and valid.all() and raster.place.spacing_m == (80, 80)
    assert raster.time_utc == "2021-12-23T05:11:22Z"
    Image.fromarray(np.dstack([GREYS, GREYS // 2, GREYS])).save(tmp_path / "colour.png")
    with pytest.raises(BadScene, match="expected"):
        read(tmp_path / "colour.png")
    with pytest.raises(BadScene, match="no transform"):
        read(tmp_path / "S1A_20211223T051122.png", crs="EPSG:4326")


def test_a_vrt_is_read_and_does_not_reach_the_network_by_itself(tmp_path):
    write_tif(tmp_path / "a.tif", GREYS, **utm())
    text = (
        '<VRTDataset rasterXSize="50" rasterYSize="40"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="{0}">{1}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    (tmp_path / "a.vrt").write_text(text.format(1, "a.tif"))
    assert (read(tmp_path / "a.vrt")[1] == GREYS).all()
    (tmp_path / "b.vrt").write_text(text.format(0, "/vsicurl/http://127.0.0.1:9/a.tif"))
    with pytest.raises(BadScene, match="cannot be read"):
        read(tmp_path / "b.vrt")


@pytest.mark.parametrize("text, time", [
    ("s1b-iw-grd-vv-20210401t052623-20210401t052648.tiff", "2021-04-01T05:26:23Z"),
    ("S1A__IW___A_20150309T173017_VV.tif", "2015-03-09T17:30:17Z"),
    ("2021:12:23 05:11:22", "2021-12-23T05:11:22Z"),
    ("2021-12-23T05:11:22.5Z", "2021-12-23T05:11:22Z"),
    ("scene 20211399T051122", None), ("a.tif", None), (None, None),
])  # fmt: skip
def test_the_time_is_found_in_tags_and_names(text, time):
    assert time_in(text) == time


def test_the_scenes_of_a_folder_are_listed_once_and_in_order(tmp_path):
    for name in ("b.tif", "a.TIFF", "c.png", ".hidden.tif", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = scenes_in([str(tmp_path), str(tmp_path / "b.tif"), "/vsicurl/http://x/y.tif"])
    assert found == [*(str(tmp_path / name) for name in ("a.TIFF", "b.tif", "c.png")), "/vsicurl/http://x/y.tif"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no scene in"):
        scenes_in([str(tmp_path / "empty")])
