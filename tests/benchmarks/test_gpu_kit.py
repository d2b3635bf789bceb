"""The kit for a GPU host: its files, paths and size; and go.sh starts the run without any of it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from gpu import kit

ROOT = Path(__file__).resolve().parents[2]
PLACE = Path("/nowhere/triton")


@pytest.fixture
def cache(tmp_path):
    """A cache of Triton with one kernel, a launcher, and an entry that no launch used."""
    folder = tmp_path / "cache"
    files = {"K1": ("k.cubin", "k.json", "k.ttir", "k.ptx"), "K2": ("__triton_launcher.so",), "K3": ("other.cubin",)}
    for entry, names in files.items():
        (folder / entry / "tmp.pid_1").mkdir(parents=True)
        for name in names:
            (folder / entry / name).write_bytes(name.encode())
    children = {name: str(folder / "K1" / name) for name in files["K1"]}
    (folder / "K1" / "__grp__k.json").write_text(json.dumps({"child_paths": children}))
    return folder


def test_group_names_brought_files_at_the_place_where_they_are_unpacked(cache):
    group = json.loads(kit.rewritten((cache / "K1" / "__grp__k.json").read_text(), PLACE))
    assert group == {"child_paths": {"k.cubin": "/nowhere/triton/K1/k.cubin", "k.json": "/nowhere/triton/K1/k.json"}}


def test_packed_are_machine_code_descriptions_and_launchers_of_listed_entries(cache):
    packed = kit.pack(cache, ["K2", "K1"], PLACE)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        names = archive.getnames()
        assert archive.extractfile("K1/k.cubin").read() == b"k.cubin"
        assert str(cache) not in archive.extractfile("K1/__grp__k.json").read().decode()
    assert names == ["K1/__grp__k.json", "K1/k.cubin", "K1/k.json", "K2/__triton_launcher.so"]
    assert kit.pack(cache, ["K1", "K2"], PLACE) == packed


@pytest.mark.parametrize("entries", [[], ["K1", "gone"]])
def test_listed_entry_that_is_not_there_is_an_error(cache, entries):
    with pytest.raises(kit.KitError, match="lacks"):
        kit.pack(cache, entries, PLACE)


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("pydantic-2.14.4-py3-none-any.whl", True),
        ("braceexpand-0.1.7-py2.py3-none-any.whl", True),
        ("zstandard-0.25.0-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", True),
        ("zstandard-0.25.0-cp311-cp311-manylinux2014_x86_64.whl", False),
        ("zstandard-0.25.0-cp312-cp312-linux_x86_64.whl", False),
        ("zstandard-0.25.0-cp312-cp312-manylinux2014_aarch64.whl", False),
        ("deepspeed-0.19.8.tar.gz", False),
    ],
)
def test_only_wheels_for_the_hosts_python_or_for_any_are_brought(wheel, fits):
    assert (kit.why_not_for_the_host(wheel) is None) == fits


def test_kit_that_is_too_large_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kit, "KIT", tmp_path)
    (tmp_path / "_C.so").write_bytes(b"0" * 3000)
    kit.print_sizes()
    assert "in all, of 40" in capsys.readouterr().out
    monkeypatch.setattr(kit, "MAX_BYTES", 2999)
    with pytest.raises(kit.KitError, match="more than"):
        kit.print_sizes()


def test_result_of_warm_up_is_read_from_its_last_line():
    assert kit.read_result("FAILED x\n3 launches, 1 hits, 2 misses\n87 launches, 80 hits, 7 misses; 5 s") == (87, 80, 7)
    with pytest.raises(kit.KitError, match="does not report"):
        kit.read_result("nothing")


def test_wheels_are_of_the_versions_that_are_developed_with():
    for name in ("cpu.txt", "cuda.txt"):
        text = (ROOT / "configs" / "constraints" / name).read_text()
        pins = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.M))
        assert {package: pins.get(package, version) for package, version in kit.WHEELS.items()} == kit.WHEELS


def test_visitors_environment_has_nothing_that_the_kit_brings():
    text = (ROOT / "configs" / "constraints" / "visit.txt").read_text()
    assert set(re.findall(r"^([\w-]+)==", text, re.M)) & set(kit.WHEELS) == set()


@pytest.fixture
def host(tmp_path):
    """A source tree with an empty kit; what the run would see is printed."""
    tree = tmp_path / "tree"
    (tree / ".gpu_kit" / "wheels").mkdir(parents=True)
    (tree / "dakd").mkdir()
    (tree / "benchmarks").mkdir()
    names = ("PYTHONPATH", "TRITON_CACHE_DIR", "DAKD_COMMIT", "PYTHONUNBUFFERED", "PYTORCH_NVML_BASED_CUDA_CHECK")
    script = f"import json, os, sys\nprint(json.dumps([sys.argv[1:], {{n: os.environ.get(n) for n in {names}}}]))\n"
    (tree / "benchmarks" / "gpu_run.py").write_text(script)
    starter = (ROOT / "benchmarks" / "gpu" / "go.sh").read_text()
    assert kit.triton_place() == Path("/tmp/dakd-gpu-kit/triton")
    starter = re.sub(r"^PLACE=.*$", f"PLACE={tmp_path / 'place'}", starter, flags=re.M)
    (tree / ".gpu_kit" / "go.sh").write_text(starter)
    return tree


def go(host: Path, *arguments: str):
    environment = os.environ | {"DAKD_PYTHON": sys.executable}
    environment = {name: value for name, value in environment.items() if name not in ("DAKD_COMMIT", "PYTHONPATH")}
    command = ["bash", ".gpu_kit/go.sh", *arguments]
    done = subprocess.run(command, cwd=host, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


def test_run_starts_without_any_part_of_the_kit_and_reports_each_in_a_line(host):
    (host / ".gpu_kit" / "wheels" / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    (arguments, _), said = go(host, "--second")
    assert arguments == ["--second"]
    for words in ("broken-1.0-py3-none-any.whl is not installed: ", "kernels are compiled on the way: ",
                  "there is no compiled library", "does not name its commit"):  # fmt: skip
        assert len([line for line in said if line.startswith("go.sh: ") and words in line]) == 1, said
    assert len(said) == 4, said


def test_run_gets_wheels_cache_library_and_commit_of_the_kit(host, cache, tmp_path):
    (host / ".gpu_kit" / "triton.tgz").write_bytes(kit.pack(cache, ["K1", "K2"], tmp_path / "place" / "triton"))
    (host / ".gpu_kit" / "_C.so").write_bytes(b"a library")
    (host / ".gpu_kit" / "commit").write_text("abc1234\n")
    shutil.copy(make_wheel(tmp_path), host / ".gpu_kit" / "wheels")
    for _ in range(2):  # a second run finds what the first one left
        (arguments, environment), said = go(host)
        assert arguments == [] and said == []
    place = tmp_path / "place"
    assert environment == {
        "PYTHONPATH": f"{place / 'site'}:{host}", "TRITON_CACHE_DIR": str(place / "triton"), "DAKD_COMMIT": "abc1234",
        "PYTHONUNBUFFERED": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }  # fmt: skip
    assert (place / "site" / "brought.py").exists() and (place / "triton" / "K1" / "k.cubin").exists()
    assert (host / "dakd" / "_C.so").read_bytes() == b"a library"


def make_wheel(folder: Path) -> Path:
    path = folder / "brought-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("brought.py", "")
        about = "brought-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path
