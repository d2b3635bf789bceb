"""Packs .gpu_kit/, everything that a GPU host without network lacks: `make gpu-kit`.

The host has Python 3.12, torch 2.11, Triton 3.6 and the other packages of configs/constraints/visit.txt. The kit holds
the missing wheels, the compiled library for Hopper GPUs, Triton's cache filled by warm_up.py, the commit, and go.sh,
which unpacks all that and starts the run. Everything is tried here, in .venv-visit, as far as possible without a GPU.
Parts that are up to date are not made again.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "benchmarks" / "gpu"
KIT = ROOT / ".gpu_kit"
# Files needed to make the kit that do not go into it.
WORK = ROOT / "build" / "gpu_kit"
MAX_BYTES = 40 << 20
# The packages that the host lacks, in .venv's versions.
WHEELS = {
    "pydantic": "2.14.4",
    "pydantic_core": "2.50.5",
    "annotated_types": "0.8.0",
    "typing_inspection": "0.4.5",
    "typing_extensions": "4.16.0",
    "zstandard": "0.25.0",
    "webdataset": "1.0.2",
    "braceexpand": "0.1.7",
    "isal": "1.9.1",
    "hjson": "3.1.0",
    "deepspeed": "0.19.8",
}
# Has no wheel on the index; built without its compiled operations it fits every Python.
BUILT = "deepspeed"
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
# Of an entry of Triton's cache: machine code, its description, and compiled launchers; no intermediate code.
BROUGHT = (".cubin", ".json", ".so")
_IMPORTS = "deepspeed, pydantic, webdataset, zstandard, isal, dakd.config, dakd.train.engine, dakd.cli"
_LOADS = """
import sys
from pathlib import Path
from dakd.kernels import extension
extension._LIBRARY = Path(sys.argv[1])
sys.exit(extension.missing() or (None if extension.has_cuda() else "it has no CUDA operations"))
"""


class KitError(RuntimeError):
    """Why there is no kit."""


def main() -> int:
    started = time.monotonic()
    if sys.version_info[:2] != (3, 12):
        print(f"the kit is made with Python 3.12, and this is {sys.version.split()[0]}: make gpu-kit", file=sys.stderr)
        return 2
    KIT.mkdir(exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        for part in (collect_wheels, try_wheels, build_extension, pack_triton_cache, write_commit, copy_starter):
            _timed(part)
        print_sizes()
    except KitError as error:
        print(f"no kit: {error}", file=sys.stderr)
        return 1
    print(f"made in {time.monotonic() - started:.0f} s. On the GPU host, in the folder that holds .gpu_kit/:\n"
          "    bash .gpu_kit/go.sh             # the first run\n"
          "    bash .gpu_kit/go.sh --second    # the second")  # fmt: skip
    return 0


def collect_wheels() -> str:
    folder = KIT / "wheels"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if not any(path.name.startswith(_start(name)) for name in WHEELS):
            path.unlink()
    absent = [name for name in WHEELS if not list(folder.glob(f"{_start(name)}*.whl"))]
    fetched = [f"{name}=={WHEELS[name]}" for name in absent if name != BUILT]
    if fetched:
        only = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
        only += [word for platform in PLATFORMS for word in ("--platform", platform)]
        _pip("download", "--no-deps", *only, "-d", str(folder), *fetched)
    if BUILT in absent:
        _pip("wheel", "--no-build-isolation", "--no-deps", "-w", str(folder), f"{BUILT}=={WHEELS[BUILT]}",
             DS_BUILD_OPS="0")  # fmt: skip
    names = sorted(path.name for path in folder.iterdir())
    unfit = [f"{name} ({why})" for name in names if (why := why_not_for_the_host(name))]
    if unfit or len(names) != len(WHEELS):
        summary = ", ".join(unfit) or "none"
        raise KitError(f"{len(names)} wheels for {len(WHEELS)} packages; not made for the host: {summary}")
    return f"{len(names)} wheels, {len(absent)} of them new"


def why_not_for_the_host(wheel: str) -> str | None:
    """Why a wheel, by its name, does not fit CPython 3.12 on Linux x86-64; None if it does."""
    if not wheel.endswith(".whl"):
        return "no wheel"
    *_, python, abi, platform = wheel.removesuffix(".whl").split("-")
    if platform == "any" and abi == "none" and "py3" in python.split("."):
        return None
    if (python, abi) == ("cp312", "cp312") and platform.startswith("manylinux") and platform.endswith("x86_64"):
        return None
    return f"for {python}, {abi}, {platform}"


def try_wheels() -> str:
    """Installs them as go.sh does, without a network, and imports the modules that need them."""
    wheels = sorted((KIT / "wheels").glob("*.whl"))
    stamp, listed = WORK / "site.txt", "".join(f"{path.name} {path.stat().st_mtime_ns}\n" for path in wheels)
    if not stamp.exists() or stamp.read_text() != listed:
        shutil.rmtree(_site(), ignore_errors=True)
        _pip("install", "--no-index", "--no-deps", "--no-compile", "--target", str(_site()), *map(str, wheels))
        stamp.write_text(listed)
    _python(["-c", f"import {_IMPORTS}"], "the installed wheels do not import")
    return f"import: {_IMPORTS}"


def build_extension() -> str:
    library = WORK / "lib" / "dakd" / "_C.so"
    _python(
        ["setup.py", "-q", "build_ext", "--build-lib", str(WORK / "lib"), "--build-temp", str(WORK / "objects")],
        "dakd/_C.so is not built",
        DAKD_CUDA="1",
        TORCH_CUDA_ARCH_LIST="9.0",
    )
    target = KIT / "_C.so"
    _run(["strip", "--strip-unneeded", "-o", str(target), str(library)], "_C.so is not stripped")
    # LD_BIND_NOW resolves every symbol at once: one that the host's torch lacks must show here, not at a call.
    _python(["-c", _LOADS, str(target)], "_C.so does not load", LD_BIND_NOW="1")
    return "loads, has CUDA operations"


def pack_triton_cache() -> str:
    """Fills a cache and packs it; a second process checks that every launch finds its kernel where go.sh unpacks it."""
    cache, listed, packed = WORK / "triton", WORK / "entries.txt", KIT / "triton.tgz"
    filled = _warm_up(cache, listed)
    place = triton_place()
    packed.write_bytes(pack(cache, listed.read_text().split(), place))
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with tarfile.open(packed) as archive:
        archive.extractall(place, filter="data")
    _, hits, misses = _warm_up(place, WORK / "entries_unpacked.txt")
    shutil.rmtree(place)
    if misses or not hits:
        raise KitError(f"of the packed Triton cache {hits} launches found their kernel and {misses} did not")
    return f"{filled[0]} launches, {filled[2]} compiled now; unpacked in {place}: {hits} hits, {misses} misses"


def triton_place() -> Path:
    """Where go.sh unpacks Triton's cache."""
    return Path(re.search(r"^PLACE=(/\S+)$", (HERE / "go.sh").read_text(), re.M)[1]) / "triton"


