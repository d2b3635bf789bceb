"""The precision that is chosen on a device: by its instructions and the size of the net, and kept once begun."""

from __future__ import annotations

import pytest
import torch

from dakd import doctor
from dakd.runtime import precision
from dakd.runtime.precision import choose, keep, pays_in_student, pays_in_unet

CPU, GPU, KEY = torch.device("cpu"), torch.device("cuda"), "generate.precision"


@pytest.fixture
def instructions(monkeypatch):
    """Sets those that the CPU has."""
    return lambda found: monkeypatch.setattr(precision, "cpu_bf16", lambda: found)


@pytest.mark.parametrize(("flags", "found"), [
    ("fpu avx512f avx512_bf16 amx_bf16 amx_tile", "AMX"), ("fpu avx512f avx512_bf16", "AVX512-BF16"),
    ("fp asimd bf16 i8mm", "Arm's BF16"), ("fpu avx2 avx512f avx512_vnni", ""),
])  # fmt: skip
def test_the_instructions_are_those_of_the_systems_list(tmp_path, monkeypatch, flags, found):
    (tmp_path / "cpuinfo").write_text(f"model name : Some bfloat16 CPU\nflags : {flags}\n")
    monkeypatch.setattr(precision, "Path", lambda _: tmp_path / "cpuinfo")
    assert precision.cpu_bf16() == found
    (tmp_path / "cpuinfo").unlink()
    assert precision.cpu_bf16() is None


@pytest.mark.parametrize(("found", "pays", "name"), [
    ("AMX", True, "bf16"), ("AMX", False, "fp32"), ("AVX512-BF16", True, "fp32"), ("Arm's BF16", True, "fp32"),
    ("", True, "fp32"), (None, True, "fp32"),
])  # fmt: skip
def test_auto_takes_bf16_on_a_cpu_with_amx_where_it_pays(instructions, found, pays, name):
    instructions(found)
    chosen = choose("auto", KEY, "bf16", CPU, pays)
    assert chosen == (name, "this CPU has AMX; fp32 by generate.precision=fp32" if name == "bf16" else "")


def test_a_gpu_takes_bf16_whatever_the_net_and_its_cpu(instructions):
    instructions("")
    assert choose("auto", KEY, "autocast", GPU, False) == ("autocast", "")
    assert choose("bf16", KEY, "bf16", GPU, False) == keep("fp32", "bf16", KEY, "bf16", GPU, False) == ("bf16", "")


def test_the_nets_that_bf16_pays_for_are_wide():
    assert [pays_in_unet(widths) for widths in ([8, 16, 24, 32], [16, 32, 48, 64], [128, 64])] == [False, True, True]
    assert [pays_in_student(count) for count in (1_600_000, 9_999_999, 10_000_000)] == [False, False, True]


@pytest.mark.parametrize(("began", "setting", "found", "name"), [
    ("fp32", "auto", "AMX", "fp32"), ("bf16", "auto", "AMX", "bf16"), ("bf16", "auto", "AVX512-BF16", "bf16"),
    ("bf16", "auto", "", "fp32"), ("autocast", "auto", "", "fp32"), ("fp32", "bf16", "AMX", "bf16"),
    ("bf16", "fp32", "AMX", "fp32"),
])  # fmt: skip
def test_what_was_begun_keeps_its_precision_unless_another_is_asked_for(instructions, began, setting, found, name):
    instructions(found)
    assert keep(began, setting, KEY, "bf16", CPU, True).name == name


@pytest.mark.parametrize("asked", ["bf16", "autocast"])
def test_emulated_precisions_are_refused_and_unknown_cpus_are_not(instructions, asked):
    for found in ("AMX", "AVX512-BF16", "Arm's BF16", None):
        instructions(found)
        assert choose(asked, KEY, "bf16", CPU, False).name == asked
    instructions("")
    for run in (choose, lambda *given: keep("fp32", *given)):
        with pytest.raises(ValueError, match=f"generate.precision is {asked}, .*to fp32 or auto"):
            run(asked, KEY, "bf16", CPU, True)


@pytest.mark.parametrize(("found", "said"), [
    ("AMX", "AMX; precision auto takes it for wide nets"), ("AVX512-BF16", "AVX512-BF16; precision auto takes fp32"),
    ("", "none; precision auto takes fp32"), (None, "unknown (no /proc/cpuinfo); precision auto takes fp32"),
])  # fmt: skip
def test_doctor_says_what_auto_takes(instructions, found, said):
    instructions(found)
    assert f"CPU's bf16     {said}" in doctor.diagnose()
