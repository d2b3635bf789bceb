"""ddim_step: the fused form is the textbook step, and its noise belongs to (seed, step, sample)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch_threads import torch_threads
from variants import variants

from dakd.kernels import extension, triton_runtime
from dakd.kernels.ddim_step import ddim_step, ops
from dakd.testing import numerics, plain
from dakd.testing.inputs import SHAPES, operands, sliced

VARIANTS = variants("ddim_step")
FEATURES = ("x", "y", "x0_pred", "logits")
BEFORE = ("x0_before", "logits_before")
# Small enough for Triton's interpreter; its blocks of noise span channels and its last program is not full.
ODD = dict(batch=2, num_classes=5, height=7, width=9)


def inputs_of(shape, order, **settings):
    """The op's operands; with order 2 also the estimates of the step before."""
    sizes = SHAPES["ddim_step"][shape] if isinstance(shape, str) else shape
    return operands("ddim_step", sizes | dict(order=order), **settings)


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("label_update", ["softmax", "identity"])
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shape", ["tiny", "one", ODD, "empty"], ids=["tiny", "one", "odd", "empty"])
def test_matches_plain_torch(shape, order, stochastic, label_update, backend, device):
    inputs = inputs_of(shape, order, device=device) | dict(stochastic=stochastic, label_update=label_update)
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(partial(ddim_step, backend=backend), plain.ddim_step, inputs, ())


@pytest.mark.parametrize(("backend", "device"), variants("ddim_step", without=("triton",)))
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("shape", ["odd", dict(batch=1, num_classes=5, height=100, width=97)], ids=["odd", "wide"])
def test_matches_plain_torch_on_many_pixels(shape, stochastic, order, backend, device):
    inputs = inputs_of(shape, order, device=device) | dict(stochastic=stochastic)
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(partial(ddim_step, backend=backend), plain.ddim_step, inputs, ())


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("num_classes", [2, 5, 6])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_matches_plain_torch(isa, num_classes, order):
    if not extension.has_cpu_isa(isa):
        pytest.skip(f"this processor has no {isa}")
    # More than a chunk of pixels, and the last is not full.
    sizes = dict(batch=2, num_classes=num_classes, height=31, width=36)
    inputs = inputs_of(sizes, order) | dict(stochastic=True)
    for dtype in (torch.bfloat16, torch.float16):
        predictions = {name: inputs[name].to(dtype) for name in ("x0_pred", "logits", *BEFORE) if name in inputs}
        with extension.using_cpu_isa(isa), numerics.poisoned_memory():
            result = ddim_step(**inputs | predictions, input_dtype=dtype, backend="cpu")
        exact = plain.ddim_step(**inputs | {name: value.double() for name, value in (inputs | predictions).items()
                                            if name in (*FEATURES, *BEFORE, "coefficients")})  # fmt: skip
        eager = plain.ddim_step(**inputs | predictions)
        for name, got, wanted, other in zip(("x", "y"), result[:2], exact, eager):
            numerics.assert_within_budget(name, got, wanted, other)
        assert torch.equal(result.x_input, result.x.to(dtype)) and torch.equal(result.y_input, result.y.to(dtype))


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_results_too_large_for_a_cache_are_those_of_small_ones(isa):
    # 19 MiB of results go past the caches, a sample's 6 MiB do not.
    if not extension.has_cpu_isa(isa):
        pytest.skip(f"this processor has no {isa}")
    inputs = inputs_of(dict(batch=3, num_classes=2, height=720, width=736), order=2)
    with extension.using_cpu_isa(isa):
        whole = ddim_step(**inputs, input_dtype=torch.bfloat16, backend="cpu")
        parts = [ddim_step(**inputs | {name: inputs[name][i : i + 1] for name in (*FEATURES, *BEFORE, "sample_ids")},
                           input_dtype=torch.bfloat16, backend="cpu") for i in range(3)]  # fmt: skip
    for together, *alone in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
