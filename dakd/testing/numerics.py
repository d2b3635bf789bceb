"""The tolerance of every comparison: an error budget taken from the numbers themselves.

A result may be off by twice the sum of what plain eager torch in the same dtype is off, what one rounding of the inputs
to the compute precision does to the exact result (sums that cancel are allowed their noise, in any order), and
one rounding of the result's own dtype; all against plain torch in float64. Errors are the largest of a tensor, so that
an entry that eager torch happens to hit exactly does not forbid a rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from dakd.kernels.contract import compute_dtype

_FACTOR = 2.0


class Error(NamedTuple):
    """The largest error of a tensor, and its budget."""

    error: float
    budget: float

    @property
    def ratio(self) -> float:
        """error / budget: at most 1 is within the budget; NaN for a tensor that holds one."""
        if self.error == 0:
            return 0.0
        return self.error / self.budget if self.budget else math.inf * self.error


def measure_error(got: Tensor, exact: Tensor, *allowed: Tensor, factor: float = _FACTOR) -> Error:
    """max|got - exact| and its budget, factor (sum of max|other - exact| over `allowed` + one rounding).

    What has overflowed among `allowed`, as eager sums in fp16 do, allows nothing.
    """
    if exact.numel() == 0:
        return Error(0.0, 0.0)
    rounding = torch.finfo(got.dtype).eps * exact.abs().max()
    noise = [(other.double() - exact).abs().max() for other in allowed]
    budget = factor * (sum(size for size in noise if size.isfinite()) + rounding)
    return Error(float((got.double() - exact).abs().max()), float(budget))


def assert_within_budget(name: str, got: Tensor, exact: Tensor, *allowed: Tensor, factor: float = _FACTOR) -> None:
    """AssertionError unless the shape is right and `measure_error` finds no more than its budget."""
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    error, budget = measure_error(got, exact, *allowed, factor=factor)
    # Written so that a NaN fails.
    assert error <= budget, f"{name}: error {error:.3e} is over its budget {budget:.3e}"


def assert_matches_plain(
    function: Callable, plain: Callable, inputs: dict, differentiable: tuple[str, ...], factor: float = _FACTOR
) -> None:
    """Holds `function` to the error budget, for all its floating outputs and the gradients of `differentiable` inputs.

    inputs: the keyword arguments of both, features in one dtype; inputs that are None have no gradient.
    plain: the independent eager implementation.
    """
    for name, (got, exact, *allowed) in _beside_plain(function, plain, inputs, differentiable).items():
        assert_within_budget(name, got, exact, *allowed, factor=factor)


def errors_beside_plain(
    function: Callable, plain: Callable, inputs: dict, differentiable: tuple[str, ...], factor: float = _FACTOR
) -> dict[str, Error]:
    """The errors and budgets that `assert_matches_plain` compares, by tensor; ValueError for a wrong shape."""
    errors = {}
    for name, (got, exact, *allowed) in _beside_plain(function, plain, inputs, differentiable).items():
        if got.shape != exact.shape:
            raise ValueError(f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}")
        errors[name] = measure_error(got, exact, *allowed, factor=factor)
    return errors


def _beside_plain(
    function: Callable, plain: Callable, inputs: dict, differentiable: tuple[str, ...]
) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """By tensor: what `function` gives; `plain` in float64, in the inputs' dtype, and on nudged inputs."""
    wide = {name: value.double() if _is_floating(value) else value for name, value in inputs.items()}
    nudged = {name: _nudge(value, inputs[name].dtype) if _is_floating(value) else value for name, value in wide.items()}
    got = forward_and_gradients(function, inputs, differentiable)
    # All are asked for the gradient of the same cotangents: those that `function` was given, in its outputs' dtypes.
    dtypes = [value.dtype for name, value in got.items() if name.startswith("output")]
    with _without_tf32():
        exact, eager, inherent = (
            forward_and_gradients(plain, given, differentiable, dtypes) for given in (wide, inputs, nudged)
        )
    return {name: (got[name], exact[name], eager[name], inherent[name]) for name in got}


@contextmanager
def _without_tf32() -> Iterator[None]:
    """A context in which a GPU's fp32 convolutions and products are fp32: TF32 would widen budgets a thousandfold."""
    settings = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = False
        yield
    finally:
        for setting, allowed in zip(settings, before):
            setting.allow_tf32 = allowed


def forward_and_gradients(
    function: Callable, inputs: dict, differentiable: tuple[str, ...], dtypes: list[torch.dtype] | None = None
) -> dict[str, Tensor]:
    """Floating outputs by number, and the gradients "d<input>" of sum(output * cotangent) with seeded cotangents.

    dtypes: dtype that the cotangents are rounded to, by output; None: the outputs' own.
    """
    leaves = {
        name: value.detach().requires_grad_(name in differentiable) if _is_floating(value) else value
        for name, value in inputs.items()
    }
    outputs = function(**leaves)
    outputs = [output for output in (outputs if isinstance(outputs, tuple) else (outputs,)) if _is_floating(output)]
    results = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    wanted = [name for name in differentiable if leaves[name] is not None]
    if wanted:
        dtypes = dtypes or [output.dtype for output in outputs]
        cotangents = [
            seeded_like(output.to(dtype), seed).to(output.dtype)
            for seed, (output, dtype) in enumerate(zip(outputs, dtypes, strict=True))
        ]
        gradients = torch.autograd.grad(outputs, [leaves[name] for name in wanted], cotangents)
        results |= {f"d{name}": gradient for name, gradient in zip(wanted, gradients)}
    return results


def assert_autocast_changes_nothing(function: Callable, inputs: dict, differentiable: tuple[str, ...]) -> None:
    """AssertionError unless outputs and gradients have the same bits under bfloat16 autocast."""
    wanted = forward_and_gradients(function, inputs, differentiable)
    device_type = wanted["output 0"].device.type
    with torch.autocast(device_type, torch.bfloat16):
        found = forward_and_gradients(function, inputs, differentiable)
    _assert_equal_bits(found, wanted)


def assert_compiles_to_one_graph(function: Callable, inputs: dict, differentiable: tuple[str, ...]) -> None:
    """AssertionError unless `function` compiles to one graph that gives the same bits, in outputs and gradients."""
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    wanted = forward_and_gradients(function, inputs, differentiable)
    _assert_equal_bits(forward_and_gradients(compiled, inputs, differentiable), wanted)


def _assert_equal_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, value in found.items():
        assert torch.equal(value, wanted[name]), name


def seeded_like(tensor: Tensor, seed: int) -> Tensor:
    """Normal numbers of the tensor's shape, dtype and device; equal for equal seeds, to rounding, in every dtype."""
    normal = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normal.to(tensor.device, tensor.dtype)


def saved_bytes(function: Callable, inputs: dict) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass of `function(**inputs)`."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(**inputs)
    return sum(storages.values())


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """A context in which torch.empty is filled with NaN (or the largest integer): an unwritten output shows.

    Operations of plain torch that have no deterministic form, such as a GPU's mean cross-entropy, still run.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned_only)


def _nudge(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """The float64 tensor with one rounding error of the dtype's compute precision in every element."""
    return wide * (1 + torch.finfo(compute_dtype(dtype)).eps * seeded_like(wide, 7))


def _is_floating(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
