"""selective_scan: the definition against a plain loop under autograd, across chunk borders; the contract with torch."""

from __future__ import annotations

import pytest
import torch

from dakd.kernels.selective_scan import ops, reference, selective_scan
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, operands, sliced

WRT = DIFFERENTIABLE["selective_scan"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["tiny", "one", "odd", "empty"])
def test_forward_and_gradients_match_plain_torch(shape, dtype):
    inputs = operands("selective_scan", shape, dtype=dtype)
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(selective_scan, plain.selective_scan, inputs, WRT)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 64])
def test_chunk_borders_do_not_show(monkeypatch, length):
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 1)
    shape = dict(batch=2, channels=3, states=2, length=length)
    inputs = operands("selective_scan", shape, dtype=torch.float64)
    wanted = numerics.forward_and_gradients(plain.selective_scan, inputs, WRT)
    for name, value in numerics.forward_and_gradients(selective_scan, inputs, WRT).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-11, atol=1e-11)


def pieces(device: str, batch: int) -> tuple[list[tuple[int, int]], int]:
    """The groups of a batch of MambaVision-B's third stage, and the number of chunks of the first group."""
    channels, states, length = 256, 8, 196
    u, A = torch.empty(batch, channels, length, device=device), torch.empty(channels, states, device=device)
    groups = [(rows.start, rows.stop) for rows in reference._groups(u, A)]
    time_first = u[: groups[0][1] if groups else 0].permute(2, 0, 1)
    sequence = reference._Sequence(time_first, time_first, A, torch.empty(0), torch.empty(0))
    return groups, len(list(reference._chunks(sequence)))


def test_a_batch_is_cut_for_the_cache_on_a_cpu_alone():
    groups, chunks = pieces("cpu", batch=20)
    # A sequence's 14 = sqrt(196) steps of 256 x 8 states are 28,672 of the cache's 262,144 elements: nine fit.
    assert groups == [(0, 9), (9, 18), (18, 20)] and chunks == 14
    assert pieces("meta", batch=20) == ([(0, 20)], 1)
    assert pieces("meta", batch=144)[0] == [(0, 144)] and pieces("meta", batch=144)[1] == 4
    assert pieces("meta", batch=0)[0] == pieces("cpu", batch=0)[0] == []


@pytest.mark.parametrize("delta_softplus", [True, False])
@pytest.mark.parametrize("optional", [True, False])
def test_gradients_pass_gradcheck(monkeypatch, delta_softplus, optional):
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 1)
    inputs = operands("selective_scan", "tiny", dtype=torch.float64)
    # Raw steps must be small: a negative one of unit size makes the states grow beyond what differences resolve.
    inputs["delta"] *= 1 if delta_softplus else 0.1
    inputs["delta_bias"] *= 1 if delta_softplus else 0.1
    tensors = [inputs[name].requires_grad_() for name in WRT[: 7 if optional else 5]]
    assert torch.autograd.gradcheck(lambda *args: selective_scan(*args, delta_softplus=delta_softplus), tensors)


@pytest.mark.parametrize("layout", [lambda x: x, sliced, lambda x: x.mT.contiguous().mT])
def test_operator_contract_holds_for_any_strides(layout):
    inputs = operands("selective_scan", "tiny")
    features = [layout(inputs[name]).requires_grad_() for name in ("u", "delta", "B", "C")]
    u, delta, B, C = features
    arguments = (u, delta, inputs["A"].requires_grad_(), B, C, inputs["D"], None)
    torch.library.opcheck(ops.selective_scan, (*arguments, True, "reference"))
    contiguous = selective_scan(**inputs | dict(delta_bias=None))
    assert torch.equal(selective_scan(*arguments), contiguous)


def test_autocast_changes_nothing():
    inputs = operands("selective_scan", "tiny")
    wanted = numerics.forward_and_gradients(selective_scan, inputs, WRT)
    with torch.autocast("cpu", torch.bfloat16):
        results = numerics.forward_and_gradients(selective_scan, inputs, WRT)
    assert all(torch.equal(results[name], wanted[name]) for name in wanted)


def test_compiles_to_one_graph():
    inputs = operands("selective_scan", "tiny")
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    eager = numerics.forward_and_gradients(selective_scan, inputs, WRT)
    for name, value in numerics.forward_and_gradients(compiled, inputs, WRT).items():
        assert torch.equal(value, eager[name]), name


def test_constant_input_settles_where_the_recurrence_says():
    # One channel, one state: h = exp(-1/2) h + 1/2 settles at (1/2) / (1 - exp(-1/2)).
    ones = torch.ones(1, 1, 200, dtype=torch.float64)
    y = selective_scan(ones, ones / 2, -torch.ones(1, 1, dtype=torch.float64), ones, ones, delta_softplus=False)
    settled = 0.5 / -torch.expm1(torch.tensor(-0.5, dtype=torch.float64))
    assert y[0, 0, 0] == 0.5 and torch.allclose(y[0, 0, -1], settled, rtol=1e-14)


def test_long_sequences_stay_exact():
    shape = dict(batch=1, channels=1, states=2, length=3000)
    inputs = operands("selective_scan", shape)
    numerics.assert_matches_plain(selective_scan, plain.selective_scan, inputs, ())


def test_large_steps_forget_and_do_not_overflow():
    inputs = operands("selective_scan", "tiny") | dict(delta=torch.full((2, 3, 5), 60.0))
    results = numerics.forward_and_gradients(selective_scan, inputs, WRT)
    assert all(value.isfinite().all() for value in results.values())


def test_backward_keeps_the_inputs_alone():
    inputs = operands("selective_scan", "odd")
    inputs["u"].requires_grad_()
    assert numerics.saved_bytes(selective_scan, inputs) == 4 * sum(value.numel() for value in inputs.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(delta=torch.zeros(2, 3, 4)), ValueError, "delta has shape"),
        (dict(B=torch.zeros(2, 3, 5)), ValueError, r"B has shape \(2, 3, 5\); wanted \(B, N, L\) = \(2, 2, 5\)"),
        (dict(A=torch.zeros(4, 2)), ValueError, "A has shape"),
        (dict(D=torch.zeros(2)), ValueError, "D has shape"),
        (
            dict(C=torch.zeros(2, 2, 5, dtype=torch.float64)),
            TypeError,
            "C has dtype torch.float64, u has torch.float32",
        ),
        (dict(backend="none"), RuntimeError, "no backend is called that"),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**operands("selective_scan", "tiny") | change)
