"""Charts as inline SVG: lines, bars and the reliability plot. No script; readable on light and dark pages.

matplotlib would save about half of these lines, but its SVG is eight times as large and takes a hundred times as long,
does not follow the colours of the page, and shows no values under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

# Okabe and Ito's colours, which colour-blind readers can distinguish too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
WIDTH, HEIGHT = 360, 210  # pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 36  # margins in pixels
FLOOR = HEIGHT - BOTTOM  # y of the horizontal axis
MAX_POINTS = 240  # more are averaged in neighbouring groups
_DASHES = ' stroke-dasharray="5 3"'
_LEGEND_ROW = 18  # pixels
_STRIP = 34  # pixels: height of the shares of pixels below a reliability plot
_PERCENTS = (0, 25, 50, 75, 100)


@dataclass(frozen=True)
class Line:
    """One curve: x and y of equal length; y may hold NaN, which leaves a gap. dashed: drawn in dashes."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashed: bool = False


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, log_y: bool = False) -> Markup:
    """Curves with axes, ticks and, for more than one, a legend; log_y: a logarithmic y axis, for positive values.

    Raises ValueError where no line has a finite point.
    """
    lines = [_thin(line) for line in lines]
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y) if _drawable(y, log_y)]
    if not points:
        raise ValueError("a chart needs at least one finite point, found none; leave such lines out")
    x_axis = _Axis.linear([x for x, _ in points], LEFT, WIDTH - RIGHT)
    build = _Axis.logarithmic if log_y else _Axis.linear
    y_axis = build([y for _, y in points], FLOOR, TOP)
    parts = [_level(y_axis.place(value), text) for value, text in y_axis.ticks]
    for value, text in x_axis.ticks:
        x = x_axis.place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{FLOOR}"/>')
        parts.append(_text(x, FLOOR + 14, text))
    parts += [_path(line, x_axis, y_axis, log_y) for line in lines]
    legend, rows = _legend([(line.name, line.colour, line.dashed) for line in lines])
    return _svg(HEIGHT + rows * _LEGEND_ROW, x_label, y_label, [*parts, *legend])


def bar_chart(
    groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]], x_label: str, y_label: str
) -> Markup:
    """Shares in groups of bars, one bar a series.

    groups: their names below the axis.  series: (name, one share of 0 .. 1 a group); None shows as a dash.
    """
    parts = _percent_levels()
    slot = (WIDTH - LEFT - RIGHT) / len(groups)
    width = min(26.0, 0.8 * slot / len(series))
    for place, group in enumerate(groups):
        middle = LEFT + (place + 0.5) * slot
        parts.append(_text(middle, FLOOR + 14, group))
        for number, (name, shares) in enumerate(series):
            left = middle + (number - len(series) / 2) * width
            parts.append(_bar(left, width - 2, shares[place], _colour(number), f"{name}, {group}"))
    legend, rows = _legend([(name, _colour(number), False) for number, (name, _) in enumerate(series)])
    return _svg(HEIGHT + rows * _LEGEND_ROW, x_label, y_label, [*parts, *legend])


def reliability_chart(bins: Sequence[dict], colour: str) -> Markup:
    """The accuracy in each bin of confidence against the diagonal; below it, the share of the pixels in each bin.

    bins: with low, high, pixels and accuracy (None in an empty bin), as CalibrationCounts gives them.
    """
    parts = _percent_levels()
    total = sum(one["pixels"] for one in bins)
    for one in bins:
        left, width = _across(one["low"]) + 0.5, _across(one["high"]) - _across(one["low"]) - 1
        share = one["pixels"] / total
        hint = f"confidence {100 * one['low']:.0f}-{100 * one['high']:.0f} %, {100 * share:.2f} % of the pixels"
        if one["accuracy"] is not None:
            parts.append(_bar(left, width, one["accuracy"], colour, hint))
            parts.append(_rectangle(left, HEIGHT + _STRIP, width, share * (_STRIP - 4), colour, hint, opacity=0.45))
    parts.append(
        f'<line x1="{_across(0):.1f}" x2="{_across(1):.1f}" y1="{FLOOR}" y2="{TOP}" stroke="currentColor" '
        f'stroke-width="1.2"{_DASHES}/>'
    )
    parts += [_text(_across(value / 100), FLOOR + 14, str(value)) for value in _PERCENTS]
    parts.append(_text(LEFT - 6, HEIGHT + _STRIP - 8, "pixels", anchor="end"))
    return _svg(HEIGHT + _STRIP, "confidence, %", "accuracy, %", parts)


