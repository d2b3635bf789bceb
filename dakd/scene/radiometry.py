"""What a scene's numbers are, and the window that brings them to the greys that the student was trained on.

| unit | numbers | brought to |
|---|---|---|
| db | backscatter in dB | greys by the window in dB |
| sigma0 | backscatter, linear power | dB, then as db |
| amplitude | digital numbers without calibration | dB of their squares, then as db; has no window of its own |
| grey | 8-bit greys, made as the training images were | as they are, or stretched by a window of greys |

`auto` takes 8-bit numbers as grey, 16-bit ones without a sign as amplitude, and floats by their range; the rest
is an error. The window is the student's (`window_db` of its radiometry), the user's, or a match of the scene's
percentiles to those of the training images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dakd.data.radiometry import Radiometry
from dakd.scene.bad_scene import BadScene

UNITS = ("auto", "db", "sigma0", "amplitude", "grey")
Unit = Literal["db", "sigma0", "amplitude", "grey"]
Window = tuple[float, float]
_LOWEST_POWER = 1e-7  # -70 dB: below what any radar measures; also of the zeros and negatives of a subtracted noise
_DB_RANGE = (-100.0, 60.0)
_MOST_SIGMA0 = 1e4  # 40 dB
_LEAST_INSIDE = 0.5
_SHOW = "{:.4g}".format


@dataclass(frozen=True)
class Decision:
    """A unit, and why it was taken."""

    unit: Unit
    reason: str


def decide_unit(asked: str, dtype: str, values: np.ndarray, stated: str | None = None) -> Decision:
    """asked: one of UNITS.  dtype: of the stored numbers.  values: (N,) some valid ones.  stated: by the product.

    Raises BadScene where `auto` cannot decide, and where the numbers do not fit the unit that is asked for.
    """
    low, middle, high = (float(one) for one in np.percentile(values, (1, 50, 99)))
    spread = f"{_SHOW(low)}, {_SHOW(middle)} and {_SHOW(high)} at its 1, 50 and 99 %"
    if asked != "auto":
        _refuse_unit(asked, float(values.min()), float(values.max()), spread)
        return Decision(asked, "as asked for")
    if stated is not None:
        return Decision(stated, "the product says so")
    if dtype == "uint8":
        return Decision("grey", "its numbers have 8 bits")
    if dtype == "uint16":
        return Decision("amplitude", f"its numbers are 16-bit without a sign ({spread})")
    if dtype.startswith("float"):
        if low < 0 and _DB_RANGE[0] <= low and high <= _DB_RANGE[1] and middle < 5:
            return Decision("db", f"its numbers are negative as dB are ({spread})")
        if low >= 0 and 0 < middle < 1 and high < 30:
            return Decision("sigma0", f"its numbers are small and positive as linear power is ({spread})")
    raise BadScene(
        f"its numbers are {dtype}, {spread}: they may be dB, linear power, amplitudes or greys; "
        "give --unit db, sigma0, amplitude or grey"
    )


def _refuse_unit(unit: str, low: float, high: float, spread: str) -> None:
    expected = {"db": _DB_RANGE, "sigma0": (-1.0, _MOST_SIGMA0), "amplitude": (0.0, np.inf), "grey": (0.0, 255.0)}[unit]
    if low < expected[0] or high > expected[1]:
        raise BadScene(
            f"its numbers run from {_SHOW(low)} to {_SHOW(high)} ({spread}), and as {unit} they should lie from "
            f"{expected[0]:g} to {expected[1]:g}; give another --unit, or name its value without data (--nodata)"
        )


def to_level(values: np.ndarray, unit: Unit) -> np.ndarray:
    """float32 numbers in that unit as levels: dB, or greys for `grey`."""
    if unit in ("db", "grey"):
        return values
    power = np.maximum(values if unit == "sigma0" else values * values, np.float32(_LOWEST_POWER))
    return np.float32(10) * np.log10(power)


def to_power(values: np.ndarray, unit: Unit, window_db: Window | None) -> np.ndarray:
    """float32 numbers as linear power, to be averaged; greys as such without a window, which leaves no other choice."""
    if unit == "sigma0":
        return values
    if unit == "amplitude":
        return values * values
    if unit == "grey":
        if window_db is None:
            return values
        low, high = window_db
        values = np.float32(low) + values * np.float32((high - low) / 255)
    return np.power(np.float32(10), values * np.float32(0.1))


def power_to_level(power: np.ndarray, unit: Unit, window_db: Window | None) -> np.ndarray:
    """The levels of averaged power of `to_power`."""
    if unit == "grey" and window_db is None:
        return power
    db = np.float32(10) * np.log10(np.maximum(power, np.float32(_LOWEST_POWER)))
    if unit != "grey":
        return db
    low, high = window_db
    return (db - np.float32(low)) * np.float32(255 / (high - low))


def to_grey(level: np.ndarray, window: Window) -> np.ndarray:
    """uint8 greys of levels: 0 at the window's lower end, 255 at its upper end."""
    low, high = window
    return np.clip(np.rint((level - np.float32(low)) * np.float32(255 / (high - low))), 0, 255).astype(np.uint8)


