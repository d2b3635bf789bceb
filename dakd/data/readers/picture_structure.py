"""How a file stores its picture, by the file's own header: depth, channels, pages, no-data.

PIL hides some of it: 16-bit colours come out as their high bytes, unmarked bands are dropped, int8 is read as uint8,
a palette of 8-bit numbers in a TIFF becomes black.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from PIL import TiffImagePlugin

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_MAX_PAGES = 1000  # that are counted
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers that state depth, size and channels
_JPEG_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a body
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Tags of TIFF 6.0; the last one is GDAL's.
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _WORDS, _ORIENTATION, _SAMPLES, _PALETTE, _EXTRA, _FORMAT, _NODATA = (
    254, 258, 259, 262, 270, 274, 277, 320, 338, 339, 42113
)  # fmt: skip
_TIEPOINTS, _TRANSFORM = 33922, 34264  # tags of GeoTIFF; each places pixels on Earth
_STRIPS, _TILES = (273, 279), (324, 325)  # tags of their places and of their sizes
_LOSSY = (6, 7, 34712, 34887, 34892, 50001, 50002)  # JPEG, JPEG 2000, LERC, WebP, JPEG XL; some know exact modes too
_DEFLATE = (8, 32946)
_INFLATED = 1 << 20  # bytes at a time
# First column and row of each pass of a PNG, and the steps to the next ones.
_ONE_PASS = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_REDUCED, _MASK = 1, 4  # bits of the tag NewSubfileType: an overview, a transparency mask
_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}  # channels of colour by PhotometricInterpretation; else one
_NUMBERS = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned", 5: "complex", 6: "complex"}  # by SampleFormat
_IMAGEJ_STACK = re.compile(r"ImageJ=.*?^images=([0-9]{1,9})\s*$", re.DOTALL | re.MULTILINE)
_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"RIFF", "a WebP"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"%!PS", "PostScript"),
    (b"%PDF", "a PDF"),
    (b"\x89HDF", "HDF5 or NetCDF"),
    (b"CDF", "NetCDF"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x1f\x8b", "gzip data"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (git lfs pull fetches it)"),
)


@dataclass(frozen=True)
class Structure:
    """Facts of a header.

    bits: per sample, the largest.  numbers: "unsigned", "signed", "float" or "complex".  channels: samples per pixel.
    num_unmarked: those of them that are neither colour nor marked as transparency.  num_pages: pictures at full size.
    is_inverted: white is stored as 0.  has_mask: a page says which pixels are hidden.  nodata: the value that means
    "no data", or None.  orientation: 1 unless a viewer should turn the picture.  is_lossy: compressed by a method that
    changes values.  pixel_bits: of a BMP, the bits of a whole pixel.  palette: red, green and blue of each entry where
    a TIFF stores them with 8 bits, not 16.  deflated: (place, size) of each part of a TIFF that has a checksum.
    is_sparse: a TIFF without some of its parts.  has_place: a TIFF that says where its pixels lie.
    has_photometric: False for a TIFF that does not say what 0 shows.
    """

    format: str
    bits: int = 8
    channels: int = 1
    numbers: str = "unsigned"
    num_unmarked: int = 0
    num_pages: int = 1
    is_inverted: bool = False
    has_mask: bool = False
    nodata: float | None = None
    orientation: int = 1
    is_lossy: bool = False
    pixel_bits: int | None = None
    palette: bytes | None = None
    deflated: tuple[tuple[int, int], ...] = ()
    is_sparse: bool = False
    has_place: bool = False
    has_photometric: bool = True

    def __str__(self) -> str:
        plural = "s" if self.channels > 1 else ""
        return f"{self.format} with {self.channels} channel{plural} of {self.bits}-bit {self.numbers} numbers"


def read_structure(stream: BinaryIO) -> Structure:
    """The structure of the picture that begins at byte 0 of a stream.

    ValueError, saying what it holds, unless it is a PNG, JPEG, TIFF or BMP; damaged ones raise various errors.
    """
    stream.seek(0)
    head = stream.read(32)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Structure("PNG", bits=head[24], channels=_PNG_CHANNELS[head[25]])
    if head.startswith(b"\xff\xd8"):
        return _jpeg(stream)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(stream, head[:16] if b"+" in head[:4] else head[:8])  # BigTIFF or not
    if head.startswith(b"BM"):
        # The oldest header, of 12 bytes, has shorter fields.
        (bits,) = struct.unpack_from("<H", head, 24 if head[14] == 12 else 28)
        return Structure("BMP", 5, 3, pixel_bits=bits) if bits == 16 else Structure("BMP", pixel_bits=bits)
    found = next((name for start, name in _OTHERS if head.startswith(start)), "something else")
    names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    raise ValueError(f"it is empty; expected {names}" if not head else f"it holds {found}; expected {names}")


def check_deflated(stream: BinaryIO, structure: Structure) -> None:
    """zlib.error or ValueError where a deflated part of a TIFF misses its checksum, which libtiff may not reach."""
    for place, size in structure.deflated:
        stream.seek(place)
        data, inflater = stream.read(size), zlib.decompressobj()
        while not inflater.eof:
            some = inflater.decompress(data, _INFLATED)
            data = inflater.unconsumed_tail
            if not some and not data:
                raise ValueError(f"its part at byte {place} ends without a checksum; write it again")


def check_png(stream: BinaryIO) -> None:
    """ValueError where a PNG ends, its checksums right, before the pixels that its header claims."""
    stream.seek(16)
    width, height, depth, kind, _, _, is_interlaced = struct.unpack(">IIBBBBB", stream.read(13))
    wanted, found, inflater = 0, 0, zlib.decompressobj()
    for column, row, right, down in _ADAM7 if is_interlaced else _ONE_PASS:
        columns, rows = -((column - width) // right), -((row - height) // down)
        row_bytes = (columns * depth * _PNG_CHANNELS[kind] + 7) // 8
        wanted += rows * (1 + row_bytes) if columns > 0 and rows > 0 else 0
    stream.seek(33)
    while found < wanted and len(head := stream.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        data = stream.read(length) if name == b"IDAT" else b""
        stream.seek(length - len(data) + 4, os.SEEK_CUR)
        while data:
            found += len(inflater.decompress(data, _INFLATED))
            data = inflater.unconsumed_tail
    if found < wanted and (found := found + len(inflater.flush())) < wanted:
        raise ValueError(f"its data end after {found} of {wanted} bytes, so that pixels are missing; write it again")


def _jpeg(stream: BinaryIO) -> Structure:
    stream.seek(2)
    while stream.read(1) == b"\xff":
        marker = b"\xff"
        while marker == b"\xff":  # any number of fill bytes
            marker = stream.read(1)
        if marker[0] in _JPEG_ALONE:
            continue
        (length,) = struct.unpack(">H", stream.read(2))
        body = stream.read(length - 2)
        if marker[0] in _JPEG_FRAMES:
            return Structure("JPEG", bits=body[0], channels=body[5], is_lossy=True)
    return Structure("JPEG", is_lossy=True)  # damaged, or with padding that PIL knows: its decoder decides


def _tiff(stream: BinaryIO, head: bytes) -> Structure:
    """Overviews are no pages of their own."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(head)
    first, kinds, seen, place = None, [], set(), directory.next
    while place and place not in seen and len(kinds) < _MAX_PAGES:
        seen.add(place)
        stream.seek(place)
        directory.load(stream)
        kinds.append(_number(directory.get(_SUBFILE, 0)))
        first, place = first or _first_page(directory), directory.next
    if first is None:
        raise ValueError("it has no page")
    num_pages = sum(not kind & (_REDUCED | _MASK) for kind in kinds)
    # Where an overview comes first, PIL would decode it in place of the picture.
    num_pages = max(num_pages, 1) + (kinds[0] & _REDUCED)
    if len(kinds) == 1:
        num_pages = max(num_pages, _num_stacked(directory, stream))
    has_mask = any(kind & _MASK for kind in kinds)
    return Structure("TIFF", num_pages=num_pages, has_mask=has_mask, **first)


