"""The compiled library: found or missed with a reason, its elementary functions and number formats, its build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from dakd.kernels import backend, extension

ROOT = Path(__file__).resolve().parents[2]
needs_library = pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
INSTRUCTION_SETS = ["portable", "avx2", "avx512"]


class Function(NamedTuple):
    """An elementary function: what it should be, where, and its largest error in units of the last place.

    The unit is that of the exact result, or of the smallest normal number where that is subnormal.
    """

    exact: Callable[[torch.Tensor], torch.Tensor]
    low: float
    high: float
    ulps: float


FUNCTIONS = {
    "exp": Function(torch.exp, -87.3, 88.7, 1.1),
    "exp2": Function(torch.exp2, -125.4, 127.99, 1.3),
    "exp2_bounded": Function(torch.exp2, -120.0, 120.0, 1.3),
    "exp2_of_negative": Function(torch.exp2, -125.0, 0.0, 3.1),
    "exp_of_negative": Function(torch.exp, -87.0, 0.0, 1.5),
    "log1p_of_unit": Function(torch.log1p, 0.0, 1.0, 2.0),
    "sigmoid": Function(torch.sigmoid, -87.0, 100.0, 2.5),
    "softplus": Function(F.softplus, -86.9, 100.0, 3.0),
}
# Those that take every float, infinities and NaN too.
TOTAL = ["exp", "exp2", "sigmoid", "softplus"]
every_function = pytest.mark.parametrize("name", list(FUNCTIONS))


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    """Runs a test with each instruction set that the processor has."""
    if extension.missing() is not None:
        pytest.skip(extension.missing())
    if not extension.has_cpu_isa(request.param):
        pytest.skip(f"this processor has no {request.param}")
    with extension.using_cpu_isa(request.param):
        yield request.param


def elementary(name: str, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    out = torch.full_like(x, float("nan"), dtype=dtype or x.dtype)
    torch.ops.dakd_C.elementary(name, x, out)
    return out


# --- found, or missed with a reason


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A place for the library, empty at first; what is known of the real one is forgotten for the test."""
    monkeypatch.setattr(extension, "_LIBRARY", tmp_path / "_C.so")
    extension.missing.cache_clear()
    yield tmp_path / "_C.so"
    extension.missing.cache_clear()


def test_a_library_that_is_not_built_is_missing_with_the_line_that_builds_it(library):
    assert extension.why_not_cpu("cpu") == extension.why_not_cuda("cuda") == "the extension is not built"
    assert not extension.has_cuda()
    backend.load.cache_clear()
    choice = backend.choose("depthwise_conv1d", "cpu")
    assert choice.chosen == "reference" and choice.reasons["cpu"] == "the extension is not built"
    assert "pip install --no-build-isolation -e ." in extension.REMEDY
    assert extension.CUDA_REMEDY.startswith("DAKD_CUDA=1 ") and "nvcc" in extension.CUDA_REMEDY


def test_a_library_that_does_not_load_is_missing_with_the_loaders_words(library):
    library.write_text("no library")
    assert "the extension does not load (" in extension.why_not_cpu("cpu")
    assert "build it again" in extension.why_not_cpu("cpu")


@needs_library
def test_a_library_built_from_other_sources_is_not_used(monkeypatch, tmp_path):
    other = tmp_path / "bindings.cpp"
    other.write_text("another list of operations")
    monkeypatch.setattr(extension, "_BINDINGS", other)
    extension.missing.cache_clear()
    assert extension.why_not_cpu("cpu") == "the extension was built from other sources; build it again"
    monkeypatch.undo()
    extension.missing.cache_clear()
    assert extension.why_not_cpu("cpu") is None


def test_operations_run_on_the_device_that_they_are_made_for():
    assert extension.why_not_cpu("cuda") == "the C++ operations run only on CPUs"
    assert extension.why_not_cuda("cpu") == "the CUDA operations run only on CUDA devices"


@needs_library
def test_a_library_without_cuda_says_so():
    wanted = None if torch.ops.dakd_C.has_cuda() else "the extension was built without CUDA"
    assert extension.why_not_cuda("cuda") == wanted


