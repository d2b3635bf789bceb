"""Races every backend of an op against plain torch, on the operands that the tests use.

First, each backend that can run here is held to the tests' error budget against float64, in poisoned memory and on
inputs drawn for this check; one that is far off or gives NaN does not race. Then eager torch, eager under autocast,
torch.compile and the backends take turns (timing.py). Exit status 1: a backend was over its budget.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import rivals
import roofline
import torch
from torch import Tensor

from dakd.kernels import backend as backends
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, LAYOUTS, MODEL_LAYOUT, OPTIONAL_SIZES, SHAPES, laid_out, operands
from lib.calls import compile_with, count_launches, make_call, saved_bytes
from lib.device import seconds_given
from lib.race import Races, default_device
from lib.table import COMPILED, EAGER, Row, make_rows
from lib.timing import OutOfTime, reason, time_limit

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
# A little over the budget may be the budget's fault, and the time still counts; this far over it is an error.
STRUCK_OVER = 10.0
_CHECKED_SHAPES = ("tiny", "odd", "small")
# More than any GPU's last-level cache holds, so that every call reads its operands from memory.
_COLD_BYTES = 240e6
_MIN_SETS, _MAX_SETS = 4, 48


def run_benchmark(op: str, function: Callable, argv: list[str] | None = None) -> list[Row]:
    """Parses the command line, checks, races and prints; SystemExit 1 at the end if a backend was over its budget."""
    race = OpRace(op, function, parse(op, argv))
    wrong = race.check()
    rows = race.run()
    if wrong:
        raise SystemExit(1)
    return rows


def parse(op: str, argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Races {op}: every backend that can run, and plain torch.")
    shapes = ", ".join(SHAPES[op])
    parser.add_argument("--shape", action="append", help=f"{shapes}, or numbers such as batch=2,height=7; repeatable")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="of the features")
    parser.add_argument("--layout", choices=["model", *LAYOUTS], default="model",
                        help="of the features in memory; model: as where the models call the op")  # fmt: skip
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--backward", action=argparse.BooleanOptionalAction, default=True, help="also with backward")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each contestant, about")
    parser.add_argument("--limit-s", type=float, default=seconds_given(600), help="for the whole run, in seconds")
    parser.add_argument("--compile", action="append", choices=["default", "max-autotune-no-cudagraphs", "aot_eager"],
                        default=[], help="also race torch.compile (aot_eager: a rehearsal without code)")  # fmt: skip
    parser.add_argument("--launches", action=argparse.BooleanOptionalAction, default=True,
                        help="count launches with torch's profiler, which takes seconds to start")  # fmt: skip
    parser.add_argument("--only", action="append", help="race only this contestant, and eager; repeatable")
    parser.add_argument("--note", default="", help="goes into every row")
    parser.add_argument("--stochastic", action="store_true", help="ddim_step: eta > 0")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    options = parser.parse_args(argv)
    options.device = options.device or default_device()
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
    if not wanted <= sizes.keys() <= wanted | OPTIONAL_SIZES.get(op, set()):
        raise SystemExit(f"shape {text!r} of {op} has {', '.join(sizes) or 'no numbers'}; expected {', '.join(wanted)}")
    return sizes


def two_samples(sizes: dict[str, int]) -> dict[str, int]:
    """The same shape with at most two samples, one of them synthetic."""
    fewer = sizes | {"batch": min(2, sizes["batch"])}
    return fewer | {"synthetic": min(1, sizes["synthetic"])} if "synthetic" in sizes else fewer


class OpRace:
    """One op on one device: its contestants, their check and their race."""

    def __init__(self, op: str, function: Callable, options: argparse.Namespace):
        self.op, self.function, self.options = op, function, options
        self.device, self.dtype = options.device, DTYPES[options.dtype]
        self.layout = MODEL_LAYOUT[op] if options.layout == "model" else options.layout
        self.is_gpu = torch.device(self.device).type == "cuda"
        # A backend is chosen by the dtype of the op's first operand, fp32 if that holds integers.
        first_dtype = torch.float32 if op in ("ddim_step", "joint_noising") else self.dtype
        self.backends = [
            name
            for name in backends.BACKENDS
            if backends.why_not(op, name, self.device, first_dtype) is None
            and not (name == "triton" and not self.is_gpu)  # its interpreter is for tests
        ]

    def operands(self, shape: str | dict[str, int], seed: int, drawn_on: str = "cpu") -> dict:
        """The op's keyword arguments, in the dtypes that the models use and the layout asked for."""
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

    # -- the check ----------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Prints and returns the backends over the error budget, and strikes those far over it from the race."""
        over, struck, shapes = [], [], self._checked_shapes()
        for name in self.backends:
            try:
                found = [self._worst(name, shape, sizes, seed) for seed, (shape, sizes) in enumerate(shapes.items())]
                worst = max(found, key=lambda item: math.inf if math.isnan(item[0]) else item[0])
            # A kernel that does not compile, a launch that fails: both disqualify this backend alone.
            except Exception as error:
                worst = (math.nan, f"{self.op} {name} in {self.options.dtype}: {reason(error)}")
            # Negated, so that NaN counts as too large.
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
        """The largest error over its budget among the outputs and gradients of one shape, and its description."""
        errors = self.errors(name, sizes, seed)
        tensor, error = max(errors.items(), key=lambda item: math.inf if math.isnan(item[1].ratio) else item[1].ratio)
        return error.ratio, (f"{self.op} {name} at {shape} in {self.options.dtype}: {tensor} {error.ratio:.3g} of its "
                             f"budget (error {error.error:.3e}, budget {error.budget:.3e})")  # fmt: skip

    def errors(self, name: str, sizes: dict[str, int], seed: int) -> dict[str, numerics.Error]:
        """By output and gradient, a backend's error and its budget, on fresh operands in poisoned memory."""
        with numerics.poisoned_memory():
            return numerics.errors_beside_plain(
                self.with_backend(name), getattr(plain, self.op), self.operands(sizes, seed), DIFFERENTIABLE[self.op]
            )

    def _checked_shapes(self) -> dict[str, dict[str, int]]:
        """Small shapes. On a GPU one of them, for each costs a compilation, and the raced shapes with few samples:
        kernels choose their blocks by the sizes."""
        if not self.is_gpu:
            return {name: SHAPES[self.op][name] for name in _CHECKED_SHAPES}
        raced = [(text, two_samples(sizes)) for text, sizes in self.options.shapes.items()]
        return {"odd": SHAPES[self.op]["odd"]} | {f"{text} with batch {few['batch']}": few for text, few in raced}

    # -- the race -----------------------------------------------------------------------------------------------------

    def run(self) -> list[Row]:
        races = Races(self.device, self.options.csv, self.options.seconds, limit_s=self.options.limit_s)
        rows = []
        for text, sizes in self.options.shapes.items():
            print(f"{self.op}  {text}  {self.options.dtype}  {self.layout}  {sizes}")
            for what in ("forward", "forward+backward"):
                if what == "forward" or (DIFFERENTIABLE[self.op] and self.options.backward):
                    rows += self._race(races, text, sizes, what)
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
        # On a GPU eager torch stands for plain torch: the reference is for CPUs and for reading.
        ours = [name for name in self.backends if not (self.is_gpu and name == "reference")]
        contestants |= {name: self.with_backend(name) for name in ours}
        # The best one twice: a difference between contestants must exceed the one between these two.
        contestants["again"] = self.with_backend(self.backends[0]) if self.backends else eager
        if self.options.only:
            contestants = {name: call for name, call in contestants.items() if name in (EAGER, *self.options.only)}
        return contestants

    def _race(self, races: Races, text: str, sizes: dict[str, int], what: str) -> list[Row]:
        inputs = self.operands(sizes, seed=0, drawn_on="cuda" if self.is_gpu else "cpu")
        num_bytes = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
        num_sets = max(_MIN_SETS, min(_MAX_SETS, int(_COLD_BYTES // max(1, num_bytes)) + 1)) if self.is_gpu else 1
        sets = [inputs] + [_cloned(inputs) for _ in range(num_sets - 1)]
        contestants = self.contestants()
        calls = {
            name: [make_call(contestant, one, DIFFERENTIABLE[self.op], what) for one in sets]
            for name, contestant in contestants.items()
        }
        timings = races.time(what, calls)
        again, best = timings.pop("again", None), timings.get((self.backends or [EAGER])[0])
        spread = abs(again.best_us - best.best_us) / best.best_us if again and best else None
        rows = make_rows(
            self.op,
            text,
            self.options.dtype,
            what + (" eta=1" if self.options.stochastic else ""),
            timings,
            races.ceilings,
            least_bytes=roofline.least_bytes(self.op, sizes, what, self.dtype.itemsize),
            facts={name: self._facts(races, contestants[name], calls[name][0], inputs, what) for name in timings},
            shared=dict(
                layout=self.layout,
                note=self.options.note,
                cold=num_sets * num_bytes >= _COLD_BYTES if self.is_gpu else None,
                spread=spread,
            ),
        )
        races.keep(rows)
        if spread is not None:
            print(f"{'':<17}one version measured twice: {100 * spread:.1f} % apart", flush=True)
        return rows

    def _facts(self, races: Races, contestant: Callable, call: Callable, inputs: dict, what: str) -> dict:
        facts = {}
        try:
            with time_limit(min(60.0, races.left_s)):
                if self.is_gpu and self.options.launches:
                    facts["launches"] = count_launches(call)
                if what == "forward+backward":
                    facts["saved_mb"] = saved_bytes(contestant, inputs, DIFFERENTIABLE[self.op]) / 1e6
        # Without a profiler these numbers are missing; the timing stays.
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


def _deferred(make: Callable[[], Callable]) -> Callable:
    """A contestant that is made at its first call: an import error is then its own failure."""
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
