"""The error budget passes a rounding, and fails an error, a NaN, a wrong shape and an unwritten output."""

from __future__ import annotations

import math

import pytest
import torch

from dakd.testing import numerics
from dakd.testing.inputs import SHAPES, operands


def _square(x):
    return x * x


def test_a_rounding_is_within_budget_and_a_wrong_digit_is_not():
    inputs = dict(x=torch.linspace(-3, 3, 101))
    numerics.assert_matches_plain(lambda x: (x.double() ** 2).float(), _square, inputs, ("x",))
    with pytest.raises(AssertionError, match="output 0: error"):
        numerics.assert_matches_plain(lambda x: _square(x) * (1 + 1e-5), _square, inputs, ("x",))


def test_a_wrong_gradient_is_over_budget():
    def detached_factor(x):
        return x * x.detach()

    with pytest.raises(AssertionError, match="dx: error"):
        numerics.assert_matches_plain(detached_factor, _square, dict(x=torch.ones(3)), ("x",))


def test_nan_and_wrong_shapes_fail():
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(AssertionError, match="error nan"):
        numerics.assert_within_budget("y", torch.tensor([1.0, float("nan")]), one, one)
    with pytest.raises(AssertionError, match="expected"):
        numerics.assert_within_budget("y", torch.ones(3), one, one)


def test_an_eager_sum_that_overflows_allows_nothing():
    exact = torch.tensor([1.0], dtype=torch.float64)
    for overflown in (torch.tensor([float("inf")]), torch.tensor([float("nan")])):
        error = numerics.measure_error(torch.tensor([1.5]), exact, overflown, torch.tensor([1.0]))
        assert error.ratio > 1e5
        assert numerics.measure_error(torch.tensor([1.0]), exact, overflown).ratio == 0


def test_ratio_is_the_error_over_its_budget():
    assert numerics.Error(3.0, 2.0).ratio == 1.5 and numerics.Error(0.0, 0.0).ratio == 0.0
    assert numerics.Error(1.0, 0.0).ratio == float("inf")
    assert math.isnan(numerics.Error(float("nan"), 1.0).ratio) and math.isnan(numerics.Error(float("nan"), 0.0).ratio)


def test_unwritten_memory_shows_inside_the_context_and_the_setting_returns():
    with numerics.poisoned_memory():
        assert torch.empty(4).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_operations_without_a_deterministic_form_go_on_in_poisoned_memory():
    with numerics.poisoned_memory():
        torch.zeros(4).put_(torch.tensor([1]), torch.ones(1))
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_saved_bytes_counts_a_storage_once():
    x = torch.ones(10, requires_grad=True)
    assert numerics.saved_bytes(_square, dict(x=x)) == 40


@pytest.mark.parametrize("op", list(SHAPES))
def test_operands_are_the_same_at_every_call(op):
    first, second = operands(op, "tiny"), operands(op, "tiny")
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
