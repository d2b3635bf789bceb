"""A scene as the student is to see it: greys at the training's pixel spacing, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dakd.data.radiometry import Radiometry
from dakd.scene.bad_scene import BadScene
from dakd.scene.georeference import Georeference
from dakd.scene.radiometry import (
    AS_THEY_ARE,
    Unit,
    Window,
    choose_window,
    decide_unit,
    foreign_greys,
    power_to_level,
    to_grey,
    to_level,
    to_power,
)
from dakd.scene.rasters_in import Raster
from dakd.scene.resample import Axis, area_mean

NO_LEVEL = np.int16(-32768)
LEVELS_PER_DB = 100  # of the stored levels
_AS_GOOD = 0.05  # a spacing that differs by less is kept
_COARSEST = 16  # times the student's spacing: beyond it a scene would be made of interpolated pixels
_SURVEYED = 32  # blocks of rows
_BLOCK = 8  # rows
_PIXELS_AT_ONCE = 1 << 22  # of the source


@dataclass(frozen=True)
class Rows:
    """Rows of a scene: grey (h, W) uint8, valid (h, W) bool, level (h, W) int16: hundredths of dB, or greys.

    Where a pixel is not valid, grey is 0 and level NO_LEVEL.
    """

    grey: np.ndarray
    valid: np.ndarray
    level: np.ndarray

    def cut(self, top: int, bottom: int | None, left: int = 0, right: int | None = None) -> Rows:
        return Rows(*(one[top:bottom, left:right] for one in (self.grey, self.valid, self.level)))

    def joined(self, below: Rows) -> Rows:
        pairs = ((self.grey, below.grey), (self.valid, below.valid), (self.level, below.level))
        return Rows(*(np.concatenate(pair) for pair in pairs))


class GreyScene:
    """height, width, place: at the spacing that the student sees.  unit, window and reasons: how its greys are made.

    grey_window: the dB by which greys are averaged as power, None for other units and where it is unknown.
    has_db: whether levels are dB of backscatter (or of amplitude squared).  notes: what was decided, in words.
    warning: that its greys are far from the training's, or None.
    """

    def __init__(
        self,
        raster: Raster,
        student: Radiometry,
        unit: str = "auto",
        window: Window | Literal["match"] | None = None,
        spacing: float | Literal["native"] | None = None,
    ) -> None:
        """spacing: metres; None takes the student's, where both are known; "native" the scene's own.

        Raises BadScene where the unit or the window is unclear, and where no pixel is valid.
        """
        self._raster, self.notes = raster, list(raster.notes)
        source = raster.place
        found = decide_unit(unit, raster.dtype, self._surveyed_source(), raster.unit)
        self.unit: Unit = found.unit
        self.notes.append(f"unit {found.unit}: {found.reason}")
        self.has_db = self.unit != "grey"
        self.height, self.width = self._size(source, student, spacing)
        self._axes = None
        self.place: Georeference = source
        if (self.height, self.width) != (source.height, source.width):
            self._axes = Axis.between(source.height, self.height), Axis.between(source.width, self.width)
            self.place = source.resized(self.height, self.width)
        self.grey_window = student.window_db if self.unit == "grey" else None
        self.window: Window = AS_THEY_ARE
        levels = self._surveyed_levels()
        self.window, reason = choose_window(window, self.unit, student, levels)
        self.window_reason = reason
        what = "dB" if self.has_db else "greys"
        self.notes.append(f"window {self.window[0]:.2f} to {self.window[1]:.2f} {what}: {reason}")
        self.warning = foreign_greys(to_grey(levels, self.window), student)

    def _size(
        self, source: Georeference, student: Radiometry, spacing: float | Literal["native"] | None
    ) -> tuple[int, int]:
        own = source.spacing_m
        wanted = student.pixel_spacing_m if spacing is None else spacing
        if wanted == "native":
            self.notes.append("its own pixel spacing is kept, as asked for")
            return source.height, source.width
        if wanted is None or own is None:
            if spacing is not None:
                raise BadScene(
                    f"a spacing of {spacing:g} m is asked for, and the scene has none of its own; give its --pixel-size"
                )
            lacks = "the student's file" if own is not None else "the scene"
            self.notes.append(f"{lacks} states no pixel spacing, so pixels are taken as they are (--spacing)")
            return source.height, source.width
        right, down = wanted / own[0], wanted / own[1]
        if abs(right - 1) < _AS_GOOD and abs(down - 1) < _AS_GOOD:
            return source.height, source.width
        if min(right, down) * _COARSEST < 1:
            raise BadScene(
                f"its pixels are {own[1]:.4g} x {own[0]:.4g} m, more than {_COARSEST} times the {wanted:g} m to which "
                "it is to be brought; check its transform, or give --spacing native"
            )
        height, width = max(1, round(source.height / down)), max(1, round(source.width / right))
        self.notes.append(
            f"{source.height} x {source.width} pixels of {own[1]:.4g} x {own[0]:.4g} m are averaged to "
            f"{height} x {width} of {wanted:g} m"
        )
        return height, width

    def rows(self, top: int, bottom: int) -> Rows:
        """Rows `top` to `bottom`, each the same whatever is read with it.  Raises BadScene for unreadable ones."""
        level, valid = self._levels(top, bottom)
        grey = np.where(valid, to_grey(level, self.window), np.uint8(0))
        stored = np.clip(np.rint(level * np.float32(LEVELS_PER_DB if self.has_db else 1)), -32767, 32767)
        return Rows(grey, valid, np.where(valid, stored.astype(np.int16), NO_LEVEL))

    def _levels(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        step = 1 if self._axes is None else self._axes[0].taps
        at_once = max(1, _PIXELS_AT_ONCE // (self._raster.place.width * step))
        parts = [self._few_levels(start, min(start + at_once, bottom)) for start in range(top, bottom, at_once)]
        return np.concatenate([one for one, _ in parts]), np.concatenate([one for _, one in parts])

    def _few_levels(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        if self._axes is None:
            values, valid = self._raster.read(top, bottom)
            return to_level(values, self.unit), valid
        rows, columns = self._axes
        start, stop = rows.rows_for(top, bottom, self._raster.place.height)
        values, valid = self._raster.read(start, stop)
        power = np.where(valid, to_power(values, self.unit, self.grey_window), np.float32(0))
        mean, is_valid = area_mean(power, valid, start, top, bottom, rows, columns)
        return power_to_level(mean, self.unit, self.grey_window), is_valid

    # -- some of its rows ---------------------------------------------------------------------------------------------

    def _surveyed_source(self) -> np.ndarray:
        """(N,) valid numbers of evenly spread rows, as stored; of the first rows that have any where those have none.
        """
        height = self._raster.place.height
        step = max(1, min(512, _PIXELS_AT_ONCE // self._raster.place.width))
        every_row = ((top, min(top + step, height)) for top in range(0, height, step))
        for are_spread, blocks in ((True, _blocks(height)), (False, every_row)):
            found: list[np.ndarray] = []
            for top, bottom in blocks:
                values, valid = self._raster.read(top, bottom)
                found.append(values[valid])
                if not are_spread and len(found[-1]):
                    break
            if sum(map(len, found)):
                return np.concatenate(found)
        raise BadScene(
            "none of its pixels is valid: all are without data, NaN or hidden by a mask; expected radar values: check "
            "the file, its band (--band) and its value without data (--nodata)"
        )

    def _surveyed_levels(self) -> np.ndarray:
        """(N,) levels of evenly spread rows at the student's spacing."""
        found = []
        for top, bottom in _blocks(self.height):
            level, valid = self._levels(top, bottom)
            found.append(level[valid])
        return np.concatenate(found) if sum(map(len, found)) else to_level(self._surveyed_source(), self.unit)


def _blocks(height: int) -> list[tuple[int, int]]:
    """Evenly spread blocks of rows."""
    if height <= _SURVEYED * _BLOCK:
        return [(0, height)]
    tops = np.linspace(0, height - _BLOCK, _SURVEYED).astype(int).tolist()
    return [(top, top + _BLOCK) for top in tops]
