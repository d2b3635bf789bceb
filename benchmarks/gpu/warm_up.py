"""Fills Triton's cache, on a host without a GPU, with every kernel that the run launches on a Hopper GPU.

    python benchmarks/gpu/warm_up.py --cache DIR [--list FILE]

The key of a cached kernel depends on what a launch passes: shapes, strides, alignment, dtypes, options. So the kernels
are not compiled by themselves but through their launches, on meta tensors, with a stand-in for the driver that says
"sm_90"; the C code that launches each is compiled too. Every call of the ops that the run makes (calls.py) is made,
forward and backward, with every value of the tuning constants that the second visit tries; what the nets themselves
call is recorded from a forward pass on fake CUDA tensors, so that layouts are the models' own. FILE gets the used
entries of the cache, a line each; a second process that finds all of them there shows that a launch will too. Exit
status 1: something could not be compiled.
"""

from __future__ import annotations

import argparse
import importlib
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
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from below_dispatch import replaced  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from dakd.kernels import backend, tickets, triton_runtime  # noqa: E402
from dakd.testing.inputs import DIFFERENTIABLE  # noqa: E402
from gpu import calls, second  # noqa: E402

_ARCH, _WARP = 90, 32
_MULTIPROCESSORS = 132
# What Triton takes from its compiled C modules.
_MODULE_FUNCTIONS = ("launch", "load_binary", "get_device_properties", "cuOccupancyMaxActiveClusters",
                     "set_printf_fifo_size", "fill_tma_descriptor", "PyCUtensorMap")  # fmt: skip


@dataclass
class Tally:
    """What Triton says of each compilation.  entries: folders of the cache that are used, by name."""

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
        """In place of loading a C module that Triton has compiled, which would need a driver's library."""
        self.launchers.add(path)
        self.entries.add(Path(path).parent.name)
        return SimpleNamespace(**dict.fromkeys(_MODULE_FUNCTIONS))

    def add(self, other: Tally) -> None:
        self.hits += other.hits
        self.misses += other.misses
        self.launchers |= other.launchers
        self.entries |= other.entries
        self.failures += other.failures


def main() -> int:
    options = _parse()
    if triton_runtime.is_interpreted():
        print("TRITON_INTERPRET=1 is set: unset it, the kernels are to be compiled", file=sys.stderr)
        return 2
    os.environ["TRITON_CACHE_DIR"] = str(options.cache.resolve())
    start, tally = time.monotonic(), Tally()
    # Forked: works are closures, which cannot be pickled; torch's own threads have not started yet.
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.jobs, mp_context=get_context("fork")) as pool,
    ):
        _make_driver_library(Path(folder))
        os.environ["TRITON_LIBCUDA_PATH"] = folder
        for part in pool.map(_run, range(len(_WORKS))):
            tally.add(part)
    for failure in tally.failures:
        print(f"FAILED  {failure}")
    if options.list is not None:
        options.list.write_text("".join(f"{entry}\n" for entry in sorted(tally.entries)))
    print(f"{tally.hits + tally.misses} launches, {tally.hits} hits, {tally.misses} misses; "
          f"{len(tally.entries)} entries, {len(tally.launchers)} of them launchers, {time.monotonic() - start:.0f} s")
    return 1 if tally.failures else 0


def _run(index: int) -> Tally:
    (name, work), tally = _WORKS[index], Tally()
    with _stand_ins(tally):
        try:
            work()
        # Whatever a compiler has against one kernel, the others are made.
        except Exception as error:
            tally.failures.append(f"{name}: {type(error).__name__}: {str(error)[:1000]}")
    return tally


def _works() -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that launches Triton kernels in either visit, by name."""
    for op in calls.ops_with("triton"):
        listed = [call for dtype in calls.DTYPES for call in calls.checked(op, dtype)]
        listed += [calls.repeated(op), *(call for call in calls.raced() if call.op == op)]
        for call in dict.fromkeys(call._replace(sizes=tuple(call.sizes.items())) for call in listed):
            yield f"{op} {call.shape} {call.dtype} {call.layout}", _caller(call._replace(sizes=dict(call.sizes)))
    for constant in second.CONSTANTS:
        yield f"{constant.op} {constant.name}", _constant_caller(constant)
    yield "the student's training step", _student
    yield "the teacher's sampling step", _sampler
    yield "the encoder of goal G14", _encoder


def _caller(call: calls.Call) -> Callable[[], None]:
    return lambda: _make(call)


def _constant_caller(constant: second.Constant) -> Callable[[], None]:
    def work() -> None:
        call = calls.repeated(constant.op)
        for value in second.offered(constant):
            with replaced(constant.module, constant.name, value):
                for made in (call, *calls.checked(constant.op, call.dtype)):
                    _make(made)

    return work


def _make(call: calls.Call) -> None:
    """One call of an op on meta tensors, forward and backward."""
    with torch.device("meta"):
        inputs = calls.bench(call, ["--device", "meta"]).operands(call.sizes, 0)
    with Launching():
        wanted = [name for name in DIFFERENTIABLE[call.op] if inputs[name] is not None]
        inputs |= {name: inputs[name].detach().requires_grad_() for name in wanted}
        outputs = calls.function(call.op)(**inputs, backend="triton")
        _differentiate(outputs, [inputs[name] for name in wanted])


def _differentiate(outputs, wanted: list[Tensor]) -> None:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs = [output for output in outputs if isinstance(output, Tensor) and output.requires_grad]
    if outputs and wanted:
        torch.autograd.grad(outputs, wanted, [torch.empty_like(output) for output in outputs], allow_unused=True)


class Launching(TorchDispatchMode):
    """Within it, an op on meta or fake tensors runs its Triton variant, whose launches compile and do nothing else.

    record: where a forward op's schema arguments go instead of being run.
    """

    def __init__(self, record: list[tuple[str, tuple]] | None = None):
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "dakd":
            return func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        op = name.removesuffix("_backward")
        if self.record is not None:
            self.record.append((name, tuple(_Like.of(value) if isinstance(value, Tensor) else value for value in args)))
            return func(*args, **(kwargs or {}))
        arguments = [
            "triton" if schema.name == "backend" else value for schema, value in zip(func._schema.arguments, args)
        ]
        ops = importlib.import_module(f"dakd.kernels.{op}.ops")
        # The function that was registered, less the wrapper that switches autocast off: meta tensors have no autocast.
        return getattr(ops, name)._init_fn.__wrapped__(*arguments)


class _Like(NamedTuple):
    """What a tensor is but for its numbers and device."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Like:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def on(self, device: str) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


