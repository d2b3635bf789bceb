"""Bars and reliability plots drawn by hand."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from dakd.evaluate.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from dakd.evaluate.svg_bars import bar_chart, reliability_chart

FULL = HEIGHT - BOTTOM - TOP


def bars(svg: str, told: str) -> list[float]:
    """Heights of the bars whose title begins so."""
    rects = ElementTree.fromstring(svg).findall("rect")
    return [float(one.get("height")) for one in rects if (one.findtext("title") or "").startswith(told)]


def test_a_bar_is_as_high_as_its_share_and_an_absent_one_is_a_dash():
    svg = bar_chart(["1-15", "16+"], [("a", [0.5, None]), ("b", [1.0, 0.0])], "size", "found, %")
    assert bars(svg, "a") == [pytest.approx(FULL / 2, abs=0.1)]
    assert bars(svg, "b") == [pytest.approx(FULL, abs=0.1), 1.0]
    texts = [one.text for one in ElementTree.fromstring(svg).findall("text")]
    assert texts.count("–") == 1 and {"1-15", "16+", "a", "b", "size"} <= set(texts)


def test_bars_stay_within_the_axes():
    series = [(name, [0.5] * 5) for name in ("a", "b", "c", "d")]
    rects = ElementTree.fromstring(bar_chart(list("vwxyz"), series, "size", "found")).findall("rect")
    with_title = [one for one in rects if one.find("title") is not None]
    ends = [(float(one.get("x")), float(one.get("x")) + float(one.get("width"))) for one in with_title]
    assert len(ends) == 20 and min(ends)[0] >= LEFT and max(ends)[1] <= WIDTH - RIGHT
    assert all(left >= end for (_, end), (left, _) in zip(sorted(ends), sorted(ends)[1:]))


def test_a_reliability_plot_shows_accuracy_and_where_the_pixels_are():
    bins = [
        {"low": 0.0, "high": 0.5, "pixels": 0, "accuracy": None, "confidence": None},
        {"low": 0.5, "high": 1.0, "pixels": 8, "accuracy": 0.75, "confidence": 0.9},
    ]
    svg = reliability_chart(bins, "#000")
    heights = bars(svg, "confidence 50-100 %, 100.00 % of the pixels")
    assert heights == [pytest.approx(0.75 * FULL, abs=0.1), 30.0] and bars(svg, "confidence 0-50") == []
