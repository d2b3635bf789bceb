"""The contract of all rooms: the registration of an op with torch, its precision, and the checks of its arguments.

Shapes, dtypes and devices are checked, never values: a look at values would synchronise with the device and break
graphs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import CustomOpDef


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an op computes: float64 for float64 features, float32 for all narrower ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def define_op(
    name: str, operands: type, allocate: Callable, run: Callable, *, upstream: tuple[str, ...] = ()
) -> CustomOpDef:
    """The custom op dakd::`name`, whose arguments are the fields of `operands`, `backend`, and the tensors `upstream`.

    operands: a NamedTuple whose first field is a tensor. With what `allocate` returns, its annotations are the schema.
    allocate(operands): the outputs, uninitialised. It is the fake implementation too.
    run(operands, backend, outputs, *upstream): fills the outputs.
    upstream: names of a backward op's further tensors: gradients of the outputs, and results kept by the forward pass.

    Autocast is off inside, because an op chooses its own precision (`compute_dtype`). A call within forward-mode
    differentiation is a RuntimeError: torch would drop the tangents silently.
    """
    count = len(operands._fields)

    def implementation(*arguments):
        given = operands(*arguments[:count])
        outputs = allocate(given)
        run(given, arguments[count], outputs, *arguments[count + 1 :])
        return outputs

    @wraps(implementation)  # also gives the benchmarks the function without the guards, as __wrapped__
    def guarded(*arguments):
        if forward_ad._current_level >= 0:
            op = name.removesuffix("_backward")
            raise RuntimeError(f"{op} has no forward-mode derivative; use reverse mode (backward, torch.func.vjp)")
        device_type = arguments[0].device.type
        # Entering the context would cost a small op a tenth of its time, so it is entered only if autocast is on.
        if not torch.is_autocast_enabled(device_type):
            return implementation(*arguments)
        with torch.autocast(device_type, enabled=False):
            return implementation(*arguments)

    # torch infers the schema from the signature; without this one it would see *arguments.
    guarded.__signature__ = _signature(operands, allocate, upstream)
    op = torch.library.custom_op(f"dakd::{name}", guarded, mutates_args=())
    op.register_fake(lambda *arguments: allocate(operands(*arguments[:count])))
    return op


def _signature(operands: type, allocate: Callable, upstream: tuple[str, ...]) -> inspect.Signature:
    types = get_type_hints(operands) | {"backend": str} | dict.fromkeys(upstream, Tensor)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in types.items()],
        return_annotation=get_type_hints(allocate)["return"],
    )


def empty_sequence_like(x: Tensor) -> Tensor:
    """Uninitialised (B, D, L) in x's dtype, dense; D is innermost in memory if it is so in x, otherwise L.

    A mixer's tokens lie in memory as (B, L, D); results in the same layout save two transposes.
    """
    batch, channels, length = x.shape
    if x.stride(1) == 1 and x.stride(2) != 1:
        return x.new_empty(batch, length, channels).transpose(1, 2)
    return x.new_empty(batch, channels, length)


def check_rank(op: str, name: str, tensor: Tensor, layout: str) -> None:
    """ValueError unless `tensor` has as many dimensions as `layout`, written like "(B, C, H, W)"."""
    if tensor.dim() != layout.count(",") + 1:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; expected {layout}")


def check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...], layout: str) -> None:
    """ValueError unless `tensor` has exactly the shape `expected`, called `layout` in the message."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; expected {layout} = {expected}")


def check_floating(op: str, **tensors: Tensor | None) -> None:
    """TypeError unless every tensor given has a floating dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; expected a floating dtype; cast it")


def check_same_dtype(op: str, **tensors: Tensor) -> None:
    """TypeError unless all tensors have the dtype of the first."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype}, {first_name} has {first.dtype}; cast one to the other's"
            )


def check_dtype(op: str, name: str, tensor: Tensor, *expected: torch.dtype) -> None:
    """TypeError unless `tensor` has one of the dtypes."""
    if tensor.dtype not in expected:
        raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; expected {' or '.join(map(str, expected))}")


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """ValueError unless all tensors given lie on the device of the first."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    (first_name, first), *others = given.items()
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} lies on {tensor.device}, {first_name} on {first.device}; move one to the other"
            )


def check_choice(op: str, name: str, value: str | None, *allowed: str | None) -> None:
    """ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{op}: {name} is {value!r}; expected one of {', '.join(repr(choice) for choice in allowed)}")


def seed_bits(op: str, seed: int) -> int:
    """The int64 with the bits of a seed, which goes up to 2^64 - 1: torch's schemas have no unsigned integers."""
    if seed < 0 or seed >= 2**64:
        raise ValueError(f"{op}: seed is {seed}; expected an integer from 0 to 2^64 - 1")
    return seed - 2**64 if seed >= 2**63 else seed
