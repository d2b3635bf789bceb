"""depthwise_conv1d: the definition against torch's own convolution, and the contract with torch."""

from __future__ import annotations

import pytest
import torch

from dakd.kernels.depthwise_conv1d import depthwise_conv1d, ops
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, operands, sliced

WRT = DIFFERENTIABLE["depthwise_conv1d"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["tiny", "one", "odd", "empty"])
def test_forward_and_gradients_match_plain_torch(shape, dtype):
    inputs = operands("depthwise_conv1d", shape, dtype=dtype)
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(depthwise_conv1d, plain.depthwise_conv1d, inputs, WRT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", None])
def test_gradients_pass_gradcheck(activation, bias):
    inputs = operands("depthwise_conv1d", "tiny", dtype=torch.float64)
    tensors = [inputs[name].requires_grad_() for name in WRT[: 3 if bias else 2]]
    assert torch.autograd.gradcheck(lambda *args: depthwise_conv1d(*args, activation=activation), tensors)


@pytest.mark.parametrize("layout", [lambda x: x, sliced, lambda x: x.mT.contiguous().mT])
def test_operator_contract_holds_for_any_strides(layout):
    inputs = operands("depthwise_conv1d", "tiny")
    x, weight = layout(inputs["x"]).requires_grad_(), inputs["weight"].requires_grad_()
    torch.library.opcheck(ops.depthwise_conv1d, (x, weight, None, "silu", "reference"))
    assert torch.equal(depthwise_conv1d(x, weight), depthwise_conv1d(inputs["x"], weight))


def test_autocast_changes_nothing():
    inputs = operands("depthwise_conv1d", "tiny")
    wanted = numerics.forward_and_gradients(depthwise_conv1d, inputs, WRT)
    with torch.autocast("cpu", torch.bfloat16):
        results = numerics.forward_and_gradients(depthwise_conv1d, inputs, WRT)
    assert all(torch.equal(results[name], wanted[name]) for name in wanted)


def test_compiles_to_one_graph():
    inputs = operands("depthwise_conv1d", "tiny")
    compiled = torch.compile(depthwise_conv1d, fullgraph=True, backend="aot_eager")
    eager = numerics.forward_and_gradients(depthwise_conv1d, inputs, WRT)
    for name, value in numerics.forward_and_gradients(compiled, inputs, WRT).items():
        assert torch.equal(value, eager[name]), name


def test_neighbours_on_both_sides_count_and_the_ends_see_zeros():
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    y = depthwise_conv1d(x, torch.tensor([[100.0, 10.0, 1.0]]), activation=None)
    assert y.tolist() == [[[12.0, 123.0, 230.0]]]


def test_parameters_stay_fp32_beside_bf16_features():
    inputs = operands("depthwise_conv1d", "tiny")
    y = depthwise_conv1d(inputs["x"].bfloat16(), inputs["weight"].requires_grad_(), inputs["bias"])
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and inputs["weight"].grad.dtype == torch.float32


def test_backward_keeps_the_inputs_alone():
    inputs = operands("depthwise_conv1d", "odd")
    inputs["x"].requires_grad_()
    assert numerics.saved_bytes(depthwise_conv1d, inputs) == 4 * sum(value.numel() for value in inputs.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(weight=torch.zeros(3, 4)), ValueError, r"weight has shape \(3, 4\); wanted \(D, 3\) = \(3, 3\)"),
        (dict(bias=torch.zeros(4)), ValueError, "bias has shape"),
        (dict(x=torch.zeros(2, 3)), ValueError, r"wanted \(B, D, L\)"),
        (dict(x=torch.zeros(2, 3, 5, dtype=torch.int64)), TypeError, "x has dtype torch.int64"),
        (dict(activation="relu"), ValueError, "activation is 'relu'"),
        (dict(backend="mamba_ssm"), RuntimeError, "has no such variant; choose one of auto, "),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        depthwise_conv1d(**operands("depthwise_conv1d", "tiny") | change)
