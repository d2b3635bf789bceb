"""The quick-look: the scene in grey, its slicks outlined and numbered, with scale bar, north arrow and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dakd.data.radiometry import grey_percentiles
from dakd.data.sample import ClassTable
from dakd.runtime.files import replacing
from dakd.scene.engine import NO_DATA
from dakd.scene.georeference import Georeference, geod
from dakd.scene.measures import Slick
from dakd.scene.packages import need
from dakd.scene.rasters_out import GREY, LABEL, Scratch

LONGEST = 2048  # pixels of the picture's longer side
_LEAST = 640  # smaller scenes are magnified by a whole number
_FOOT = 44  # pixels below the scene
_PAPER, _INK, _EMPTY = (250, 250, 250), (30, 30, 30), (200, 205, 215)
_MOST_NUMBERED = 100


def write_quicklook(
    path: Path, scratch: Scratch, slicks: Sequence[Slick], place: Georeference, classes: ClassTable, title: str
) -> None:
    """A PNG of at most 2048 x 2092 pixels.  slicks: of which the first 100 are numbered.  title: a line below it."""
    picture, scale = _greys(scratch)
    draw = ImageDraw.Draw(picture)
    colours = _colours(classes)
    for number, slick in enumerate(slicks, start=1):
        colour = colours[slick.outline.class_id]
        for polygon in slick.outline.geometry.geoms:
            for ring in (polygon.exterior, *polygon.interiors):
                points = [(x * scale, y * scale) for x, y in ring.coords]
                draw.line(points, fill=colour, width=2 if picture.width > 900 else 1, joint="curve")
        if number <= _MOST_NUMBERED:
            _number(draw, picture, slick.outline.geometry.bounds, scale, str(number), colour)
    whole = _with_foot(picture, scale, place, classes, {one.outline.class_id for one in slicks}, title)
    with replacing(path) as aside:
        whole.save(aside, format="PNG", compress_level=3)


def _greys(scratch: Scratch) -> tuple[Image.Image, float]:
    """The scene, its greys stretched from the 1 % to the 99 % of the sea; and picture pixels per pixel of it."""
    with scratch.open(GREY) as greys, scratch.open(LABEL) as labels:
        longest = max(greys.shape)
        scale = LONGEST / longest if longest > LONGEST else max(1, _LEAST // longest)
        shape = tuple(max(1, round(side * min(scale, 1))) for side in greys.shape)
        resampling = need("rasterio.enums").Resampling
        grey = greys.read(1, out_shape=shape, resampling=resampling.average)
        label = labels.read(1, out_shape=shape, resampling=resampling.nearest)
    valid = label != NO_DATA
    shown = grey[label == 0] if (label == 0).any() else grey[valid]
    low, high = grey_percentiles(np.bincount(shown, minlength=256), (1, 99)) if len(shown) else (0, 255)
    stretched = np.clip((grey.astype(np.float32) - low) * (220 / max(high - low, 1)) + 15, 0, 255).astype(np.uint8)
    rgb = np.where(valid[..., None], stretched[..., None], np.array(_EMPTY, np.uint8))
    picture = Image.fromarray(rgb.astype(np.uint8))
    if scale > 1:
        picture = picture.resize((picture.width * int(scale), picture.height * int(scale)), Image.Resampling.NEAREST)
    return picture, scale


def _colours(classes: ClassTable) -> list[tuple[int, int, int]]:
    """The class colours; orange for greys, which would pass for a part of the scene."""
    return [(255, 110, 0) if len(set(colour)) == 1 else colour for colour in classes.colours]


def _number(
    draw: ImageDraw.ImageDraw, picture: Image.Image, bounds: Sequence[float], scale: float, text: str, colour: Any
) -> None:
    font = ImageFont.load_default(14)
    x = min(bounds[2] * scale + 3, picture.width - font.getlength(text) - 2)
    y = min(max(bounds[1] * scale - 8, 1), picture.height - 17)
    draw.text((x, y), text, fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))


def _with_foot(
    picture: Image.Image, scale: float, place: Georeference, classes: ClassTable, shown: set[int], title: str
) -> Image.Image:
    font = ImageFont.load_default(13)
    width = max(picture.width, 480)
    canvas = Image.new("RGB", (width, picture.height + _FOOT), _PAPER)
    canvas.paste(picture)
    draw, top = ImageDraw.Draw(canvas), picture.height
    draw.text((6, top + 4), title, fill=_INK, font=font)
    x = 6.0
    for class_id in sorted(shown):
        draw.rectangle((x, top + 27, x + 10, top + 37), fill=_colours(classes)[class_id], outline=_INK)
        draw.text((x + 15, top + 24), classes.names[class_id], fill=_INK, font=font)
        x += 15 + font.getlength(classes.names[class_id]) + 14
    right = width - 12
    if place.has_place:
        right = _north(draw, place, right, top) - 22
    _scale_bar(draw, place, scale, right, top, font)
    return canvas


def _north(draw: ImageDraw.ImageDraw, place: Georeference, right: int, top: int) -> int:
    """An arrow to the north at the scene's centre; returns where it begins."""
    columns, rows = np.array([place.width / 2] * 2), np.array([place.height / 2, place.height / 2 - 1])
    lon, lat = place.to_lonlat(columns, rows)
    azimuth = math.radians(geod().inv(lon[0], lat[0], lon[1], lat[1])[0])  # of the way up in the picture
    # The raster may be mirrored: is east on the right of north?
    east_lon, east_lat = place.to_lonlat(columns + np.array([0.0, 1.0]), rows[[0, 0]])
    turn = math.radians(geod().inv(east_lon[0], east_lat[0], east_lon[1], east_lat[1])[0]) - azimuth
    side = 1.0 if math.sin(turn) > 0 else -1.0
    dx, dy = -side * math.sin(azimuth), -math.cos(azimuth)
    centre, reach = (right - 14, top + 24), 13
    tip = (centre[0] + reach * dx, centre[1] + reach * dy)
    draw.line([(centre[0] - reach * dx, centre[1] - reach * dy), tip], fill=_INK, width=2)
    for turned in (0.5, -0.5):
        back = math.atan2(dy, dx) + math.pi + turned
        draw.line([tip, (tip[0] + 7 * math.cos(back), tip[1] + 7 * math.sin(back))], fill=_INK, width=2)
    draw.text((right - 38, top + 4), "N", fill=_INK, font=ImageFont.load_default(13))
    return right - 40


def _scale_bar(
    draw: ImageDraw.ImageDraw, place: Georeference, scale: float, right: int, top: int, font: Any
) -> None:
    """A bar of a round length, about 120 pixels: kilometres, or pixels of the scene."""
    spacing = place.spacing_m
    per_pixel = 1.0 if spacing is None else spacing[0]
    wanted = 120 / scale * per_pixel
    step = 10 ** math.floor(math.log10(wanted))
    length = max(one * step for one in (1, 2, 5) if one * step <= wanted)
    wide = length / per_pixel * scale
    if spacing is None:
        text = f"{length:g} pixels"
    else:
        text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    draw.rectangle((right - wide, top + 26, right, top + 31), fill=_INK)
    draw.text((right - wide, top + 6), text, fill=_INK, font=font)