def _record(work: Callable[[], object]) -> list[tuple[str, tuple]]:
    """The distinct calls of ops in a forward pass, by what their arguments are like.

    Run on fake CUDA tensors, so that autocast and layouts are those of a GPU; nothing is computed, no driver asked.
    """
    from torch._subclasses import fake_tensor

    called: list[tuple[str, tuple]] = []
    with (
        replaced(fake_tensor, "init_gpu_context", lambda device: None),
        replaced(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        replaced(torch.cuda, "is_bf16_supported", lambda *_: True),
        fake_tensor.FakeTensorMode(allow_non_fake_inputs=True),
        Launching(called),
    ):
        work()
    return list(dict.fromkeys(called))


def _on_fake_cuda(net: nn.Module) -> nn.Module:
    """The net with its tensors, which lie on "meta", on a CUDA device that is not there; within a FakeTensorMode."""
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
        if "triton" not in backend._variants(name) or "cuda" in backend._variants(name):
            continue  # `auto` takes the extension's
        schema = getattr(torch.ops.dakd, name).default._schema.arguments
        wanted = DIFFERENTIABLE[name] if backward else ()
        leaves = [value.on("meta") if isinstance(value, _Like) else value for value in arguments]
        for argument, leaf in zip(schema, leaves):
            if argument.name in wanted and isinstance(leaf, Tensor):
                leaf.requires_grad_()
        with Launching():
            outputs = getattr(torch.ops.dakd, name)(*leaves)
            _differentiate(outputs, [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad])


def _student() -> None:
    from paper_nets import NUM_CLASSES, student_batch, student_config

    from dakd.config import StudentLossConfig
    from dakd.models.registry import build_student
    from dakd.train.saross import StudentLoss

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
    from paper_nets import B_FACTOR, NUM_CLASSES, joint_net

    from dakd.diffusion.sampler import PairSampler
    from dakd.diffusion.schedule import CosineSchedule

    net = joint_net(False, "meta", torch.bfloat16).to(memory_format=torch.channels_last).eval()

    def work() -> None:
        _on_fake_cuda(net)
        for size, eta in ((16, 0.0), (64, 0.0), (1, 0.0), (1, 1.0)):
            sampler = PairSampler(net, CosineSchedule(), 2, b=B_FACTOR, eta=eta, device="cuda", dtype=torch.bfloat16)
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
def _stand_ins(tally: Tally) -> Iterator[None]:
    """A driver that knows its target and nothing else; launches that compile; a Hopper's number of multiprocessors."""
    import triton
    from triton.runtime import build, driver

    driver.set_active(_driver())
    with ExitStack() as stack:
        for module, name, value in (
            (build, "_load_module_from_path", tally.load),
            (triton_runtime, "launch", _warm),
            (triton_runtime, "why_not", lambda device_type: None),
            (triton_runtime, "num_multiprocessors", lambda device: _MULTIPROCESSORS),
            (tickets, "zeros", lambda device, count: torch.zeros(count, dtype=torch.int64, device=device)),
            (triton.knobs.compilation, "listener", tally.listen),
        ):
            stack.enter_context(replaced(module, name, value))
        backend.load.cache_clear()
        yield
    backend.load.cache_clear()


def _warm(kernel, grid: tuple[int, ...], *arguments, num_warps: int = 4, num_stages: int = 2, **constants) -> None:
    """In place of triton_runtime.launch: everything that a launch does up to the driver, its C launcher included."""
    from triton.backends.nvidia import driver

    if 0 in grid:
        return
    compiled = kernel.warmup(*arguments, grid=grid, num_warps=num_warps, num_stages=num_stages, **constants)
    driver.CudaUtils()
    driver.CudaLauncher(compiled.src, compiled.metadata)


def _make_driver_library(folder: Path) -> None:
    """A libcuda.so.1 to link Triton's C modules against, with the functions that they call: only names go into them.

    The host's own library takes its place there. Without those functions the linker would not note that it is needed.
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
