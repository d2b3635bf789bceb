"""The error budget passes a rounding, and fails an error, a NaN, a wrong shape and an unwritten output."""

from __future__ import annotations

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
    with pytest.raises(AssertionError, match="wanted"):
        numerics.assert_within_budget("y", torch.ones(3), one, one)


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