@pytest.mark.parametrize("order", [1, 2])
def test_the_number_of_threads_does_not_change_a_bit(order):
    inputs = inputs_of(dict(batch=3, num_classes=5, height=61, width=67), order) | dict(stochastic=True)
    found = []
    for num_threads in (1, 3):
        with torch_threads(num_threads), numerics.poisoned_memory():
            found.append(ddim_step(**inputs, input_dtype=torch.bfloat16, backend="cpu"))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(("backend", "device"), variants("ddim_step", without=("triton", "cuda")))
def test_a_step_outside_the_table_is_refused_on_a_cpu(backend, device):
    inputs = operands("ddim_step", "tiny", device=device) | dict(step=torch.tensor([20], device=device))
    if device == "cpu":
        with pytest.raises((RuntimeError, IndexError), match=r"outside the table|out of range"):
            ddim_step(**inputs, backend=backend)


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("num_classes", [1, 2, 4, 6, 7, 8, 11, 18])
def test_matches_plain_torch_for_any_number_of_classes(num_classes, order, backend, device):
    sizes = dict(batch=2, num_classes=num_classes, height=6, width=10)
    inputs = inputs_of(sizes, order, device=device) | dict(stochastic=True)
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(partial(ddim_step, backend=backend), plain.ddim_step, inputs, ())


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("scale", [1e-30, 300.0, 1e30])
def test_matches_plain_torch_for_extreme_logits(scale, backend, device):
    inputs = operands("ddim_step", "tiny", device=device)
    inputs["logits"] = inputs["logits"] * scale
    numerics.assert_matches_plain(partial(ddim_step, backend=backend), plain.ddim_step, inputs, ())


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
def test_any_layout_and_dtype_of_the_operands_gives_the_same_numbers(layout, dtype, backend, device):
    sizes = dict(batch=2, num_classes=3, height=4, width=6)
    inputs = inputs_of(sizes, 2, device=device) | dict(stochastic=True, input_dtype=dtype, backend=backend)
    predictions = {name: inputs[name].to(dtype) for name in ("x0_pred", "logits", *BEFORE)}
    wanted = ddim_step(**inputs | {name: value.float() for name, value in predictions.items()})
    lay_out = {
        "contiguous": lambda tensor: tensor,
        "channels_last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
        "sliced": sliced,
        "transposed": lambda tensor: tensor.mT.contiguous().mT,
    }[layout]
    placed = {name: lay_out(value) for name, value in (inputs | predictions).items() if name in (*FEATURES, *BEFORE)}
    mixed = {name: value for name, value in placed.items() if name in ("x", "logits", "x0_before")}
    for change in (placed, predictions | mixed):
        with numerics.poisoned_memory():
            got = ddim_step(**inputs | change)
        for tensor, like in zip(got, wanted, strict=True):
            assert torch.equal(tensor, like)


