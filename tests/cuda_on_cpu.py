"""Builds a CUDA source for the CPU (see cuda_on_cpu.h) as operations torch.ops.dakd_on_cpu.*: tests without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent


def is_possible() -> bool:
    """Whether there is a compiler for it."""
    return shutil.which("g++") is not None


def load(source: str, operations: dict[str, str], folder: Path) -> None:
    """Compiles csrc/`source` in `folder` and loads it. operations: the C++ function of each of dakd_C's operations."""
    text = (CSRC / source).read_text()
    launch = r"(\w+<[^;]*?>)\s*<<<(\w+), (\w+), 0, device\.stream>>>\((.*?)\);"
    text = re.sub(launch, r"run_grid(\2, \3, [&] { \1(\4); });", text, flags=re.S)
    text = re.sub(r'#include ("../common/cuda.h"|<cuda_\w+\.h>)', "", text)
    text = re.sub(r'#include "(?!\.\.)', f'#include "{CSRC / Path(source).parent}/', text)
    text = text.replace('#include "../', f'#include "{CSRC}/')
    schemas = "\n".join(f'm.def("{_schema(name)}");' for name in operations)
    boxes = "\n".join(f'm.impl("{name}", TORCH_BOX(&dakd::{function}));' for name, function in operations.items())
    text += f"STABLE_TORCH_LIBRARY_FRAGMENT(dakd_on_cpu, m) {{ {schemas} }}\n"
    text += f"STABLE_TORCH_LIBRARY_IMPL(dakd_on_cpu, CPU, m) {{ {boxes} }}\n"
    library = folder / "library.so"
    (folder / "library.cpp").write_text(text)
    flags = [
        "-std=c++20",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-pthread",
        "-include",
        str(Path(__file__).parent / "cuda_on_cpu.h"),
    ]
    folders = [f"-I{CSRC}", f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    libraries = ["-ltorch", "-ltorch_cpu", "-lc10"]
    command = ["g++", *flags, *folders, str(folder / "library.cpp"), "-o", str(library), *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    torch.ops.load_library(library)


def _schema(name: str) -> str:
    """The operation's schema, as bindings.cpp has it."""
    bindings = (CSRC / "bindings.cpp").read_text()
    found = re.search(rf'm\.def\(\s*("{name}\(.*?)\);', bindings, re.S)
    return "".join(re.findall(r'"([^"]*)"', found.group(1)))