def _num_stacked(tags: TiffImagePlugin.ImageFileDirectory_v2, stream: BinaryIO) -> int:
    """Pictures behind one directory, as in ImageJ's files above 4 GB, which state their number in words alone.

    Other programs keep the words where they write a single one of them, so that the bytes have to be there too.
    """
    found = _IMAGEJ_STACK.match(str(tags.get(_WORDS, "")))
    if not found:
        return 1
    num, size = int(found[1]), sum(_sizes(tags))
    return num if min(_places(tags), default=0) + num * size <= stream.seek(0, os.SEEK_END) else 1


def _first_page(tags: TiffImagePlugin.ImageFileDirectory_v2) -> dict:
    photometric, extra = _number(tags.get(_PHOTOMETRIC, 1)), _numbers(tags.get(_EXTRA, ()))
    channels, compression = _number(tags.get(_SAMPLES, 1)), _number(tags.get(_COMPRESSION, 1))
    num_marked = sum(kind in (1, 2) for kind in extra)  # transparency
    return {
        "bits": max(_numbers(tags.get(_BITS, 1))),
        "channels": channels,
        "numbers": _NUMBERS.get(max(_numbers(tags.get(_FORMAT, 1))), "unsigned"),
        "num_unmarked": max(0, channels - _COLOURS.get(photometric, 1) - num_marked),
        "is_inverted": photometric == 0,
        "nodata": _nodata(tags.get(_NODATA)),
        "orientation": _number(tags.get(_ORIENTATION, 1)),
        "is_lossy": compression in _LOSSY,
        "palette": _palette(_numbers(tags.get(_PALETTE, ()))),
        "deflated": _parts(tags) if compression in _DEFLATE else (),
        # By the sizes of 0 it would also be a file that states none.
        "is_sparse": 0 in _places(tags) or _lacks_parts(tags),
        "has_place": _TIEPOINTS in tags or _TRANSFORM in tags,
        "has_photometric": _PHOTOMETRIC in tags or not _places(tags),  # cut before its places: damaged
    }


