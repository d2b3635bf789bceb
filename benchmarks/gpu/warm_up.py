"""Fills Triton's cache, on a host without a GPU, with every kernel that a visit launches on a Hopper GPU.

    python benchmarks/gpu/warm_up.py --cache DIR [--list FILE]

The key of a cached kernel depends on what a launch passes: shapes, strides, alignment, dtypes, options. Therefore the
kernels are compiled through their launches, on meta tensors, with a stand-in for the driver that reports "sm_90"; the C
code that launches each is compiled too. All calls of ops in cases.py are made, forward and backward, with every value
of the tuning constants that the second visit tries. The calls that the nets make are recorded from a forward pass on
fake CUDA tensors, which gives the models' own layouts. FILE gets the used entries of the cache, a line each; if a
second process finds all of them there, a launch will too. Exit status 1: something could not be compiled.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from lib.undispatched_ops import UndispatchedOps, call_triton_on_meta, differentiate, replaced  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from dakd.kernels import arrival_counters, backend, triton_runtime  # noqa: E402
from dakd.testing.inputs import DIFFERENTIABLE  # noqa: E402
from gpu import cases, second_visit  # noqa: E402

_ARCH, _WARP = 90, 32
_MULTIPROCESSORS = 132
# The functions that Triton takes from its compiled C modules.
_MODULE_FUNCTIONS = ("launch", "load_binary", "get_device_properties", "cuOccupancyMaxActiveClusters",
                     "set_printf_fifo_size", "fill_tma_descriptor", "PyCUtensorMap")  # fmt: skip


@dataclass
class CacheUse:
    """Triton's reports of its compilations.  entries: names of the cache folders that are used."""

    hits: int = 0
    misses: int = 0
    launchers: set[str] = field(default_factory=set)
    entries: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def listen(self, *, src, metadata, metadata_group, cache_hit, **_) -> None:
        self.hits += cache_hit
        self.misses += not cache_hit
        self.entries |= {Path(path).parent.name for path in metadata_group.values()}

    def load(self, name: str, path: str) -> SimpleNamespace:
        """Replaces loading a compiled C module, which would need the driver's library."""
        self.launchers.add(path)
        self.entries.add(Path(path).parent.name)
        return SimpleNamespace(**dict.fromkeys(_MODULE_FUNCTIONS))

    def add(self, other: CacheUse) -> None:
        self.hits += other.hits
        self.misses += other.misses
        self.launchers |= other.launchers
        self.entries |= other.entries
        self.failures += other.failures


def main() -> int:
    options = _parse()
    if triton_runtime.is_interpreted():
        print("TRITON_INTERPRET=1 is set: unset it, so that kernels are compiled", file=sys.stderr)
        return 2
    os.environ["TRITON_CACHE_DIR"] = str(options.cache.resolve())
    start, use = time.monotonic(), CacheUse()
    # Forked, because closures cannot be pickled; torch's own threads have not started yet.
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.jobs, mp_context=get_context("fork")) as pool,
    ):
        _make_driver_library(Path(folder))
        os.environ["TRITON_LIBCUDA_PATH"] = folder
        for part in pool.map(_run, range(len(_WORKS))):
            use.add(part)
    for failure in use.failures:
        print(f"FAILED  {failure}")
    if options.list is not None:
        options.list.write_text("".join(f"{entry}\n" for entry in sorted(use.entries)))
    print(f"{use.hits + use.misses} launches, {use.hits} hits, {use.misses} misses; "
          f"{len(use.entries)} entries, {len(use.launchers)} of them launchers, {time.monotonic() - start:.0f} s")
    return 1 if use.failures else 0


def _run(index: int) -> CacheUse:
    (name, work), use = _WORKS[index], CacheUse()
    with _stand_ins(use):
        try:
            work()
        # One kernel that does not compile must not keep the others from it.
        except Exception as error:
            use.failures.append(f"{name}: {type(error).__name__}: {str(error)[:1000]}")
    return use


