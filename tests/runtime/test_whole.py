"""Numbers of callers: numpy's become Python's, others are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dakd.runtime.whole import as_whole, whole_number


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_any_library_are_ints(value):
    assert type(as_whole(value)) is int and whole_number(value, "n", 3) == 3


@pytest.mark.parametrize("value", [2.0, "2", None, True, np.True_, np.float64(2), [2]])
def test_what_is_no_whole_number_is_refused_by_name(value):
    assert as_whole(value) is None
    with pytest.raises(ValueError, match=r"n is .*; expected a whole number, at least 1"):
        whole_number(value, "n", 1)


def test_a_number_below_the_lowest_is_refused():
    with pytest.raises(ValueError, match="n is -1; expected at least 0"):
        whole_number(np.int32(-1), "n", 0)
