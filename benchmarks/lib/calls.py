"""Calls to be timed: forward and backward passes without arguments, and the counts that go with their times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def make_call(
    contestant: Callable,
    inputs: dict,
    differentiable: Sequence[str],
    what: str,
    parameters: Sequence[Tensor] = (),
) -> Callable[[], object]:
    """A call without arguments that returns the outputs, or with "forward+backward" the gradients.

    parameters: a module's own, whose gradients are wanted too.
    """
    if what == "forward":

        @torch.no_grad()
        def forward() -> object:
            return contestant(**inputs)

        return forward
    leaves = with_gradients(inputs, differentiable)
    wanted = [leaves[name] for name in differentiable if leaves[name] is not None] + list(parameters)
    cotangents: list[Tensor] = []

    def forward_backward() -> object:
        outputs = differentiable_outputs(contestant(**leaves))
        if not cotangents:
            cotangents.extend(torch.randn_like(output) for output in outputs)
        # A module may have parameters that this call does not use.
        return torch.autograd.grad(outputs, wanted, cotangents, allow_unused=bool(parameters))

    return forward_backward


def with_gradients(inputs: dict, differentiable: Sequence[str]) -> dict:
    """The inputs, the differentiable ones detached and as leaves of a graph."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in differentiable if inputs[name] is not None}
    return inputs | leaves


def tensors_of(outputs) -> list[Tensor]:
    """The tensors among a call's outputs."""
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return [output for output in outputs if isinstance(output, Tensor)]


def differentiable_outputs(outputs) -> list[Tensor]:
    return [output for output in tensors_of(outputs) if output.requires_grad]


def saved_bytes(
    contestant: Callable, inputs: dict, differentiable: Sequence[str], parameters: Sequence[Tensor] = ()
) -> int:
    """Bytes that autograd keeps for the backward pass, without the operands and parameters themselves."""
    leaves = with_gradients(inputs, differentiable)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*tensors_of([*leaves.values()]), *parameters)}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = contestant(**leaves)
    del outputs
    return sum(storages.values())


def count_launches(call: Callable[[], object]) -> int:
    """GPU kernels, copies and fills of one call."""
    return len(gpu_events(call))


def gpu_events(call: Callable[[], object]) -> list[tuple[str, float]]:
    """Name and microseconds of everything that one call runs on the GPU, in order of start."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    return [(event.name, event.time_range.elapsed_us()) for event in sorted(events, key=lambda e: e.time_range.start)]


def compile_with(function: Callable, mode: str) -> Callable:
    """torch.compile in one of inductor's modes; "aot_eager" traces and generates no code."""
    # Shapes compiled before would count towards the limit after which torch.compile silently stays eager.
    torch._dynamo.reset()
    if mode == "aot_eager":
        return torch.compile(function, backend="aot_eager", dynamic=False)
    return torch.compile(function, mode=mode, dynamic=False)
