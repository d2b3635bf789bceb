"""Races every backend of an op against plain torch, on the operands that the tests use.

In order: every backend that can run here is held to the tests' error budget against float64, in poisoned memory and on
inputs drawn for that check (one that is far off, or gives NaN, does not race); the run's own copy and matmul ceilings
are measured; then eager torch, eager under autocast, torch.compile and the backends take turns (timing.py). Bytes are
the op's least traffic (roofline.py). A row is printed and written as soon as it is measured (rows.py). Exit status 1: a
backend was over its budget.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import rivals
import roofline
import torch
from machine import measure_ceilings, print_machine, seconds_given
from rows import COMPILED, EAGER, Row, RowFile, make_rows, print_header, print_rows
from timing import OutOfTime, race, reason, time_limit
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, LAYOUTS, MODEL_LAYOUT, SHAPES, laid_out, operands

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Operands that stay fp32 whatever the features are: parameters, tables, and the sampler's state.
KEPT_FP32 = {
    "transposed_attention": {"temperature", "out_weight"},
    "selective_scan": {"A", "D", "delta_bias"},
    "depthwise_conv1d": {"weight", "bias"},
    "ddim_step": {"x", "y", "coefficients"},
    "joint_noising": {"tables"},
    "seg_loss": set(),
}
# A little over the budget may be a matter of the budget, and the time still counts; so far over it is an error.
STRUCK_OVER = 10.0
_CHECKED_SHAPES = ("tiny", "odd", "small")
# More than any GPU's last-level cache holds, so that every call finds its operands in memory.
_COLD_BYTES = 240e6
_MIN_SETS, _MAX_SETS = 4, 48


def run_benchmark(op: str, function: Callable, argv: list[str] | None = None) -> list[Row]:
    """Parses the command line, checks, races and prints; SystemExit 1 after all is done if a backend was wrong."""
    options = parse(op, argv)
    bench = Bench(op, function, options)
    wrong = bench.check()
    rows = bench.measure()
    if wrong:
        raise SystemExit(1)
    return rows


def parse(op: str, argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Races {op}: every backend that can run, beside plain torch.")
    shapes = ", ".join(SHAPES[op])
    parser.add_argument("--shape", action="append", help=f"{shapes}, or numbers such as batch=2,height=7; repeatable")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="of the features")
    parser.add_argument("--layout", choices=["model", *LAYOUTS], default="model",
                        help="how the features lie in memory; model: as where the models call the op")  # fmt: skip
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--backward", action=argparse.BooleanOptionalAction, default=True, help="also with backward")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each contestant, about")
    limit = dict(type=float, default=seconds_given(600), help="seconds; what finds no time is left out")
    parser.add_argument("--limit-s", **limit)
    parser.add_argument("--compile", action="append", choices=["default", "max-autotune-no-cudagraphs", "aot_eager"],
                        default=[], help="also race torch.compile (aot_eager: a rehearsal without code)")  # fmt: skip
    parser.add_argument("--launches", action=argparse.BooleanOptionalAction, default=True,
                        help="count launches with torch's profiler, which takes seconds to start")  # fmt: skip
    parser.add_argument("--only", action="append", help="race this contestant only, beside eager; repeatable")
    parser.add_argument("--note", default="", help="goes into every row")
    parser.add_argument("--stochastic", action="store_true", help="ddim_step: eta > 0")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.shapes = {text: shape_sizes(op, text) for text in options.shape or ["small"]}
    if options.stochastic and op != "ddim_step":
        parser.error("--stochastic is for ddim_step")
    return options


def shape_sizes(op: str, text: str) -> dict[str, int]:
    """The numbers of a named shape, or of one written as `name=number,...`."""
    if text in SHAPES[op]:
        return SHAPES[op][text]
    wanted = SHAPES[op]["tiny"].keys()
    sizes = {name: int(value) for name, _, value in (part.partition("=") for part in text.split(",")) if value}
    if sizes.keys() != wanted:
        raise SystemExit(f"shape {text!r} of {op} has {', '.join(sizes) or 'no numbers'}; wanted {', '.join(wanted)}")
    return sizes


class Bench:
    """One op on one device: its contestants, their check and their race."""

    def __init__(self, op: str, function: Callable, options: argparse.Namespace):
        self.op, self.function, self.options = op, function, options
        self.device, self.dtype = options.device, DTYPES[options.dtype]
        self.layout = MODEL_LAYOUT[op] if options.layout == "model" else options.layout
        self.until = time.monotonic() + options.limit_s
        self.is_gpu = torch.device(self.device).type == "cuda"
        self.backends = [
            name
            for name in backends.BACKENDS
            if backends.why_not(op, name, self.device, self._state_dtype()) is None
            and not (name == "triton" and not self.is_gpu)  # its interpreter is for tests
        ]

    def _state_dtype(self) -> torch.dtype:
        """What the choice of a backend looks at: the dtype of the op's first operand, fp32 where that is an integer."""
        return torch.float32 if self.op in ("ddim_step", "joint_noising") else self.dtype

    def operands(self, shape: str | dict[str, int], seed: int, drawn_on: str = "cpu") -> dict:
        """The op's keyword arguments, in the dtypes that the models take and the layout asked for."""
        made = operands(self.op, shape, device=self.device, seed=seed, drawn_on=drawn_on)
        kept = KEPT_FP32[self.op]
        inputs = {
            name: value.to(self.dtype) if _is_floating(value) and name not in kept else value
            for name, value in made.items()
        }
        if self.op == "ddim_step":
            inputs |= dict(input_dtype=self.dtype, stochastic=self.options.stochastic)
        if self.op == "joint_noising":
            inputs |= dict(out_dtype=self.dtype)
        if self.op == "seg_loss" and self.dtype != torch.float32:
            inputs["teacher"] = inputs["teacher"].half()  # as the shards store it
        return laid_out(self.op, inputs, self.options.layout)

    def check(self) -> list[str]:
        """Names the backends over the error budget, prints by how much, and strikes those far over it from the race."""
        over, struck, shapes = [], [], self._checked_shapes()
        for name in self.backends:
            try:
                found = [self._worst(name, shape, sizes, seed) for seed, (shape, sizes) in enumerate(shapes.items())]
                worst = max(found, key=lambda item: math.inf if math.isnan(item[0]) else item[0])
            # A kernel that does not compile, a launch that fails: both disqualify this backend alone.
            except Exception as error:
                worst = (math.nan, f"{self.op} {name} in {self.options.dtype}: {reason(error)}")
            if not worst[0] <= 1:
                over.append(name)
                print(f"OVER    {worst[1]}", flush=True)
            if not worst[0] <= STRUCK_OVER:
                struck.append(name)
        self.backends = [name for name in self.backends if name not in struck]
        right = [name for name in self.backends if name not in over]
        print(f"check   {self.op}: {', '.join(right) or 'none'} within the error budget at {', '.join(shapes)}"
              + (f"; out of the race: {', '.join(struck)}" if struck else ""))  # fmt: skip
        return over

    def _worst(self, name: str, shape: str, sizes: dict[str, int], seed: int) -> tuple[float, str]:
        """The largest error over its budget among the outputs and gradients of one shape, and that in words."""
        errors = self.errors(name, sizes, seed)
        tensor, error = max(errors.items(), key=lambda item: math.inf if math.isnan(item[1].ratio) else item[1].ratio)
        return error.ratio, (f"{self.op} {name} at {shape} in {self.options.dtype}: {tensor} {error.ratio:.3g} of its "
                             f"budget (error {error.error:.3e}, budget {error.budget:.3e})")  # fmt: skip

    def errors(self, name: str, sizes: dict[str, int], seed: int) -> dict[str, numerics.Error]:
        """By output and gradient, the error of a backend beside its budget, on fresh operands in poisoned memory."""
        with numerics.poisoned_memory():
            return numerics.errors_beside_plain(
                self.with_backend(name), getattr(plain, self.op), self.operands(sizes, seed), DIFFERENTIABLE[self.op]
            )

    def _checked_shapes(self) -> dict[str, dict[str, int]]:
        """Small ones; on a GPU fewer, but also those to be measured with few samples: kernels choose their blocks by
        the sizes, and each shape costs a compilation."""
        shapes = {name: SHAPES[self.op][name] for name in (("odd",) if self.is_gpu else _CHECKED_SHAPES)}
        if self.is_gpu:
            for text, sizes in self.options.shapes.items():
                fewer = dict(batch=min(2, sizes["batch"]))
                fewer |= dict(synthetic=min(1, sizes["synthetic"])) if "synthetic" in sizes else {}
                shapes[f"{text} with batch {fewer['batch']}"] = sizes | fewer
        return shapes

    def measure(self) -> list[Row]:
        self.ceilings = measure_ceilings(self.device)
        print_machine(self.device, self.ceilings)
        file = RowFile(self.options.csv, self.device, self.ceilings)
        rows = []
        for text, sizes in self.options.shapes.items():
            print(f"{self.op}  {text}  {self.options.dtype}  {self.layout}  {sizes}")
            print_header()
            for what in ("forward", "forward+backward"):
                if what == "forward" or (DIFFERENTIABLE[self.op] and self.options.backward):
                    rows += self._race(text, sizes, what, file)
        return rows

    def contestants(self) -> dict[str, Callable]:
        eager = rivals.EAGER[self.op]
        contestants = {EAGER: eager}
        if self.dtype != torch.float32:
            contestants["autocast"] = self._under_autocast(eager)
        for mode in self.options.compile:
            name = COMPILED if mode == "default" else mode
            contestants[name] = compile_with(rivals.COMPILED[self.op], mode)
        if self.op == "ddim_step":
            contestants["diffusers"] = _deferred(rivals.diffusers_ddim_step)
        # The reference is for CPUs and for reading; on a GPU eager torch stands for plain torch.
        ours = [name for name in self.backends if not (self.is_gpu and name == "reference")]
        contestants |= {name: self.with_backend(name) for name in ours}
        # The best one twice: what two measurements of one version differ by is what a difference must exceed.
        contestants["again"] = self.with_backend(self.backends[0]) if self.backends else eager
        return contestants

    def _race(self, text: str, sizes: dict[str, int], what: str, file: RowFile) -> list[Row]:
        inputs = self.operands(sizes, seed=0, drawn_on="cuda" if self.is_gpu else "cpu")
        num_bytes = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
        num_sets = max(_MIN_SETS, min(_MAX_SETS, int(_COLD_BYTES // max(1, num_bytes)) + 1)) if self.is_gpu else 1
        sets = [inputs] + [_cloned(inputs) for _ in range(num_sets - 1)]
        contestants = self.contestants()
        if self.options.only:
            contestants = {name: call for name, call in contestants.items() if name in (EAGER, *self.options.only)}
        calls = {
            name: [make_call(contestant, one, DIFFERENTIABLE[self.op], what) for one in sets]
            for name, contestant in contestants.items()
        }
        facts = {}
        left_s = self.until - time.monotonic()
        timings, failures = race(calls, self.device, self.options.seconds, limit_s=min(120.0, left_s / 2))
        for name, why in failures.items():
            print(f"{what:<17}{name:<16} not measured: {why}", flush=True)
        again, best = timings.pop("again", None), timings.get((self.backends or [EAGER])[0])
        spread = abs(again.best_us - best.best_us) / best.best_us if again and best else None
        for name in timings:
            facts[name] = self._facts(contestants[name], calls[name][0], inputs, what)
        rows = make_rows(
            self.op,
            text,
            self.options.dtype,
            what + (" eta=1" if self.options.stochastic else ""),
            timings,
            self.ceilings,
            least_bytes=roofline.least_bytes(self.op, sizes, what, self.dtype.itemsize),
            facts=facts,
            shared=dict(
                layout=self.layout,
                note=self.options.note,
                cold=num_sets * num_bytes >= _COLD_BYTES if self.is_gpu else None,
                spread=spread,
            ),
        )
        for row in rows:
            file.add(row)
        print_rows(rows)
        if spread is not None:
            print(f"{'':<17}one version measured twice: {100 * spread:.1f} % apart", flush=True)
        return rows

    def _facts(self, contestant: Callable, call: Callable, inputs: dict, what: str) -> dict:
        facts = {}
        try:
            with time_limit(min(60.0, self.until - time.monotonic())):
                if self.is_gpu and self.options.launches:
                    facts["launches"] = count_launches(call)
                if what == "forward+backward":
                    facts["saved_mb"] = saved_bytes(contestant, inputs, DIFFERENTIABLE[self.op]) / 1e6
        # A profiler that is not there costs these numbers, not the timing.
        except (RuntimeError, OutOfTime) as error:
            print(f"{'':<17}not counted: {reason(error)}", flush=True)
        return facts

    def with_backend(self, name: str) -> Callable:
        return lambda **inputs: self.function(**inputs, backend=name)

    def _under_autocast(self, function: Callable) -> Callable:
        def autocast(**inputs):
            with torch.autocast(torch.device(self.device).type, dtype=self.dtype):
                return function(**inputs)

        return autocast


def make_call(
    contestant: Callable,
    inputs: dict,
    differentiable: tuple[str, ...],
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
    leaves = {
        name: value.detach().requires_grad_() if name in differentiable and value is not None else value
        for name, value in inputs.items()
    }
    wanted = [leaves[name] for name in differentiable if leaves[name] is not None] + list(parameters)
    cotangents: list[Tensor] = []

    def forward_backward() -> object:
        outputs = _floating_outputs(contestant(**leaves))
        if not cotangents:
            cotangents.extend(torch.randn_like(output) for output in outputs)
        return torch.autograd.grad(outputs, wanted, cotangents)

    return forward_backward


def saved_bytes(
    contestant: Callable, inputs: dict, differentiable: tuple[str, ...], parameters: Sequence[Tensor] = ()
) -> int:
    """What autograd keeps for the backward pass beyond the operands and parameters themselves."""
    leaves = {
        name: value.detach().requires_grad_() if name in differentiable and value is not None else value
        for name, value in inputs.items()
    }
    tensors = [value for value in leaves.values() if isinstance(value, Tensor)]
    own = {value.untyped_storage().data_ptr() for value in (*tensors, *parameters)}
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
    """torch.compile in a mode of inductor, or with the backend that only traces."""
    # Else the shapes of before count towards the number of compilations after which torch silently stays eager.
    torch._dynamo.reset()
    if mode == "aot_eager":
        return torch.compile(function, backend="aot_eager", dynamic=False)
    return torch.compile(function, mode=mode, dynamic=False)


def _deferred(make: Callable[[], Callable]) -> Callable:
    """A contestant that is made, and may fail to be, at its first call."""
    made: list[Callable] = []

    def contestant(**inputs):
        if not made:
            made.append(make())
        return made[0](**inputs)

    return contestant


def _cloned(inputs: dict) -> dict:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _is_floating(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _floating_outputs(outputs: Tensor | tuple) -> list[Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output for output in outputs if _is_floating(output) and output.requires_grad]
