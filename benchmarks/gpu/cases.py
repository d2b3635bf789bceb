"""The calls of ops that a visit makes: one list for the check, the races and the warm-up of Triton's cache."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import NamedTuple

from lib.op_race import OpRace, parse, two_samples

from dakd.kernels import backend
from dakd.testing.inputs import MODEL_LAYOUT, SHAPES

GPU_BACKENDS = ("triton", "cuda")
# The tensor-core branches of the two-byte dtypes come first: no CPU can run them.
DTYPES = ("bf16", "fp16", "fp32")


class Case(NamedTuple):
    """One op at one shape.  shape: its name in results; sizes: numbers of dakd.testing.inputs.

    options: of the room's benchmark, such as --stochastic.
    """

    op: str
    shape: str
    sizes: dict[str, int]
    dtype: str
    layout: str
    options: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Options of lib/op_race.py, without device and file."""
        numbers = ",".join(f"{name}={value}" for name, value in self.sizes.items())
        shape = self.shape if self.shape in SHAPES[self.op] else numbers
        return ["--dtype", self.dtype, "--layout", self.layout, "--shape", shape, *self.options]


def ops_with(name: str) -> list[str]:
    """The ops that have a variant, by its name."""
    return [op for op in backend.OPS if name in backend.variants(op)]


def checked(op: str, dtype: str, is_tiny: bool = False) -> list[Case]:
    """Held to float64: odd sizes, and two samples of the main shape in the models' layout and contiguous."""
    if is_tiny:
        return [Case(op, "tiny", SHAPES[op]["tiny"], dtype, layout) for layout in _layouts(op)]
    small = two_samples(SHAPES[op]["main"])
    found = [Case(op, "main with batch 2", small, dtype, layout) for layout in _layouts(op)]
    return [Case(op, "odd", SHAPES[op]["odd"], dtype, "contiguous"), *found]


def repeated(op: str, is_tiny: bool = False) -> Case:
    """The call that is repeated for bit-equal results."""
    shape = "tiny" if is_tiny else "main"
    return Case(op, shape, SHAPES[op][shape], "fp32" if is_tiny else "bf16", MODEL_LAYOUT[op])


def raced(is_tiny: bool = False) -> list[Case]:
    """The calls to time, the most important first: a phase without time left drops the last ones."""
    if is_tiny:
        return [Case(op, "tiny", SHAPES[op]["tiny"], "fp32", MODEL_LAYOUT[op]) for op in backend.OPS]
    main = [Case(op, "main", SHAPES[op]["main"], "bf16", MODEL_LAYOUT[op]) for op in backend.OPS]
    return [*main, *_goals(), *_further()]


def _goals() -> Iterator[Case]:
    """Further shapes with a stated goal: a batch of the sampler, one padded scene, the other scans."""
    yield Case("ddim_step", "batch 64", _images(64, 5, 256), "bf16", "channels_last")
    yield _caft(1, 128, 168, 320)
    for sizes in ((144, 512, 49), (1, 512, 784), (16, 256, 1024)):
        yield _scan(*sizes)


def _further() -> Iterator[Case]:
    yield Case("ddim_step", "batch 64", _images(64, 5, 256), "bf16", "channels_last", ("--stochastic",))
    yield Case("ddim_step", "batch 64 order 2", _images(64, 5, 256, order=2), "bf16", "channels_last")
    yield Case("joint_noising", "batch 256", _images(256, 5, 256), "bf16", "contiguous")
    loss = dict(batch=16, synthetic=8, num_classes=5, height=640, width=1248)
    yield Case("seg_loss", "640 x 1248", loss, "bf16", "channels_last")
    for shape in ((16, 256, 64, 64), (16, 512, 32, 32)):
        yield _caft(*shape)
    for op in ("transposed_attention", "seg_loss"):
        yield Case(op, "main", SHAPES[op]["main"], "bf16", "contiguous")


def _caft(batch: int, channels: int, height: int, width: int) -> Case:
    sizes = dict(batch=batch, inner=channels // 2, channels=channels, height=height, width=width,
                 num_heads=channels // 128)  # fmt: skip
    return Case("transposed_attention", f"{batch}x{channels}x{height}x{width}", sizes, "bf16", "channels_last")


def _scan(batch: int, channels: int, length: int) -> Case:
    sizes = dict(batch=batch, channels=channels, states=8, length=length)
    return Case("selective_scan", f"{batch}x{channels}x{length}", sizes, "bf16", "tokens")


def _images(batch: int, num_classes: int, side: int, **more: int) -> dict[str, int]:
    return dict(batch=batch, num_classes=num_classes, height=side, width=side, **more)


def _layouts(op: str) -> list[str]:
    return list(dict.fromkeys((MODEL_LAYOUT[op], "contiguous")))


def op_race(case: Case, *words: str) -> OpRace:
    """The race of a case's op.  words: device, file and further options."""
    return OpRace(case.op, function(case.op), parse(case.op, [*case.words, *words]))


def function(op: str):
    """The op's public function."""
    return getattr(importlib.import_module(f"dakd.kernels.{op}"), op)