def _palette(numbers: tuple[int, ...]) -> bytes | None:
    """From all reds, all greens, all blues. The standard has 16 bits; numbers below 256 alone have 8, as in libtiff."""
    num = len(numbers) // 3
    if not num or 3 * num != len(numbers) or max(numbers) > 255:
        return None
    return bytes(number for entry in range(num) for number in numbers[entry::num])


def _parts(tags: TiffImagePlugin.ImageFileDirectory_v2) -> tuple[tuple[int, int], ...]:
    return tuple(zip(_places(tags), _sizes(tags)))


def _places(tags: TiffImagePlugin.ImageFileDirectory_v2) -> tuple[int, ...]:
    return _numbers(tags.get(_TILES[0] if _TILES[0] in tags else _STRIPS[0], ()))


def _sizes(tags: TiffImagePlugin.ImageFileDirectory_v2) -> tuple[int, ...]:
    return _numbers(tags.get(_TILES[1] if _TILES[0] in tags else _STRIPS[1], ()))


def _lacks_parts(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    """Whether there are fewer strips or tiles than the size asks for; False where there is none at all: damaged."""
    width, height = (_number(tags.get(tag, 0)) for tag in (256, 257))
    if _TILES[0] in tags:
        across, down = (_number(tags.get(tag, 0)) or 1 << 32 for tag in (322, 323))
    else:
        across, down = width, _number(tags.get(278, 0)) or height
    wanted = -(-width // max(across, 1)) * -(-height // max(down, 1))
    return 0 < len(_places(tags)) < wanted


def _numbers(value) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, tuple | list) else (int(value),)


def _number(value) -> int:
    return _numbers(value)[0]


def _nodata(text) -> float | None:
    """GDAL writes it as text; nan cannot be the value of an 8-bit pixel."""
    try:
        value = float(str(text).strip().strip("\0"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
