"""Packages dakd and compiles csrc/ into dakd/_C.so; the metadata is in pyproject.toml.

The library uses torch's stable ABI and no Python ABI, so one file serves every Python and torch 2.11 or newer. The CPU
operations are built if torch and a C++ compiler are found. The CUDA operations are built as well if nvcc and a CUDA
build of torch are found; DAKD_CUDA=1 builds them without such a torch, DAKD_CUDA=0 leaves them out. Their architectures
come from TORCH_CUDA_ARCH_LIST (default "8.0;9.0;10.0"), never from the GPU of the host. If something is missing, the
build reports it and continues: the package works without the library.

A wheel with the library is for one platform and any Python (py3-none-PLATFORM), one without it for every platform
(py3-none-any). pip's isolated builds have no torch: `pip wheel .` makes the second kind, and
`pip wheel --no-build-isolation .` the first.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CONFIGS = ROOT / "configs"
TORCH_TARGET_VERSION = "0x020b000000000000"
CUDA_ARCHITECTURES = "8.0;9.0;10.0"
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-Wall", "-Wno-unused-function"]
NVCC_FLAGS = ["-std=c++20", "-O3"]
# The code reads neither errno nor floating-point exceptions, so loops over such operations may become vector code.
VECTOR_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
ISA_FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
               "-mprefer-vector-width=512"],
}  # fmt: skip


class Job(NamedTuple):
    """One call of a compiler: the file that it writes, and its command without `-o FILE`."""

    output: Path
    command: list[str]


class BuildPackage(build_py):
    """Copies configs/ into the package. An editable install reads them in the checkout, where users edit them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for target, source in self.configs().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)
        # Remove what an earlier build left: deleted modules, or a library of other sources.
        wanted = {Path(path) for path in self.get_outputs()}
        for path in Path(self.build_lib, "dakd").rglob("*"):
            if path.is_file() and path not in wanted:
                path.unlink()

    def configs(self) -> dict[str, str]:
        """By its path in the build, every file of configs/ that goes into the package."""
        files = [path for path in sorted(CONFIGS.rglob("*")) if path.suffix in (".yaml", ".json", ".txt")]
        return {str(Path(self.build_lib, "dakd", path.relative_to(ROOT))): str(path) for path in files}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else list(self.configs()))


class BuildLibrary(build_ext):
    """Compiles the changed files and links dakd/_C.so, or reports what is missing and builds nothing."""

    def finalize_options(self) -> None:
        is_given = self.build_temp is not None
        super().finalize_options()
        if not is_given:  # pip takes a new temporary folder each time; here the objects are kept between builds
            self.build_temp = str(ROOT / "build" / "objects")

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name))
        missing = missing_for_cpu()
        if missing:
            say_not_built(missing)
            target.unlink(missing_ok=True)  # of an earlier build, perhaps from other sources
            return
        with_cuda = wants_cuda()
        jobs = compile_jobs(Path(self.build_temp), with_cuda)
        stale = [job for job in jobs if is_stale(job)]
        workers = int(os.environ.get("MAX_JOBS", 0)) or os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(run, stale))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Link to another name and rename: a running process keeps the library that it has mapped.
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        run(Job(aside, link_command([job.output for job in jobs], with_cuda)))
        os.replace(aside, target)

    def get_ext_filename(self, name: str) -> str:
        return str(Path(*name.split("."))) + ".so"


class BuildWheel(bdist_wheel):
    """Names a wheel by its content: with the library for this platform and any Python, without it for all platforms."""

    def finalize_options(self) -> None:
        missing = missing_for_cpu()
        if missing and self.distribution.ext_modules:
            say_not_built(missing)
            self.distribution.ext_modules = None  # makes it a pure wheel
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


