"""The header of a picture that PIL has already opened, and perhaps decoded and closed."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, ImageFile

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.picture_structure import Structure, read_structure


def known_structure(picture: Image.Image, path: str | Path) -> Structure | None:
    """The structure of the stream or file that a picture was opened from.

    None where there is none, as for a picture made in memory or of a format that PIL alone knows, and where the decoded
    pixels tell enough. BadFile, naming `path`, where the header is out of reach and they do not.
    """
    for read in (_of_stream, _of_file):
        try:
            structure = read(picture)
        # Moved, written over or of another format; parsers stumble over such files without a common base.
        except Exception:
            continue
        if structure is not None:
            return structure
    if isinstance(picture, ImageFile.ImageFile) and _may_hide_facts(picture):
        raise BadFile(
            path,
            f"was decoded from a {picture.format} that is out of reach, closed or moved, so that its header is not "
            "known; expected one that can be read, for depth, orientation and no-data value: give the path, or the "
            "picture before it is decoded",
        )
    return None


def _of_stream(picture: Image.Image) -> Structure | None:
    """PIL forgets the stream of a decoded picture, but for formats that may have several pages."""
    for stream in (getattr(picture, "fp", None), getattr(picture, "_fp", None)):
        if stream is None or getattr(stream, "closed", True):
            continue
        place = stream.tell()
        try:
            return read_structure(stream)
        finally:
            stream.seek(place)
    return None


def _of_file(picture: Image.Image) -> Structure | None:
    file = Path(os.fsdecode(getattr(picture, "filename", "")))
    if not file.is_file():
        return None
    with open(file, "rb") as stream:
        return read_structure(stream)


def _may_hide_facts(picture: Image.Image) -> bool:
    """Whether headers that differ in what counts give pictures like this one. A JPEG has 8 bits if it can be read."""
    if picture.format == "PNG":  # 16 bits a channel, of which the low ones are lost; a transparent grey of few bits
        return picture.mode in ("LA", "RGB", "RGBA") or (picture.mode == "L" and "transparency" in picture.info)
    if picture.format == "BMP":  # see `_refuse_misread`; 5 bits a channel
        return picture.mode in ("1", "L", "RGB")
    return picture.format == "TIFF"  # PIL keeps its tags, but removes the orientation from them