def test_float64_state_is_advanced_in_float64():
    inputs = inputs_of("odd", 2, dtype=torch.float64) | dict(stochastic=True)
    result = ddim_step(**inputs)
    assert result.y.dtype == torch.float64
    numerics.assert_matches_plain(ddim_step, plain.ddim_step, inputs, ())


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_fused_form_is_the_textbook_step(backend):
    inputs = operands("ddim_step", "tiny", dtype=torch.float64) | dict(backend=backend)
    alpha_bar, alpha_bar_previous = 0.3, 0.4
    keep = ((1 - alpha_bar_previous) / (1 - alpha_bar)) ** 0.5
    take = alpha_bar_previous**0.5 - keep * alpha_bar**0.5
    result = ddim_step(
        **inputs | dict(coefficients=torch.tensor([[keep, take, 0.0, 0.0]], dtype=torch.float64), step=torch.tensor(0))
    )

    def textbook(state: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        eps = (state - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5
        return alpha_bar_previous**0.5 * clean + (1 - alpha_bar_previous) ** 0.5 * eps

    torch.testing.assert_close(result.x, textbook(inputs["x"], inputs["x0_pred"].clamp(-1, 1)), rtol=1e-12, atol=1e-12)
    clean = 0.528 * (2 * inputs["logits"].softmax(1) - 1)
    torch.testing.assert_close(result.y, textbook(inputs["y"], clean), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_estimates_of_the_step_before_count_by_the_third_coefficient_alone(backend, device):
    inputs = inputs_of("tiny", 2, device=device) | dict(backend=backend)
    plainly = {name: value for name, value in inputs.items() if name not in BEFORE}
    without = inputs["coefficients"].clone()
    without[:, 2] = 0
    one, other = ddim_step(**inputs | dict(coefficients=without)), ddim_step(**plainly)
    assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)
    doubled = inputs["coefficients"].clone()
    doubled[:, 2] *= 2
    with_it, twice = ddim_step(**inputs), ddim_step(**inputs | dict(coefficients=doubled))
    C = inputs["coefficients"][7, 2]
    clean = C * inputs["x0_before"].clamp(-1, 1)
    torch.testing.assert_close(with_it.x - one.x, clean, rtol=0, atol=1e-6)
    torch.testing.assert_close(twice.x - with_it.x, clean, rtol=0, atol=1e-6)
    torch.testing.assert_close(with_it.y - one.y, C * 0.528 * (2 * inputs["logits_before"].softmax(1) - 1),
                               rtol=0, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_last_step_returns_the_prediction_and_confident_logits_fill_the_range(backend, device):
    inputs = operands("ddim_step", "tiny", device=device)
    inputs |= dict(coefficients=torch.tensor([[0.0, 1, 0, 0]], device=device), step=torch.tensor(0, device=device))
    certain = torch.zeros(2, 2, 3, device=device).long()
    inputs["logits"] = 200 * torch.nn.functional.one_hot(certain, 3).permute(0, 3, 1, 2).float()
    result = ddim_step(**inputs, backend=backend)
    assert torch.equal(result.x, inputs["x0_pred"].clamp(-1, 1))
    assert torch.equal(result.y[:, 0].cpu(), torch.full((2, 2, 3), 0.528))
    assert torch.equal(result.y[:, 1:].cpu(), torch.full((2, 2, 2, 3), -0.528))


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_noise_follows_seed_step_and_sample_and_only_when_asked(backend, device):
    inputs = operands("ddim_step", "tiny", device=device) | dict(backend=backend)
    inputs["coefficients"] = torch.tensor([[1.0, 0.0, 0.0, 1.0]], device=device).repeat(20, 1)
    base = ddim_step(**inputs, stochastic=True).x
    assert torch.equal(ddim_step(**inputs).x, inputs["x"])
    step = torch.tensor([8], device=device)
    for change in (dict(seed=4), dict(seed=3 + 2**32), dict(step=step), dict(sample_ids=inputs["sample_ids"] + 1)):
        assert not torch.equal(base, ddim_step(**inputs | change, stochastic=True).x)
    names = (*FEATURES, "sample_ids")
    part = ddim_step(**inputs | {name: inputs[name][1:] for name in names}, stochastic=True).x
    assert torch.equal(base[1:], part)


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("seed", [2**31, 2**63 + 5, 2**64 - 1])
def test_noise_is_that_of_the_definition_for_any_seed(seed, backend, device):
    inputs = operands("ddim_step", "tiny", device=device) | dict(stochastic=True, seed=seed)
    inputs["sample_ids"] = torch.tensor([2**60 - 1, 2**31], device=device)
    numerics.assert_matches_plain(partial(ddim_step, backend=backend), plain.ddim_step, inputs, ())


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_network_inputs_are_the_new_state_in_the_wanted_dtype(backend, device):
    inputs = operands("ddim_step", "tiny", device=device) | dict(backend=backend)
    for dtype in (torch.bfloat16, torch.float16):
        result = ddim_step(**inputs, input_dtype=dtype)
        for got, state in ((result.x_input, result.x), (result.y_input, result.y)):
            if backend == "triton" and device == "cpu":
                # The interpreter cuts bf16 numbers off where a GPU rounds them.
                numerics.assert_within_budget("input", got, state.double())
            else:
                assert torch.equal(got, state.to(dtype))
    assert ddim_step(**inputs, input_dtype=torch.float32).x_input.dtype == torch.float32


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("label_update", ["softmax", "identity"])
def test_a_prediction_that_is_not_a_number_is_not_clamped_away(label_update, backend, device):
    inputs = operands("ddim_step", "tiny", device=device)
    inputs["x0_pred"][0, 0, 1, 2] = inputs["logits"][1, 0, 0, 1] = float("nan")
    result = ddim_step(**inputs, label_update=label_update, backend=backend)
    wanted = plain.ddim_step(**inputs, label_update=label_update)
    assert torch.equal(result.x.isnan(), wanted[0].isnan()) and torch.equal(result.y.isnan(), wanted[1].isnan())
    assert int(result.x.isnan().sum()) == 1


@pytest.mark.parametrize(("backend", "device"), variants("ddim_step", without=("reference", "cpu")))
@pytest.mark.parametrize("step", [-1, 20])
def test_a_step_outside_the_table_is_not_a_number(step, backend, device):
    inputs = operands("ddim_step", "tiny", device=device) | dict(step=torch.tensor([step], device=device))
    result = ddim_step(**inputs, backend=backend)
    assert bool(result.x.isnan().all()) and bool(result.y.isnan().all())


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_two_calls_give_the_same_bits(backend, device):
    inputs = operands("ddim_step", "tiny", device=device) | dict(stochastic=True, backend=backend)
    for first, second in zip(ddim_step(**inputs), ddim_step(**inputs), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(("backend", "device"), variants("ddim_step", without=("reference", "cpu", "cuda")))
def test_both_modalities_take_one_launch(backend, device, monkeypatch):
    launches, launch = [], triton_runtime.launch
    monkeypatch.setattr(triton_runtime, "launch", lambda *args, **kwargs: launches.append(launch(*args, **kwargs)))
    inputs = operands("ddim_step", "tiny", device=device)
    ddim_step(**inputs, stochastic=True, input_dtype=torch.bfloat16, backend=backend)
    assert len(launches) == 1
    ddim_step(**inputs_of("tiny", 2, device=device), stochastic=True, input_dtype=torch.bfloat16, backend=backend)
    assert len(launches) == 2


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("input_dtype", [None, torch.bfloat16])
def test_operator_contract_holds(input_dtype, order, backend, device):
    inputs = inputs_of("tiny", order, device=device)
    inputs["y"] = inputs["y"].contiguous(memory_format=torch.channels_last)
    tensors = [inputs.get(name) for name in (*FEATURES, *BEFORE, "coefficients", "step", "sample_ids")]
    torch.library.opcheck(ops.ddim_step, (*tensors, 0.5, 1.0, "softmax", 1, input_dtype, backend))


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_compiles_to_one_graph(backend, device):
    inputs = inputs_of("tiny", 2, device=device)
    inputs |= dict(stochastic=True, input_dtype=torch.bfloat16, backend=backend)
    compiled = torch.compile(ddim_step, fullgraph=True, backend="aot_eager")
    for seed in (3, 4, 2**63 + 5):
        change = inputs | dict(seed=seed)
        for got, wanted in zip(compiled(**change), ddim_step(**change), strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=torch.zeros(2, 1, 2, 3).bfloat16()), TypeError, "x has dtype torch.bfloat16; expected torch.float32"),
        (dict(logits=torch.zeros(2, 2, 2, 3)), ValueError, "logits has shape"),
        (dict(coefficients=torch.zeros(20, 3)), ValueError, r"expected \(S, 4\)"),
        (dict(x0_before=torch.zeros(2, 1, 2, 3)), ValueError, "x0_before is given and logits_before is None"),
        (dict(x0_before=torch.zeros(2, 1, 2, 3), logits_before=torch.zeros(2, 2, 2, 3)), ValueError,
         "logits_before has shape"),
        (dict(x0_before=torch.zeros(2, 1, 2, 3).int(), logits_before=torch.zeros(2, 3, 2, 3)), TypeError,
         "x0_before has dtype torch.int32"),
        (dict(step=torch.tensor([1, 2])), ValueError, r"step has shape \(2,\); expected one element"),
        (dict(label_update="hard"), ValueError, "label_update is 'hard'"),
        (dict(stochastic=True, sample_ids=None), ValueError, "give the"),
        (dict(seed=2**64), ValueError, "seed is 18446744073709551616; expected an integer from 0"),
        (dict(backend="mamba_ssm"), RuntimeError, "has no such variant"),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        ddim_step(**operands("ddim_step", "tiny") | change)
