"""selective_scan in C++: every instruction set, any number of threads, tile borders, long sequences."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch_threads import torch_threads

from dakd.kernels import extension
from dakd.kernels.selective_scan import selective_scan
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, operands, sliced

WRT = DIFFERENTIABLE["selective_scan"]
FEATURES = ("u", "delta", "B", "C")
ISAS = ("portable", "avx2", "avx512")
pytestmark = pytest.mark.skipif(extension.missing() is not None, reason="the extension is not built")
scan = partial(selective_scan, backend="cpu")


@pytest.fixture(params=ISAS)
def isa(request) -> Iterator[str]:
    try:
        with extension.using_cpu_isa(request.param):
            yield request.param
    except RuntimeError as error:
        pytest.skip(str(error))


def tokens(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with dimension 1 contiguous, as a mixer's tokens lie."""
    return tensor.mT.contiguous().mT


def results(inputs: dict, **options) -> dict[str, torch.Tensor]:
    return numerics.forward_and_gradients(partial(scan, **options), inputs, WRT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [lambda tensor: tensor, tokens, sliced])
@pytest.mark.parametrize("shape", ["empty", dict(batch=2, channels=37, states=9, length=85)])
def test_every_instruction_set_is_exact(isa, shape, layout, dtype):
    inputs = operands("selective_scan", shape, dtype=dtype)
    inputs |= {name: layout(inputs[name]) for name in FEATURES}
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(scan, plain.selective_scan, inputs, WRT)


@pytest.mark.parametrize("states", [1, 2, 3, 7, 8, 15, 16, 17])
def test_states_in_any_number_are_exact_on_every_instruction_set(isa, states):
    inputs = operands("selective_scan", dict(batch=2, channels=19, states=states, length=21))
    numerics.assert_matches_plain(scan, plain.selective_scan, inputs, WRT)


@pytest.mark.parametrize("delta_softplus", [True, False])
@pytest.mark.parametrize("optional", [True, False])
def test_gradients_pass_gradcheck(isa, delta_softplus, optional):
    inputs = operands("selective_scan", "tiny", dtype=torch.float64)
    # Raw steps must be small: a negative one of unit size makes the states grow beyond what differences resolve.
    inputs["delta"] *= 1 if delta_softplus else 0.1
    inputs["delta_bias"] *= 1 if delta_softplus else 0.1
    tensors = [inputs[name].requires_grad_() for name in WRT[: 7 if optional else 5]]
    assert torch.autograd.gradcheck(lambda *args: scan(*args, delta_softplus=delta_softplus), tensors)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 79, 127, 128, 129, 196, 400])
def test_tile_borders_do_not_show(length):
    inputs = operands("selective_scan", dict(batch=1, channels=70, states=3, length=length), dtype=torch.float64)
    wanted = numerics.forward_and_gradients(plain.selective_scan, inputs, WRT)
    for name, value in results(inputs).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-10)
    for name, value in results({key: tensor.float() for key, tensor in inputs.items()}).items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [("u",), ("delta",), ("B",), ("C",), ("u", "B")])
def test_every_operand_may_have_a_layout_of_its_own(isa, names):
    inputs = operands("selective_scan", dict(batch=2, channels=35, states=9, length=90))
    wanted = results(inputs)
    for layout in (tokens, sliced, lambda tensor: sliced(tensor.mT.contiguous()).mT):
        got = results(inputs | {name: layout(inputs[name]) for name in names})
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("shape", [dict(batch=3, channels=150, states=8, length=130), "small"])
def test_the_number_of_threads_does_not_change_a_bit(shape):
    inputs = operands("selective_scan", shape)
    with torch_threads(1):
        wanted = results(inputs)
    with torch_threads(4):
        got = results(inputs)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_sample_does_not_depend_on_its_batch():
    inputs = operands("selective_scan", dict(batch=3, channels=33, states=8, length=70))
    whole = results(inputs)
    last = scan(**inputs | {name: inputs[name][2:] for name in FEATURES})
    assert torch.equal(last, whole["output 0"][2:])


@pytest.mark.parametrize("size", [0.0, 50.0, 1e3, 1e30])
def test_any_exponent_is_guarded(isa, size):
    # Decays underflow to zero in some lanes and not in others; with a positive A they overflow, as in plain torch.
    inputs = operands("selective_scan", dict(batch=1, channels=20, states=8, length=40))
    inputs["delta"][:, ::3] = size
    numerics.assert_matches_plain(scan, plain.selective_scan, inputs, ())
    assert all(value.isfinite().all() for value in results(inputs).values() if size < 1e30)
    inputs |= dict(A=inputs["A"].abs(), delta=torch.full_like(inputs["delta"], 200.0))
    y, wanted = scan(**inputs), plain.selective_scan(**inputs)
    assert torch.equal(y.isfinite(), wanted.isfinite()) and torch.equal(y.isnan(), wanted.isnan())


def test_a_nan_stays_in_its_channel():
    inputs = operands("selective_scan", dict(batch=1, channels=20, states=8, length=40))
    inputs["delta"][0, 7, 11] = torch.nan
    y = scan(**inputs)
    bad = y.isnan()
    assert bad[0, 7, 11:].all() and bad.sum() == 29


@pytest.mark.parametrize("shape", ["l196", "l1024"])
def test_single_precision_is_within_a_millionth(isa, shape):
    inputs = operands("selective_scan", shape)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    with torch.no_grad():
        y, exact = scan(**inputs), scan(**wide)
    assert ((y - exact).norm() / exact.norm()).item() <= 1e-6
    assert ((y - exact).abs().max() / exact.abs().max()).item() <= 1e-6


@pytest.mark.parametrize("layout", [lambda tensor: tensor, tokens])
def test_a_very_long_sequence_is_exact(layout):
    # Plain torch would take long: float64 of the same code stands for it, and where states forget soon, the last steps
    # are those of a sequence that starts late.
    inputs = operands("selective_scan", dict(batch=1, channels=16, states=8, length=65_536))
    inputs |= dict(A=inputs["A"] - 1, delta_bias=inputs["delta_bias"] + 2)
    inputs |= {name: layout(inputs[name]) for name in FEATURES}
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    got, exact = results(inputs), results(wide)
    for name, value in got.items():
        assert ((value - exact[name]).norm() / exact[name].norm()).item() <= 2e-6, name
    with torch.no_grad():
        wanted = plain.selective_scan(**wide | {name: wide[name][..., -1000:] for name in FEATURES})
    torch.testing.assert_close(exact["output 0"][..., -200:], wanted[..., -200:], rtol=1e-10, atol=1e-10)