def _works() -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that launches Triton kernels in either visit, by name."""
    for op in cases.ops_with("triton"):
        listed = [case for dtype in cases.DTYPES for case in cases.checked(op, dtype)]
        listed += [cases.repeated(op), *(case for case in cases.raced() if case.op == op)]
        for case in {str(case): case for case in listed}.values():
            yield f"{op} {case.shape} {case.dtype} {case.layout}", partial(_make, case)
    for constant in second_visit.CONSTANTS:
        yield f"{constant.op} {constant.name}", _constant_caller(constant)
    yield "the student's training step", _student
    yield "the teacher's sampling step", _sampler
    yield "the encoder of goal G14", _encoder


def _constant_caller(constant: second_visit.Constant) -> Callable[[], None]:
    def work() -> None:
        case = cases.repeated(constant.op)
        for value in second_visit.offered(constant):
            with replaced(constant.module, constant.name, value):
                for one in (case, *cases.checked(constant.op, case.dtype)):
                    _make(one)

    return work


def _make(case: cases.Case) -> None:
    """One call of an op on meta tensors, forward and backward."""
    with torch.device("meta"):
        inputs = cases.op_race(case, "--device", "meta").operands(case.sizes, 0)
    call_triton_on_meta(case.op, inputs)


class _Recorder(TorchDispatchMode):
    """Within it, calls of ops are recorded by their schema arguments; on fake tensors an op is then its fake."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "dakd":
            likes = tuple(_Like.of(value) if isinstance(value, Tensor) else value for value in args)
            self.called.append((func._schema.name.split("::")[1], likes))
        return func(*args, **(kwargs or {}))


class _Like(NamedTuple):
    """A tensor's shape, strides and dtype."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Like:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def on(self, device: str) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


def _record(work: Callable[[], object]) -> list[tuple[str, tuple]]:
    """The distinct calls of ops in a forward pass, by the shapes, strides and dtypes of their arguments.

    It runs on fake CUDA tensors: autocast and layouts are those of a GPU, nothing is computed, no driver is needed.
    """
    from torch._subclasses import fake_tensor

    with (
        replaced(fake_tensor, "init_gpu_context", lambda device: None),
        replaced(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        replaced(torch.cuda, "is_bf16_supported", lambda *_: True),
        fake_tensor.FakeTensorMode(allow_non_fake_inputs=True),
        _Recorder() as recorder,
    ):
        work()
    return list(dict.fromkeys(recorder.called))


def _on_fake_cuda(net: nn.Module) -> nn.Module:
    """Moves a net from "meta" to a CUDA device that does not exist; within a FakeTensorMode."""
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_Like.of(parameter).on("cuda"))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _Like.of(buffer).on("cuda")
    return net


def _launch_recorded(work: Callable[[], object], *, backward: bool) -> None:
    for name, arguments in _record(work):
        if "triton" not in backend.variants(name) or "cuda" in backend.variants(name):
            continue  # `auto` takes the extension's
        schema = getattr(torch.ops.dakd, name).default._schema.arguments
        wanted = DIFFERENTIABLE[name] if backward else ()
        leaves = [value.on("meta") if isinstance(value, _Like) else value for value in arguments]
        for argument, leaf in zip(schema, leaves):
            if argument.name in wanted and isinstance(leaf, Tensor):
                leaf.requires_grad_()
        with UndispatchedOps():
            outputs = getattr(torch.ops.dakd, name)(*leaves)
            differentiate(outputs, [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad])


def _student() -> None:
    from lib.nets import NUM_CLASSES, student_batch, student_config

    from dakd.config import StudentLossConfig
    from dakd.models.registry import build_student
    from dakd.train.batch_loss import StudentLoss

    with torch.device("meta"):
        net = build_student(student_config(is_tiny=False), NUM_CLASSES)
    positions = torch.arange(16)  # read on the host: no fake tensor

    def work() -> None:
        training = StudentLoss(_on_fake_cuda(net), StudentLossConfig(), 0, torch.channels_last)
        given = student_batch(16, 512, "cuda")._replace(host_positions=positions)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            training(given)

    _launch_recorded(work, backward=True)


def _sampler() -> None:
    from lib.nets import B_FACTOR, NUM_CLASSES, joint_net

    from dakd.diffusion.sampler import PairSampler
    from dakd.diffusion.schedule import CosineSchedule

    net = joint_net(False, "meta", torch.bfloat16).to(memory_format=torch.channels_last).eval()

    def work() -> None:
        _on_fake_cuda(net)
        settings = dict(b=B_FACTOR, device="cuda", dtype=torch.bfloat16)
        for size, eta, solver in ((16, 0.0, "ddim"), (64, 0.0, "ddim"), (1, 0.0, "ddim"), (1, 1.0, "ddim"),
                                  (16, 0.0, "dpmpp_2m")):  # fmt: skip
            sampler = PairSampler(net, CosineSchedule(), 2, solver=solver, eta=eta, **settings)
            x, y = (torch.empty(size, channels, 256, 256, device="cuda") for channels in (1, NUM_CLASSES))
            sampler(x, y, sample_ids=torch.arange(size, device="cuda"))

    _launch_recorded(work, backward=False)


def _encoder() -> None:
    from dakd.models.mamba_vision import VARIANTS, MambaVision

    with torch.device("meta"):
        net = MambaVision(num_classes=1000, **VARIANTS["B"]).bfloat16().eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def work() -> None:
        image = torch.empty(128, 3, 224, 224, dtype=torch.bfloat16, device="cuda")
        _on_fake_cuda(net)(image.to(memory_format=torch.channels_last))

    _launch_recorded(work, backward=False)


@contextmanager
def _stand_ins(use: CacheUse) -> Iterator[None]:
    """A driver that only knows its target, launches that only compile, and a Hopper's number of multiprocessors."""
    import triton
    from triton.runtime import build, driver

    driver.set_active(_driver())
    with ExitStack() as stack:
        for module, name, value in (
            (build, "_load_module_from_path", use.load),
            (triton_runtime, "launch", _warm),
            (triton_runtime, "why_not", lambda device_type: None),
            (triton_runtime, "num_multiprocessors", lambda device: _MULTIPROCESSORS),
            (arrival_counters, "zeros", lambda device, count: torch.zeros(count, dtype=torch.int64, device=device)),
            (triton.knobs.compilation, "listener", use.listen),
        ):
            stack.enter_context(replaced(module, name, value))
        backend.load.cache_clear()
        yield
    backend.load.cache_clear()


