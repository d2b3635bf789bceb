"""Pictures of images and labels: class colours, overlays, contact sheets (the image left, its label right)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dakd.data.sample import IGNORE_INDEX, ClassTable, Sample
from dakd.data.soft_labels import likeliest_class
from dakd.runtime.files import replacing

_GAP = 4  # pixels between pairs
_INNER_GAP = 1  # pixels between an image and its label
_BACKGROUND = (245, 245, 245)
_INK = (40, 40, 40)
_ORANGE = (255, 110, 0)
_ROWS_AT_ONCE = 256
_LINE = 16  # pixels: height of a line of text


def colourise(label: np.ndarray, classes: ClassTable) -> np.ndarray:
    """(H, W) uint8 class ids to (H, W, 3) uint8 colours; ids outside the table are mid-grey."""
    return classes.palette()[label]


def class_map(label: np.ndarray, classes: ClassTable) -> Image.Image:
    """(H, W) uint8 class ids as a palette picture in the colours of the class table."""
    picture = Image.fromarray(label)
    picture.putpalette(classes.palette().tobytes())
    return picture


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with replacing(path) as aside:
        picture.save(aside, format="PNG")


def check_alpha(alpha: float) -> None:
    """ValueError for a strength of an overlay that is not 0 to 1."""
    if not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise ValueError(f"the overlay's alpha is {alpha!r}; expected a number from 0, invisible, to 1")


def overlay(sar: np.ndarray, label: np.ndarray, classes: ClassTable, alpha: float = 0.45) -> np.ndarray:
    """(H, W, 3) uint8: the image with every class but the first laid over it in its colour, `alpha` strong (0 to 1).

    A class whose colour is grey, as SOS's white oil, would pass for a part of the image: it is laid on in orange.
    """
    check_alpha(alpha)
    palette = classes.palette()
    own = palette[: classes.num_classes]
    own[np.ptp(own, axis=1) == 0] = _ORANGE
    laid = np.empty((*sar.shape, 3), np.uint8)
    for top in range(0, len(sar), _ROWS_AT_ONCE):  # a scene's floats would take ten times its own memory
        rows = slice(top, top + _ROWS_AT_ONCE)
        grey = np.repeat(sar[rows, :, None], 3, axis=-1).astype(np.float32)
        mixed = (1 - alpha) * grey + alpha * palette[label[rows]]
        laid[rows] = np.where((label[rows] == 0)[..., None], grey, mixed).round()
    return laid


def contact_sheet(
    pairs: Sequence[Sample | tuple[np.ndarray, np.ndarray | None]],
    classes: ClassTable,
    columns: int = 4,
    scale: int = 1,
    titles: Sequence[str] = (),
) -> Image.Image:
    """One picture of many pairs, image left and label right, with a legend of the class colours below.

    pairs: samples, or (sar, label); a soft label shows as its argmax, a missing one not at all.
    columns: pairs in a row.  scale: whole-number magnification.  titles: a line of text above each row, or none.
    """
    arrays = [_arrays(pair) for pair in pairs]
    parts = [[sar] if label is None else [sar, colourise(label, classes)] for sar, label in arrays]
    tiles = [_beside(one, scale) for one in parts]
    if titles:
        rows = [image_grid(tiles[first : first + columns], columns) for first in range(0, len(tiles), columns)]
        sheet = _titled(rows, titles)
    else:
        sheet = image_grid(tiles, columns)
    entries = list(zip(classes.names, classes.colours))
    if any(label is not None and (label == IGNORE_INDEX).any() for _, label in arrays):
        entries.append(("unknown", tuple(classes.palette()[IGNORE_INDEX].tolist())))
    return _with_legend(sheet, entries)


def image_grid(images: Sequence[np.ndarray], columns: int = 4, scale: int = 1) -> Image.Image:
    """Images (H, W) or (H, W, 3) uint8, not necessarily of one size, in rows of `columns`, magnified `scale` times."""
    if not len(images):
        raise ValueError("a picture needs at least one image; found none")
    tiles = [_magnify(_as_rgb(image), scale) for image in images]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    columns = min(columns, len(tiles))
    num_rows = math.ceil(len(tiles) / columns)
    canvas = np.full((num_rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _BACKGROUND, np.uint8)
    for place, tile in enumerate(tiles):
        top = _GAP + place // columns * (height + _GAP)
        left = _GAP + place % columns * (width + _GAP)
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return Image.fromarray(canvas)


def _arrays(pair: Sample | tuple) -> tuple[np.ndarray, np.ndarray | None]:
    if not isinstance(pair, Sample):
        return pair
    if pair.label is None and pair.soft_label is not None:
        return pair.sar, likeliest_class(pair.soft_label)
    return pair.sar, pair.label


def _beside(images: list[np.ndarray], scale: int) -> np.ndarray:
    tiles = [_magnify(_as_rgb(image), scale) for image in images]
    gap = np.full((tiles[0].shape[0], _INNER_GAP, 3), _BACKGROUND, np.uint8)
    return np.concatenate([part for tile in tiles for part in (gap, tile)][1:], axis=1)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image


def _magnify(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, axis=0).repeat(scale, axis=1) if scale > 1 else image


def _titled(rows: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Rows below one another, each below its title."""
    font = ImageFont.load_default()
    widths = [row.width for row in rows] + [2 * _GAP + math.ceil(font.getlength(title)) for title in titles]
    canvas = Image.new("RGB", (max(widths), sum(_LINE + row.height for row in rows)), _BACKGROUND)
    draw, top = ImageDraw.Draw(canvas), 0
    for row, title in zip(rows, titles, strict=True):
        draw.text((_GAP, top + 3), title, fill=_INK, font=font)
        canvas.paste(row, (0, top + _LINE))
        top += _LINE + row.height
    return canvas


def _with_legend(sheet: Image.Image, entries: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    font = ImageFont.load_default()
    swatch = 10
    places, x, y = [], _GAP, sheet.height + 2
    for name, _ in entries:
        width = swatch + 5 + int(font.getlength(name)) + 12
        if x + width > sheet.width and x > _GAP:
            x, y = _GAP, y + _LINE
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (sheet.width, y + _LINE), _BACKGROUND)
    canvas.paste(sheet)
    draw = ImageDraw.Draw(canvas)
    for (x, y), name, colour in zip(places, *zip(*entries)):
        draw.rectangle((x, y + 1, x + swatch, y + 1 + swatch), fill=tuple(colour), outline=_INK)
        draw.text((x + swatch + 5, y), name, fill=_INK, font=font)
    return canvas
