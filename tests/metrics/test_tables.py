"""The printed tables."""

from __future__ import annotations

import numpy as np
import pytest

from dakd.metrics import format_scores, format_table, score


def test_numbers_align_to_the_right_with_two_decimals():
    text = format_table(["student", "mIoU"], [["real", 7.0], ["real+synthetic", 74.8649]])
    assert text.splitlines() == [
        "student          mIoU",
        "--------------  -----",
        "real             7.00",
        "real+synthetic  74.86",
    ]


def test_a_short_row_is_refused():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        format_table(["a", "b"], [["x"]])


def test_steps_and_views_stand_beside_the_scores_and_are_a_dash_where_a_file_lacks_them():
    scores = {name: score(np.diag([5, 4]), ("sea", "oil")) for name in ("real", "old")}
    text = format_scores(scores, {"real": {"steps": 4, "real": 16, "synthetic": 0}, "old": None})
    header, _, first, second = text.splitlines()[:4]
    assert header.endswith("steps  real views  synthetic views")
    assert first.split()[-4:] == ["100.00", "4", "16", "0"] and second.split()[-4:] == ["100.00", "-", "-", "-"]
    assert "views" not in format_scores(scores)


def test_two_classes_show_both_conventions_beside_the_shares():
    text = format_scores({"real": score(np.array([[80, 4], [6, 10]]), ("sea", "oil"))})
    assert "pixel share   84.00  16.00" in text
    assert "oil alone" in text and "71.43" in text  # P of oil = 10/14


def test_five_classes_show_no_oil_convention_and_name_the_absent():
    counts = np.diag([5, 4, 3, 0, 2])
    text = format_scores({"real": score(counts, ("sea", "oil", "look-alike", "ship", "land"))})
    assert "oil alone" not in text
    assert "real: left out of the means, neither present nor predicted: ship" in text
