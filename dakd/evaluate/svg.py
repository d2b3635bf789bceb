"""Line charts as inline SVG: no library, no script, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
WIDTH, HEIGHT = 360, 210  # pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 36  # margins in pixels
MAX_POINTS = 240  # more are averaged in neighbouring groups


@dataclass(frozen=True)
class Line:
    """One curve: x and y of equal length; y may hold NaN, which leaves a gap. dashed: drawn in dashes."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashed: bool = False


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, log_y: bool = False) -> str:
    """An SVG of some curves with axes, ticks and a legend; log_y: a logarithmic y axis, for positive values.

    Raises ValueError where no line has a finite point.
    """
    lines = [_thin(line) for line in lines]
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y) if _drawable(y, log_y)]
    if not points:
        raise ValueError("a chart without a single finite point was asked for; leave such lines out")
    x_axis = _Axis.linear([x for x, _ in points], LEFT, WIDTH - RIGHT)
    build = _Axis.logarithmic if log_y else _Axis.linear
    y_axis = build([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 18 * _legend_rows(lines)}" role="img" aria-label="{escape(y_label)}">',
        *_grid(x_axis, y_axis),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="12" y="{(TOP + HEIGHT - BOTTOM) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(TOP + HEIGHT - BOTTOM) / 2:.0f})">{escape(y_label)}</text>',
        *(_path(line, x_axis, y_axis, log_y) for line in lines),
        *_legend(lines),
        "</svg>",
    ]
    return "".join(parts)


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


def _thin(line: Line) -> Line:
    """At most MAX_POINTS points: means of neighbouring groups, so that a short spike still shows."""
    group = math.ceil(len(line.x) / MAX_POINTS)
    if group <= 1:
        return line
    starts = range(0, len(line.x), group)
    mean = [[sum(values[i : i + group]) / len(values[i : i + group]) for i in starts] for values in (line.x, line.y)]
    return Line(line.name, mean[0], mean[1], line.colour, line.dashed)


def _drawable(value: float, log_y: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log_y)


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= rough * 0.999)


def _number(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    for value, text in y_axis.ticks:
        y = y_axis.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in x_axis.ticks:
        x = x_axis.place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{text}</text>')
    return parts


def _path(line: Line, x_axis: _Axis, y_axis: _Axis, log_y: bool) -> str:
    commands, pen_is_down = [], False
    for x, y in zip(line.x, line.y):
        if _drawable(y, log_y):
            commands.append(f"{'L' if pen_is_down else 'M'}{x_axis.place(x):.1f} {y_axis.place(y):.1f}")
        pen_is_down = _drawable(y, log_y)
    dashes = ' stroke-dasharray="5 3"' if line.dashed else ""
    # A lone point has no length: the round cap makes it visible.
    return (
        f'<path d="{"".join(commands)}{"h0" if len(commands) == 1 else ""}" fill="none" stroke="{line.colour}" '
        f'stroke-width="1.8" stroke-linejoin="round" stroke-linecap="round"{dashes}>'
        f"<title>{escape(line.name)}</title></path>"
    )


_LEGEND_COLUMNS = 3


def _legend_rows(lines: Sequence[Line]) -> int:
    return -(-len(lines) // _LEGEND_COLUMNS) if len(lines) > 1 else 0


def _legend(lines: Sequence[Line]) -> list[str]:
    parts = []
    column = (WIDTH - LEFT - RIGHT) / _LEGEND_COLUMNS
    for place, line in enumerate(lines if len(lines) > 1 else ()):
        x, y = LEFT + place % _LEGEND_COLUMNS * column, HEIGHT + 12 + 18 * (place // _LEGEND_COLUMNS)
        dashes = ' stroke-dasharray="5 3"' if line.dashed else ""
        parts.append(
            f'<line x1="{x:.0f}" x2="{x + 18:.0f}" y1="{y - 4}" y2="{y - 4}" stroke="{line.colour}" '
            f'stroke-width="2.4"{dashes}/><text x="{x + 24:.0f}" y="{y}">{escape(line.name)}</text>'
        )
    return parts