@needs_library
def test_an_instruction_set_is_chosen_for_a_while():
    before = extension.cpu_isa()
    with extension.using_cpu_isa("portable"):
        assert extension.cpu_isa() == "portable"
    assert extension.cpu_isa() == before
    with pytest.raises(RuntimeError, match="expected one of best, portable, avx2, avx512"):
        torch.ops.dakd_C.set_isa("sse9")
    assert extension.cpu_isa() == before


CALL = """
import torch
from dakd.kernels import extension
from dakd.kernels.depthwise_conv1d import depthwise_conv1d
try:
    depthwise_conv1d(torch.ones(1, 2, 3), torch.ones(2, 3), backend=BACKEND)
    print(extension.cpu_isa())
except RuntimeError as error:
    print(error)
"""


@needs_library
@pytest.mark.parametrize(
    ("name", "message"),
    [("portable", "portable"), ("sse9", "DAKD_CPU_ISA is 'sse9'; expected one of best, portable, avx2, avx512")],
)
def test_the_environment_names_the_instruction_set_and_a_wrong_name_fails_in_the_call(name, message):
    script = "\n".join(CALL.replace("BACKEND", repr(backend)) for backend in ("cpu", "auto"))
    found = run([sys.executable, "-c", script], DAKD_CPU_ISA=name).stdout.splitlines()
    assert len(found) == 2 and all(line.startswith(message) for line in found), found


# --- elementary functions


@every_function
def test_elementary_functions_keep_their_ulps(isa, name):
    function = FUNCTIONS[name]
    dense = torch.linspace(function.low, function.high, 1_000_001)
    near_zero = torch.cat([torch.linspace(-1, 1, 500_001), tiny_and_subnormal()])
    x = torch.cat([dense, near_zero[(near_zero >= function.low) & (near_zero <= function.high)]])
    exact = function.exact(x.double())
    error = (elementary(name, x).double() - exact).abs() / unit_in_the_last_place(exact)
    assert error.max() <= function.ulps, f"{error.max():.3f} at {x[error.argmax()]}"


@every_function
def test_elementary_functions_of_doubles_are_those_of_the_c_library(isa, name):
    function = FUNCTIONS[name]
    x = torch.linspace(function.low, function.high, 10_001, dtype=torch.float64)
    torch.testing.assert_close(elementary(name, x), function.exact(x), rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("name", TOTAL)
def test_elementary_functions_of_extremes_are_those_of_torch(isa, name):
    nan, inf, largest = float("nan"), float("inf"), torch.finfo(torch.float32).max
    numbers = [nan, -nan, inf, -inf, largest, -largest, 0.0, -0.0, 1e-45, -1e-45, 1e30, -1e30, 89.0, 128.0, -104.0]
    x = torch.tensor(numbers)
    # Results below the smallest normal number may be zero; exp2's vanish below 2^-125.5.
    torch.testing.assert_close(elementary(name, x), FUNCTIONS[name].exact(x), equal_nan=True, rtol=3e-7, atol=1.8e-38)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 15, 16, 17, 33])
def test_lanes_beyond_the_end_are_neither_read_nor_written(isa, count):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x, out = torch.randn(40, dtype=dtype), torch.full((40,), 7.0, dtype=dtype)
        torch.ops.dakd_C.elementary("cast", x[:count], out[:count])
        assert torch.equal(out[:count], x[:count]) and out[count:].eq(7).all()


def tiny_and_subnormal() -> torch.Tensor:
    return torch.cat([sign * torch.logspace(-45, -1, 10_001) for sign in (1, -1)])


def unit_in_the_last_place(exact: torch.Tensor) -> torch.Tensor:
    """Of float32 at each number, in float64; that of the smallest normal number below it."""
    _, exponent = torch.frexp(exact.abs().clamp_min(torch.finfo(torch.float32).tiny))
    return torch.ldexp(torch.ones_like(exact), exponent - 24)


# --- number formats


def all_halves(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)