AS_THEY_ARE: Window = (0.0, 255.0)  # of greys


def choose_window(
    asked: Window | Literal["match"] | None, unit: Unit, student: Radiometry, levels: np.ndarray
) -> tuple[Window, str]:
    """The window from levels to greys, and where it comes from.  levels: (N,) some of the scene's, at its spacing.

    Raises BadScene where neither the user nor the student's file gives one.
    """
    if asked == "match":
        return _matched(student, levels)
    if asked is not None:
        return asked, "as asked for"
    if unit == "grey":
        return AS_THEY_ARE, "greys as they are"
    if unit == "amplitude" and student.quantity != "amplitude":
        raise BadScene(
            "its numbers are amplitudes without calibration, which no window in dB of backscatter fits; calibrate them "
            "(SNAP, pyroSAR) and give --unit sigma0, or give --window match, or --window LO,HI in dB of their squares"
        )
    if student.window_db is None:
        raise BadScene(
            f"its numbers are {unit}, and the student's file does not say which dB its training greys stood for; give "
            "--window LO,HI in dB, or --window match (in training: prepare.radiometry.window_db)"
        )
    return student.window_db, "the student's"


def _matched(student: Radiometry, levels: np.ndarray) -> tuple[Window, str]:
    if student.image_greys is None:
        raise BadScene("the student's file has no greys of its training images to match; give --window LO,HI")
    low, middle = (float(one) for one in np.percentile(levels, (1, 50)))
    wanted_low, wanted_middle, _ = student.image_greys
    # The upper half of a scene may be land and ships, of a training image hardly ever: the lower half decides.
    if middle <= low:
        raise BadScene(
            f"its levels are {_SHOW(low)} at the 1 % and at the 50 %; expected a spread to match: give --window LO,HI"
        )
    gain = (middle - low) / max(wanted_middle - wanted_low, 1)  # levels per grey
    start = middle - wanted_middle * gain
    reason = (
        f"matched: {_SHOW(low)} and {_SHOW(middle)} at its 1 and 50 % to the greys {wanted_low:g} and "
        f"{wanted_middle:g} of a training image"
    )
    return (start, start + 255 * gain), reason


def foreign_greys(greys: np.ndarray, student: Radiometry) -> str | None:
    """A warning with numbers where a scene's greys are far from the training's; None where they are not.

    greys: (N,) uint8, some of the scene's.
    """
    if student.greys is None or not len(greys):
        return None
    low, _, high = student.greys
    inside = float(((greys >= low) & (greys <= high)).mean())
    middle = float(np.median(greys))
    first, last = student.image_medians or (low, high)
    if inside >= _LEAST_INSIDE and first <= middle <= last:
        return None
    side = "darker" if middle < first else "brighter" if middle > last else "of another spread"
    return (
        f"the scene is {side} than the student's training images: its median grey is {middle:g} of 255, theirs "
        f"{first:g} to {last:g}, and {inside:.0%} of its pixels lie within their 1-99 %, {low:g} to {high:g}; its "
        "classes may be wrong: check --unit and --window, or give --window match"
    )
