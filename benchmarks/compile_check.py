"""Compiles every GPU kernel for sm_80, sm_90 and sm_100 without a GPU, and fails on a spill or over the resource bars.

Each op's Triton variant is called on meta tensors at the model's shapes, with a recorder in place of
`triton_runtime.launch`: the kernels compiled are those that launches would compile. CUDA sources go through nvcc.
Registers, spills, shared memory, tensor-core instructions and 128-bit accesses are read from the machine code and
compared with the checked-in table of this Triton version; differences are printed, and `--update` rewrites the table.
`make compile-check` calls it in .venv and in .venv-visit: two versions of Triton and of torch's headers.

    python benchmarks/compile_check.py [--arch 80,90,100] [--op NAME] [--update]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from lib.undispatched_ops import call_triton_on_meta, replaced  # noqa: E402

from dakd.kernels import backend, triton_runtime  # noqa: E402
from dakd.testing.inputs import laid_out, operands  # noqa: E402

TABLE = ROOT / "benchmarks" / "results" / "compile_check.json"
# A cache of nvcc's results by preprocessed source; Triton has its own.
CUBINS = ROOT / "build" / "compile_check"
MAX_REGISTERS, MAX_REGISTERS_MATMUL = 168, 240
# The most bytes of shared memory of a block.
MAX_SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


class Case(NamedTuple):
    """A shape and dtype of real runs. layout: of the feature tensors in memory."""

    sizes: dict[str, int]
    dtype: torch.dtype
    layout: str = "contiguous"
    extra: dict = {}  # noqa: RUF012

    @property
    def name(self) -> str:
        """Such as "16x64x128x128x128x1 bf16 channels_last"."""
        dtypes = {torch.float32: "fp32", torch.bfloat16: "bf16"}
        extra = [f"{key}={dtypes.get(value, value)}" for key, value in self.extra.items()]
        return " ".join(["x".join(map(str, self.sizes.values())), dtypes[self.dtype], self.layout, *extra])


BF16, FP32 = torch.bfloat16, torch.float32


def _caft(batch: int, inner: int, height: int, width: int) -> dict[str, int]:
    return dict(batch=batch, inner=inner, channels=2 * inner, height=height, width=width, num_heads=inner // 64)


def _scan(batch: int, channels: int, length: int, states: int = 8) -> dict[str, int]:
    return dict(batch=batch, channels=channels, states=states, length=length)


def _images(batch: int, num_classes: int, size: int, **more: int) -> dict[str, int]:
    return dict(batch=batch, num_classes=num_classes, height=size, width=size, **more)


# The models' shapes: SAROSS-Net-B at 512x512 and batch 16, one padded scene, the sampler, the teacher's training.
CASES: dict[str, list[Case]] = {
    "transposed_attention": [
        Case(_caft(16, 64, 128, 128), BF16, "channels_last"),
        Case(_caft(16, 128, 64, 64), BF16, "channels_last"),
        Case(_caft(16, 256, 32, 32), BF16, "channels_last"),
        Case(_caft(16, 64, 128, 128), BF16),
        Case(_caft(16, 64, 128, 128), FP32, "channels_last"),
        Case(_caft(1, 64, 163, 313), BF16),
    ],
    "ddim_step": [
        *(Case(_images(64, num_classes, 256), FP32, extra=dict(input_dtype=BF16)) for num_classes in (2, 5)),
        Case(_images(64, 5, 256), FP32, extra=dict(input_dtype=BF16, stochastic=True)),
        *(Case(_images(64, num_classes, 256, order=2), FP32, extra=dict(input_dtype=BF16)) for num_classes in (2, 5)),
        Case(_images(64, 5, 256), FP32),
    ],
    "joint_noising": [
        *(Case(_images(16, num_classes, 256), FP32, extra=dict(out_dtype=BF16)) for num_classes in (2, 5)),
        Case(_images(16, 5, 256), FP32),
    ],
    "seg_loss": [
        Case(_images(16, 5, 512, synthetic=8), BF16),
        Case(_images(16, 2, 256, synthetic=8), BF16),
        Case(_images(16, 5, 512, synthetic=8), FP32),
        Case(_images(16, 5, 512, synthetic=8), BF16, "channels_last"),
        Case(_images(16, 5, 512, synthetic=8), BF16, extra=dict(dice_samples="all", dice_form="generalized")),
    ],
    "selective_scan": [
        *(Case(_scan(*sizes), BF16, "tokens") for sizes in ((144, 256, 196), (144, 512, 49), (1, 512, 784))),
        Case(_scan(144, 256, 196), FP32, "tokens"),
        Case(_scan(144, 256, 196, states=16), BF16, "tokens"),
        Case(_scan(144, 256, 196), BF16),
    ],
    "depthwise_conv1d": [
        # The mixer's convolutions have no bias.
        *(Case(dict(batch=144, channels=256, length=196), dtype, "tokens", dict(bias=None)) for dtype in (BF16, FP32)),
        Case(dict(batch=144, channels=512, length=49), BF16, "tokens", dict(bias=None)),
        Case(dict(batch=144, channels=256, length=196), BF16, "tokens"),
        Case(dict(batch=144, channels=256, length=196), BF16),
    ],
}  # fmt: skip


class Compilation(NamedTuple):
    """One compilation that a launch would need. name: the op, the kernel and the first case that needs it."""

    name: str
    kernel: object
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int
    maxnreg: int | None


class Compiled(NamedTuple):
    """One kernel for one architecture. resources: as the compiler reports them; code: its instructions."""

    name: str
    arch: int
    resources: dict[str, int]
    code: bytes


class Usage(NamedTuple):
    """The resources and instructions of one kernel's machine code."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core: int
    wide_loads: int
    wide_stores: int
    byte_stores: int


