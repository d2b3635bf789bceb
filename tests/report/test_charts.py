"""Charts as SVG."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from dakd.report.charts import (
    FLOOR,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    bar_chart,
    line_chart,
    reliability_chart,
)

FULL = FLOOR - TOP


def path_of(svg: str) -> str:
    return ElementTree.fromstring(svg).find("path").attrib["d"]


def test_the_ends_of_a_line_lie_at_the_ends_of_the_axes():
    first, last = re.findall(
        r"[ML]([\d.]+) ([\d.]+)", path_of(line_chart([Line("a", [0, 10], [1, 3], "#000")], "x", "y"))
    )
    assert (float(first[0]), float(last[0])) == (LEFT, WIDTH - RIGHT)
    assert float(last[1]) == TOP and float(first[1]) > HEIGHT / 2


def test_a_gap_is_left_where_a_value_is_not_a_number():
    path = path_of(line_chart([Line("a", [0, 1, 2, 3, 4], [1, 2, math.nan, 3, 4], "#000")], "x", "y"))
    assert re.sub(r"[\d. ]", "", path) == "MLML"


def test_a_logarithmic_axis_spaces_powers_of_ten_equally():
    svg = line_chart([Line("a", [0, 1, 2], [1, 10, 100], "#000")], "x", "y", log_y=True)
    heights = [float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path_of(svg))]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)


def test_long_curves_are_averaged_in_groups():
    many = 10 * MAX_POINTS
    path = path_of(line_chart([Line("a", range(many), range(many), "#000")], "x", "y"))
    assert path.count("L") + 1 == MAX_POINTS


def test_a_lone_point_and_a_constant_line_are_drawn():
    assert "h0" in path_of(line_chart([Line("a", [5], [2.0], "#000")], "x", "y"))
    assert path_of(line_chart([Line("a", [1, 2], [0.0, 0.0], "#000")], "x", "y")).count("L") == 1


def test_a_chart_without_a_point_is_refused():
    with pytest.raises(ValueError, match="needs at least one finite point"):
        line_chart([Line("a", [1], [math.nan], "#000")], "x", "y")


# --- bars -------------------------------------------------------------------------------------------------------------


def bars(svg: str, hint: str) -> list[float]:
    """Heights of the bars whose title begins so."""
    rects = ElementTree.fromstring(svg).findall("rect")
    return [float(one.get("height")) for one in rects if (one.findtext("title") or "").startswith(hint)]


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