def missing_for_cpu() -> str | None:
    """The reason why the CPU operations cannot be built on this host; None if they can."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not installed here (build with --no-build-isolation)"
    if shutil.which(cxx()) is None:
        return f"no C++ compiler called {cxx()} (on Debian: apt-get install g++)"
    return None


def say_not_built(missing: str) -> None:
    print(f"dakd: the compiled operations are not built: {missing}; plain PyTorch is used", file=sys.stderr)


def wants_cuda() -> bool:
    import torch

    requested = os.environ.get("DAKD_CUDA")
    has_nvcc = shutil.which(nvcc()) is not None
    if requested == "1" and not has_nvcc:
        raise SystemExit(f"DAKD_CUDA is 1 and there is no {nvcc()}; put nvcc on PATH or set CUDA_HOME")
    return requested == "1" or (requested != "0" and has_nvcc and torch.version.cuda is not None)


def cxx() -> str:
    return os.environ.get("CXX", "g++")


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    return str(Path(home) / "bin" / "nvcc") if home else "nvcc"


def cuda_home() -> Path:
    """The toolkit's folder as nvcc reports it: the nvcc on PATH may be a script that calls the real one."""
    printed = subprocess.run([nvcc(), "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    tops = [line.split("TOP=", 1)[1] for line in printed.splitlines() if "TOP=" in line]
    return Path(tops[0]).resolve() if tops else Path(shutil.which(nvcc())).resolve().parents[1]


def compile_jobs(folder: Path, with_cuda: bool) -> list[Job]:
    """One job per object file: vector sources once per instruction set, CUDA sources if `with_cuda`."""
    import torch

    include = Path(torch.__file__).parent / "include"
    common = [f"-I{include}", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    jobs = []
    # The largest first: this keeps parallel compilers busy to the end.
    for source in sorted(CSRC.rglob("*.cpp"), key=lambda path: -path.stat().st_size):
        name = "_".join(source.relative_to(CSRC).with_suffix("").parts)
        base = [cxx(), *CXX_FLAGS, *common, "-c", str(source)]
        if source.stem == "bindings":
            base += ["-DDAKD_WITH_CUDA"] * with_cuda
            base.append(f'-DDAKD_BINDINGS="{hashlib.sha256(source.read_bytes()).hexdigest()}"')
        if not source.stem.endswith("_vec"):
            jobs.append(Job(folder / f"{name}.o", base))
            continue
        for isa in instruction_sets():
            flags = [*VECTOR_FLAGS, *ISA_FLAGS[isa], f"-DDAKD_ISA={isa}"]
            jobs.append(Job(folder / f"{name}_{isa}.o", [*base, *flags]))
    if with_cuda:
        flags = [*NVCC_FLAGS, "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "2", *architecture_flags()]
        for source in sorted(CSRC.rglob("*.cu")):
            name = "_".join(source.relative_to(CSRC).with_suffix("").parts)
            jobs.append(Job(folder / f"{name}_cu.o", [nvcc(), *flags, *common, "-c", str(source)]))
    return jobs


def instruction_sets() -> list[str]:
    return list(ISA_FLAGS) if platform.machine() in ("x86_64", "AMD64") else ["portable"]


def architecture_flags() -> list[str]:
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    numbers = [entry.replace(".", "").removesuffix("+PTX") for entry in listed.replace(" ", ";").split(";") if entry]
    return [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]


def link_command(objects: list[Path], with_cuda: bool) -> list[str]:
    import torch

    libraries = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-Wl,--as-needed"]
    command = [cxx(), "-shared", *map(str, objects), f"-L{Path(torch.__file__).parent / 'lib'}", *libraries]
    if with_cuda:
        home = cuda_home()
        folders = [home / "lib64", home / "lib", home / "targets" / "x86_64-linux" / "lib"]
        command += [f"-L{path}" for path in folders if path.exists()] + ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return command


def is_stale(job: Job) -> bool:
    """Whether the object file is missing, was made by another command, or is older than one of its sources."""
    stamp, dependencies = job.output.with_suffix(".cmd"), job.output.with_suffix(".d")
    if not (job.output.exists() and stamp.exists() and dependencies.exists()):
        return True
    if stamp.read_text() != fingerprint(job):
        return True
    listed = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    made = job.output.stat().st_mtime
    return any(not Path(path).exists() or Path(path).stat().st_mtime > made for path in listed)


def fingerprint(job: Job) -> str:
    return hashlib.sha256("\0".join(job.command).encode()).hexdigest()


def run(job: Job) -> None:
    job.output.parent.mkdir(parents=True, exist_ok=True)
    command = [*job.command, "-o", str(job.output)]
    if "-c" in job.command:
        command += ["-MD", "-MF", str(job.output.with_suffix(".d"))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"dakd: this command failed:\n{' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr.strip():
        print(done.stderr, file=sys.stderr)
    if "-c" in job.command:
        job.output.with_suffix(".cmd").write_text(fingerprint(job))


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("dakd._C", sources=[], optional=True)],
        cmdclass={"bdist_wheel": BuildWheel, "build_ext": BuildLibrary, "build_py": BuildPackage},
    )
