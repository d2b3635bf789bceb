"""Every row of the table of pictures: what is taken has its file's values, what is not is refused with its remedy."""

from __future__ import annotations

import io
import itertools
import re
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from dakd.config import build_config
from dakd.data.foreign_records import decode_foreign
from dakd.data.prepare import prepare
from dakd.data.readers import BadDataset, BadFile, read_picture
from dakd.data.readers.known_header import known_structure
from dakd.data.readers.mask_pixels import read_mask
from dakd.data.readers.picture_structure import read_structure
from dakd.data.readers.read_picture import (
    grey_values,
    number_text,
    open_picture,
    picture_size,
    read_grey,
    stored_values,
)
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import write_shards
from dakd.evaluate.inputs import LabelledFolder
from dakd.predict.images import grey_image, read_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
OTHER = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
DEEP = RNG.integers(500, 4000, (6, 8), dtype=np.uint16)
SOLID = np.full_like(GREY, 255)
HIDDEN = np.where(np.arange(48).reshape(6, 8) < 12, 0, 255).astype(np.uint8)
COLOURS = np.stack([GREY, OTHER, GREY], -1)
ONE_SCALE = "expected 8-bit grey: bring all images of the dataset to 0..255 with one scale.*one bright ship"


def saved(format: str, picture: Image.Image | np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(stream, format, **options)
    return stream.getvalue()


def png(array: np.ndarray, depth: int, kind: int, hidden: int | None = None, palette: bytes = b"") -> bytes:
    """A PNG of any depth.  kind: the colour type.  array: (H, W) or (H, W, channels), packed where it has few bits.
    hidden: the grey that is transparent.  palette: colours of three bytes each."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = array.reshape(len(array), -1).astype(">u2" if depth == 16 else np.uint8)
    if depth < 8:
        bits = np.unpackbits(rows[..., None], axis=-1)[..., 8 - depth :].reshape(len(rows), -1)
        rows, width = np.packbits(bits, axis=-1), array.shape[1]
    width = array.shape[1]
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, len(array), depth, kind, 0, 0, 0)
    transparency = b"" if hidden is None else chunk(b"tRNS", struct.pack(">H", hidden))
    transparency += chunk(b"PLTE", palette) if palette else b""
    data = chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparency + data


def tiff(array: np.ndarray, photometric: int = 1, pages: tuple[int, ...] = (0,), extra: tuple = (), **tags) -> bytes:
    """An uncompressed little-endian TIFF.  pages: the tag NewSubfileType of each.  tags: t42113=b"0", t262=1, t320 as
    a list, or None for a tag that is not there."""
    if array.ndim == 2:
        array = array[..., None]
    height, width, channels = array.shape
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[array.dtype.kind]
    pixels, data, links = array.tobytes(), b"II*\0", []
    data += struct.pack("<I", 8 + len(pixels)) + pixels
    for subfile in pages:
        entries, tail = {254: (4, [subfile]), 256: (4, [width]), 257: (4, [height]),
                         258: (3, [array.dtype.itemsize * 8] * channels), 259: (3, [1]), 262: (3, [photometric]),
                         273: (4, [8]), 277: (3, [channels]), 278: (4, [height]), 279: (4, [len(pixels)]),
                         339: (3, [kind] * channels)}, b""  # fmt: skip
        if extra:
            entries[338] = (3, list(extra))
        for name, value in tags.items():
            if value is None:
                del entries[int(name[1:])]
                continue
            numbers = value if isinstance(value, list) else [value]
            entries[int(name[1:])] = (2, list(value + b"\0")) if isinstance(value, bytes) else (3, numbers)
        start = len(data) + 2 + 12 * len(entries) + 4
        directory = struct.pack("<H", len(entries))
        for tag, (type_, values) in sorted(entries.items()):
            packed = struct.pack(f"<{len(values)}{ {2: 'B', 3: 'H', 4: 'I'}[type_] }", *values)
            if len(packed) > 4:
                place, tail = struct.pack("<I", start + len(tail)), tail + packed + bytes(len(packed) % 2)
            else:
                place = packed.ljust(4, b"\0")
            directory += struct.pack("<HHI", tag, type_, len(values)) + place
        data += directory
        links.append(len(data))
        data += bytes(4) + tail
        if len(links) < len(pages):
            data = data[: links[-1]] + struct.pack("<I", len(data)) + data[links[-1] + 4 :]
    return data


def tiff_of_few_bits(array: np.ndarray, bits: int, photometric: int = 1, nodata: bytes = b"", **tags) -> bytes:
    """A TIFF whose 8 pixels a row are packed, 1, 2 or 4 bits each."""
    packed = np.packbits(np.unpackbits(array[..., None], axis=-1)[..., 8 - bits :].reshape(len(array), -1), axis=-1)
    tags |= {"t42113": nodata} if nodata else {}
    return tiff(packed, photometric, t256=array.shape[1], t258=bits, **tags)


def bmp(array: np.ndarray, bits: int, *palette: int) -> bytes:
    """A BMP of 4 or 8 bits and 8 pixels a row, whose palette has these greys alone."""
    rows = array[::-1] if bits == 8 else array[::-1, ::2] << 4 | array[::-1, 1::2]
    height, width = array.shape
    colours = b"".join(bytes([grey, grey, grey, 0]) for grey in palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, rows.size, 0, 0, len(palette), 0)
    start = 14 + len(info) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + rows.size, 0, 0, start) + info + colours + rows.tobytes()


def sixteen_bits(levels: np.ndarray, masks: tuple[int, ...]) -> bytes:
    """A BMP of 8 pixels a row and 5 bits a channel, or, with masks, 6 of green; its channels show equal greys.

    levels: 0 or 31.
    """
    rows = levels[::-1].astype("<u2") // 31 * (0xFFFF if masks else 0x7FFF)
    extra = struct.pack(f"<{len(masks)}I", *masks)
    height, width = levels.shape
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3 if masks else 0, rows.nbytes, 0, 0, 0, 0)
    start = 14 + len(info) + len(extra)
    return b"BM" + struct.pack("<IHHI", start + rows.nbytes, 0, 0, start) + info + extra + rows.tobytes()


def twelve_bits(data: bytes) -> bytes:
    place = data.index(b"\xff\xc0") + 4
    return data[:place] + b"\x0c" + data[place + 1 :]


def with_palette(ids: np.ndarray, *colours: int, **options) -> bytes:
    picture = Image.fromarray(ids, "P")
    picture.putpalette(colours)
    return saved("PNG", picture, **options)


def short_palette(numbers: np.ndarray, num_colours: int) -> bytes:
    return png(numbers, 8, 3, palette=np.repeat(np.arange(num_colours, dtype=np.uint8), 3).tobytes())


def turned(format: str) -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return saved(format, GREY, exif=exif)


def profiled() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))
    return saved("PNG", GREY, icc_profile=b"a profile", pnginfo=info)


def two_frames(format: str) -> bytes:
    return saved(format, GREY, save_all=True, append_images=[Image.fromarray(OTHER)])


BITS = GREY % 2
QUARTER = np.where(np.arange(48).reshape(6, 8) < 12, 2, BITS).astype(np.uint8)  # of it is 2
UNUSED = int(np.setdiff1d(np.arange(256), GREY)[0])
GRAIN = np.stack([GREY, GREY, GREY + (GREY < 255)], -1)  # what JPEG makes of a grey picture


def big_endian(array: np.ndarray) -> bytes:
    """An uncompressed TIFF of unsigned numbers, the most significant byte first."""
    pixels, (height, width) = array.astype(array.dtype.newbyteorder(">")).tobytes(), array.shape
    tags = {256: width, 257: height, 258: 8 * array.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height,
            279: len(pixels)}  # fmt: skip
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"MM\0*" + struct.pack(">I", 8 + len(pixels))
    return head + pixels + struct.pack(">H", len(tags)) + entries + bytes(4)


BIG_ENDIAN = big_endian(BITS.astype("u4"))


def bands(*arrays: np.ndarray) -> np.ndarray:
    return np.stack(arrays, -1)


# By row of the table: files, and what an image of it gives, values or words of the refusal; then the same for a mask.
ROWS: dict[str, tuple[list[bytes], np.ndarray | str, str | None]] = {
    "8-bit grey": ([png(GREY, 8, 0), tiff(GREY), *(saved(name, GREY) for name in ("PNG", "TIFF", "BMP"))], GREY, None),
    "1-bit, 2-bit or 4-bit grey": (
        [png(BITS, 1, 0), png(BITS * 3, 2, 0), png(BITS * 15, 4, 0), tiff_of_few_bits(BITS * 3, 2),
         saved("TIFF", Image.fromarray(BITS * 255).convert("1"))],
        BITS * 255, None,
    ),
    "1-bit TIFF with white as 0": (
        [saved("TIFF", Image.fromarray(BITS * 255).convert("1"), tiffinfo={262: 0})], BITS * 255, None,
    ),
    "grey TIFF with white as 0, 2 to 8 bits": ([tiff(255 - GREY, photometric=0)], GREY, "set the tag to 1"),
    "RGB of 8 bits, channels equal but for JPEG's errors": (
        [saved("PNG", GRAIN), tiff(GRAIN, photometric=2)], GRAIN.mean(-1).round().astype(np.uint8), None,
    ),
    "palette of greys": (
        [with_palette(BITS, 9, 9, 9, 200, 200, 200), bmp(BITS, 8, 9, 200), bmp(BITS, 4, 9, 200),
         *(tiff(BITS, photometric=3, t320=[9 * wide, 200 * wide, *[0] * 254] * 3) for wide in (1, 256, 257))],
        np.array([9, 200], np.uint8)[BITS], None,
    ),
    "palette without the colours of some pixels": (
        [short_palette(np.minimum(GREY, 200) + 2, 100), short_palette(BITS + 1, 2)],
        "holds the number [0-9]+ and a palette of [0-9]+ colours", None,
    ),
    "RGB or palette with colours": (
        [saved("PNG", COLOURS), with_palette(BITS, 0, 0, 0, 0, 255, 255)],
        "is a colour picture .*expected grey, one SAR channel", None,
    ),
    "alpha channel or transparent colour, all opaque": (
        [saved("PNG", bands(GREY, SOLID)), saved("TIFF", bands(GREY, SOLID)), saved("PNG", bands(*[GREY] * 3, SOLID)),
         saved("PNG", GREY, transparency=UNUSED), tiff(bands(GREY, SOLID), extra=(1,)),
         tiff(bands(*[GREY] * 3, SOLID), photometric=2, extra=(1,))],
        GREY, None,
    ),
    "alpha channel or transparent colour, some pixels hidden": (
        [saved("PNG", bands(GREY, HIDDEN)), saved("PNG", bands(GREY, GREY, GREY, HIDDEN)),
         tiff(bands(GREY, HIDDEN), extra=(1,)), tiff(bands(GREY, HIDDEN), extra=(2,)),
         saved("PNG", HIDDEN, transparency=0), png(HIDDEN // 255, 1, 0, hidden=0), png(QUARTER, 2, 0, hidden=2),
         png(QUARTER, 4, 0, hidden=2), with_palette(HIDDEN // 255, 0, 0, 0, 9, 9, 9, transparency=0)],
        r"hides 25\.0 % of its pixels by transparency .*gdal_translate -b 1", None,
    ),
    "alpha channel with values between 0 and 255": (
        [saved("PNG", bands(GREY, OTHER)), saved("TIFF", bands(GREY, OTHER))],
        "as a second band would; expected one channel: gdal_translate -b 1", None,
    ),
    "TIFF with bands that are neither colour nor alpha": (
        [tiff(bands(GREY, OTHER), extra=(0,)), tiff(bands(GREY, OTHER)), tiff(bands(*[GREY] * 5), extra=(0,) * 4),
         tiff(bands(GREY, GREY, GREY, OTHER), photometric=2, extra=(0,))],
        "expected one channel: gdal_translate -b 1", "expected one channel",
    ),
    "TIFF with a transparency mask": (
        [tiff(GREY, pages=(0, 4))], "hides pixels by a mask of its own; .*-mask none", "by a mask of its own",
    ),
    "TIFF with pixels of its no-data value": (
        [tiff(HIDDEN, t42113=b"0"), tiff(HIDDEN, t42113=b"-0.0 "), tiff(QUARTER, t42113=b"2"),
         tiff_of_few_bits(QUARTER, 2, nodata=b"2"), tiff_of_few_bits(QUARTER, 4, nodata=b"2"),
         *(tiff_of_few_bits(HIDDEN // 255, 1, photometric, b"0") for photometric in (0, 1)),
         tiff(QUARTER, photometric=3, t320=[9, 200, 7, *[0] * 253] * 3, t42113=b"2")],
        r"no-data value [02] in 25\.0 % of its pixels; .*-a_nodata none", None,
    ),
    "TIFF with overviews": ([tiff(GREY, pages=(0, 1, 1)), tiff(GREY, pages=(0, 1), t42113=b"nan")], GREY, None),
    "TIFF that leaves blocks out (sparse)": (
        [tiff(GREY, t278=3, t273=[8, 0], t279=[24, 0]), tiff(GREY, t278=3, t273=[8, 0], t279=None),
         tiff(GREY, t278=2, t273=[8, 24], t279=[16, 16]),
         tiff(GREY, t259=8, t278=3, t273=[8, 0], t279=[24, 0]), tiff(GREY, t259=5, t278=3, t273=[8, 0], t279=[24, 0]),
         tiff(GREY, t322=16, t323=16, t324=[0], t325=[0], t273=None, t278=None, t279=None)],
        "leaves blocks out .*-co SPARSE_OK=FALSE", "leaves blocks out",
    ),
    "TIFF without PhotometricInterpretation": (
        [tiff(GREY, t262=None), tiff_of_few_bits(BITS, 1, t262=None)],
        "lacks the tag PhotometricInterpretation.*tiffset -s 262 1", "lacks the tag PhotometricInterpretation",
    ),
    "16-bit grey, 32-bit integers, floats": (
        [png(DEEP, 16, 0), *(tiff(DEEP.astype(name)) for name in ("u2", "i2", "u4", "i4", "f4"))], ONE_SCALE, None,
    ),
    "16-bit grey TIFF with white as 0": ([tiff(DEEP, photometric=0)], ONE_SCALE, "set the tag to 1"),
    "16-bit RGB or grey with alpha": (
        [png(bands(DEEP, DEEP, DEEP), 16, 2), png(bands(DEEP, DEEP), 16, 4), png(bands(*[DEEP] * 4), 16, 6),
         tiff(bands(DEEP, DEEP, DEEP), photometric=2), tiff(bands(DEEP, DEEP), extra=(2,))],
        ONE_SCALE, "expected 8 bits a channel, or one channel",
    ),
    "12-bit JPEG, 64-bit floats": (
        [twelve_bits(saved("JPEG", GREY)), tiff(DEEP.astype("f8"))], ONE_SCALE, "expected 8 bits",
    ),
    "16-bit floats or palette, big-endian 32-bit unsigned integers": (
        [tiff(BITS.astype("f2")), tiff(BITS.astype("u2"), photometric=3, t320=[0] * 3 * 2**16), BIG_ENDIAN],
        ONE_SCALE, "is a TIFF with 1 channel of .* expected .*, or one channel of class ids: .* -ot Byte",
    ),
    "signed 8-bit numbers": (
        [tiff(GREY.astype("i1"))], ONE_SCALE, "expected unsigned numbers: gdal_translate -ot Byte IN OUT",
    ),
    "complex numbers": (
        [tiff(DEEP.astype("c8"))], "expected its amplitude as 8-bit grey: .*one scale", "expected 8 bits",
    ),
    "CMYK, YCbCr, LAB": (
        [saved("JPEG", Image.fromarray(GREY).convert("CMYK")), saved("TIFF", Image.fromarray(COLOURS).convert("YCbCr")),
         saved("TIFF", Image.new("LAB", (8, 6)))],
        "expected 8-bit grey: convert it, magick IN -colorspace Gray OUT", None,
    ),
    "BMP of 4 or 8 bits with black and white as its palette": (
        [bmp(BITS, 8, 0, 255), bmp(BITS, 4, 0, 255), bmp(BITS, 4, *range(16)), bmp(BITS * 0, 8, 0)],
        "is a BMP of [48]-bit pixels, .*save it as PNG, gdal_translate -of PNG", "save it as PNG",
    ),
    "BMP of 16 bits a pixel, which are 5 or 6 a channel": (
        [sixteen_bits(BITS * 31, masks) for masks in ((), (0xF800, 0x7E0, 0x1F))],
        r"is a BMP with 3 channels of 5-bit .*save the source again as PNG", "save the source again as PNG",
    ),
    "several pages or frames": (
        [two_frames("TIFF"), two_frames("PNG"), two_frames("MPO"), tiff(GREY, pages=(0, 0)),
         tiff(np.concatenate([GREY, OTHER]), t257=6, t278=6, t279=48, t270=b"ImageJ=1.53t\nimages=2\nslices=2\n")],
        "has 2 pages; expected one picture a file", "has 2 pages",
    ),
    "EXIF orientation other than 1": (
        [turned("JPEG"), turned("PNG"), turned("TIFF")],
        "EXIF orientation 6, .*exiftool -Orientation= FILE", "EXIF orientation 6",
    ),
    "gamma or ICC profile": ([profiled()], GREY, None),
    "PNG, JPEG, TIFF or BMP under another's suffix": ([saved("TIFF", GREY), saved("BMP", GREY)], GREY, None),
    "GIF, WebP, JPEG 2000 or others under any suffix": (
        [saved("GIF", GREY), two_frames("GIF"), saved("WEBP", GREY), saved("JPEG2000", GREY),
         b"%!PS-Adobe-3.0 EPSF-3.0\n", b"version https://git-lfs.github.com/spec/v1\n", b""],
        "expected PNG, JPEG, TIFF or BMP", "expected PNG, JPEG, TIFF or BMP",
    ),
    "truncated, or damaged where the format shows it": (
        [saved("PNG", GREY)[:60], saved("TIFF", GREY)[:30], tiff(GREY)[:40], saved("JPEG", GREY)[:-9],
         saved("BMP", GREY)[:-9]],
        "cannot be read as a picture", "cannot be read as a picture",
    ),
}  # fmt: skip
SIZE_ROW = "more pixels than a record holds"


def documented() -> list[tuple[str, str, str]]:
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", read_picture.__doc__, re.MULTILINE)
    return rows[1:]  # below the heading


def test_the_table_has_the_rows_that_are_tried_here():
    assert [name for name, _, _ in documented()] == [*ROWS, SIZE_ROW]
    for name, image, mask in documented()[:-1]:
        _, of_image, of_mask = ROWS[name]
        assert image.startswith("refused") == isinstance(of_image, str), name
        assert mask.startswith("refused") == (of_mask is not None), name


def read_or_refused(read: Callable, path: Path, content: bytes, refusal: str | None) -> list:
    """What `read` gives of a file and of its bytes; [] where it has to refuse both in these words, and does."""
    path.write_bytes(content)
    found = []
    for arguments in ((path,), (path, content)):
        if refusal is None:
            found.append(read(*arguments))
        else:
            with pytest.raises(BadFile, match=rf"(?s){re.escape(path.name)}: .*{refusal}"):
                read(*arguments)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_read_with_its_values_or_refused_with_a_remedy(tmp_path, name):
    contents, of_image, of_mask = ROWS[name]
    for content in contents:
        refusal = of_image if isinstance(of_image, str) else None
        for values in read_or_refused(read_grey, tmp_path / "a.png", content, refusal):
            assert np.array_equal(values, of_image)
        for picture in read_or_refused(open_picture, tmp_path / "a.png", content, of_mask):
            assert picture.size == (8, 6)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row[1], str)])
def test_python_refuses_the_same_files_as_pil_pictures(tmp_path, name):
    """PIL hides what the header says, also of pictures that it has decoded."""
    path = tmp_path / "a.png"
    for content in ROWS[name][0]:
        path.write_bytes(content)
        for source, is_decoded, closes in itertools.product((path, content), (False, True), (False, True)):
            try:
                stream = io.BytesIO(source) if isinstance(source, bytes) else source
                picture = Image.open(stream)
                if is_decoded:
                    picture.load()
                    if closes and isinstance(source, bytes) and picture.format in read_picture.FORMATS:
                        stream.close()
            except (OSError, SyntaxError):
                continue
            if picture.format not in (*read_picture.FORMATS, "MPO") and getattr(picture, "n_frames", 1) == 1:
                continue  # of a format that PIL alone reads
            with pytest.raises(BadFile, match="the picture: "):
                grey_values(picture, "the picture")


CLOSED = {
    "PNG": (saved("PNG", GREY), True), "JPEG": (saved("JPEG", GREY), True),
    "JPEG of three channels": (saved("JPEG", np.stack([GREY] * 3, -1)), True),
    "palette PNG": (with_palette(BITS, 9, 9, 9, 200, 200, 200), True), "1-bit PNG": (png(BITS, 1, 0), True),
    "RGB PNG, perhaps of 16 bits": (saved("PNG", np.stack([GREY] * 3, -1)), False),
    "grey BMP, perhaps of 4 bits": (saved("BMP", GREY), False),
    "TIFF, perhaps turned": (saved("TIFF", GREY), False),
    "TIFF with an overview, perhaps a page": (tiff(GREY, pages=(0, 1)), False),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
def test_a_decoded_picture_out_of_reach_is_taken_where_its_pixels_tell_enough(tmp_path, monkeypatch, name):
    content, is_taken = CLOSED[name]
    (tmp_path / "a").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    moved, closed, open_ = Image.open("a"), Image.open(io.BytesIO(content)), Image.open(io.BytesIO(content))
    expected = grey_values(open_, "the picture")
    for picture in (moved, closed):
        picture.load()
    monkeypatch.chdir("/")
    for picture in (moved, closed):
        if stream := getattr(picture, "_fp", None):
            stream.close()
        if is_taken:
            assert np.array_equal(grey_values(picture, "the picture"), expected)
        else:
            with pytest.raises(BadFile, match=r"the picture: .* out of reach.*: give the path, or the picture be"):
                grey_values(picture, "the picture")


@pytest.mark.parametrize(("bits", "stretched"), [(1, 255), (2, 85), (4, 17)])
def test_grey_of_few_bits_is_stretched_as_an_image_and_kept_as_ids_of_a_mask(tmp_path, bits, stretched):
    path, ids = tmp_path / "a.png", GREY % 2**bits
    path.write_bytes(png(ids, bits, 0))
    assert np.array_equal(read_grey(path), ids * stretched)
    assert np.array_equal(stored_values(open_picture(path)), ids)


def test_python_refuses_pictures_of_several_frames_and_takes_the_copy_of_one(tmp_path):
    for format, closes in (("GIF", False), ("GIF", True), ("WEBP", False), ("WEBP", True)):
        path = tmp_path / f"a.{format}"
        path.write_bytes(saved(format, GREY, save_all=True, append_images=[Image.fromarray(OTHER)], lossless=True))
        with Image.open(path) as picture:
            copy = picture.copy()
            if not closes:
                with pytest.raises(BadFile, match=r"the picture: has 2 pages; .*take the copy\(\) of one page"):
                    grey_values(picture, "the picture")
        with pytest.raises(BadFile, match="has 2 pages"):
            grey_values(picture, "the picture")
        assert np.array_equal(grey_values(copy, "the picture"), GREY)


def test_python_reads_palettes_of_8_bit_numbers_and_leaves_the_picture_as_it_is(tmp_path):
    content, path = tiff(BITS, photometric=3, t320=[9, 200, *[0] * 254] * 3), tmp_path / "a.tif"
    path.write_bytes(content)
    picture = Image.open(path)
    before = picture.getpalette()
    assert np.array_equal(grey_values(picture, "the picture"), np.array([9, 200])[BITS])
    assert picture.getpalette() == before
    mask = read_mask(path)
    assert mask.palette[:2] == (0x090909, 0xC8C8C8) and np.array_equal(mask.values, BITS)


def test_no_data_is_compared_with_the_stored_number_where_0_is_white(tmp_path):
    for content in (tiff(HIDDEN, 0, t42113=b"0"), tiff_of_few_bits(QUARTER, 4, 0, b"2")):
        with pytest.raises(BadFile, match=r"no-data value [02] in 25\.0 %"):
            read_grey(tmp_path / "a.tif", content)
    assert np.array_equal(read_grey(tmp_path / "a.tif", tiff(HIDDEN, 0, t42113=b"9")), 255 - HIDDEN)


@pytest.mark.parametrize("orientation", range(10))
def test_each_orientation_that_turns_a_picture_is_refused_and_no_other_number(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = saved("PNG", GREY, exif=exif)
    if orientation in (0, 1, 9):  # 0 and 9 mean nothing
        assert np.array_equal(read_grey(Path("a.png"), content), GREY)
    else:
        with pytest.raises(BadFile, match=f"has the EXIF orientation {orientation}"):
            read_grey(Path("a.png"), content)


def test_channels_differ_by_no_more_than_jpeg_makes_of_a_grey_picture():
    low = np.minimum(GREY, 200)
    taken, refused = (saved("PNG", np.stack([low, low, low + more], -1)) for more in (8, 9))
    assert np.array_equal(read_grey(Path("a.png"), taken), np.rint(low + 8 / 3).astype(np.uint8))
    with pytest.raises(BadFile, match=r"is a colour picture \(channels differ by 9\)"):
        read_grey(Path("a.png"), refused)


def test_a_stream_is_left_where_pil_has_read_to():
    stream = io.BytesIO(saved("PNG", GREY))
    picture = Image.open(stream)
    place = stream.tell()
    assert known_structure(picture, "the picture").format == "PNG" and stream.tell() == place


def test_every_changed_byte_of_a_deflated_tiff_is_refused(tmp_path):
    greys = (np.add.outer(np.arange(40), np.arange(50)) + RNG.integers(0, 20, (40, 50))).astype(np.uint8)
    content = saved("TIFF", greys, compression="tiff_adobe_deflate", strip_size=800)
    with Image.open(io.BytesIO(content)) as picture:
        places, sizes = picture.tag_v2[273], picture.tag_v2[279]
    assert len(places) > 1
    for place in (place + offset for place, size in zip(places, sizes) for offset in range(size - 15, size)):
        changed = bytearray(content)
        changed[place] ^= 0x15
        for read in (read_grey, open_picture):
            with pytest.raises(BadFile, match="cannot be read as a picture"):
                read(tmp_path / "a.tif", bytes(changed))
    assert np.array_equal(read_grey(tmp_path / "a.tif", content), greys)


def png_of_bytes(body: bytes, width: int, height: int, depth: int, kind: int, is_interlaced: bool) -> bytes:
    """A PNG of inflated data, which may be more or less than its header claims."""
    data = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, is_interlaced)
    for name, part in ((b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b"")):
        data += struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
    return data


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize(("depth", "kind", "channels"), [(8, 0, 1), (1, 0, 1), (2, 0, 1), (16, 0, 1), (8, 6, 4)])
@pytest.mark.parametrize(("width", "height"), [(8, 6), (1, 2), (13, 3), (3, 9)])
def test_a_png_that_ends_before_its_last_pixels_is_refused(
    tmp_path, is_interlaced, depth, kind, channels, width, height
):
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    lines = []
    for column, row, right, down in passes if is_interlaced else [(0, 0, 1, 1)]:
        columns = len(range(column, width, right))
        line = b"\0" + b"\xff" * -(-columns * depth * channels // 8)
        lines += [line] * len(range(row, height, down)) if columns else []
    body, found = b"".join(lines), len(b"".join(lines[:-1]))
    for content in (body, body + b"\0"):
        (tmp_path / "a.png").write_bytes(png_of_bytes(content, width, height, depth, kind, is_interlaced))
        assert np.array(open_picture(tmp_path / "a.png")).all()
    short = png_of_bytes(body[:found], width, height, depth, kind, is_interlaced)
    (tmp_path / "a.png").write_bytes(short)
    for arguments in ((tmp_path / "a.png",), (tmp_path / "a.png", short)):
        with pytest.raises(BadFile, match=rf"a.png: .*end after {found} of {len(body)} bytes, .*write it again"):
            open_picture(*arguments)


def test_a_single_picture_that_keeps_the_words_of_its_stack_is_read():
    content = tiff(GREY, t270=b"ImageJ=1.53t\nimages=9\n")
    assert len(content) < 9 * GREY.size and np.array_equal(read_grey(Path("a.tif"), content), GREY)


def test_pixels_that_the_palette_of_a_pil_picture_hides_are_refused():
    picture = Image.merge("RGBA", [Image.fromarray(one) for one in (GREY, GREY, GREY, HIDDEN)]).quantize(64)
    with pytest.raises(BadFile, match=r"hides 25\.0 % of its pixels by transparency"):
        grey_values(picture, "the picture")
    assert grey_values(Image.fromarray(GREY).quantize(64), "the picture").shape == GREY.shape


def test_a_tiff_that_states_no_sizes_is_read():
    assert np.array_equal(read_grey(Path("a.tif"), tiff(GREY, t279=None)), GREY)


@pytest.mark.parametrize("options", [{"compression": "jpeg"}, {"compression": "jpeg", "quality": 100}, {}])
def test_a_mask_in_a_tiff_is_lossy_by_its_compression(tmp_path, options):
    for array in (GREY, COLOURS):
        assert read_mask(tmp_path / "a.tif", saved("TIFF", array, **options)).is_lossy == bool(options)


@pytest.mark.parametrize("compression", [6, 50001])
def test_old_jpeg_and_webp_in_a_tiff_are_lossy_by_the_header(compression):
    assert read_structure(io.BytesIO(tiff(GREY, t259=compression))).is_lossy


def test_a_mask_with_hidden_greys_of_few_bits_is_refused_and_others_are_read(tmp_path):
    for bits in (1, 2, 4):
        ids = np.minimum(QUARTER, 2**bits - 1)
        with pytest.raises(BadFile, match=rf"has {(ids == ids[0, 0]).sum()} transparent pixels"):
            read_mask(tmp_path / "a.png", png(ids, bits, 0, hidden=ids[0, 0]))
    for bits in (2, 4):
        opaque = png(QUARTER, bits, 0, hidden=3)
        assert np.array_equal(read_mask(tmp_path / "a.png", opaque).values, QUARTER)
        assert np.array_equal(read_grey(tmp_path / "a.png", opaque), QUARTER * (85 if bits == 2 else 17))
        tif = tiff_of_few_bits(QUARTER, bits, nodata=b"2")
        with pytest.raises(BadFile, match=r"no-data value 2 in 12 pixels, .*-srcnodata 2 -dstnodata 255"):
            read_mask(tmp_path / "a.tif", tif)


@pytest.mark.parametrize(
    ("dtype", "stored", "shown"),
    [("i4", "-2147483647", "-2147483647"), ("u2", "65535", "65535"), ("i4", "1234567.0", "1234567"),
     ("f4", "-3.4028234663852886e+38", r"-3\.4028234663852886e\+38"), ("f4", "0.1", r"0\.1")],
)  # fmt: skip
def test_no_data_values_are_printed_to_the_last_digit(tmp_path, dtype, stored, shown):
    array = BITS.astype(dtype)
    array[0] = float(stored)
    with pytest.raises(BadFile, match=rf"no-data value {shown} in 8 pixels, .*-srcnodata {shown} -dstnodata 255"):
        read_mask(tmp_path / "a.tif", tiff(array, t42113=stored.encode()))


def test_deep_masks_keep_their_values(tmp_path):
    path = tmp_path / "a.png"
    for content in ROWS["16-bit grey, 32-bit integers, floats"][0]:
        path.write_bytes(content)
        assert np.array_equal(stored_values(open_picture(path)), DEEP)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(GREY, 8, 0).replace(struct.pack(">II", 8, 6), struct.pack(">II", 50_000, 40_000)))
    data = bytearray(path.read_bytes())
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    for read in (read_grey, open_picture):
        with pytest.raises(BadFile, match=r"claims 50000 x 40000 pixels; expected 1 to 268435456 .*gdal_retile"):
            read(path)
    with pytest.raises(BadFile, match="claims 50000 x 40000"):
        read_grey(path, max_pixels=10**9)
    assert picture_size(path) == (50_000, 40_000)


def test_pils_own_switches_are_set_while_files_are_read_and_restored_by_the_last_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "whole.png")
    noise = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    (tmp_path / "cut.jpg").write_bytes(saved("JPEG", noise)[:1500])
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(20):
                read_grey(tmp_path / "whole.png")
                with pytest.raises(BadFile, match="truncated"):
                    read_grey(tmp_path / "cut.jpg")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and Image.MAX_IMAGE_PIXELS == 10 and ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_dataset_says_a_long_reason_once(tmp_path):
    reason = "holds " + "many words " * 20
    problems = [BadFile(f"{name}.png", reason if name < "c" else "short") for name in "abcd"]
    lines = str(BadDataset("what", problems, "remedy")).splitlines()[1:-1]
    assert lines == [f"  a.png: {reason}", "  b.png: the same", "  c.png: short", "  d.png: short"]


REFUSED = {
    "16-bit RGB": (".png", png(bands(DEEP, DEEP, DEEP), 16, 2), ONE_SCALE),
    "two pages": (".tif", two_frames("TIFF"), "has 2 pages"),
    "CMYK": (".jpg", ROWS["CMYK, YCbCr, LAB"][0][0], "convert it, magick IN -colorspace Gray OUT"),
    "second band": (".tif", tiff(bands(GREY, OTHER), extra=(0,)), "expected one channel"),
    "hidden": (".png", saved("PNG", bands(GREY, HIDDEN)), r"hides 25\.0 %"),
    "turned": (".jpg", turned("JPEG"), "EXIF orientation 6"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_prepare_evaluate_and_predict_refuse_alike(tmp_path, name):
    suffix, content, words = REFUSED[name]
    image = tmp_path / "data" / "images" / f"a{suffix}"
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    image.write_bytes(content)
    Image.fromarray(BITS).save(tmp_path / "data" / "masks" / "a.png")
    classes = {"sea": (0, 0, 0), "oil": (0, 255, 255)}
    root = str(tmp_path / "data")
    settings = {"dataset": "folder", "root": root, "classes": classes}
    config = build_config({"name": "a", "run_dir": str(tmp_path), "prepare": settings, "evaluate": {"folder": root}})
    with pytest.raises(BadDataset, match=rf"(?s)a\{suffix}: .*{words}"):
        prepare(config)
    with pytest.raises(BadDataset, match=rf"(?s)a\{suffix}: .*{words}"):
        LabelledFolder(config, ClassTable(tuple(classes), tuple(classes.values())))
    with pytest.raises(BadFile, match=rf"(?s)a\{suffix}: .*{words}"):
        read_image(image)
    for given in (image, str(image)):
        with pytest.raises(ValueError, match=words):
            grey_image(given)


def test_a_mask_of_few_bits_in_a_tar_has_the_ids_that_it_stores():
    sample = decode_foreign("a", {"png": png(GREY, 8, 0), "mask.png": png(GREY % 4, 2, 0)})
    assert np.array_equal(sample.sar, GREY) and np.array_equal(sample.label, GREY % 4)


def test_a_sample_whose_image_hides_pixels_is_not_written(tmp_path):
    sample = Sample("a", np.ma.masked_less(GREY, 9))
    with pytest.raises(ValueError, match="a: a mask hides pixels of the image"):
        write_shards(tmp_path / "set", [sample], ClassTable(("sea", "oil"), ((0, 0, 0), (255, 255, 255))))


@pytest.mark.parametrize(("number", "text"), [
    (255.0, "255"), (-9999.0, "-9999"), (-3.4028234663852886e38, "-3.4028234663852886e+38"), (0.1, "0.1"),
    (float("inf"), "inf"), (float("-inf"), "-inf"), (float("nan"), "nan"),
])  # fmt: skip
def test_a_no_data_value_is_printed_to_its_last_digit(number, text):
    assert number_text(number) == text
