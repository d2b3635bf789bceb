"""The one reader of pictures: of images, for prepare, evaluate, predict and Python, and of masks, not yet decoded.

What is not listed as taken is refused with a remedy. Nothing is scaled, turned, averaged over bands or cut to a page.

| picture | as an image | as a mask |
|---|---|---|
| 8-bit grey | taken | opened |
| 1-bit, 2-bit or 4-bit grey | taken, black 0 and white 255 | opened |
| 1-bit TIFF with white as 0 | taken, inverted as the tag demands | opened, inverted |
| grey TIFF with white as 0, 2 to 8 bits | taken, inverted as the tag demands | refused: are ids inverted too? |
| RGB of 8 bits, channels equal but for JPEG's errors | taken, their mean | opened |
| palette of greys | taken, the greys of the palette | opened |
| palette without the colours of some pixels | refused: write it again | opened |
| RGB or palette with colours | refused: one SAR channel | opened |
| alpha channel or transparent colour, all opaque | taken without it | opened |
| alpha channel or transparent colour, some pixels hidden | refused with their share: no value there | opened |
| alpha channel with values between 0 and 255 | refused: a second band | opened |
| TIFF with bands that are neither colour nor alpha | refused: one band | refused |
| TIFF with a transparency mask | refused: no value there | refused |
| TIFF with pixels of its no-data value | refused with their share: no value there | opened |
| TIFF with overviews | taken, the full size | opened |
| TIFF that leaves blocks out (sparse) | refused: write them | refused |
| TIFF without PhotometricInterpretation | refused: is 0 black or white? | refused |
| 16-bit grey, 32-bit integers, floats | refused: one scale for the dataset | opened |
| 16-bit grey TIFF with white as 0 | refused: one scale for the dataset | refused |
| 16-bit RGB or grey with alpha | refused: one scale for the dataset | refused |
| 12-bit JPEG, 64-bit floats | refused: one scale for the dataset | refused |
| 16-bit floats or palette, big-endian 32-bit unsigned integers | refused: one scale for the dataset | refused |
| signed 8-bit numbers | refused: one scale for the dataset | refused |
| complex numbers | refused: amplitude, then one scale | refused |
| CMYK, YCbCr, LAB | refused: convert to grey | opened |
| BMP of 4 or 8 bits with black and white as its palette | refused: save it as PNG | refused |
| BMP of 16 bits a pixel, which are 5 or 6 a channel | refused: 8 bits, from its source | refused |
| several pages or frames | refused with their number | refused |
| EXIF orientation other than 1 | refused: turn image and mask alike | refused |
| gamma or ICC profile | taken, the values as stored | opened |
| PNG, JPEG, TIFF or BMP under another's suffix | taken | opened |
| GIF, WebP, JPEG 2000 or others under any suffix | refused: convert it | refused |
| truncated, or damaged where the format shows it | refused | refused |
| more pixels than a record holds | refused: tiles; `predict` takes eight times as many | refused |

Damage shows where a decoder stumbles or a checksum differs: PNG and deflated TIFF have checksums. In other files a
changed byte may give other values: JPEG, BMP, and TIFF with LZW, PackBits, group 4, ZSTD or no compression.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.known_header import known_structure
from dakd.data.readers.picture_structure import FORMATS, Structure, check_deflated, check_png, read_structure
from dakd.data.sample import MAX_PIXELS

MAX_SCENE_PIXELS = 8 * MAX_PIXELS  # of an image to predict, which no record has to hold
_MAX_CHANNEL_DIFFERENCE = 8  # grey values; what JPEG's colour coding may do to a grey picture
_GREY_MODES = ("L", "1", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa")
_PALETTE_MODES = ("P", "PA")
_COLOUR_MODES = ("RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_ONE_BAND = "gdal_translate -b 1 IN OUT"
_SCALE = (
    "bring all images of the dataset to 0..255 with one scale, gdal_translate -ot Byte -scale LO HI 0 255 IN OUT, with "
    "LO and HI from the sensor's calibration, such as -35 and 0 for dB (with each image's own minimum and maximum, one "
    "bright ship would squeeze the sea)"
)
_AS_BYTES = "gdal_translate -ot Byte IN OUT"
_ONE_SCALE = f"expected 8-bit grey: {_SCALE}"
_BLACK_AS_0 = (
    "its tag PhotometricInterpretation says that 0 is white; expected that 0 is black, as ids need it: where the "
    "values are ids as they are, set the tag to 1 (tiffset -s 262 1 FILE)"
)
_ALL_BITS = "expected 8 bits a channel, of which such a file has lost some: save the source again as PNG"
_IDS = f"expected 8 bits a channel, or one channel of class ids: {_ONE_BAND}"
_IDS_AS_BYTES = f"{_IDS} -ot Byte"


@dataclass(frozen=True)
class _Refusal:
    """A kind of header that PIL reads with loss or not at all, and the refusals of an image and of a mask."""

    applies: Callable[[Structure], bool]
    of_image: str | None
    of_mask: str | None


_REFUSALS = (
    _Refusal(lambda s: s.numbers == "complex", f"expected its amplitude as 8-bit grey: take it, and {_SCALE}", _IDS),
    _Refusal(lambda s: s.num_unmarked > 0, f"expected one channel: {_ONE_BAND}", f"expected one channel: {_ONE_BAND}"),
    _Refusal(lambda s: s.pixel_bits == 16, _ALL_BITS, _ALL_BITS),
    _Refusal(lambda s: s.bits > 8 and s.channels > 1, _ONE_SCALE, _IDS),
    _Refusal(lambda s: s.bits > 1 and s.is_inverted, None, _BLACK_AS_0),
    _Refusal(lambda s: (s.bits, s.numbers) == (8, "signed"), _ONE_SCALE, f"expected unsigned numbers: {_AS_BYTES}"),
    _Refusal(lambda s: s.bits not in (1, 2, 4, 8, 16, 32), _ONE_SCALE, _IDS_AS_BYTES),
    _Refusal(lambda s: s.bits > 8, _ONE_SCALE, None),
)


def read_grey(path: Path, data: bytes | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W) uint8 grey values of an image; BadFile unless it is whole and the table above takes it.

    data: the file's content, where it lies in no file of its own.
    """
    structure = _structure(path, data)
    _refuse_structure(structure, path, is_mask=False)
    return _grey(_decode(path, data, structure, max_pixels), path, structure)


