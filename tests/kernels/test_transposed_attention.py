"""transposed_attention: the folded definition against the order that the paper draws, and the contract with torch."""

from __future__ import annotations

import pytest
import torch

from dakd.kernels.transposed_attention import ops, transposed_attention
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, operands, sliced

WRT = DIFFERENTIABLE["transposed_attention"]


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["tiny", "one", "odd", "empty"])
def test_forward_and_gradients_match_plain_torch(shape, dtype):
    inputs = operands("transposed_attention", shape, dtype=dtype)
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(transposed_attention, plain.transposed_attention, inputs, WRT)


def test_large_means_and_large_temperatures_stay_within_budget():
    inputs = operands("transposed_attention", "odd")
    inputs |= {name: inputs[name] + 30 for name in ("q", "k")} | dict(temperature=inputs["temperature"] * 100)
    numerics.assert_matches_plain(transposed_attention, plain.transposed_attention, inputs, WRT)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_gradients_pass_gradcheck(num_heads):
    inputs = operands("transposed_attention", "tiny", dtype=torch.float64)
    inputs["temperature"] = inputs["temperature"][:num_heads].clone()
    tensors = [inputs[name].requires_grad_() for name in WRT]
    assert torch.autograd.gradcheck(lambda *args: transposed_attention(*args, num_heads=num_heads), tensors)


@pytest.mark.parametrize("layout", [lambda x: x, _channels_last, sliced])
def test_operator_contract_holds_for_any_strides(layout):
    inputs = operands("transposed_attention", "tiny")
    laid_out = inputs | {name: layout(inputs[name]).requires_grad_() for name in ("q", "k", "v", "residual")}
    torch.library.opcheck(ops.transposed_attention, (*laid_out.values(), "reference"))
    torch.testing.assert_close(transposed_attention(**laid_out), transposed_attention(**inputs), rtol=1e-6, atol=1e-6)


def test_result_keeps_the_memory_format_and_dtype_of_the_residual():
    inputs = operands("transposed_attention", "tiny", dtype=torch.bfloat16)
    y = transposed_attention(**inputs | dict(residual=_channels_last(inputs["residual"].float())))
    assert y.dtype == torch.float32 and y.is_contiguous(memory_format=torch.channels_last)


def test_autocast_changes_nothing():
    inputs = operands("transposed_attention", "tiny")
    wanted = numerics.forward_and_gradients(transposed_attention, inputs, WRT)
    with torch.autocast("cpu", torch.bfloat16):
        results = numerics.forward_and_gradients(transposed_attention, inputs, WRT)
    assert all(torch.equal(results[name], wanted[name]) for name in wanted)


def test_forward_mode_and_double_backward_are_refused():
    inputs = operands("transposed_attention", "tiny")
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs["q"], inputs["k"])
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            transposed_attention(**inputs | dict(q=dual))
    q = inputs["q"].requires_grad_()
    (dq,) = torch.autograd.grad(transposed_attention(**inputs).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(dq.sum(), q)


def test_compiles_to_one_graph():
    inputs = operands("transposed_attention", "tiny")
    compiled = torch.compile(transposed_attention, fullgraph=True, backend="aot_eager")
    eager = numerics.forward_and_gradients(transposed_attention, inputs, WRT)
    for name, value in numerics.forward_and_gradients(compiled, inputs, WRT).items():
        assert torch.equal(value, eager[name]), name


def test_zero_output_weight_returns_the_residual_itself():
    inputs = operands("transposed_attention", "tiny")
    inputs["out_weight"].zero_()
    assert torch.equal(transposed_attention(**inputs), inputs["residual"])


def test_a_dead_query_channel_attends_evenly_and_gets_a_finite_gradient():
    inputs = operands("transposed_attention", dict(batch=1, inner=3, channels=3, height=2, width=2, num_heads=1))
    inputs["q"][:, 0] = 0
    inputs |= dict(out_weight=torch.eye(3), residual=torch.zeros(1, 3, 2, 2))
    results = numerics.forward_and_gradients(transposed_attention, inputs, WRT)
    torch.testing.assert_close(results["output 0"][:, 0], inputs["v"].mean(1))
    assert all(value.isfinite().all() for value in results.values())


def test_a_norm_below_its_minimum_does_not_vary():
    inputs = operands("transposed_attention", "tiny", dtype=torch.float64)
    inputs["q"][:, 0] *= 1e-14
    inputs["k"][:, 2] *= 1e-14
    wanted = numerics.forward_and_gradients(plain.transposed_attention, inputs, WRT)
    for name, value in numerics.forward_and_gradients(transposed_attention, inputs, WRT).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-10)


def test_backward_keeps_no_more_than_q_k_v_and_the_weights():
    inputs = operands("transposed_attention", "odd")
    kept = sum(inputs[name].numel() for name in ("q", "k", "v", "temperature", "out_weight"))
    inputs["q"].requires_grad_()
    assert numerics.saved_bytes(transposed_attention, inputs) == 4 * kept


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(num_heads=3), ValueError, "4 channels do not split into 3 heads"),
        (dict(k=torch.zeros(2, 4, 3, 2)), ValueError, "k has shape"),
        (dict(temperature=torch.zeros(2, 1, 1)), ValueError, "temperature has shape"),
        (dict(out_weight=torch.zeros(4, 3)), ValueError, r"wanted \(C, R\) = \(3, 4\)"),
        (dict(v=torch.zeros(2, 4, 2, 3, dtype=torch.bfloat16)), TypeError, "v has dtype torch.bfloat16"),
        (dict(backend="cuda"), RuntimeError, "has no such variant"),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        transposed_attention(**operands("transposed_attention", "tiny") | change)