class Versions(NamedTuple):
    """The versions that the machine code depends on. torch: only its headers."""

    triton: str
    torch: str
    nvcc: str


def main() -> int:
    options = _parse()
    if triton_runtime.is_interpreted():
        print("TRITON_INTERPRET=1 is set: unset it, so that kernels are compiled", file=sys.stderr)
        return 2
    started, versions = time.monotonic(), found_versions()
    architectures = [int(number) for number in options.arch.split(",")]
    compiled, problems = _compile(options.op, architectures, options.jobs)
    is_complete = options.op is None and options.arch == "80,90,100" and not problems
    found: dict[str, dict[str, Usage]] = {}
    for kernel, usage in _usages(compiled):
        found.setdefault(kernel.name, {})[str(kernel.arch)] = usage
        problems += over_the_bars(kernel.name, kernel.arch, usage)
    _print_table(found)
    tables = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    changes = compare(found, tables, versions.triton, is_complete=is_complete)
    if options.update and is_complete:
        write(tables | {versions.triton: as_table(found, versions)})
    elif options.update:
        problems.append("--update needs all ops and all architectures, compiled: leave out --op and --arch")
    print(f"Triton {versions.triton}, headers of torch {versions.torch}, nvcc {versions.nvcc}: {len(found)} kernels, "
          f"{len(architectures)} architectures, {time.monotonic() - started:.0f} s; "
          f"{len(changes)} lines differ from {TABLE.relative_to(ROOT)}")  # fmt: skip
    for line in [*changes, *(f"FAILED {problem}" for problem in problems)]:
        print(line)
    return 1 if problems else 0


def _compile(only: str | None, architectures: list[int], num_jobs: int) -> tuple[list[Compiled], list[str]]:
    """All kernels, or those of one op, and the problems in compiling them."""
    problems = []
    if shutil.which("nvcc") is None:
        problems.append("nvcc is not on PATH: the CUDA sources cannot be checked (pip install nvidia-cuda-nvcc)")
    global _LAUNCHES
    _LAUNCHES = [launch for op in backend.OPS if only in (None, op) for launch in record(op)]
    sources = [] if problems else [path for path in sorted((ROOT / "csrc").rglob("*.cu"))
                                   if only in (None, path.parent.name)]
    cuda = [(path, arch) for path in sources for arch in architectures]
    # The longest first, so that all cores finish at about the same time.
    cuda.sort(key=lambda job: -job[0].stat().st_size)
    triton = sorted(range(len(_LAUNCHES)), key=lambda index: -len(_LAUNCHES[index].kernel.src))
    compiled: list[Compiled] = []
    # Forked, because a Triton kernel cannot be pickled; torch's own threads have not started yet.
    with ProcessPoolExecutor(num_jobs, mp_context=get_context("fork")) as pool:
        futures = {pool.submit(_compile_cuda, path, arch): f"sm_{arch} {path.relative_to(ROOT)}"
                   for path, arch in cuda}  # fmt: skip
        futures |= {pool.submit(_compile_triton, index, architectures): _LAUNCHES[index].name for index in triton}
        for future, what in futures.items():
            # One kernel that does not compile must not hide the others.
            if error := future.exception():
                problems.append(f"{what} does not compile: {error}")
            else:
                compiled += future.result()
    return compiled, problems


