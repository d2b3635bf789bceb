"""Ops that run their registered functions inside a dispatch mode, so that their kernel launches can be seen.

Called as usual, an op on meta tensors is its fake, and a mode does not see what happens inside an op.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dakd.kernels import backend as backends
from dakd.kernels import triton_runtime
from dakd.testing.inputs import DIFFERENTIABLE
from lib.calls import differentiable_outputs, with_gradients

# Operations that launch nothing: views, and memory that is only allocated.
_FREE = (
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "view", "_unsafe_view",
    "as_strided", "transpose", "t", "permute", "expand", "unsqueeze", "squeeze", "select", "slice", "split", "alias",
    "_reshape_alias", "unbind", "split_with_sizes", "narrow", "lift_fresh", "unfold",
)  # fmt: skip


class UndispatchedOps(TorchDispatchMode):
    """Within it, the project's ops run their registered functions by `backend`, also on meta and fake tensors.

    around: given "OP" or "OP_backward", returns a context in which that function runs.
    """

    def __init__(self, backend: str = "triton", around: Callable[[str], AbstractContextManager] = nullcontext):
        super().__init__()
        self.backend, self.around = backend, around

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "dakd":
            return func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        parameters = [parameter.name for parameter in func._schema.arguments]
        arguments = [self.backend if parameter == "backend" else value for parameter, value in zip(parameters, args)]
        ops = importlib.import_module(f"dakd.kernels.{name.removesuffix('_backward')}.ops")
        with self.around(name):
            # Without the wrapper that switches autocast off: meta tensors have no autocast. _init_fn is what torch
            # calls the registered function, and __wrapped__ is what `contract.define_op` wraps in it.
            return getattr(ops, name)._init_fn.__wrapped__(*arguments)


class _LaunchCounter(TorchDispatchMode):
    """Collects the names of Triton kernels, and of all operations that are not free."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # an operation made of others is counted by these
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func.overloadpacket.__name__
        if name not in _FREE:
            self.names.append(name)
        return func(*args, **kwargs)


def call_triton_on_meta(op: str, inputs: dict, around: Callable[[str], AbstractContextManager] = nullcontext) -> None:
    """One forward and, where the op has one, one backward pass of the Triton variant on meta tensors."""
    public = getattr(importlib.import_module(f"dakd.kernels.{op}"), op)
    backends.load.cache_clear()
    with replaced(triton_runtime, "why_not", lambda device_type: None), UndispatchedOps("triton", around):
        leaves = with_gradients(inputs, DIFFERENTIABLE[op])
        outputs = public(**leaves, backend="triton")
        differentiate(outputs, [leaves[name] for name in DIFFERENTIABLE[op] if leaves[name] is not None])
    backends.load.cache_clear()


def differentiate(outputs, wanted: list[Tensor]) -> None:
    """One backward pass with meaningless gradients of the outputs."""
    outputs = differentiable_outputs(outputs)
    if outputs and wanted:
        torch.autograd.grad(outputs, wanted, [torch.empty_like(output) for output in outputs], allow_unused=True)


def count_triton_launches(op: str, inputs: dict) -> dict[str, list[str]]:
    """The names of the launches of a forward and of a backward pass by Triton, on meta tensors."""
    names: dict[str, list[str]] = {}
    active: list[_LaunchCounter] = []

    def launch(kernel, grid, *_arguments, **_constants) -> None:
        if 0 not in grid:
            active[-1].names.append(kernel.__name__)

    @contextmanager
    def counting(name: str) -> Iterator[None]:
        with _LaunchCounter() as counter:
            active.append(counter)
            yield
        names["backward" if name.endswith("_backward") else "forward"] = counter.names

    with replaced(triton_runtime, "launch", launch):
        for _ in range(2):  # the second pass counts: a variant sets up some things once for a device
            names |= {"forward": [], "backward": []}
            call_triton_on_meta(op, inputs, counting)
    return names


@contextmanager
def replaced(module: ModuleType, name: str, value) -> Iterator[None]:
    """A context in which a module's attribute has another value."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
