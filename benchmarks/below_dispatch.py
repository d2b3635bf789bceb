"""An op's forward and backward called as plain functions: on meta tensors, or under a mode that sees what they launch.

Called through torch's dispatcher, an op on meta tensors is its fake, and a mode does not see what happens inside an op.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dakd.kernels import backend as backends
from dakd.kernels import triton_runtime
from dakd.testing.inputs import DIFFERENTIABLE

# Operations that launch nothing: memory is taken, or seen otherwise.
_FREE = (
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "view", "_unsafe_view",
    "as_strided", "transpose", "t", "permute", "expand", "unsqueeze", "squeeze", "select", "slice", "split", "alias",
    "_reshape_alias", "unbind", "split_with_sizes", "narrow", "lift_fresh", "unfold",
)  # fmt: skip


class Counter(TorchDispatchMode):
    """Counts launches: of Triton kernels, and of every operation that is not free."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in _FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def count_launches(op: str, inputs: dict, backend: str) -> dict[str, list[str]]:
    """The names of what `backend` launches for one forward and one backward pass; Triton on meta tensors.

    Of the second pass: what a variant sets up once for a device is not counted.
    """
    counters = {"forward": Counter(), "backward": Counter()}
    active = []

    def launch(kernel, grid, *_arguments, **_constants) -> None:
        if 0 not in grid:
            active[-1].names.append(kernel.__name__)

    @contextmanager
    def counting(what: str) -> Iterator[None]:
        active.append(counters[what])
        with counters[what]:
            yield

    with replaced(triton_runtime, "launch", launch), replaced(triton_runtime, "why_not", lambda device_type: None):
        for _ in range(2):
            counters |= {what: Counter() for what in counters}
            call_below_the_dispatcher(op, inputs, backend, around=counting)
    return {what: counter.names for what, counter in counters.items()}


def call_below_the_dispatcher(op: str, inputs: dict, backend: str, around: Callable | None = None) -> None:
    """One forward and, where the op has one, one backward pass; `around("forward")` is a context about each."""
    room = importlib.import_module(f"dakd.kernels.{op}")
    ops = importlib.import_module(f"dakd.kernels.{op}.ops")
    around = around or (lambda what: nullcontext())
    public = getattr(room, op)
    backends.load.cache_clear()
    with replaced(ops, op, _plain_function(ops, op, around, "forward")), torch.no_grad():
        public(**inputs, backend=backend)
    if DIFFERENTIABLE[op]:
        leaves = {name: value.detach().requires_grad_() if name in DIFFERENTIABLE[op] and value is not None else value
                  for name, value in inputs.items()}  # fmt: skip
        outputs = public(**leaves, backend=backend)
        outputs = [output for output in _tensors(outputs) if output.requires_grad]
        wanted = [leaves[name] for name in DIFFERENTIABLE[op] if leaves[name] is not None]
        backward = f"{op}_backward"
        with replaced(ops, backward, _plain_function(ops, backward, around, "backward")):
            torch.autograd.grad(outputs, wanted, [torch.empty_like(output) for output in outputs])
    backends.load.cache_clear()


@contextmanager
def replaced(module: ModuleType, name: str, value) -> Iterator[None]:
    """A context in which an attribute of a module is something else."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _plain_function(ops: ModuleType, name: str, around: Callable, what: str) -> Callable:
    # The function that was registered, less the wrapper that switches autocast off: meta tensors have no autocast.
    function = getattr(ops, name)._init_fn.__wrapped__

    def called(*arguments):
        with around(what):
            return function(*arguments)

    return called


def _tensors(outputs) -> list[Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output for output in outputs if isinstance(output, Tensor)]
