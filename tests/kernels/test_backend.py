"""The choice of a backend: a named one runs or fails with reasons; the choice of "auto" is logged once."""

from __future__ import annotations

import logging
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dakd.kernels import backend, extension
from dakd.kernels.selective_scan import mamba_ssm, selective_scan
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, operands


@pytest.fixture(autouse=True)
def _forget_choices():
    backend.load.cache_clear()
    mamba_ssm.why_not.cache_clear()
    yield
    backend.load.cache_clear()
    mamba_ssm.why_not.cache_clear()


@pytest.fixture
def two_variants(monkeypatch) -> None:
    """Every op has a package's variant and the reference, independent of this host."""
    monkeypatch.setattr(backend, "variants", lambda op: ["mamba_ssm", "reference"])


@pytest.mark.usefixtures("two_variants")
@pytest.mark.parametrize(
    "made_for, why", [("cpu", "not mamba_ssm: mamba-ssm runs only on CUDA"), ("cuda", "the first choice")]
)
def test_auto_says_once_what_it_took_and_why_nothing_better_for_the_device(made_for, why, caplog, monkeypatch):
    monkeypatch.setitem(backend.MADE_FOR, "mamba_ssm", made_for)
    inputs = operands("selective_scan", "tiny")
    with caplog.at_level(logging.INFO, logger="dakd.kernels"):
        selective_scan(**inputs)
        selective_scan(**inputs)
    assert caplog.messages == [f"selective_scan: reference on cpu in float32 ({why})"]


@pytest.mark.usefixtures("two_variants")
def test_a_named_backend_that_cannot_run_is_an_error_with_the_reason_and_the_alternatives():
    inputs = operands("selective_scan", "tiny")
    with pytest.raises(
        RuntimeError, match=r"'mamba_ssm' cannot run on cpu: .*only on CUDA; choose one of auto, reference"
    ):
        selective_scan(**inputs, backend="mamba_ssm")
    with pytest.raises(RuntimeError, match="selective_scan has no such variant"):
        selective_scan(**inputs, backend="cuda")
    with pytest.raises(RuntimeError, match="no backend is called that"):
        selective_scan(**inputs, backend="fastest")


