"""Whole numbers that callers in Python give: numpy's are taken as Python's own, others are refused in words."""

from __future__ import annotations

import operator

import numpy as np


def as_whole(value: object) -> int | None:
    """A whole number as an int; None for anything else, such as 2.0, "2" and True."""
    try:
        return None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        return None


def whole_number(value: object, what: str, lowest: int) -> int:
    """A whole number from `lowest` on as an int.  what: names the value in the ValueError for anything else."""
    found = as_whole(value)
    if found is None:
        raise ValueError(f"{what} is {value!r:.80}; expected a whole number, at least {lowest}")
    if found < lowest:
        raise ValueError(f"{what} is {found}; expected at least {lowest}")
    return found
