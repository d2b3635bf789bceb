"""Bars as inline SVG: shares by group, and the reliability plot of a student's confidence."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dakd.evaluate.svg import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH

_STRIP = 34  # pixels: height of the shares of pixels below a reliability plot
_PERCENTS = (0, 25, 50, 75, 100)


def bar_chart(
    groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]], x_label: str, y_label: str
) -> str:
    """An SVG of shares in groups of bars, one bar a series.

    groups: their names below the axis.  series: (name, one share of 0 .. 1 a group); None shows as a dash.
    """
    rows = -(-len(series) // 2) if len(series) > 1 else 0
    parts = [_open(HEIGHT + 18 * rows, y_label), *_percent_axis(HEIGHT - BOTTOM, y_label)]
    slot = (WIDTH - LEFT - RIGHT) / len(groups)
    width = min(26.0, 0.8 * slot / len(series))
    for place, group in enumerate(groups):
        middle = LEFT + (place + 0.5) * slot
        parts.append(_text(middle, HEIGHT - BOTTOM + 14, group))
        for number, (name, shares) in enumerate(series):
            left = middle + (number - len(series) / 2) * width
            colour = COLOURS[number % len(COLOURS)]
            parts.append(_bar(left, width - 2, shares[place], HEIGHT - BOTTOM, colour, f"{name}, {group}"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label))
    for number, (name, _) in enumerate(series if rows else ()):
        x, y = LEFT + number % 2 * (WIDTH - LEFT - RIGHT) / 2, HEIGHT + 12 + 18 * (number // 2)
        parts.append(f'<rect x="{x:.0f}" y="{y - 9}" width="12" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 18:.0f}" y="{y}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def reliability_chart(bins: Sequence[dict], colour: str) -> str:
    """An SVG of the accuracy in each bin of confidence against the diagonal; below it, where the pixels are.

    bins: with low, high, pixels and accuracy (None in an empty bin), as CalibrationCounts gives them.
    """
    floor = HEIGHT - BOTTOM
    parts = [_open(HEIGHT + _STRIP, "accuracy by confidence"), *_percent_axis(floor, "accuracy, %")]
    total = sum(one["pixels"] for one in bins)
    for one in bins:
        left, right = _across(one["low"]), _across(one["high"])
        share = one["pixels"] / total
        told = f"confidence {100 * one['low']:.0f}-{100 * one['high']:.0f} %, {100 * share:.2f} % of the pixels"
        if one["accuracy"] is not None:
            parts.append(_bar(left + 0.5, right - left - 1, one["accuracy"], floor, colour, told))
            height = max(1.0, share * (_STRIP - 4))
            parts.append(
                f'<rect x="{left + 0.5:.1f}" y="{HEIGHT + _STRIP - height:.1f}" width="{right - left - 1:.1f}" '
                f'height="{height:.1f}" fill="{colour}" opacity="0.45"><title>{escape(told)}</title></rect>'
            )
    parts.append(
        f'<line x1="{_across(0):.1f}" x2="{_across(1):.1f}" y1="{floor}" y2="{TOP}" stroke="currentColor" '
        'stroke-width="1.2" stroke-dasharray="5 3"/>'
    )
    parts += [_text(_across(value / 100), floor + 14, str(value)) for value in _PERCENTS]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, floor + 28, "confidence, %"))
    parts.append(f'<text x="{LEFT - 6}" y="{HEIGHT + _STRIP - 8}" text-anchor="end">pixels</text>')
    return "".join([*parts, "</svg>"])


def _open(height: int, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'


def _across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _percent_axis(floor: int, label: str) -> list[str]:
    parts = []
    for value in _PERCENTS:
        y = floor - value / 100 * (floor - TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    middle = (TOP + floor) / 2
    turn = f'transform="rotate(-90 12 {middle:.0f})"'
    parts.append(f'<text x="12" y="{middle:.0f}" text-anchor="middle" {turn}>{escape(label)}</text>')
    return parts


def _bar(left: float, width: float, share: float | None, floor: int, colour: str, told: str) -> str:
    if share is None:
        return _text(left + width / 2, floor - 4, "–", f"{told}: none")
    height = max(1.0, share * (floor - TOP))  # nothing found is a line, which no bar at all would not tell
    return (
        f'<rect x="{left:.1f}" y="{floor - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}">'
        f"<title>{escape(told)}: {100 * share:.1f} %</title></rect>"
    )


def _text(x: float, y: float, text: str, told: str = "") -> str:
    title = f"<title>{escape(told)}</title>" if told else ""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(text)}{title}</text>'