# --- axes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels; ticks are values with their text."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    @classmethod
    def linear(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        step = _nice_step((high - low) / 5)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        ticks = tuple((index * step, _number(index * step)) for index in range(first, last + 1))
        return cls(low, high, start, end, ticks)

    @classmethod
    def logarithmic(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = math.log10(min(values)), math.log10(max(values))
        if high - low < 0.1:
            low, high = low - 0.1, high + 0.1
        multiples = (1,) if high - low > 3 else (1, 2, 5)
        candidates = [
            multiple * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for multiple in multiples
            if low - 1e-9 <= math.log10(multiple * 10.0**power) <= high + 1e-9
        ]
        return cls(low, high, start, end, tuple((value, _number(value)) for value in candidates), is_log=True)

    def place(self, value: float) -> float:
        value = math.log10(value) if self.is_log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= rough * 0.999)


def _number(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


def _across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _svg(height: int, x_label: str, y_label: str, parts: Sequence[str]) -> Markup:
    middle = (TOP + FLOOR) / 2
    label = escape(f"{y_label} by {x_label}")
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}'
        f"{_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label)}"
        f'<text x="12" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 12 {middle:.0f})">'
        f"{escape(y_label)}</text></svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", hint: str = "") -> str:
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}{title}</text>'


def _level(y: float, text: str) -> str:
    """A horizontal line of the grid, and its tick."""
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, text, anchor="end")


def _percent_levels() -> list[str]:
    return [_level(FLOOR - value / 100 * (FLOOR - TOP), str(value)) for value in _PERCENTS]


def _bar(left: float, width: float, share: float | None, colour: str, hint: str) -> str:
    if share is None:
        return _text(left + width / 2, FLOOR - 4, "–", hint=f"{hint}: none")
    return _rectangle(left, FLOOR, width, share * (FLOOR - TOP), colour, f"{hint}: {100 * share:.1f} %")


def _rectangle(
    left: float, bottom: float, width: float, height: float, colour: str, hint: str, opacity: float = 1.0
) -> str:
    height = max(1.0, height)  # a share of 0 is a thin line: no bar at all would look like no value
    return (
        f'<rect x="{left:.1f}" y="{bottom - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" '
        f'opacity="{opacity:g}"><title>{escape(hint)}</title></rect>'
    )


def _legend(entries: Sequence[tuple[str, str, bool]]) -> tuple[list[str], int]:
    """Marks and names below the axis, and the rows they take; none for a single entry.

    entries: name, colour, dashed.
    """
    if len(entries) < 2:
        return [], 0
    columns = 3 if max(len(name) for name, _, _ in entries) <= 12 else 2
    parts = []
    for place, (name, colour, dashed) in enumerate(entries):
        x = LEFT + place % columns * (WIDTH - LEFT - RIGHT) / columns
        y = HEIGHT + 12 + _LEGEND_ROW * (place // columns)
        parts.append(
            f'<line x1="{x:.0f}" x2="{x + 18:.0f}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" '
            f'stroke-width="2.4"{_DASHES if dashed else ""}/>{_text(x + 24, y, name, anchor="start")}'
        )
    return parts, math.ceil(len(entries) / columns)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _thin(line: Line) -> Line:
    """At most MAX_POINTS points: means of neighbouring groups, so that a short spike still shows."""
    group = math.ceil(len(line.x) / MAX_POINTS)
    if group <= 1:
        return line
    starts = range(0, len(line.x), group)
    x, y = ([sum(values[i : i + group]) / len(values[i : i + group]) for i in starts] for values in (line.x, line.y))
    return replace(line, x=x, y=y)


def _drawable(value: float, log_y: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log_y)


def _path(line: Line, x_axis: _Axis, y_axis: _Axis, log_y: bool) -> str:
    commands, pen_is_down = [], False
    for x, y in zip(line.x, line.y):
        if _drawable(y, log_y):
            commands.append(f"{'L' if pen_is_down else 'M'}{x_axis.place(x):.1f} {y_axis.place(y):.1f}")
        pen_is_down = _drawable(y, log_y)
    # A lone point has no length: the round cap makes it visible.
    return (
        f'<path d="{"".join(commands)}{"h0" if len(commands) == 1 else ""}" fill="none" stroke="{line.colour}" '
        f'stroke-width="1.8" stroke-linejoin="round" stroke-linecap="round"{_DASHES if line.dashed else ""}>'
        f"<title>{escape(line.name)}</title></path>"
    )