@pytest.mark.parametrize("name", backend.BACKENDS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_variant_that_the_environment_names_runs_or_is_refused_wherever_a_room_has_it(monkeypatch, device, name):
    monkeypatch.setenv("DAKD_BACKEND", name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for op in backend.OPS:
        if name not in backend.variants(op):
            monkeypatch.delenv("DAKD_BACKEND")
            usual = backend.choose(op, device).chosen
            monkeypatch.setenv("DAKD_BACKEND", name)
            assert backend.choose(op, device).chosen == usual
        elif reason := backend.why_not(op, name, device):
            for call in (backend.choose, lambda op, device: backend.load.__wrapped__(op, "auto", device)):
                with pytest.raises(RuntimeError) as refused:
                    call(op, device)
                found = str(refused.value)
                assert f"DAKD_BACKEND is {name!r}, which cannot run {op} on {device}: {reason}; unset" in found
        else:
            assert backend.choose(op, device).chosen == name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_triton_that_the_environment_asks_for_without_a_gpu_is_an_error_of_the_call(monkeypatch):
    monkeypatch.setenv("DAKD_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend.load.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"DAKD_BACKEND is 'triton'.*set it to one of auto, (cpu, )?reference"):
            selective_scan(**operands("selective_scan", "tiny"))
    finally:
        backend.load.cache_clear()


def test_every_op_has_a_reference_and_a_place_in_the_report():
    choices = backend.report("cpu")
    assert [choice.op for choice in choices] == list(backend.OPS)
    assert all(backend.why_not(op, "reference", "cpu") is None for op in backend.OPS)
    scan = next(choice for choice in choices if choice.op == "selective_scan")
    assert scan.chosen in ("cpu", "reference") and "CUDA" in scan.reasons["mamba_ssm"]


def test_the_readme_lists_the_variants_in_the_order_in_which_auto_tries_them():
    text = Path(backend.__file__).with_name("README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` (\| .* \| .*) \|$", text, re.MULTILINE))
    assert sorted(rows) == sorted(backend.OPS)
    for op, row in rows.items():
        for device, cell in zip(("cuda", "cpu"), row.strip("| ").split(" | "), strict=True):
            listed = [name for name in backend.variants(op) if backend.MADE_FOR.get(name, device) == device]
            assert re.findall(r"`(\w+)`", cell) == listed, f"{op} on {device}"


def test_a_remedy_brings_a_variant_that_the_device_can_run(monkeypatch):
    monkeypatch.setattr(extension, "missing", lambda: "the extension is not built")
    assert backend.choose("selective_scan", "cpu").remedy == extension.REMEDY
    monkeypatch.setattr(mamba_ssm, "why_not", lambda device_type: "mamba-ssm is not usable")
    assert "mamba-ssm" in backend.choose("selective_scan", "cuda").remedy


def test_an_unknown_op_is_refused():
    with pytest.raises(RuntimeError, match="no op is called 'softmax'"):
        backend.load("softmax", "auto", "cpu")


def test_a_package_that_is_there_but_broken_is_named_as_the_reason(monkeypatch):
    broken = ModuleType("mamba_ssm.ops.selective_scan_interface")

    def selective_scan_fn(*_args, **_kwargs):
        raise OSError("undefined symbol")

    broken.selective_scan_fn = selective_scan_fn
    _install(monkeypatch, broken)
    monkeypatch.setattr(torch, "ones", lambda *shape, device=None: torch.zeros(*shape) + 1)
    assert mamba_ssm.why_not("cuda") == "mamba-ssm is not usable (OSError: undefined symbol)"


def test_the_package_is_not_taken_for_a_dtype_that_it_lacks(monkeypatch):
    monkeypatch.setattr(mamba_ssm, "why_not", lambda device_type: None)
    assert backend.why_not("selective_scan", "mamba_ssm", "cuda", torch.bfloat16) is None
    assert backend.why_not("selective_scan", "mamba_ssm", "cuda", torch.float64) == "it has no float64"


def test_the_package_is_not_called_for_an_empty_batch(monkeypatch):
    _install(monkeypatch, ModuleType("mamba_ssm.ops.selective_scan_interface"))
    monkeypatch.setattr(mamba_ssm, "why_not", lambda device_type: None)
    inputs = operands("selective_scan", "empty")
    call = partial(selective_scan, backend="mamba_ssm")
    results = numerics.forward_and_gradients(call, inputs, DIFFERENTIABLE["selective_scan"])
    assert results["output 0"].shape == (0, 4, 7) and not results["dA"].any()


@pytest.mark.parametrize("optional", [True, False])
def test_the_packages_scan_serves_forward_and_backward(monkeypatch, optional):
    # The package needs CUDA; a stand-in with its signature and its kind of autograd function proves the adapter.
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = _stand_in
    _install(monkeypatch, interface)
    monkeypatch.setattr(mamba_ssm, "why_not", lambda device_type: None)
    inputs = operands("selective_scan", "tiny") | ({} if optional else dict(D=None, delta_bias=None))
    numerics.assert_matches_plain(
        lambda **given: selective_scan(**given, backend="mamba_ssm"),
        plain.selective_scan,
        inputs,
        DIFFERENTIABLE["selective_scan"],
    )


def _install(monkeypatch, interface: ModuleType) -> None:
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        package = ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, interface.__name__, interface)


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, delta_softplus, *tensors):
        ctx.delta_softplus = delta_softplus
        ctx.save_for_backward(*tensors)
        return plain.selective_scan(*tensors, delta_softplus=delta_softplus)

    @staticmethod
    def backward(ctx, dy):
        names = [name for name, tensor in zip(_NAMES, ctx.saved_tensors) if tensor is not None]
        given = dict(zip(_NAMES, ctx.saved_tensors)) | dict(delta_softplus=ctx.delta_softplus)

        def with_cotangent(**inputs):
            return (plain.selective_scan(**inputs) * dy).sum()

        def gradient(name):
            return torch.func.grad(lambda value: with_cotangent(**given | {name: value}))(given[name])

        return None, *(gradient(name) if name in names else None for name in _NAMES)


_NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def _stand_in(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    return _StandIn.apply(delta_softplus, u, delta, A, B, C, D, delta_bias)
