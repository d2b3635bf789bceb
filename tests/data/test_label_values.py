"""The meaning of mask values: decided once per split, by colours before ids; what is not certain is refused."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dakd.config import build_config
from dakd.data.prepare import prepare
from dakd.data.readers import BadDataset
from dakd.data.sample import IGNORE_INDEX, OSD_CLASSES, ClassTable
from dakd.data.shards import ShardSet
from dakd.evaluate.inputs import LabelledFolder, open_images

THREE = {"sea": [0, 0, 0], "oil": [0, 255, 255], "land": [0, 153, 0]}
TWO = {"sea": [0, 0, 0], "oil": [0, 255, 255]}
WHITE_OIL = {"oil": [255, 255, 255], "sea": [0, 0, 0]}
IDS = np.zeros((24, 32), np.uint8)
IDS[4:10, 4:12] = 1
IDS[14:20, 20:30] = 2
OIL = np.minimum(IDS, 1) * (IDS != 2)
SAR = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8)  # no constant picture, which would be refused
EMPTY = np.zeros_like(IDS)


def palette_picture(values: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(values.astype(np.uint8), "P")
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


def coloured(ids: np.ndarray, classes: dict) -> Image.Image:
    return Image.fromarray(np.array(list(classes.values()), np.uint8)[ids])


def big_endian_tiff(values: np.ndarray) -> bytes:
    """16-bit grey, the most significant byte first."""
    height, width = values.shape
    entries = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
               (278, 3, height), (279, 4, 2 * values.size)]  # fmt: skip
    data = values.astype(">u2").tobytes()
    fields = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", one, 0) if kind == 3 else struct.pack(">I", one))
        for tag, kind, one in entries
    )
    head = b"MM\0*" + struct.pack(">I", 8 + len(data))
    return head + data + struct.pack(">H", len(entries)) + fields + struct.pack(">I", 0)


def write(root: Path, *masks: Image.Image | bytes, split: str = "train", suffix: str = "png") -> Path:
    for number, mask in enumerate(masks):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        path = root / split / "masks" / f"{number}.{suffix}"
        path.write_bytes(mask) if isinstance(mask, bytes) else mask.save(path)
        Image.fromarray(SAR).save(root / split / "images" / f"{number}.png")
    return root


def prepared(root: Path, classes: dict, **settings) -> ShardSet:
    tree = {"dataset": "folder", "root": str(root), "classes": classes} | settings
    result = prepare(build_config({"name": "x", "prepare": tree}), root.with_name(f"{root.name} run"), rebuild=True)
    return ShardSet(result.splits["train"])


def labels(root: Path, classes: dict, **settings) -> list[np.ndarray]:
    shards = prepared(root, classes, **settings)
    return [shards.read(index).label for index in range(len(shards))]


# --- ids --------------------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[], Image.Image]] = {
    "8-bit grey": lambda: Image.fromarray(IDS),
    "grey with alpha": lambda: Image.fromarray(np.stack([IDS, np.full_like(IDS, 255)], -1), "LA"),
    "grey RGB": lambda: Image.fromarray(np.repeat(IDS[..., None], 3, -1)),
    "grey RGBA": lambda: Image.fromarray(
        np.concatenate([np.repeat(IDS[..., None], 3, -1), 255 + 0 * IDS[..., None]], -1)
    ),
    "16-bit grey": lambda: Image.fromarray(IDS.astype(np.uint16)),
    "a foreign palette": lambda: palette_picture(IDS, (7, 7, 7), (8, 8, 8), (9, 9, 9)),
    "a palette in the order of the ids": lambda: palette_picture(IDS, *map(tuple, THREE.values())),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_ids_in_every_pixel_type(tmp_path, form):
    (read,) = labels(write(tmp_path / "data", FORMS[form]()), THREE)
    assert np.array_equal(read, IDS)


@pytest.mark.parametrize("dtype", ["int32", "float32", "big-endian"])
def test_ids_are_ids_in_tiffs_of_other_numbers(tmp_path, dtype):
    mask = big_endian_tiff(IDS) if dtype == "big-endian" else Image.fromarray(IDS.astype(dtype))
    (read,) = labels(write(tmp_path / "data", mask, suffix="tif"), THREE)
    assert np.array_equal(read, IDS)


def test_greys_of_two_bits_are_the_stored_ids(tmp_path):
    rows = b"".join(b"\0" + np.packbits(np.stack([row >> 1, row & 1], -1).ravel()).tobytes() for row in IDS)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 32, 24, 2, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    (read,) = labels(write(tmp_path / "data", b"\x89PNG\r\n\x1a\n" + data), THREE)
    assert np.array_equal(read, IDS)


def test_floats_that_are_no_whole_numbers_and_numbers_beyond_the_table_are_named(tmp_path):
    half = IDS.astype(np.float32)
    half[0, 0], half[0, 1] = 0.5, np.nan
    with pytest.raises(BadDataset, match=r"0\.tif: holds 0\.5, nan in 2 pixels; expected whole numbers"):
        labels(write(tmp_path / "half", Image.fromarray(half), suffix="tif"), THREE)
    for name, values in (("negative", -IDS.astype(np.int32)), ("large", 300 * IDS.astype(np.int32))):
        with pytest.raises(BadDataset, match=r"neither ids 0 to 2 .* nor class colours"):
            labels(write(tmp_path / name, Image.fromarray(values), suffix="tif"), THREE)


def test_unknown_pixels_among_ids_stay_unknown(tmp_path):
    mask = IDS.copy()
    mask[0] = IGNORE_INDEX
    (read,) = labels(write(tmp_path / "data", Image.fromarray(mask)), THREE)
    assert np.array_equal(read, mask)


def test_ids_from_one_are_refused_with_the_remedy(tmp_path):
    data = write(tmp_path / "data", Image.fromarray(IDS + 1), Image.fromarray(np.maximum(IDS, 1)))
    for choice in ("stop", "skip"):
        with pytest.raises(ValueError, match=r"the values 1 to 3 and no 0.*subtract 1 from all masks"):
            labels(data, THREE, on_bad_file=choice)


def test_stretched_ids_and_jpegs_of_ids_are_refused(tmp_path):
    stretched = Image.fromarray(np.array([0, 127, 255], np.uint8)[IDS])
    with pytest.raises(BadDataset, match=r"neither ids 0 to 2 \(255: unknown\) nor class colours: \(127, 127, 127\)"):
        labels(write(tmp_path / "stretched", stretched), THREE)
    # Most masks have no meaning, so that the rest is not believed either.
    several = write(tmp_path / "several", stretched, stretched, Image.fromarray(EMPTY))
    with pytest.raises(BadDataset, match="no usable sample in train"):
        labels(several, THREE, on_bad_file="skip")
    with pytest.raises(BadDataset, match="is a JPEG, whose compression changes ids"):
        labels(write(tmp_path / "jpeg", Image.fromarray(IDS), suffix="jpg"), THREE, mask_values="ids")
    for setting in ("auto", "binary"):
        picture = Image.fromarray(255 * OIL)
        with pytest.raises(BadDataset, match=r"is a JPEG.*magick IN -threshold 50% OUT\.png"):
            labels(write(tmp_path / setting, picture, suffix="jpg"), TWO, mask_values=setting)
    for name, mask, classes in (("ids.tif", IDS, THREE), ("white.tif", 255 * OIL, TWO)):
        data = write(tmp_path / name, b"", suffix="tif")
        Image.fromarray(mask).save(data / "train" / "masks" / "0.tif", compression="jpeg")  # as GDAL's COMPRESS=JPEG
        with pytest.raises(BadDataset, match="or a TIFF compressed like one; expected PNG, or TIFF with an exact"):
            labels(data, classes)
        tree = {"name": "x", "prepare": {"dataset": "folder", "root": str(data), "classes": classes},
                "evaluate": {"folder": str(data / "train")}}  # fmt: skip
        with pytest.raises(BadDataset, match="or a TIFF compressed like one"):
            LabelledFolder(build_config(tree), ClassTable(tuple(classes), tuple(map(tuple, classes.values()))))
    one_value = Image.fromarray(np.full_like(IDS, 1))  # as strong compression makes of ids 0, 1 and 2
    with pytest.raises(BadDataset, match="is a JPEG"):
        labels(write(tmp_path / "one value", one_value, suffix="jpg"), THREE)
    with pytest.raises(BadDataset, match="is a JPEG"):
        labels(write(tmp_path / "no white", one_value, suffix="jpg"), TWO, mask_values="binary")


# --- colours ----------------------------------------------------------------------------------------------------------


def test_a_palette_of_the_class_colours_in_another_order_is_read_by_its_colours(tmp_path):
    other = palette_picture(np.array([2, 0, 1])[IDS], *[tuple(THREE[name]) for name in ("oil", "land", "sea")])
    empty = Image.fromarray(EMPTY)
    data = write(tmp_path / "data", other, coloured(IDS, THREE), empty)
    read = labels(data, THREE)
    assert [np.array_equal(one, wanted) for one, wanted in zip(read, (IDS, IDS, EMPTY))] == [True] * 3


def test_bits_are_black_and_white(tmp_path):
    bits = Image.fromarray(OIL.astype(bool))
    (read,) = labels(write(tmp_path / "white first", bits), WHITE_OIL)
    assert np.array_equal(read, 1 - OIL)
    shards = prepared(write(tmp_path / "no white", bits), TWO)  # black is sea by colour, so white is oil
    assert np.array_equal(shards.read(0).label, OIL)
    assert shards.index.provenance["mask_values"]["classes"]["oil"] == {"pixels": 48, "values": ["1"]}
    for classes in (THREE, {"oil": [0, 255, 255], "sea": [0, 0, 0]}):
        data = write(tmp_path / f"{len(classes)} classes", bits)
        with pytest.raises(ValueError, match=r"hold black and white in 1-bit pictures.*prepare\.mask_values to ids"):
            labels(data, classes)
        (read,) = labels(data, classes, mask_values="ids")
        assert np.array_equal(read, OIL)


def test_empty_masks_take_the_meaning_of_black_or_of_the_other_split(tmp_path):
    data = write(tmp_path / "data", Image.fromarray(EMPTY))
    assert (labels(data, WHITE_OIL)[0] == 1).all()
    # The other split holds ids, so that 0 is the first class here too.
    write(data, Image.fromarray(OIL), split="test")
    assert (labels(data, WHITE_OIL)[0] == 0).all()
    write(data, Image.fromarray(255 * OIL), split="test")
    assert (labels(data, WHITE_OIL)[0] == 1).all()


def test_splits_in_which_a_value_means_two_classes_are_refused(tmp_path):
    data = write(tmp_path / "data", Image.fromarray(OIL))
    write(data, Image.fromarray(255 * OIL), split="test")
    with pytest.raises(ValueError, match=r"the value 0 would mean 'oil' in the masks of 'train' and 'sea' in those of"):
        labels(data, WHITE_OIL)


def test_nearly_black_class_colours_are_colours_unless_they_are_other_ids(tmp_path):
    mask = Image.fromarray(OIL)
    (read,) = labels(write(tmp_path / "data", mask), {"sea": [0, 0, 0], "oil": [1, 1, 1]})
    assert np.array_equal(read, OIL)
    classes = {"oil": [1, 1, 1], "sea": [0, 0, 0], "land": [9, 9, 9]}
    with pytest.raises(ValueError, match="numbers that are ids and class colours, of other classes"):
        labels(tmp_path / "data", classes)
    for other, wanted in (([0, 1, 9], 1 - OIL), ([0, 1, 2], OIL)):  # the other split tells which
        write(tmp_path / "data", Image.fromarray(np.array(other, np.uint8)[IDS]), split="test")
        assert np.array_equal(labels(tmp_path / "data", classes)[0], wanted)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_colours_beside_those_of_the_table_are_named(tmp_path, suffix):
    pixels = np.array(coloured(IDS, THREE))
    pixels[3, 3] = (0, 128, 128)  # smoothed, or JPEG's
    with pytest.raises(BadDataset, match=r"nor class colours: \(0, 128, 128|is a JPEG"):
        labels(write(tmp_path / "data", Image.fromarray(pixels), suffix=suffix), THREE)


# --- masks that are their images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [False, True])
def test_a_mask_with_the_bytes_of_its_image_is_refused(tmp_path, link):
    data = write(tmp_path / "data", Image.fromarray(IDS), Image.fromarray(EMPTY))
    image, mask = (data / "train" / kind / "0.png" for kind in ("images", "masks"))
    image.unlink()
    image.symlink_to(mask) if link else image.write_bytes(mask.read_bytes())
    with pytest.raises(BadDataset, match=r"(?s)has 1 problem.*masks/0.png: has the same bytes as its image .*0.png"):
        labels(data, THREE)


def test_an_empty_mask_may_have_the_bytes_of_its_empty_image(tmp_path):
    data = write(tmp_path / "data", Image.fromarray(IDS), Image.fromarray(EMPTY))
    Image.fromarray(EMPTY).save(data / "train" / "images" / "1.png")
    assert np.array_equal(labels(data, THREE)[1], EMPTY)


# --- what has two meanings --------------------------------------------------------------------------------------------

CYAN, GREEN, BLACK, WHITE, GREY = (0, 255, 255), (0, 153, 0), (0, 0, 0), (255, 255, 255), (9, 9, 9)
DOUBTFUL = {
    "0/255 of three classes": ([Image.fromarray(255 * OIL)], "hold only 0 and 255, and 255 means unknown"),
    "a palette that agrees in part": ([palette_picture(IDS, BLACK, CYAN, GREY)], "only 2 of 3 colours in use"),
    "a palette of other order and one more colour": (
        [palette_picture(IDS, CYAN, BLACK, GREY)], "the value 0 shows the colour of 'oil', whose id is 1"),
    "a black and white palette": ([palette_picture(OIL, BLACK, WHITE)], "the palette is black and white"),
    "a palette of one colour": ([palette_picture(IDS, BLACK, BLACK, BLACK)], "several values in use show one colour"),
    "palettes that differ": (
        [palette_picture(OIL, BLACK, (200, 0, 0)), palette_picture(OIL, BLACK, (0, 0, 200))], "palettes that differ"),
    "a palette of other order beside ids": (
        [palette_picture(IDS, BLACK, GREEN, CYAN), Image.fromarray(IDS)], "fit the class table in part"),
    "a palette of nearly the class colours in another order": (
        [palette_picture(IDS, (0, 250, 255), (2, 2, 2), (0, 150, 3))], "nearly the colour of 'oil', whose id is 1"),
    "a palette of the ids as greys in another order": (
        [palette_picture(IDS, BLACK, (2, 2, 2), (1, 1, 1))], "the value 1 shows the grey 2, which is another id"),
    "a palette of ids and unknown as greys": (
        [palette_picture(IDS, BLACK, (1, 1, 1), WHITE)], "the value 2 shows the grey 255, which is another id"),
    "colours beside ids": ([coloured(IDS, THREE), Image.fromarray(IDS)], "contradict each other"),
    "bits beside ids": ([Image.fromarray(OIL.astype(bool)), Image.fromarray(IDS)], "hold black and white in 1-bit"),
    "0/255 beside 0/1": (
        [Image.fromarray(255 * OIL), Image.fromarray(OIL), Image.fromarray(EMPTY)], "hold either only 0 and 255"),
    "0/255 beside ids": ([Image.fromarray(255 * OIL), Image.fromarray(IDS)], "hold either only 0 and 255"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBTFUL)
def test_masks_of_two_meanings_are_refused_with_files_values_and_choices(tmp_path, case):
    masks, reason = DOUBTFUL[case]
    with pytest.raises(ValueError, match=reason) as error:
        labels(write(tmp_path / "data", *masks), THREE)
    text = str(error.value)
    assert "0.png" in text and "'train'" in text and "set prepare.mask_values to ids" in text
    assert not (tmp_path / "data run" / "prepare").exists()


def test_unknown_beside_an_id_above_zero_tells_that_255_is_unknown(tmp_path):
    borders = [IDS.copy(), EMPTY.copy()]
    for mask in borders:
        mask[0] = 255
    read = labels(write(tmp_path / "data", *map(Image.fromarray, borders)), THREE)
    assert all(np.array_equal(one, mask) for one, mask in zip(read, borders))


@pytest.mark.parametrize(
    "classes", [{"oil": [255, 0, 0], "background": [0, 255, 0]}, {"oil": [0, 255, 255], "sea": [0, 0, 0]}]
)
def test_bits_are_refused_where_no_colour_says_which_class_is_white(tmp_path, classes):
    data = write(tmp_path / "data", Image.fromarray(OIL.astype(bool)))
    with pytest.raises(ValueError, match="hold black and white in 1-bit pictures, and no class is white"):
        labels(data, classes)
    assert np.array_equal(labels(data, TWO)[0], OIL)


def test_vocs_palette_says_ids_though_its_colours_are_near_those_of_other_classes(tmp_path):
    voc = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    mask = IDS.copy()
    mask[0, :9], mask[1, :9] = 3, 4
    classes = {name: list(colour) for name, colour in zip(OSD_CLASSES.names, OSD_CLASSES.colours)}
    (read,) = labels(write(tmp_path / "data", palette_picture(mask, *voc)), classes)
    assert np.array_equal(read, mask)
    shifted = palette_picture(mask, voc[0], *[(r + 1, g, b) for r, g, b in voc[1:]])
    with pytest.raises(ValueError, match="nearly the colour of 'land', whose id is 4"):
        labels(write(tmp_path / "other", shifted), classes)


def test_a_number_beyond_the_palette_is_an_id(tmp_path):
    stream = io.BytesIO()
    palette_picture(IDS, BLACK, (128, 0, 0), GREY).save(stream, "PNG", bits=8)
    data = stream.getvalue()
    start = data.index(b"PLTE")
    shorter = b"PLTE" + data[start + 4 : start + 10]
    end = start + 8 + int.from_bytes(data[start - 4 : start], "big")
    cut = data[: start - 4] + struct.pack(">I", 6) + shorter + struct.pack(">I", zlib.crc32(shorter)) + data[end:]
    (read,) = labels(write(tmp_path / "data", cut), THREE)
    assert np.array_equal(read, IDS)


# --- splits -----------------------------------------------------------------------------------------------------------


ORDER = [(9, 9, 9), (200, 0, 9), (9, 0, 200)]
SWAPPED = np.array([2, 1, 0], np.uint8)[IDS]
SPLITS = {
    "palettes of other colours in another order": (
        palette_picture(IDS, *ORDER), palette_picture(SWAPPED, *ORDER[::-1]), "the value 0 shows"),
    "a palette's numbers without the palette": (
        palette_picture(SWAPPED, GREEN, CYAN, BLACK), Image.fromarray(SWAPPED), "the value 0 would mean 'land'"),
    "a palette of the class colours beside one of others": (
        palette_picture(SWAPPED, GREEN, CYAN, BLACK), palette_picture(IDS, *ORDER), "the value 0 would mean 'land'"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLITS)
def test_splits_whose_numbers_mean_different_classes_are_refused_unless_the_setting_decides(tmp_path, case):
    train, test, reason = SPLITS[case]
    data = write(write(tmp_path / "data", train), test, split="test")
    with pytest.raises(ValueError, match=reason):
        labels(data, THREE)
    assert np.array_equal(labels(data, THREE, mask_values="ids")[0], np.array(train))


def test_palettes_of_the_class_colours_may_have_any_order_in_each_split(tmp_path):
    data = write(tmp_path / "data", palette_picture(SWAPPED, GREEN, CYAN, BLACK))
    write(data, palette_picture(IDS, BLACK, CYAN, GREEN), split="test")
    assert np.array_equal(labels(data, THREE)[0], IDS)


def test_a_number_that_palettes_of_one_split_show_in_two_colours_contradicts_no_other_split(tmp_path):
    palettes = palette_picture(SWAPPED, GREEN, CYAN, BLACK), palette_picture(IDS, BLACK, CYAN, GREEN)
    data = write(write(tmp_path / "data", *palettes), Image.fromarray(IDS), split="test")
    assert all(np.array_equal(one, IDS) for one in labels(data, THREE))


def test_white_among_ids_is_refused_where_white_is_a_class(tmp_path):
    mask = IDS.copy()
    mask[0] = 255
    classes = THREE | {"foam": [255, 255, 255]}
    data = write(tmp_path / "data", Image.fromarray(mask))
    with pytest.raises(ValueError, match="255, which may be unknown or 'foam'"):
        labels(data, classes)
    assert np.array_equal(labels(data, classes, mask_values="ids")[0], mask)


@pytest.mark.parametrize(
    ("mask", "refusal"),
    [
        (Image.fromarray(np.dstack([np.array(coloured(IDS, THREE)), 255 * (IDS > 0)]).astype(np.uint8)), 660),
        (Image.fromarray(np.dstack([IDS, 255 - IDS]).astype(np.uint8), "LA"), 108),  # translucent
    ],
)
def test_transparent_pixels_are_refused(tmp_path, mask, refusal):
    with pytest.raises(BadDataset, match=rf"has {refusal} transparent pixels, which show no class"):
        labels(write(tmp_path / "data", mask), THREE)


@pytest.mark.parametrize("hidden", ["palette", "grey", "RGB", "16-bit"])
def test_a_transparent_colour_is_refused_only_where_it_occurs(tmp_path, hidden):
    picture, used, free = {
        "palette": (palette_picture(IDS, BLACK, CYAN, GREEN), bytes([0]), bytes([255, 255, 255, 0])),
        "grey": (Image.fromarray(IDS), 0, 9),
        "RGB": (coloured(IDS, THREE), (0, 0, 0), (1, 2, 3)),
        "16-bit": (Image.fromarray(IDS.astype(np.uint16)), 0, 9),
    }[hidden]
    for place, value in (("used", used), ("free", free)):
        file = write(tmp_path / place, picture) / "train" / "masks" / "0.png"
        picture.save(file, transparency=value)
    with pytest.raises(BadDataset, match="has 660 transparent pixels"):
        labels(tmp_path / "used", THREE)
    assert np.array_equal(labels(tmp_path / "free", THREE)[0], IDS)


NODATA = 42113  # GDAL's tag


@pytest.mark.parametrize(
    ("kind", "nodata"), [("grey", 0), ("palette", 0), ("RGB", 0), ("16-bit", 65535), ("int32", -1)]
)
def test_pixels_of_the_no_data_value_are_no_class(tmp_path, kind, nodata):
    wide = np.where(IDS == 0, nodata, IDS.astype(int))
    picture = {"grey": Image.fromarray(IDS), "palette": palette_picture(IDS, BLACK, CYAN, GREEN),
               "RGB": coloured(IDS, THREE), "16-bit": Image.fromarray(wide.astype(np.uint16)),
               "int32": Image.fromarray(wide.astype(np.int32))}[kind]  # fmt: skip
    file = write(tmp_path / "data", picture, suffix="tif") / "train" / "masks" / "0.tif"
    picture.save(file, tiffinfo={NODATA: str(nodata)})
    with pytest.raises(BadDataset, match=rf"no-data value {nodata} in 660 pixels.*gdalwarp -srcnodata {nodata} -dst"):
        labels(tmp_path / "data", THREE)


def test_a_no_data_value_of_255_is_unknown_among_ids_and_never_a_white_class(tmp_path):
    mask = IDS.copy()
    mask[0] = 255
    for name, values, classes in (("ids", mask, THREE), ("white", 255 * OIL, WHITE_OIL)):
        file = write(tmp_path / name, Image.fromarray(values), suffix="tif") / "train" / "masks" / "0.tif"
        Image.fromarray(values).save(file, tiffinfo={NODATA: "255"})
        if name == "ids":
            assert np.array_equal(labels(tmp_path / name, classes)[0], mask)
        else:
            with pytest.raises(ValueError, match=r"their no-data tag says that 255 .*-a_nodata none") as error:
                labels(tmp_path / name, classes)
            assert "the colour [255, 255, 255]" not in str(error.value)
            with pytest.raises(ValueError, match=r"remove the tag \(gdal_.*and in prepare\.classes give the class"):
                labels(tmp_path / name, THREE)


def test_a_no_data_value_of_255_tells_that_255_is_not_white(tmp_path):
    mask = OIL.copy()
    mask[0] = 255
    classes = {"sea": [0, 0, 0], "oil": [255, 255, 255]}
    file = write(tmp_path / "data", Image.fromarray(mask), suffix="tif") / "train" / "masks" / "0.tif"
    with pytest.raises(ValueError, match="255, which may be unknown or 'oil'"):
        labels(tmp_path / "data", classes)
    Image.fromarray(mask).save(file, tiffinfo={NODATA: "255"})
    assert np.array_equal(labels(tmp_path / "data", classes)[0], mask)


def test_the_remedy_for_a_no_data_value_does_not_make_every_pixel_255(tmp_path):
    file = write(tmp_path / "data", Image.fromarray(255 * OIL), suffix="tif") / "train" / "masks" / "0.tif"
    Image.fromarray(255 * OIL).save(file, tiffinfo={NODATA: "0"})
    with pytest.raises(BadDataset, match=r"no-data value 0 .*: write the ids .*-a_nodata none") as error:
        labels(tmp_path / "data", TWO)
    assert "-dstnodata" not in str(error.value)


# --- the setting ------------------------------------------------------------------------------------------------------


def test_the_setting_decides_what_is_doubtful(tmp_path):
    other = palette_picture(np.array([2, 0, 1])[IDS], CYAN, GREEN, BLACK)
    data = write(tmp_path / "data", other, Image.fromarray(IDS))
    assert [one.tolist() for one in labels(data, THREE, mask_values="palette")] == [IDS.tolist()] * 2
    raw = labels(data, THREE, mask_values="ids")
    assert np.array_equal(raw[0], np.array(other)) and np.array_equal(raw[1], IDS)
    with pytest.raises(BadDataset, match=r"not read by prepare\.mask_values colours: \(1, 1, 1\)"):
        labels(data, THREE, mask_values="colours")


@pytest.mark.parametrize("white", [1, 255])
def test_binary_takes_zero_for_black_by_the_class_colours(tmp_path, white):
    data = write(tmp_path / "data", Image.fromarray((white * OIL).astype(np.uint8)), Image.fromarray(EMPTY))
    black_sea = {"oil": [0, 255, 255], "sea": [0, 0, 0]}
    neither = {"a": [1, 2, 3], "b": [4, 5, 6]}
    for classes, wanted in ((TWO, OIL), (WHITE_OIL, 1 - OIL), (black_sea, 1 - OIL), (neither, OIL)):
        assert np.array_equal(labels(data, classes, mask_values="binary")[0], wanted)
    with pytest.raises(ValueError, match="mask_values is binary and there are 3 classes"):
        labels(data, THREE, mask_values="binary")
    write(data, *[Image.fromarray((value * OIL).astype(np.uint8)) for value in (1, 255)])
    with pytest.raises(ValueError, match="hold 1 and 255, which would both be white"):
        labels(data, TWO, mask_values="binary")


def test_the_decision_is_said_and_written_and_part_of_the_settings(tmp_path, capsys):
    data = write(tmp_path / "data", palette_picture(np.array([2, 0, 1])[IDS], CYAN, GREEN, BLACK))
    shards = prepared(data, THREE)
    line = "train masks (1 palette): read as palette colours of the class table: sea 660 px ((0,0,0)), oil 48 px"
    assert line in capsys.readouterr().out
    facts = shards.index.provenance["mask_values"]
    assert facts["reading"] == "palette" and facts["classes"]["land"] == {"pixels": 60, "values": ["(0,153,0)"]}
    report = json.loads((shards.folder.parent / "report.json").read_text())
    assert report["splits"]["train"]["mask_values"] == facts and report["settings"]["mask_values"] == "auto"
    config = {"dataset": "folder", "root": str(data), "classes": THREE, "mask_values": "ids"}
    with pytest.raises(ValueError, match="mask_values: 'auto' then, 'ids' now"):
        prepare(build_config({"name": "x", "prepare": config}), shards.folder.parents[1])


def test_samples_left_out_take_part_in_the_decision(tmp_path):
    """Fewer samples of the same files have the same labels."""
    masks = [Image.fromarray(EMPTY), Image.fromarray(OIL)]
    data = write(tmp_path / "data", *masks)
    assert [int(one.max()) for one in labels(data, WHITE_OIL)] == [0, 1]
    assert (labels(data, WHITE_OIL, max_samples=1)[0] == 0).all()


# --- evaluate.folder --------------------------------------------------------------------------------------------------


def test_a_folder_to_evaluate_is_read_by_the_palettes_colours_of_the_student(tmp_path, capsys):
    mask = palette_picture(1 - OIL, CYAN, BLACK)
    write(tmp_path, mask, split="set")
    config = build_config({"name": "x", "evaluate": {"folder": str(tmp_path / "set")}})
    read = LabelledFolder(config, OSD_CLASSES)
    assert np.array_equal(read.read(0).label, OIL) and "palette colours of the class table" in capsys.readouterr().out
    write(tmp_path, Image.fromarray(255 * OIL), split="set")
    with pytest.raises(ValueError, match="hold only 0 and 255"):
        LabelledFolder(config, OSD_CLASSES)
    write(tmp_path, Image.fromarray(np.full_like(IDS, 255)), split="set")
    with pytest.raises(ValueError, match=r"every pixel of the masks of 1 image\(s\) is unknown \(255\); expected"):
        LabelledFolder(config, OSD_CLASSES)


@pytest.mark.parametrize("has_palette", [True, False])
def test_masks_of_a_folder_to_evaluate_mean_what_those_of_the_training_mean(tmp_path, has_palette, monkeypatch):
    """A training palette shows oil as index 0; the same masks without their palette would be ids, sea as 0."""
    mask = palette_picture(1 - OIL, CYAN, BLACK) if has_palette else Image.fromarray(OIL)
    tree = {"dataset": "folder", "root": str(write(tmp_path / "data", mask)), "classes": TWO}
    shards = ShardSet(prepare(build_config({"name": "x", "prepare": tree}), tmp_path / "run").splits["train"])
    monkeypatch.setattr("dakd.evaluate.inputs.student_classes", lambda path: shards.classes)

    def read(split: str, **settings) -> np.ndarray:
        asked = {"prepare": tree | settings, "evaluate": {"folder": str(tmp_path / split)}}
        students = {"real": tmp_path / "student.safetensors"}
        return open_images(build_config({"name": "x"} | asked), tmp_path / "run", students).read(0).label

    write(tmp_path, mask, split="same")
    write(tmp_path, Image.fromarray(np.array(mask)), split="bare")
    assert np.array_equal(read("same"), OIL)
    if not has_palette:
        assert np.array_equal(read("bare"), OIL)
        return
    with pytest.raises(ValueError, match=r"value 0 would mean 'oil' in the masks of 'train' and 'sea' in those of"):
        read("bare")
    assert np.array_equal(read("bare", mask_values="ids"), 1 - OIL), "who says what the masks mean is believed"


# --- OSD and SOS ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["labels", "labels_1D"])
@pytest.mark.parametrize("form", ["ids", "colours", "palette of another order"])
def test_osd_labels_are_read_by_their_values_in_both_folders(tmp_path, place, form):
    colours = [tuple(colour) for colour in OSD_CLASSES.colours]
    mask = {
        "ids": Image.fromarray(IDS),
        "colours": Image.fromarray(OSD_CLASSES.palette()[IDS]),
        "palette of another order": palette_picture(4 - IDS, *colours[::-1]),
    }[form]
    for split in ("train", "test"):
        write(tmp_path / "data", mask, split=split)
        (tmp_path / "data" / split / "masks").rename(tmp_path / "data" / split / place)
    config = build_config({"name": "x", "prepare": {"dataset": "osd", "root": str(tmp_path / "data")}})
    shards = ShardSet(prepare(config, tmp_path / "run").splits["train"])
    assert np.array_equal(shards.read(0).label, IDS)


@pytest.mark.parametrize(("stray", "wanted"), [
    ((128, 0, 0), 2), ((100, 0, 0), 0), ((10, 110, 110), 0), ((60, 140, 140), 1), ((255, 255, 0), None),
    ((0, 0, 255), None), ((255, 0, 255), None),
])  # fmt: skip
def test_few_osd_pixels_that_blend_two_colours_take_the_nearer_and_no_others(tmp_path, stray, wanted, capsys):
    """(128, 0, 0) lies between black and red, and nearest to brown; yellow is cyan with red and blue exchanged."""
    pixels = OSD_CLASSES.palette()[IDS]
    pixels[0, 0] = stray
    for split in ("train", "test"):
        write(tmp_path / "data", Image.fromarray(pixels), split=split)
        (tmp_path / "data" / split / "masks").rename(tmp_path / "data" / split / "labels")
    evaluated = {"folder": str(tmp_path / "data"), "dataset": "osd"}
    prepared_from = {"dataset": "osd", "root": evaluated["folder"]}
    config = build_config({"name": "x", "prepare": prepared_from, "evaluate": evaluated})
    if wanted is None:
        with pytest.raises(BadDataset, match=r"holds 1 value.* nor class colours") as error:
            prepare(config, tmp_path / "run")
        assert ("with red and blue exchanged" in str(error.value)) == (stray != (255, 0, 255))
        return
    shards = ShardSet(prepare(config, tmp_path / "run").splits["train"])
    assert shards.read(0).label[0, 0] == wanted and np.array_equal(shards.read(0).label[1:], IDS[1:])
    assert LabelledFolder(config, OSD_CLASSES).read(0).label[0, 0] == wanted
    said = capsys.readouterr().out
    assert "data: 1 label pixels took the nearer of two blended class colours" in said


def write_sos(root: Path, *masks: np.ndarray, split: str = "train", bright: bool = False) -> None:
    for number, mask in enumerate(masks):
        folder = root / split / "palsar"
        folder.mkdir(parents=True, exist_ok=True)
        sar = np.where(OIL == 1, 140 if bright else 40, 90).astype(np.uint8)
        Image.fromarray(sar).save(folder / f"{number}_sat.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"{number}_mask.png")


def sos_labels(root: Path, **settings) -> list[np.ndarray]:
    prepare_settings = {"dataset": "sos", "sensor": "palsar", "root": str(root)} | settings
    run = root.with_name(f"{root.name} run")
    shards = ShardSet(prepare(build_config({"name": "x", "prepare": prepare_settings}), run).splits["train"])
    return [shards.read(index).label for index in range(len(shards))]


def test_sos_masks_of_zeros_and_ones_are_read_by_them(tmp_path):
    write_sos(tmp_path / "data", OIL, EMPTY)
    write_sos(tmp_path / "data", 255 * OIL, EMPTY, split="test")
    read = sos_labels(tmp_path / "data")
    assert np.array_equal(read[0], OIL) and not read[1].any()


@pytest.mark.parametrize("setting", ["binary", "colours"])
def test_sos_masks_of_zeros_and_ones_are_refused_where_the_setting_makes_them_black(tmp_path, setting):
    for split in ("train", "test"):
        write_sos(tmp_path / "data", OIL, EMPTY, split=split)
    with pytest.raises(ValueError, match=r"every pixel would be black.*prepare\.mask_values to ids"):
        sos_labels(tmp_path / "data", mask_values=setting)
    assert np.array_equal(sos_labels(tmp_path / "data", mask_values="ids")[0], OIL)


def test_sos_masks_on_one_side_of_the_threshold_are_refused(tmp_path):
    for name, values in (("black", 100 * OIL), ("white", 200 + 50 * OIL)):
        write_sos(tmp_path / name, values)
        write_sos(tmp_path / name, 255 * OIL, split="test")
        with pytest.raises(ValueError, match=rf"every pixel would be {name} .*set prepare\.mask_threshold"):
            sos_labels(tmp_path / name)


@pytest.mark.parametrize("mask, found", [
    (OIL.astype(np.uint16), "is a PNG with 1 channel of 16-bit unsigned numbers"),
    (257 * OIL.astype(np.float32), "is a TIFF with 1 channel of 32-bit float numbers"),
    (np.stack([255 * OIL, OIL, OIL], -1), "is a colour picture (channels differ by 254)"),
    (np.stack([255 * OIL, 255 * OIL], -1), "hides 93.8 % of its pixels by transparency (alpha 0)"),
])  # fmt: skip
def test_sos_masks_of_another_kind_have_the_remedy_of_masks_and_no_reading(tmp_path, capsys, mask, found):
    for split in ("train", "test"):
        write_sos(tmp_path / "data", OIL, split=split)
        path = tmp_path / "data" / split / "palsar" / "0_mask.png"
        path.unlink()
        Image.fromarray(mask).save(path.with_suffix(".tif") if mask.dtype == np.float32 else path)
    with pytest.raises(BadDataset) as error:
        sos_labels(tmp_path / "data")
    wanted = f"{found}; expected a mask of 8-bit grey, all of it opaque: save it with 0 and 255, or with 0 and 1"
    assert [problem.reason for problem in error.value.problems] == 2 * [wanted]
    assert "no pixel" not in capsys.readouterr().out


def test_one_sos_mask_of_zeros_and_ones_among_others_is_named(tmp_path):
    write_sos(tmp_path / "data", OIL, 255 * OIL)
    write_sos(tmp_path / "data", 255 * OIL, split="test")
    with pytest.raises(BadDataset, match=r"0_mask\.png: holds only 0 and 1, unlike other masks"):
        sos_labels(tmp_path / "data")


@pytest.mark.parametrize(("mask", "found"), [
    (np.where(SAR == 3, 255, OIL), r"holds just 0, 1 and 255, which may be ids and unknown pixels"),
    (np.where(OIL == 1, 1, 255), r"holds just 1 and 255, which may be ids"),
    (127 * OIL, "holds no grey above 127, so that by the threshold 128 all of it would be black"),
    (2 * OIL, "holds no grey above 2,"),
    (np.where(SAR == 0, 100, 0), "holds no grey above 100,"),
])  # fmt: skip
def test_a_sos_mask_that_the_threshold_may_misread_is_named(tmp_path, mask, found):
    soft = 255 * OIL + (SAR == 9) * 90
    for split in ("train", "test"):
        write_sos(tmp_path / "data", 255 * OIL, np.minimum(soft, 255), mask, split=split)
    with pytest.raises(BadDataset, match=rf"2_mask\.png: {found}.*set prepare\.mask_values to binary"):
        sos_labels(tmp_path / "data")
    assert np.array_equal(sos_labels(tmp_path / "data", mask_values="binary")[2], mask >= 128)


def test_noise_in_a_sos_mask_of_sea_is_sea(tmp_path):
    noise = np.zeros((64, 64), int)
    noise[0, :2] = (9, 10)
    for split in ("train", "test"):
        write_sos(tmp_path / "data", 255 * OIL, split=split)
        folder = tmp_path / "data" / split / "palsar"
        Image.fromarray(np.arange(4096).reshape(64, 64).astype(np.uint8)).save(folder / "1_sat.png")
        Image.fromarray(noise.astype(np.uint8)).save(folder / "1_mask.png")
    assert not sos_labels(tmp_path / "data")[1].any()


def test_the_polarity_of_every_split_is_checked(tmp_path):
    write_sos(tmp_path / "data", 255 * OIL)
    write_sos(tmp_path / "data", 255 - 255 * OIL, split="test")
    with pytest.raises(ValueError, match=r"of the split 'test'\), but oil is dark in SAR"):
        sos_labels(tmp_path / "data")