def _warm(kernel, grid: tuple[int, ...], *arguments, num_warps: int = 4, num_stages: int = 2, **constants) -> None:
    """Replaces triton_runtime.launch: does everything up to the driver call, the C launcher included."""
    from triton.backends.nvidia import driver

    if 0 in grid:
        return
    compiled = kernel.warmup(*arguments, grid=grid, num_warps=num_warps, num_stages=num_stages, **constants)
    driver.CudaUtils()
    driver.CudaLauncher(compiled.src, compiled.metadata)


def _make_driver_library(folder: Path) -> None:
    """Makes an empty libcuda.so.1 to link Triton's C modules against; the GPU host's own takes its place there.

    It defines the functions that they call; without them the linker would not record that the library is needed.
    """
    from triton.backends.nvidia import driver

    sources = [Path(driver.__file__), Path(driver.__file__).with_name("driver.c")]
    names = {name for path in sources for name in re.findall(r"\bcu[A-Z]\w+(?=\()", path.read_text())}
    source = folder / "libcuda.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in sorted(names)))
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(source), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True)


def _driver():
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class StandIn(DriverBase):
        @staticmethod
        def is_active() -> bool:
            return True

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", _ARCH, _WARP)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int | None = None) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

        def map_python_to_cpp_type(self, name: str) -> str:
            return name

        def get_benchmarker(self) -> None:
            return None

    return StandIn()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="the folder of Triton's cache, as TRITON_CACHE_DIR")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--list", type=Path, help="write the names of the entries that are used to this file")
    return parser.parse_args()


_WORKS = list(_works())

if __name__ == "__main__":
    raise SystemExit(main())
