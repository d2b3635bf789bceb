"""What all rooms promise: the precision they compute in, and checks of shapes, dtypes and devices, never of values.

A look at values would synchronise with the device and break graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor
from torch.autograd import forward_ad


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an op computes: float64 for float64 features, float32 for all narrower ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def implements(op: str) -> Callable[[Callable], Callable]:
    """Wraps the implementation of an op's forward or backward pass; its first argument must be a tensor.

    Autocast is off inside, because an op chooses its own precision (`compute_dtype`). A call within forward-mode
    differentiation is a RuntimeError: torch would drop the tangents without a word.
    """

    def decorate(implementation: Callable) -> Callable:
        @wraps(implementation)
        def wrapped(first: Tensor, *others):
            if forward_ad._current_level >= 0:
                raise RuntimeError(f"{op} has no forward-mode derivative; use reverse mode (backward, torch.func.vjp)")
            with torch.autocast(first.device.type, enabled=False):
                return implementation(first, *others)

        return wrapped

    return decorate


def empty_sequence_like(x: Tensor) -> Tensor:
    """Uninitialised (B, D, L) in x's dtype, dense, with that of D and L innermost that is so in x.

    A mixer's tokens lie in memory as (B, L, D); an op that answers in that layout spares two transposes.
    """
    batch, channels, length = x.shape
    if x.stride(1) == 1 and x.stride(2) != 1:
        return x.new_empty(batch, length, channels).transpose(1, 2)
    return x.new_empty(batch, channels, length)


def check_rank(op: str, name: str, tensor: Tensor, layout: str) -> None:
    """ValueError unless `tensor` has as many dimensions as `layout`, written like "(B, C, H, W)"."""
    if tensor.dim() != layout.count(",") + 1:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; wanted {layout}")


def check_shape(op: str, name: str, tensor: Tensor, wanted: tuple[int, ...], layout: str) -> None:
    """ValueError unless `tensor` has exactly the shape `wanted`, called `layout` in the message."""
    if tuple(tensor.shape) != wanted:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; wanted {layout} = {wanted}")


def check_floating(op: str, **tensors: Tensor | None) -> None:
    """TypeError unless every tensor given has a floating dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; wanted a floating dtype; cast it")


def check_same_dtype(op: str, **tensors: Tensor) -> None:
    """TypeError unless all tensors have the dtype of the first."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype}, {first_name} has {first.dtype}; cast one to the other's"
            )


def check_dtype(op: str, name: str, tensor: Tensor, *wanted: torch.dtype) -> None:
    """TypeError unless `tensor` has one of the dtypes."""
    if tensor.dtype not in wanted:
        raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; wanted {' or '.join(str(dtype) for dtype in wanted)}")


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
        raise ValueError(f"{op}: {name} is {value!r}; wanted one of {', '.join(repr(choice) for choice in allowed)}")


def seed_bits(op: str, seed: int) -> int:
    """The int64 with the bits of a seed, which goes up to 2^64 - 1: torch's schemas know no unsigned integers."""
    if seed < 0 or seed >= 2**64:
        raise ValueError(f"{op}: seed is {seed}; wanted an integer from 0 to 2^64 - 1")
    return seed - 2**64 if seed >= 2**63 else seed
