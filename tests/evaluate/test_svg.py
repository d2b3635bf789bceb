"""Charts drawn by hand."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from dakd.evaluate.svg import HEIGHT, LEFT, MAX_POINTS, RIGHT, TOP, WIDTH, Line, line_chart


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
    with pytest.raises(ValueError, match="without a single finite point"):
        line_chart([Line("a", [1], [math.nan], "#000")], "x", "y")
