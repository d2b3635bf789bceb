"""The content of a wheel; an installed one does everything from an empty folder, without the source tree.

The wheel is installed in a new environment that borrows all other packages from the running one: no network is needed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from front_door import COMPILED, SNIPPETS

from dakd.kernels import extension
from dakd.pipeline import step_environment

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "dakd" / "_C.so"
PIP = [sys.executable, "-m", "pip"]
PIP_WHEEL = [*PIP, "wheel", "--no-build-isolation", "--no-index", "--no-deps"]
# A checkout without the library makes pure wheels only.
KINDS = ["pure"] if extension.missing() else ["built", "pure"]
# Variables that change a build, the rank of a process, or imports.
OWN_WAYS = ("PYTHONPATH", "CXX", "CUDA_HOME", "DAKD_", "TRITON_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")

pytestmark = pytest.mark.slow


def environment(**changes: str) -> dict[str, str]:
    """The environment variables of a new shell."""
    return {name: text for name, text in step_environment().items() if not name.startswith(OWN_WAYS)} | changes


def run(command: list, folder: Path, **changes: str) -> subprocess.CompletedProcess:
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=folder, env=environment(**changes), capture_output=True, text=True, timeout=300)


def succeed(command: list, folder: Path, **changes: str) -> str:
    done = run(command, folder, **changes)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of this checkout's sources with leftovers of an earlier build of other sources."""
    tree = tmp_path_factory.mktemp("source")
    listed = succeed(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    left = tree / "build" / "lib" / "dakd"
    (left / "configs").mkdir(parents=True)
    for name in ("_C.so", "gone.py", "configs/gone.yaml"):
        (left / name).touch()
    return tree


@pytest.fixture(scope="module")
def compiler(tmp_path_factory) -> Path:
    """A script in place of the compiler that copies this checkout's library: compiling it would take minutes."""
    script = tmp_path_factory.mktemp("compiler") / "c++"
    script.write_text(
        f"""#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in -o) out=$2;; -MF) list=$2;; esac
  shift
done
if [ -n "$list" ]; then : > "$out"; echo "$out:" > "$list"; else cp {LIBRARY} "$out"; fi
"""
    )
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def wheels(source, compiler, tmp_path_factory) -> dict[str, Path]:
    """A wheel with the library, and then, from the same tree, the wheel of a host without a compiler."""
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        cxx = {"built": str(compiler), "pure": "/nonexistent/g++"}[kind]
        done = run([*PIP_WHEEL, "-v", "-w", folder, source], source, CXX=cxx, DAKD_CUDA="0")
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("not built: no C++ compiler called /nonexistent/g++" in done.stderr) == (kind == "pure")
        (made[kind],) = folder.glob("*.whl")
    return made


class Installed(NamedTuple):
    """An environment with an installed wheel, and an empty folder to work in."""

    bin: Path
    folder: Path

    def dakd(self, *arguments: str) -> list:
        return [self.bin / "dakd", *arguments]


def install(wheel: Path, folder: Path) -> Installed:
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    succeed([*PIP, "--python", python, "install", "-q", "--no-index", "--no-deps", wheel], folder)
    # Added only now, so that pip finds no other dakd; searched last. Links to editable installs are not followed.
    own = Path(succeed([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    (own / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    (folder / "empty").mkdir()
    return Installed(python.parent, folder / "empty")


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> dict[str, Installed]:
    return {kind: install(wheel, tmp_path_factory.mktemp(kind)) for kind, wheel in wheels.items()}


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_is_named_by_its_content(wheels):
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheels["pure"].name.endswith("-py3-none-any.whl") and "dakd/_C.so" not in names_of(wheels["pure"])
    if "built" in KINDS:
        assert wheels["built"].name.endswith(f"-py3-none-{platform}.whl")
        assert names_of(wheels["built"]) == names_of(wheels["pure"]) | {"dakd/_C.so"}


def test_a_wheel_holds_every_module_and_configuration_and_nothing_else(wheels):
    names = {name for name in names_of(wheels["pure"]) if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "dakd").rglob("*.py")}
    configs = {f"dakd/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.*") if path.suffix != ".md"}
    pages = {"dakd/convergence/page.html", "dakd/report/page.html", "dakd/report/style.css"}
    assert names == modules | configs | {"dakd/py.typed", *pages}
    assert {"dakd/configs/demo.yaml", "dakd/configs/ablate/ce_b.yaml", "dakd/configs/deepspeed/zero1.json"} < names


def test_a_source_archive_builds_the_same_wheel(source, wheels, tmp_path):
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    succeed([sys.executable, "-c", code], source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    succeed([*PIP_WHEEL, "-w", tmp_path, unpacked], tmp_path, CXX="/nonexistent/g++")
    assert names_of(next(tmp_path.glob("*.whl"))) == names_of(wheels["pure"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_installed_wheel_runs_and_its_doctor_names_no_checkout(installed, kind):
    env = installed[kind]
    code = "import dakd; from dakd.shipped import code_version; print(dakd.__file__); print(code_version())"
    place, version = succeed([env.bin / "python", "-c", code], env.folder).splitlines()
    assert Path(place).is_relative_to(env.bin.parent) and version == "dakd 0.1.0"
    report = succeed(env.dakd("doctor"), env.folder)
    assert "-e ." not in report and "make " not in report
    assert ("extension      built; CPU operations run with" in report) == (kind == "built")
    assert ("extension      is not built; build a wheel from dakd's source" in report) == (kind == "pure")


@pytest.fixture(scope="module")
def finished(installed) -> tuple[Installed, str]:
    """An environment whose folder holds a run of the smoke pipeline, and the output of that run."""
    env = installed[KINDS[0]]
    arguments = ["--config", "smoke", "train_saross.training_sets=[real+synthetic]", "generate.deterministic=true"]
    return env, succeed(env.dakd("pipeline", *arguments), env.folder)


def test_an_installed_wheel_runs_the_whole_pipeline_by_an_experiments_name(finished):
    """The trainings and the generation run under deepspeed, with the ZeRO file of the package."""
    env, printed = finished
    run_folder = env.folder / "runs" / "smoke"
    assert "mIoU" in printed and (run_folder / "report" / "index.html").stat().st_size > 0
    assert [path.name for path in env.folder.iterdir()] == ["runs"]
    # The manifest names the version of the package, since there is no commit.
    assert '"commit": "dakd 0.1.0"' in (run_folder / "generate" / "manifest.jsonl").read_text()


FRONT_DOOR = """
import os

import numpy as np
from PIL import Image

import dakd

runs = {runs!r}
student = dakd.load_student(runs + "/train_saross/real+synthetic/student.safetensors")
teacher = dakd.load_teacher(runs + "/train_jointnet/stage3/weights_ema.safetensors")
array = dakd.ShardSet(runs + "/prepare/test")[0].sar
Image.fromarray(array).save("image.png")
answer = student.predict(array)
assert answer.label.shape == (32, 32) and np.array_equal(student.predict("image.png").probability, answer.probability)
assert student.predict_files(".", "predicted") == ["image"]
assert np.array_equal(np.asarray(Image.open("predicted/image_class.png")), answer.label)
generated = dakd.ShardSet(runs + "/generate")
pairs = teacher.sample(12, size=(32, 32), steps=4, solver="dpmpp_2m", seed=0, micro_batch=4, deterministic=True)
assert all(a.key == b.key and np.array_equal(a.sar, b.sar) for a, b in zip(pairs, generated, strict=True))
dakd.write_shards("written", pairs, teacher.classes, codec="logprob8", temperature=2.0)
again = dakd.ShardSet("written")
assert all(np.array_equal(a.soft_label, b.soft_label) for a, b in zip(again, generated, strict=True))
student.save("student.safetensors")
teacher.save_pretrained("teacher")
rng = np.random.default_rng(0)
for kind, values in (("images", 256), ("masks", 2)):
    os.makedirs("own/" + kind)
    Image.fromarray(rng.integers(0, values, (64, 64), dtype=np.uint8)).save("own/" + kind + "/a.png")
print("all of it")
"""


def test_every_door_opens_from_an_installed_wheel(finished, tmp_path):
    env, _ = finished
    python, code = env.bin / "python", FRONT_DOOR.format(runs=str(env.folder / "runs" / "smoke"))
    assert "all of it" in succeed([python, "-c", code], tmp_path)
    (tmp_path / "teacher" / "model.safetensors").rename(tmp_path / "weights_ema.safetensors")
    for snippet in SNIPPETS:
        succeed([python, "-c", snippet], tmp_path)
    lines = succeed([python, "-c", COMPILED], tmp_path).splitlines()
    assert [line.split()[1:] for line in lines] == 6 * [["True", "True", "function"]]
    succeed(env.dakd("init", "mine", "--root", "own", "--classes", "sea,oil"), tmp_path)
    succeed(env.dakd("prepare", "--config", "mine.yaml"), tmp_path)
    succeed(env.dakd("predict", "--student", "student.safetensors", "image.png", "--out", "out"), tmp_path)
    succeed(env.dakd("sample", "--teacher", "weights_ema.safetensors", "--num", "2", "--steps", "2", "--out", "few"),
            tmp_path)  # fmt: skip
    assert (tmp_path / "out" / "image_overlay.png").exists() and (tmp_path / "few" / "contact_sheet.png").exists()


def test_an_installed_wheel_makes_a_table_by_name(installed):
    env = installed["pure"]
    options = ["--base", "smoke", "--row", "CAFT", "--measure", "miou", "--seeds", "0", "--processes", "0"]
    printed = succeed(env.dakd("ablate", "--config", "skip_modules", *options), env.folder)
    assert "CAFT" in printed and "3 of 3 jobs are done" in printed
    assert (env.folder / "runs" / "ablate" / "skip_modules" / "table.csv").exists()


def test_an_installed_wheel_refuses_unknown_names_with_the_nearest(installed):
    env = installed["pure"]
    for arguments, wanted in (
        (["prepare", "--config", "smok"], "no configuration at smok; did you mean 'smoke'"),
        (["ablate", "--config", "ce", "--status"], "no table at ce; did you mean 'ce_b'"),
    ):
        done = run(env.dakd(*arguments), env.folder)
        assert done.returncode == 1 and wanted in done.stderr and "Traceback" not in done.stderr