def floats_around_halves(dtype: torch.dtype) -> torch.Tensor:
    """Every half, the ties between neighbours, and the floats next to both: all that rounding can get wrong."""
    bits = all_halves(dtype).float().view(torch.int32)[:, None]
    halfway = (1 << 15) if dtype == torch.bfloat16 else (1 << 12)
    near = torch.tensor([0, 1, -1, halfway, halfway + 1, halfway - 1, 2 * halfway - 1], dtype=torch.int32)
    return (bits + near).flatten().view(torch.float32)


def assert_same_bits(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Bits are equal; a NaN, whose payload no standard fixes, is a NaN."""
    assert torch.equal(got.isnan(), wanted.isnan())
    integer = {2: torch.int16, 4: torch.int32}[wanted.element_size()]
    assert torch.equal(*(tensor.masked_fill(wanted.isnan(), 0).view(integer) for tensor in (got, wanted)))


@pytest.mark.parametrize("way", ["cast", "cast_one"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_become_floats_and_halves_again_bit_for_bit(isa, dtype, way):
    halves = all_halves(dtype)
    floats = elementary(way, halves, torch.float32)
    assert_same_bits(floats, halves.float())
    assert_same_bits(elementary(way, floats, dtype), halves)


@pytest.mark.parametrize("way", ["cast", "cast_one"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_floats_round_to_halves_as_torch_rounds_them(isa, dtype, way):
    extremes = torch.tensor([3.4e38, -3.4e38, 65519.9, 65520.0, -65520.0, 65504.0, 1e-45, -1e-45, 2.0**-25, 2.0**-24])
    floats = torch.cat([floats_around_halves(dtype), tiny_and_subnormal(), extremes])
    assert_same_bits(elementary(way, floats, dtype), floats.to(dtype))


# --- what was built


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_the_library_needs_no_python_and_of_torch_the_stable_functions_alone():
    listed = run(["nm", "-D", "--undefined-only", str(extension._LIBRARY)]).stdout
    names = [line.split()[-1] for line in listed.splitlines()]
    assert [name for name in names if name.startswith(("Py", "_Py"))] == []
    # Mangled names of ATen, c10 and torch hold the namespace.
    assert [name for name in names if name.startswith("_Z") and re.search("2at|3c10|5torch", name)] == []
    include = Path(torch.__file__).parent / "include" / "torch" / "csrc"
    headers = [*include.rglob("shim*.h"), *include.rglob("macros.h")]
    declared = "\n".join(path.read_text() for path in headers)
    stable = [name for name in names if name.startswith(("aoti_torch_", "torch_"))]
    generated = ("aoti_torch_dtype_", "torch_dtype_")
    assert stable and [name for name in stable if name not in declared and not name.startswith(generated)] == []


# --- the build, by a stand-in for the compiler that writes the files requested


@pytest.fixture
def tree(tmp_path):
    """A copy of the files that a build needs."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "dakd").mkdir()
    (tmp_path / "dakd" / "__init__.py").touch()
    set_torch(tmp_path, "from types import SimpleNamespace\nversion = SimpleNamespace(cuda=None)")
    return tmp_path


def set_torch(tree: Path, code: str) -> None:
    """A stand-in for torch, of which the build asks its place and its CUDA version."""
    (tree / "site" / "torch").mkdir(parents=True, exist_ok=True)
    (tree / "site" / "torch" / "__init__.py").write_text(code)


@pytest.fixture
def compiler(tmp_path):
    """A script that notes its calls and writes the object and the list of what it was made from."""
    script = tmp_path / "compiler"
    script.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
while [ $# -gt 0 ]; do
  case "$1" in -o) out=$2;; -MF) list=$2;; -c) source=$2;; esac
  shift
