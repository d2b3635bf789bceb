"""ddim_step: the fused form is the textbook step, and its noise belongs to (seed, step, sample)."""

from __future__ import annotations

import pytest
import torch

from dakd.kernels.ddim_step import ddim_step, ops
from dakd.testing import numerics, plain
from dakd.testing.inputs import operands


@pytest.mark.parametrize("label_update", ["softmax", "identity"])
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("shape", ["tiny", "one", "odd", "empty"])
def test_matches_plain_torch(shape, stochastic, label_update):
    inputs = operands("ddim_step", shape) | dict(stochastic=stochastic, label_update=label_update)
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(ddim_step, plain.ddim_step, inputs, ())


def test_fused_form_is_the_textbook_step():
    inputs = operands("ddim_step", "tiny", dtype=torch.float64)
    alpha_bar, alpha_bar_previous = 0.3, 0.4
    keep = ((1 - alpha_bar_previous) / (1 - alpha_bar)) ** 0.5
    take = alpha_bar_previous**0.5 - keep * alpha_bar**0.5
    result = ddim_step(
        **inputs | dict(coefficients=torch.tensor([[keep, take, 0.0]], dtype=torch.float64), step=torch.tensor(0))
    )

    def textbook(state: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        eps = (state - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5
        return alpha_bar_previous**0.5 * clean + (1 - alpha_bar_previous) ** 0.5 * eps

    torch.testing.assert_close(result.x, textbook(inputs["x"], inputs["x0_pred"].clamp(-1, 1)), rtol=1e-12, atol=1e-12)
    clean = 0.528 * (2 * inputs["logits"].softmax(1) - 1)
    torch.testing.assert_close(result.y, textbook(inputs["y"], clean), rtol=1e-12, atol=1e-12)


def test_last_step_returns_the_prediction_and_confident_logits_fill_the_range():
    inputs = operands("ddim_step", "tiny") | dict(coefficients=torch.tensor([[0.0, 1.0, 0.0]]), step=torch.tensor(0))
    inputs["logits"] = 200 * torch.nn.functional.one_hot(torch.zeros(2, 2, 3).long(), 3).permute(0, 3, 1, 2).float()
    result = ddim_step(**inputs)
    assert torch.equal(result.x, inputs["x0_pred"].clamp(-1, 1))
    assert torch.equal(result.y[:, 0], torch.full((2, 2, 3), 0.528))
    assert torch.equal(result.y[:, 1:], torch.full((2, 2, 2, 3), -0.528))


def test_noise_follows_seed_step_and_sample_and_only_when_asked():
    inputs = operands("ddim_step", "tiny")
    inputs["coefficients"] = torch.tensor([[1.0, 0.0, 1.0]]).repeat(20, 1)
    base = ddim_step(**inputs, stochastic=True).x
    assert torch.equal(ddim_step(**inputs).x, inputs["x"])
    for change in (dict(seed=4), dict(step=torch.tensor([8])), dict(sample_ids=inputs["sample_ids"] + 1)):
        assert not torch.equal(base, ddim_step(**inputs | change, stochastic=True).x)
    names = ("x", "y", "x0_pred", "logits", "sample_ids")
    part = ddim_step(**inputs | {name: inputs[name][1:] for name in names}, stochastic=True).x
    assert torch.equal(base[1:], part)


def test_network_inputs_are_the_new_state_in_the_wanted_dtype():
    inputs = operands("ddim_step", "tiny")
    result = ddim_step(**inputs, input_dtype=torch.bfloat16)
    assert torch.equal(result.x_input, result.x.bfloat16()) and torch.equal(result.y_input, result.y.bfloat16())
    assert ddim_step(**inputs, input_dtype=torch.float32).x_input.dtype == torch.float32


@pytest.mark.parametrize("input_dtype", [None, torch.bfloat16])
def test_operator_contract_holds(input_dtype):
    inputs = operands("ddim_step", "tiny")
    inputs["y"] = inputs["y"].contiguous(memory_format=torch.channels_last)
    tensors = [inputs[name] for name in ("x", "y", "x0_pred", "logits", "coefficients", "step", "sample_ids")]
    torch.library.opcheck(ops.ddim_step, (*tensors, 0.5, 1.0, "softmax", 1, input_dtype, "reference"))


def test_compiles_to_one_graph():
    inputs = operands("ddim_step", "tiny") | dict(stochastic=True, input_dtype=torch.bfloat16)
    compiled = torch.compile(ddim_step, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(**inputs), ddim_step(**inputs), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=torch.zeros(2, 1, 2, 3).bfloat16()), TypeError, "x has dtype torch.bfloat16; wanted torch.float32 or"),
        (dict(logits=torch.zeros(2, 2, 2, 3)), ValueError, "logits has shape"),
        (dict(coefficients=torch.zeros(20, 2)), ValueError, r"wanted \(S, 3\)"),
        (dict(step=torch.tensor([1, 2])), ValueError, r"step has shape \(2,\); wanted one element"),
        (dict(label_update="hard"), ValueError, "label_update is 'hard'"),
        (dict(stochastic=True, sample_ids=None), ValueError, "give the"),
        (dict(backend="cpu"), RuntimeError, "has no such variant"),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        ddim_step(**operands("ddim_step", "tiny") | change)
