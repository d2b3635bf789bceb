"""Pictures inside the report's page, as data URIs: nothing lies next to the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

MAX_SIDE = 1400  # pixels; a larger picture is shrunk before it is embedded
THUMBNAIL_SIDE = 480  # pixels
_SMALL_WIDTH = 400  # pixels; a picture less wide is magnified without blurring its pixels


@dataclass(frozen=True)
class Picture:
    """alt: the text for a reader without pictures.  width: pixels.  source: the data URI."""

    alt: str
    width: int
    source: str

    @property
    def is_small(self) -> bool:
        return self.width < _SMALL_WIDTH


def embed(path: Path) -> Picture:
    """A picture as PNG, at most MAX_SIDE pixels a side."""
    return _embed(path, MAX_SIDE, "PNG")


def thumbnail(path: Path) -> Picture:
    """A picture of at most THUMBNAIL_SIDE pixels a side, a larger one as JPEG: many of them stay a small page."""
    return _embed(path, THUMBNAIL_SIDE, "JPEG", quality=75)


def _embed(path: Path, max_side: int, shrunk_format: str, **options: int) -> Picture:
    try:
        with Image.open(path) as opened:
            if max(opened.size) <= max_side and opened.format == "PNG":
                return Picture(path.stem, opened.width, _data_uri("PNG", path.read_bytes()))
            image = opened.convert("RGB")
    except Exception as error:  # PIL's errors on damaged pictures have no common base
        raise ValueError(f"{path} cannot be read as a picture ({error}); run the step that draws it again") from None
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format=shrunk_format, optimize=True, **options)
    return Picture(path.stem, image.width, _data_uri(shrunk_format, stream.getvalue()))


def _data_uri(format: str, data: bytes) -> str:
    return f"data:image/{format.lower()};base64,{base64.b64encode(data).decode()}"