def record(op: str) -> list[Compilation]:
    """The distinct compilations that an op's Triton variant needs, forward and backward, at the models' shapes."""
    launches: dict[tuple, Compilation] = {}
    names: set[str] = set()

    def recorder(kernel, grid, *arguments, num_warps: int = 4, num_stages: int = 2, **constants) -> None:
        if 0 in grid:
            return
        maxnreg = constants.pop("maxnreg", None)
        compilation = (*_describe(kernel, arguments, constants), num_warps, num_stages, maxnreg)
        if compilation in launches:
            return
        name = f"{op}.{kernel.__name__.lstrip('_')} {case.name}"
        number = 2
        while name in names:
            name, number = f"{name.split(' #')[0]} #{number}", number + 1
        names.add(name)
        launches[compilation] = Compilation(name, *compilation)

    with replaced(triton_runtime, "launch", recorder):
        for case in CASES[op]:
            with torch.device("meta"):
                inputs = operands(op, case.sizes, dtype=case.dtype, device="meta") | case.extra
                call_triton_on_meta(op, laid_out(op, inputs, case.layout))
    return list(launches.values())


_POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64",
    torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1",
}  # fmt: skip


def _describe(kernel, arguments: tuple, constants: dict) -> tuple:
    """The fields of a Compilation between name and options, specialised as by Triton's launcher: an integer 1 is a
    constant, and divisibility by 16 is known."""
    values = dict(zip([parameter.name for parameter in kernel.params if not parameter.is_constexpr], arguments))
    values |= {name: value for name, value in constants.items()}
    signature, fixed, divisible = [], [], []
    for parameter in kernel.params:
        value = values.get(parameter.name, parameter.default if parameter.has_default else None)
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature.append((parameter.name, "constexpr"))
            fixed.append((parameter.name, value))
        elif isinstance(value, Tensor):
            signature.append((parameter.name, _POINTERS[value.dtype]))
            divisible.append(parameter.name)
        elif isinstance(value, float):
            signature.append((parameter.name, "fp32"))
        else:
            signature.append((parameter.name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % 16 == 0:
                divisible.append(parameter.name)
    return kernel, tuple(signature), tuple(fixed), tuple(divisible)


def _compile_triton(index: int, architectures: list[int]) -> list[Compiled]:
    """Compiles for each architecture. The Python source is translated only once: up to Triton's own IR nothing depends
    on the architecture, except 8-bit floats and tensor descriptors, which no kernel has."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = _LAUNCHES[index]
    position = {parameter.name: number for number, parameter in enumerate(launch.kernel.params)}
    source = ASTSource(
        launch.kernel,
        signature=dict(launch.signature),
        constexprs={(position[name],): value for name, value in launch.constants},
        attrs={(position[name],): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    options = dict(num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=launch.maxnreg)
    compiled = []
    with tempfile.TemporaryDirectory() as scratch:
        for arch in architectures:
            binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
            (kernel,) = _read_cubin(binary.asm["cubin"], arch)
            resources = kernel.resources | {"SHARED": binary.metadata.shared}
            compiled.append(kernel._replace(name=launch.name, resources=resources))
            if not isinstance(source, str):
                source = str(Path(scratch) / "kernel.ttir")
                Path(source).write_text(binary.asm["ttir"])
                if re.search(r"tensordesc|\bf8E", binary.asm["ttir"]):
                    raise RuntimeError("8-bit floats and tensor descriptors need a translation for each architecture")
    return compiled


def _compile_cuda(source: Path, arch: int) -> list[Compiled]:
    sys.path.insert(0, str(ROOT))
    from setup import NVCC_FLAGS, TORCH_TARGET_VERSION

    include = Path(torch.__file__).parent / "include"
    command = ["nvcc", *NVCC_FLAGS, f"-arch=sm_{arch}", "-DDAKD_WITH_CUDA", f"-I{include}",
               f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", str(source)]  # fmt: skip
    # The preprocessed text and the flags determine the result; preprocessing takes one second, compiling twenty.
    text = _nvcc([*command, "-E"])
    key = hashlib.sha256("\0".join([_nvcc(["nvcc", "--version"]), *command, text]).encode()).hexdigest()
    cubin = CUBINS / f"{key}.cubin"
    if not cubin.exists():
        CUBINS.mkdir(parents=True, exist_ok=True)
        aside = CUBINS / f".{key}.{os.getpid()}"
        _nvcc([*command, "-cubin", "-o", str(aside)])
        os.replace(aside, cubin)
    kernels = _read_cubin(cubin.read_bytes(), arch)
    return [kernel._replace(name=f"{source.parent.name}.{_demangled(kernel.name)}") for kernel in kernels]


def _nvcc(command: list[str]) -> str:
    """Its output; RuntimeError, with its messages, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc failed:\n{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _tool(name: str) -> Path:
    """A tool of NVIDIA's that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _read_cubin(cubin: bytes, arch: int) -> list[Compiled]:
    """The kernels in a cubin, by their names in it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_tool("cuobjdump"), "--dump-resource-usage", file.name]
        resources = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections = _sections(cubin)
    kernels = []
    for name, numbers in re.findall(r"Function (\S+?):\s*\n\s*(.*)", resources):
        taken = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", numbers)}
        kernels.append(Compiled(name, arch, taken, sections[f".text.{name}"]))
    return kernels


def _sections(elf: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, number, index_of_names = struct.unpack_from("<3H", elf, 58)
    # By races: where its name begins among the names, and its offset and size in the file.
    headers = [struct.unpack_from("<I20xQQ", elf, table + size * index) for index in range(number)]
    names = headers[index_of_names][1]
    sections = {}
    for name, offset, length in headers:
        sections[elf[names + name : elf.index(b"\0", names + name)].decode()] = elf[offset : offset + length]
    return sections


def _usages(compiled: list[Compiled]) -> Iterator[tuple[Compiled, Usage]]:
    """Each kernel and its usage. The disassembler starts slowly, so it runs once per architecture."""
    for arch in sorted({kernel.arch for kernel in compiled}):
        kernels = [kernel for kernel in compiled if kernel.arch == arch]
        for kernel, body in zip(kernels, _disassembled([kernel.code for kernel in kernels], arch), strict=True):
            spills = len(re.findall(r"\b(?:STL|LDL)\b", body))
            yield kernel, Usage(
                registers=kernel.resources["REG"],
                spill_bytes=kernel.resources.get("LOCAL", 0) + (kernel.resources.get("STACK", 0) if spills else 0),
                shared_bytes=kernel.resources.get("SHARED", 0),
                tensor_core=len(re.findall(r"\b(?:HGMMA|HMMA|UTCHMMA|UTCQMMA|UTCMMA|QGMMA)\b", body)),
                wide_loads=len(re.findall(r"\b(?:LDG|LD)\.E\S*\.128|\bLDGSTS\S*\.128", body)),
                wide_stores=len(re.findall(r"\b(?:STG|ST)\.E\S*\.128", body)),
                byte_stores=len(re.findall(r"\b(?:STG|ST)\.E\S*\.U8", body)),
            )


def _disassembled(codes: list[bytes], arch: int) -> list[str]:
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        command = [_tool("nvdisasm"), "--binary", f"SM{arch}", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # An instruction takes 16 bytes and one line, which begins with its address.
    lines = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/.*$", text, re.M)
    if len(lines) * 16 != sum(map(len, codes)):
        raise RuntimeError(f"nvdisasm shows {len(lines)} instructions in {sum(map(len, codes))} bytes for sm_{arch}")
    remaining = iter(lines)
    return ["\n".join(islice(remaining, len(code) // 16)) for code in codes]


def _demangled(name: str) -> str:
    filt = shutil.which("c++filt") or shutil.which("cu++filt")
    if filt is None:
        return name
    readable = subprocess.run([filt, name], capture_output=True, text=True, check=True).stdout.strip()
    readable = re.sub(r"\(anonymous namespace\)::|dakd::|^void ", "", readable)
    return re.sub(r"\((?!.*<).*\)$", "", readable)


def over_the_bars(name: str, arch: int, usage: Usage) -> Iterator[str]:
    limit = MAX_REGISTERS_MATMUL if usage.tensor_core else MAX_REGISTERS
    if usage.spill_bytes:
        yield f"sm_{arch} {name}: spills {usage.spill_bytes} bytes"
    if usage.registers > limit:
        yield f"sm_{arch} {name}: {usage.registers} registers; at most {limit}"
    # No output has numbers of one byte: a compiler has cut wider ones to pieces.
    if usage.byte_stores:
        yield f"sm_{arch} {name}: {usage.byte_stores} stores of one byte"
    if usage.shared_bytes > MAX_SHARED.get(arch, MAX_SHARED[90]):
        yield f"sm_{arch} {name}: {usage.shared_bytes} bytes of shared memory; at most {MAX_SHARED.get(arch)}"
    is_apply = name.startswith("transposed_attention.") and "apply" in name and "bf16" in name
    if arch == 90 and is_apply and usage.tensor_core == 0:
        yield f"sm_90 {name}: no tensor-core instruction"


def _print_table(found: dict[str, dict[str, Usage]]) -> None:
    print(f"{'arch':<8}{'regs':>6}{'spill':>7}{'shared':>9}{'tensor':>8}{'ld128':>7}{'st128':>7}{'st8':>5}  kernel")
    for name in sorted(found):
        for arch, usage in sorted(found[name].items(), key=lambda item: int(item[0])):
            numbers = f"{usage.registers:>6}{usage.spill_bytes:>7}{usage.shared_bytes:>9}{usage.tensor_core:>8}"
            print(f"sm_{arch:<5}{numbers}{usage.wide_loads:>7}{usage.wide_stores:>7}{usage.byte_stores:>5}  {name}")


def compare(
    found: dict[str, dict[str, Usage]], tables: dict[str, dict], triton: str, *, is_complete: bool
) -> list[str]:
    """The differences from the table of this Triton version, a line each. is_complete: all kernels were compiled."""
    if triton not in tables:
        return [f"absent   a table for Triton {triton} (there are those for {', '.join(tables) or 'none'}): --update"]
    before = tables[triton]["kernels"]
    changes = []
    for name, usages in sorted(found.items()):
        for arch, usage in usages.items():
            old, new = before.get(name, {}).get(arch), usage._asdict()
            if old is None:
                changes.append(f"new      sm_{arch} {name}")
            elif old != new:
                parts = [f"{key} {old.get(key)} -> {new[key]}" for key in new if old.get(key) != new[key]]
                changes.append(f"changed  sm_{arch} {name}: {', '.join(parts)}")
    return changes + [f"gone     {name}" for name in before if is_complete and name not in found]


def as_table(found: dict[str, dict[str, Usage]], versions: Versions) -> dict:
    kernels = {name: {arch: usage._asdict() for arch, usage in found[name].items()} for name in sorted(found)}
    return {"torch": versions.torch, "nvcc": versions.nvcc, "kernels": kernels}


def write(tables: dict[str, dict]) -> None:
    """One table per version of Triton, one line per kernel and architecture, so that diffs can be read."""
    text = json.dumps(dict(sorted(tables.items())), indent=1)
    text = re.sub(r"\{\s*(\"registers\"[^{}]*?)\s*\}", lambda found: "{" + re.sub(r"\s+", " ", found[1]) + "}", text)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(text + "\n")


def found_versions() -> Versions:
    import triton

    printed = _nvcc(["nvcc", "--version"]) if shutil.which("nvcc") else ""
    release = re.search(r"release ([\d.]+)", printed)
    return Versions(triton.__version__, torch.__version__.split("+")[0], release.group(1) if release else "none")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", default="80,90,100", help="compute capabilities, such as 80,90,100")
    parser.add_argument("--op", choices=backend.OPS, help="only this op")
    parser.add_argument("--update", action="store_true", help="rewrite the checked-in table of this Triton version")
    parser.add_argument("--jobs", type=int, default=1 + (os.cpu_count() or 1), help="compilers at once")
    return parser.parse_args()


_LAUNCHES: list[Compilation] = []

if __name__ == "__main__":
    sys.exit(main())
