"""The report of `dakd doctor` on hosts with unusual or missing software."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
import torch

from dakd import cli, doctor
from dakd.kernels import extension


def line(name: str) -> str:
    """The line of the report that begins with the name."""
    return next(line for line in doctor.diagnose().splitlines() if line.startswith(name))


def test_a_package_without_a_record_of_its_version_is_still_installed(monkeypatch):
    def unknown(distribution):
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    monkeypatch.setattr(doctor, "PACKAGES", (("pytest-nightly", "pytest", "tests", "pip install pytest"),))
    assert "pytest-nightly installed, version unknown" in doctor.diagnose()


@pytest.mark.parametrize("extra", ["train", "encoders"])
def test_extras_are_installed_from_the_repository(monkeypatch, extra):
    find_spec, optional = importlib.util.find_spec, {module for _, module, _, _ in doctor.PACKAGES}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in optional else find_spec(name))
    assert f"pip install -e '.[{extra}]'" in doctor.diagnose()


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
def test_a_built_extension_is_reported_with_its_instruction_set_and_whether_it_has_cuda(monkeypatch):
    with extension.using_cpu_isa("portable"):
        assert "built; CPU operations run with portable" in line("extension")
    monkeypatch.setattr(extension, "has_cuda", lambda: True)
    assert line("extension").endswith("with CUDA operations")
    monkeypatch.setattr(extension, "has_cuda", lambda: False)
    assert line("extension").endswith(f"without CUDA operations: {extension.CUDA_REMEDY}")


def test_a_missing_extension_is_reported_with_the_command_that_builds_it(monkeypatch):
    monkeypatch.setattr(extension, "missing", lambda: "the extension is not built")
    assert line("extension") == f"extension      is not built; {extension.REMEDY}"
    assert doctor.diagnose().count(extension.REMEDY) > 1


def test_missing_compilers_are_reported_with_the_command_that_installs_them(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert line("C++ compiler").endswith("no g++ (to build the extension); apt-get install g++")
    assert "no nvcc (to build CUDA operations)" in line("nvcc") and "pip install nvidia-cuda-nvcc" in line("nvcc")


def test_the_reported_compilers_are_those_of_the_build(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("clang", "nvcc"):
        (tmp_path / "bin" / name).touch(mode=0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "bin" / "clang"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert line("C++ compiler").endswith(str(tmp_path / "bin" / "clang"))
    assert line("nvcc").endswith(str(tmp_path / "bin" / "nvcc"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_variants_for_gpus_are_not_missed(monkeypatch):
    monkeypatch.delenv("DAKD_BACKEND", raising=False)
    report = doctor.diagnose()
    assert "backend of each operation on a CPU device:" in report
    assert "not triton" not in report and "not mamba_ssm" not in report


def test_a_wrong_environment_variable_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("DAKD_BACKEND", "fastest")
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("dakd doctor: DAKD_BACKEND is 'fastest'; expected one of auto, ")