def pack(cache: Path, entries: list[str], place: Path) -> bytes:
    """A .tgz of the entries, to be unpacked in `place`; equal entries give equal bytes."""
    content = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=content, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for path in brought_files(cache, entries):
            data = path.read_bytes()
            if path.name.startswith("__grp__"):
                data = rewritten(data.decode(), place).encode()
            member = tarfile.TarInfo(str(path.relative_to(cache)))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def brought_files(cache: Path, entries: list[str]) -> list[Path]:
    absent = [entry for entry in entries if not (cache / entry).is_dir()]
    if absent or not entries:
        raise KitError(f"{cache} lacks {len(absent)} of {len(entries)} listed entries, such as {absent[:1]}")
    return [path for entry in sorted(set(entries)) for path in sorted((cache / entry).iterdir())
            if path.suffix in BROUGHT and path.is_file()]  # fmt: skip


def rewritten(group: str, place: Path) -> str:
    """A __grp__ file of Triton's cache, which names the files of an entry by absolute paths, for a cache in `place`."""
    described = json.loads(group)
    children = {name: Path(path) for name, path in described["child_paths"].items() if Path(path).suffix in BROUGHT}
    described["child_paths"] = {name: str(place / path.parent.name / path.name) for name, path in children.items()}
    return json.dumps(described)


def read_result(printed: str) -> tuple[int, int, int]:
    """Launches, hits and misses from warm_up.py's output."""
    found = re.findall(r"(\d+) launches, (\d+) hits, (\d+) misses", printed)
    if not found:
        raise KitError(f"warm_up.py does not report hits and misses: {printed[-500:]}")
    return tuple(map(int, found[-1]))


def write_commit() -> str:
    commit = _run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], "the commit is unknown").strip()
    (KIT / "commit").write_text(f"{commit}\n")
    return commit


def copy_starter() -> str:
    shutil.copyfile(HERE / "go.sh", KIT / "go.sh")
    return "go.sh"


def print_sizes() -> None:
    files = {str(path.relative_to(KIT)): path.stat().st_size for path in KIT.rglob("*") if path.is_file()}
    for line in size_table(files):
        print(line)
    total = sum(files.values())
    if total > MAX_BYTES:
        raise KitError(f"{total / 2**20:.1f} MiB are more than {MAX_BYTES >> 20} MiB")


def size_table(files: dict[str, int]) -> list[str]:
    lines = [f"{size / 2**20:>8.2f} MiB  {name}" for name, size in sorted(files.items(), key=lambda item: -item[1])]
    return [*lines, f"{sum(files.values()) / 2**20:>8.2f} MiB  in all, of {MAX_BYTES >> 20}"]


def _warm_up(cache: Path, listed: Path) -> tuple[int, int, int]:
    command = [str(HERE / "warm_up.py"), "--cache", str(cache), "--list", str(listed)]
    return read_result(_python(command, "Triton's cache is not filled"))


def _site() -> Path:
    return WORK / "site"


def _start(name: str) -> str:
    return f"{name}-{WHEELS[name]}-"


def _timed(part: Callable[[], str]) -> None:
    start = time.monotonic()
    summary = part()
    print(f"{part.__name__:<18}{time.monotonic() - start:>5.0f} s  {summary}", flush=True)


def _pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    _run(command, f"pip {arguments[0]} failed (is there a network?)", **environment)


def _python(arguments: list[str], complaint: str, **environment: str) -> str:
    path = os.pathsep.join([str(_site()), str(ROOT)])
    return _run([sys.executable, *arguments], complaint, PYTHONPATH=path, **environment)


def _run(command: list[str], complaint: str, **environment: str) -> str:
    """Its output; KitError, with its messages, if it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=kept | environment)
    if done.returncode:
        raise KitError(f"{complaint}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