done
: > "$out"
[ -z "$list" ] || echo "$out: $source {tmp_path}/csrc/common/host.h" > "$list"
"""
    )
    script.chmod(0o755)
    return script


def run(command: list[str], folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Without the variables that direct a build."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("CXX", "CUDA_HOME", "DAKD_CUDA")}
    return subprocess.run(
        command, cwd=folder or ROOT, env=inherited | environment, capture_output=True, text=True, timeout=120
    )


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return run(command, tree, PYTHONPATH=str(tree / "site"), **environment)


def calls(tree: Path) -> list[str]:
    """The compiler's calls since the last look."""
    log = tree / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_vector_sources_are_compiled_once_per_instruction_set_and_nothing_twice(tree, compiler):
    done = build(tree, CXX=str(compiler), DAKD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert (tree / "dakd" / "_C.so").exists()
    first, sources = calls(tree), list((tree / "csrc").rglob("*.cpp"))
    vector = [path for path in sources if path.stem.endswith("_vec")]
    isas = 3 if any("-DDAKD_ISA=avx2" in call for call in first) else 1
    assert len(first) == len(sources) + (isas - 1) * len(vector) + 1
    assert not any("-march=native" in call for call in first)

    assert build(tree, CXX=str(compiler), DAKD_CUDA="0").returncode == 0
    assert [call for call in calls(tree) if " -c " in call] == []

    source = tree / "csrc" / "common" / "isa.cpp"
    os.utime(source, (2e9, 2e9))
    assert build(tree, CXX=str(compiler), DAKD_CUDA="0").returncode == 0
    assert [call.split(" -c ")[1].split()[0] for call in calls(tree) if " -c " in call] == [str(source)]


def test_without_a_compiler_the_build_goes_on_and_says_so(tree):
    empty = tree / "empty"
    empty.mkdir()
    done = build(tree, PATH=str(empty))
    assert done.returncode == 0, done.stderr
    assert "the compiled operations are not built: no C++ compiler called g++" in done.stderr
    assert "apt-get install g++" in done.stderr and not (tree / "dakd" / "_C.so").exists()


def test_without_torch_the_build_goes_on_and_says_so(tree):
    set_torch(tree, "raise ImportError('hidden')")
    done = build(tree)
    assert done.returncode == 0, done.stderr
    assert "not built: torch is not installed here (build with --no-build-isolation)" in done.stderr


def test_asking_for_cuda_without_nvcc_is_an_error_that_says_what_to_do(tree, compiler):
    done = build(tree, CXX=str(compiler), DAKD_CUDA="1", CUDA_HOME=str(tree))
    assert done.returncode != 0 and calls(tree) == []
    assert f"DAKD_CUDA is 1 and there is no {tree}/bin/nvcc; put nvcc on PATH or set CUDA_HOME" in done.stderr


@pytest.mark.parametrize(
    ("setting", "torch_cuda", "is_built"),
    [("1", None, True), ("", "13.0", True), ("", None, False), ("0", "13.0", False)],
)
def test_cuda_sources_join_where_nvcc_and_a_cuda_torch_are_or_where_asked_for(
    tree, compiler, setting, torch_cuda, is_built
):
    set_torch(tree, f"from types import SimpleNamespace\nversion = SimpleNamespace(cuda={torch_cuda!r})")
    (tree / "bin").mkdir()
    shutil.copy(compiler, tree / "bin" / "nvcc")
    (tree / "csrc" / "probe.cu").touch()
    environment = {"DAKD_CUDA": setting} if setting else {}
    done = build(tree, CXX=str(compiler), CUDA_HOME=str(tree), TORCH_CUDA_ARCH_LIST="8.0 9.0a+PTX", **environment)
    assert done.returncode == 0, done.stderr
    cuda = [call for call in calls(tree) if "probe.cu" in call]
    assert len(cuda) == is_built
    if is_built:
        assert "arch=compute_80,code=sm_80" in cuda[0] and "arch=compute_90a,code=sm_90a" in cuda[0]


def test_a_command_that_fails_is_shown_with_its_words(tree):
    script = tree / "failing"
    script.write_text("#!/bin/sh\necho 'wrong flag' >&2\nexit 1\n")
    script.chmod(0o755)
    done = build(tree, CXX=str(script), DAKD_CUDA="0")
    assert done.returncode != 0 and "this command failed:" in done.stderr and "wrong flag" in done.stderr
