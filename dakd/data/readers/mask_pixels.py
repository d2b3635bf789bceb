"""The pixels of a mask as they are stored, with the colour that each stored value shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.read_picture import alpha_of, is_nodata, number_text, open_picture, stored_values
from dakd.data.sample import IGNORE_INDEX

BLACK, WHITE = 0, 0xFFFFFF  # packed colours
_GREY = 0x010101
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
# Greys of few bits show equal steps from black to white.
_STEPS = {"bits": 255, "2-bit grey": 85, "4-bit grey": 17, "grey": 1}


@dataclass(frozen=True)
class MaskPixels:
    """form: bits, 2-bit grey, 4-bit grey, grey (any other depth), palette or colours.

    values: (H, W) whole numbers as stored: 0 and 1, greys, places in the palette, colours packed as 0xRRGGBB.
    palette: the packed colours of a palette, () otherwise.  is_lossy: compressed by a method that changes values.
    is_255_nodata: the file says that the number 255 means "no data".
    """

    form: str
    values: np.ndarray
    palette: tuple[int, ...] = ()
    is_lossy: bool = False
    is_255_nodata: bool = False

    def distinct(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The values in use, sorted; the pixels of each; and (H, W) places among them. Counted by runs of equal pixels,
        of which masks have few."""
        flat = self.values.ravel()
        starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
        lengths = np.diff(starts, append=flat.size)
        found, places = np.unique(flat[starts], return_inverse=True)
        counts = np.bincount(places, lengths).astype(np.int64)
        return found, counts, np.repeat(places, lengths).reshape(self.values.shape)


def shown_colour(form: str, palette: tuple[int, ...], value: int) -> int | None:
    """The packed colour that a stored value shows; None for greys beyond 8 bits."""
    if form == "palette":
        return palette[value] if value < len(palette) else None
    if form == "colours":
        return value
    grey = value * _STEPS[form]
    return grey * _GREY if 0 <= grey <= 255 else None


def pack(colour: tuple[int, int, int]) -> int:
    """(r, g, b) as 0xRRGGBB."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def unpack(colour: int) -> tuple[int, int, int]:
    """The reverse of `pack`."""
    return colour >> 16, colour >> 8 & 255, colour & 255


def read_mask(path: Path, data: bytes | None = None) -> MaskPixels:
    """The pixels of a mask; BadFile where it is damaged, transparent anywhere, or stored with more than is read.

    Greys of any depth, with alpha or as three equal channels, are "grey": one number per pixel.
    data: the file's content, where it lies in no file of its own.
    """
    picture = open_picture(path, data)
    if picture.mode not in _MODES:
        raise BadFile(path, f"has the pixel type {picture.mode!r}; expected ids (grey), a palette or RGB: save it so")
    refuse_transparent(picture, path)
    _refuse_nodata(picture, path)
    structure = picture.info["structure"]
    is_255_nodata, is_lossy = structure.nodata == IGNORE_INDEX, structure.is_lossy
    if picture.mode in ("P", "PA"):
        colours = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        index = picture if picture.mode == "P" else picture.getchannel("P")
        return MaskPixels("palette", np.array(index), tuple(_packed(colours).tolist()), is_lossy, is_255_nodata)
    values = stored_values(picture)
    if values.ndim == 2:
        bits = structure.bits if picture.mode == "L" else None
        form = "bits" if picture.mode == "1" else f"{bits}-bit grey" if bits in (2, 4) else "grey"
        return MaskPixels(form, _whole(values, path), (), is_lossy, is_255_nodata)
    values = values[..., :1] if picture.mode in ("LA", "La") else values[..., :3]
    if all(np.array_equal(values[..., 0], values[..., channel]) for channel in range(1, values.shape[-1])):
        return MaskPixels("grey", values[..., 0], is_lossy=is_lossy)
    return MaskPixels("colours", _packed(values), is_lossy=is_lossy)


def refuse_transparent(picture: Image.Image, path: Path) -> None:
    """BadFile where a pixel of a mask is transparent, in part or wholly: its stored colour is not what it shows."""
    num = int(_is_transparent(picture).sum())
    if num:
        raise BadFile(
            path,
            f"has {num} transparent pixels, which show no class, whatever colour lies under them; expected an opaque "
            "mask: paint them in the colour of their class, or save ids without transparency (255: unknown)",
        )


def _refuse_nodata(picture: Image.Image, path: Path) -> None:
    """BadFile where pixels have the no-data value of the file; 255 among single numbers is unknown and stays."""
    structure = picture.info["structure"]
    if structure.nodata is None or (structure.nodata == IGNORE_INDEX and len(picture.getbands()) == 1):
        return
    is_hidden = is_nodata(picture, structure)
    if num := int(is_hidden.sum()):
        value = number_text(structure.nodata)
        write = f"write it (gdalwarp -srcnodata {value} -dstnodata 255 -ot Byte IN OUT)"
        others = np.array(picture)[~is_hidden]
        if others.size and (others == IGNORE_INDEX).all() and picture.mode != "1":  # which would then be unknown too
            write = "write the ids in place of 255, then 255 where nothing is known"
        raise BadFile(
            path,
            f"holds its no-data value {value} in {num} pixels, which show no class; expected 255 for unknown pixels "
            f"among ids: {write}, or, where the value is a class, say that it is data (gdal_translate -a_nodata none "
            "IN OUT)",
        )


def _is_transparent(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I") and "transparency" in picture.info:  # which PIL does not convert
        return np.array(picture) == picture.info["transparency"]
    alpha = alpha_of(picture, picture.info["structure"])
    return np.zeros(0, bool) if alpha is None else alpha < 255


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    if np.issubdtype(values.dtype, np.floating):
        with np.errstate(invalid="ignore"):
            broken = values[~(np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 1 << 31))]
        if broken.size:
            named = ", ".join(f"{value:g}" for value in np.unique(broken)[:5])
            raise BadFile(path, f"holds {named} in {broken.size} pixels; expected whole numbers, the ids of classes")
        return values.astype(np.int64)
    return values.astype(np.uint8) if values.dtype == bool else values


def _packed(colours: np.ndarray) -> np.ndarray:
    padded = np.zeros((*colours.shape[:-1], 4), np.uint8)
    padded[..., 2::-1] = colours
    return padded.view("<i4")[..., 0]