def grey_values(picture: Image.Image, path: str | Path) -> np.ndarray:
    """(H, W) uint8 grey values of a PIL picture; BadFile, naming `path`, unless the table above takes it.

    The header of its file or stream counts too, see `known_structure`. Checksums are left to PIL, which has decoded it.
    """
    structure = known_structure(picture, path)
    if structure is not None:
        _refuse_structure(structure, path, is_mask=False)
        _refuse_misread(picture, structure, path)
        _refuse_turned(structure.orientation, path)
    with _in_words(path), _strict_pil():
        _refuse_pages(_num_pages(picture, structure), path, ", or take the copy() of one page")
        _refuse_turned(picture.getexif().get(ExifTags.Base.Orientation, 1), path)
        if structure is not None and structure.palette and picture.mode in _PALETTE_MODES:
            picture = picture.copy()
            picture.putpalette(structure.palette)
        return _grey(picture, path, structure)


def open_picture(path: Path, data: bytes | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A mask as a picture, decoded to its end, with the values of its file; BadFile where the table refuses a mask.

    Grey values of 1, 2 and 4 bits are stretched to 0..255; `stored_values` undoes it. The picture's `info` holds its
    `structure`.  data: see `read_grey`.
    """
    structure = _structure(path, data)
    _refuse_structure(structure, path, is_mask=True)
    try:
        picture = _decode(path, data, structure, max_pixels)
    except BadFile as error:
        # PIL lacks some forms of more than 8 bits; where other TIFFs are unknown, they are damaged.
        if structure.format == "TIFF" and structure.bits > 8 and isinstance(error.__cause__, UnidentifiedImageError):
            raise BadFile(path, f"is a {structure}, in an unknown form; {_IDS_AS_BYTES}") from error
        raise
    picture.info["structure"] = structure
    return picture


def stored_values(picture: Image.Image) -> np.ndarray:
    """The values of a picture of `open_picture` as its file stores them: 0 to 3 where grey has 2 bits, not 0 to 255."""
    values, bits = np.array(picture), picture.info["structure"].bits
    return values // (255 // (2**bits - 1)) if picture.mode == "L" and bits < 8 else values


def is_lossy(path: Path) -> bool:
    """Whether a picture is compressed by a method that changes values; BadFile when its header cannot be read."""
    return _structure(path, None).is_lossy


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height by the header alone; BadFile when it cannot be read."""
    with _in_words(path), _strict_pil(), Image.open(path, formats=FORMATS) as picture:
        return picture.size


# --- before the pixels are decoded ------------------------------------------------------------------------------------


def _structure(path: Path, data: bytes | None) -> Structure:
    if data is None and path.exists() and not path.is_file():  # a pipe would be waited for
        raise BadFile(path, "is not a regular file; expected a picture")
    with _in_words(path), _opened(path, data) as stream:
        return read_structure(stream)


def _opened(path: Path, data: bytes | None) -> BinaryIO:
    return open(path, "rb") if data is None else io.BytesIO(data)


def _refuse_structure(structure: Structure, path: str | Path, is_mask: bool) -> None:
    for refusal in _REFUSALS:
        words = refusal.of_mask if is_mask else refusal.of_image
        if words and refusal.applies(structure):
            raise BadFile(path, f"is a {structure}; {words}")
    if structure.is_sparse:
        raise BadFile(
            path,
            "leaves blocks out (sparse), so that their pixels have no value; expected all of them: write them, "
            "gdal_translate -co SPARSE_OK=FALSE IN OUT",
        )
    if not structure.has_photometric:
        raise BadFile(
            path,
            "lacks the tag PhotometricInterpretation, so that 0 may be black or white; expected the tag: where 0 is "
            "black, set it to 1 (tiffset -s 262 1 FILE)",
        )
    if structure.has_mask:
        raise BadFile(path, f"hides pixels by a mask of its own; {_no_values('gdal_translate -mask none IN OUT')}")


def _refuse_pages(num_pages: int, path: str | Path, otherwise: str = "") -> None:
    if num_pages > 1:
        raise BadFile(path, f"has {num_pages} pages; expected one picture a file: split it{otherwise}")


def _refuse_turned(orientation: int, path: str | Path) -> None:
    if orientation in range(2, 9):  # others mean nothing
        raise BadFile(
            path,
            f"has the EXIF orientation {orientation}, by which viewers turn it; expected 1: turn the pixels or remove "
            "the tag (exiftool -Orientation= FILE), so that image and mask lie alike",
        )


def _refuse_misread(picture: Image.Image, structure: Structure, path: str | Path) -> None:
    """BadFile where PIL took a BMP's palette for plain greys of another depth, by which it then unpacks the pixels."""
    bits = {"1": 1, "L": 8}.get(picture.mode, structure.pixel_bits)
    if structure.pixel_bits not in (None, bits):
        raise BadFile(
            path,
            f"is a BMP of {structure.pixel_bits}-bit pixels, whose palette makes its decoder take them for {bits}-bit "
            "greys; expected another format: save it as PNG, gdal_translate -of PNG IN OUT.png",
        )


def _num_pages(picture: Image.Image, structure: Structure | None) -> int:
    """PIL would count a TIFF's overviews too."""
    if structure is not None and structure.format == "TIFF":
        return structure.num_pages
    try:
        return getattr(picture, "n_frames", 1)
    except ValueError:  # a GIF that is closed, which counts only when it is asked
        file = getattr(picture, "filename", "")
        if not os.path.isfile(file):
            return 1
        with Image.open(file) as again:
            return again.n_frames


def _no_values(how_to_show: str) -> str:
    return (
        "expected a value in every pixel: cut the image to its valid part (gdal_translate -srcwin X Y WIDTH HEIGHT IN "
        f"OUT), or, if what is hidden are greys too, show them: {how_to_show}"
    )


# --- the pixels -------------------------------------------------------------------------------------------------------


def _decode(path: Path, data: bytes | None, structure: Structure, max_pixels: int) -> Image.Image:
    source = path if data is None else io.BytesIO(data)
    with _in_words(path), _strict_pil(), Image.open(source, formats=FORMATS) as picture:
        width, height = picture.size
        if not 0 < width * height <= max_pixels:
            raise BadFile(
                path,
                f"claims {width} x {height} pixels; expected 1 to {max_pixels} in all: cut it into tiles with "
                "gdal_retile.py",
            )
        _refuse_pages(_num_pages(picture, structure), path)
        _refuse_turned(structure.orientation, path)  # PIL would turn a TIFF and forget it
        _refuse_misread(picture, structure, path)
        if structure.deflated:
            with _opened(path, data) as stream:
                check_deflated(stream, structure)
        picture.load()
        if structure.format == "PNG" and _may_lack_pixels(picture):
            with _opened(path, data) as stream:
                check_png(stream)
        if structure.palette and picture.mode in _PALETTE_MODES:
            picture.putpalette(structure.palette)
        _refuse_turned(picture.getexif().get(ExifTags.Base.Orientation, 1), path)
        return picture


def _may_lack_pixels(picture: Image.Image) -> bool:
    """Whether the last row of a decoded PNG is 0, as PIL leaves what it does not find; those in seven passes may."""
    last = picture.crop((0, picture.height - 1, picture.width, picture.height))
    return "interlace" in picture.info or not np.array(last).any()


def _grey(picture: Image.Image, path: str | Path, structure: Structure | None) -> np.ndarray:
    if picture.mode not in _GREY_MODES:
        remedy = _ONE_SCALE
        if picture.mode in _COLOUR_MODES:
            remedy = "expected 8-bit grey: convert it, magick IN -colorspace Gray OUT"
        raise BadFile(path, f"has the pixel type {picture.mode!r}; {remedy}")
    picture.load()
    _refuse_hidden(picture, path, structure)
    _refuse_short_palette(picture, path)
    shown = picture.getchannel("L") if picture.mode == "La" else picture  # PIL converts La to nothing but LA
    grey = np.array(shown) if shown.mode == "L" else _channels_to_grey(np.array(shown.convert("RGB")), path)
    has_nodata = structure is not None and structure.nodata is not None
    if has_nodata and (share := float(is_nodata(picture, structure).mean())):
        value, how = number_text(structure.nodata), _no_values("gdal_translate -a_nodata none IN OUT")
        raise BadFile(path, f"holds its no-data value {value} in {_percent(share)} of its pixels; {how}")
    return grey


def is_nodata(picture: Image.Image, structure: Structure) -> np.ndarray:
    """(H, W) bool: where the stored numbers of a pixel, alpha aside, are the no-data value."""
    values = np.array(picture).reshape(picture.height, picture.width, -1)
    colours = values[..., : 3 if values.shape[-1] > 2 else 1]
    return (colours == _decoded(structure.nodata, picture, structure)).all(-1)


def _decoded(number: float, picture: Image.Image, structure: Structure) -> float:
    """What PIL makes of a stored number: it stretches greys of few bits, and inverts them where 0 is white."""
    if picture.mode not in ("1", "L"):
        return number
    largest = 2**structure.bits - 1
    shown = largest - number if structure.is_inverted else number
    return shown * (255 // largest) if picture.mode == "L" else shown


def number_text(number: float) -> str:
    """A number to the last digit, as a command needs it."""
    return str(int(number)) if float(number).is_integer() and abs(number) < 1e15 else repr(number)


def _channels_to_grey(colours: np.ndarray, path: str | Path) -> np.ndarray:
    red, green, blue = (colours[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red.copy()
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    difference = int((highest - lowest).max())
    if difference > _MAX_CHANNEL_DIFFERENCE:
        raise BadFile(
            path,
            f"is a colour picture (channels differ by {difference}); expected grey, one SAR channel: take the one that "
            f"the others were trained on, such as {_ONE_BAND}",
        )
    return colours.mean(axis=-1).round().astype(np.uint8)


def _refuse_hidden(picture: Image.Image, path: str | Path, structure: Structure | None) -> None:
    alpha = alpha_of(picture, structure)
    if alpha is None or alpha.min() == 255:
        return
    if ((alpha > 0) & (alpha < 255)).any():
        found = f"its transparency holds the values {alpha.min()} to {alpha.max()}, as a second band would"
        raise BadFile(path, f"{found}; expected one channel: {_ONE_BAND}")
    share = _percent(float((alpha == 0).mean()))
    raise BadFile(path, f"hides {share} of its pixels by transparency (alpha 0); {_no_values(_ONE_BAND)}")


def _refuse_short_palette(picture: Image.Image, path: str | Path) -> None:
    if picture.mode not in _PALETTE_MODES:
        return
    num, highest = len(picture.getpalette("RGB") or []) // 3, int(np.array(picture.getchannel(0)).max())
    if highest >= num:
        raise BadFile(
            path,
            f"holds the number {highest} and a palette of {num} colours, so that these pixels would be black; expected "
            "a colour for every number: write the picture again, as grey",
        )


def alpha_of(picture: Image.Image, structure: Structure | None) -> np.ndarray | None:
    """(H, W) uint8, 0 where a pixel is hidden; None where there is no transparency."""
    if picture.getbands()[-1] in ("A", "a"):
        return np.array(picture.getchannel(len(picture.getbands()) - 1))
    # PIL stretches greys of few bits, but not the one that is transparent.
    if structure is not None and structure.bits in (2, 4) and picture.mode == "L" and "transparency" in picture.info:
        hidden = _decoded(picture.info["transparency"], picture, structure)
        return np.where(np.array(picture) == hidden, 0, 255).astype(np.uint8)
    is_in_palette = picture.mode == "P" and picture.palette is not None and picture.palette.mode.endswith("A")
    is_marked = is_in_palette or "transparency" in picture.info
    return np.array(picture.convert("RGBA").getchannel("A")) if is_marked else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "less than 0.1 %"


# --- PIL --------------------------------------------------------------------------------------------------------------


@contextmanager
def _in_words(path: str | Path) -> Iterator[None]:
    try:
        yield
    except BadFile:
        raise
    # What the library's parsers stumble over in damaged files has no common base.
    except Exception as error:
        raise BadFile(path, f"cannot be read as a picture ({str(error) or type(error).__name__})") from error


class _StrictPil:
    """Global switches of PIL while pictures are read: sizes are checked here, and truncation is an error."""

    def __init__(self) -> None:
        self._lock, self._num_readers, self._before = threading.Lock(), 0, (None, False)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:  # several threads: the first one sets, the last one restores
            if self._num_readers == 0:
                self._before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
            self._num_readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_readers -= 1
                if self._num_readers == 0:
                    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_strict_pil = _StrictPil()
