"""transposed_attention: every variant against the order that the paper draws, and the contract with torch."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from variants import variants

from dakd.kernels import triton_runtime
from dakd.kernels.transposed_attention import cpu, ops, transposed_attention
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, operands, sliced

WRT = DIFFERENTIABLE["transposed_attention"]
FEATURES = ("q", "k", "v", "residual")

each_variant = pytest.mark.parametrize(("backend", "device"), variants("transposed_attention"))
each_triton = pytest.mark.parametrize(
    ("backend", "device"), [each for each in variants("transposed_attention") if each.values[0] == "triton"]
)
each_fp64_variant = pytest.mark.parametrize(
    ("backend", "device"), variants("transposed_attention", dtype=torch.float64)
)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _columns_first(x: torch.Tensor) -> torch.Tensor:
    """Dense, but H and W do not merge into one axis."""
    return x.mT.contiguous().mT


def _lay_out(inputs: dict, layout) -> dict:
    return inputs | {name: layout(inputs[name]) for name in FEATURES}


def _assert_matches_plain(inputs: dict, backend: str) -> None:
    with numerics.poisoned_memory():
        variant = partial(transposed_attention, backend=backend)
        numerics.assert_matches_plain(variant, plain.transposed_attention, inputs, WRT)


def _assert_output_matches_plain(inputs: dict, backend: str) -> None:
    with numerics.poisoned_memory():
        variant = partial(transposed_attention, backend=backend)
        numerics.assert_matches_plain(variant, plain.transposed_attention, inputs, ())


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["tiny", "one", "odd", "empty"])
def test_forward_and_gradients_match_plain_torch(shape, dtype, backend, device):
    _assert_matches_plain(operands("transposed_attention", shape, dtype=dtype, device=device), backend)


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [_channels_last, sliced, _columns_first])
def test_forward_and_gradients_match_plain_torch_in_any_layout(layout, dtype, backend, device):
    sizes = dict(batch=2, inner=6, channels=5, height=9, width=8, num_heads=2)
    inputs = operands("transposed_attention", sizes, dtype=dtype, device=device)
    _assert_matches_plain(_lay_out(inputs, layout), backend)


@each_variant
@pytest.mark.parametrize(
    "sizes",
    [
        dict(batch=1, inner=144, channels=20, height=2, width=3, num_heads=1),
        dict(batch=2, inner=12, channels=260, height=3, width=5, num_heads=3),
        dict(batch=4, inner=8, channels=3, height=1, width=5, num_heads=4),
        dict(batch=1, inner=16, channels=8, height=3, width=87, num_heads=1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_heads_many_channels_many_heads_and_many_pixels_match_plain_torch(sizes, dtype, backend, device):
    _assert_matches_plain(operands("transposed_attention", sizes, dtype=dtype, device=device), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [lambda x: x, _channels_last])
def test_cpu_adds_up_chunks_of_pixels(layout, dtype, monkeypatch):
    monkeypatch.setattr(cpu, "_CHUNK", 10)
    _assert_matches_plain(_lay_out(operands("transposed_attention", "odd", dtype=dtype), layout), "cpu")


@each_variant
def test_no_pixels_give_zero_gradients(backend, device):
    sizes = dict(batch=1, inner=4, channels=3, height=0, width=5, num_heads=2)
    inputs = operands("transposed_attention", sizes, device=device)
    with numerics.poisoned_memory():
        results = numerics.forward_and_gradients(partial(transposed_attention, backend=backend), inputs, WRT)
    assert not any(value.count_nonzero() for value in results.values())


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_means_and_large_temperatures_stay_within_budget(dtype, backend, device):
    sizes = dict(batch=2, inner=21, channels=9, height=7, width=9, num_heads=1)
    inputs = operands("transposed_attention", sizes, dtype=dtype, device=device)
    inputs |= {name: inputs[name] + 30 for name in ("q", "k")} | dict(temperature=inputs["temperature"] * 100)
    _assert_matches_plain(inputs, backend)


@each_variant
def test_residual_and_parameters_may_be_wider_than_the_features(backend, device):
    sizes = dict(batch=2, inner=24, channels=9, height=7, width=9, num_heads=3)
    inputs = operands("transposed_attention", sizes, dtype=torch.bfloat16, device=device)
    inputs |= {name: inputs[name].float() for name in ("residual", "temperature", "out_weight")}
    inputs["residual"] = _channels_last(inputs["residual"])
    _assert_matches_plain(inputs, backend)


@each_fp64_variant
@pytest.mark.parametrize("num_heads", [1, 2])
def test_gradients_pass_gradcheck(num_heads, backend, device):
    inputs = operands("transposed_attention", "tiny", dtype=torch.float64, device=device)
    inputs["temperature"] = inputs["temperature"][:num_heads].clone()
    tensors = [inputs[name].requires_grad_() for name in WRT]
    variant = partial(transposed_attention, num_heads=num_heads, backend=backend)
    assert torch.autograd.gradcheck(lambda *args: variant(*args), tensors)


@each_variant
@pytest.mark.parametrize("layout", [lambda x: x, _channels_last, sliced])
def test_operator_contract_holds_for_any_strides(layout, backend, device):
    inputs = _lay_out(operands("transposed_attention", "tiny", device=device), layout)
    for name in FEATURES:
        inputs[name].requires_grad_()
    torch.library.opcheck(ops.transposed_attention, (*inputs.values(), backend))


@each_variant
def test_two_calls_are_bitwise_equal(backend, device):
    sizes = dict(batch=1, inner=8, channels=6, height=3, width=60, num_heads=2)
    inputs = operands("transposed_attention", sizes, device=device)
    variant = partial(transposed_attention, backend=backend)
    first, second = (numerics.forward_and_gradients(variant, inputs, WRT) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_variant
def test_result_keeps_the_memory_format_and_dtype_of_the_residual(backend, device):
    inputs = operands("transposed_attention", "tiny", dtype=torch.bfloat16, device=device)
    residual = _channels_last(inputs["residual"].float())
    y = transposed_attention(**inputs | dict(residual=residual), backend=backend)
    assert y.dtype == torch.float32 and y.is_contiguous(memory_format=torch.channels_last)


@each_triton
@pytest.mark.parametrize("channels", [129, 300])
def test_triton_takes_three_launches_forward_and_three_backward(channels, backend, device, monkeypatch):
    launched = []
    launch = triton_runtime.launch

    def count(kernel, *arguments, **options):
        launched.append(kernel)
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(triton_runtime, "launch", count)
    sizes = dict(batch=1, inner=8, channels=channels, height=3, width=4, num_heads=2)
    inputs = operands("transposed_attention", sizes, device=device)
    inputs["q"].requires_grad_()
    y = transposed_attention(**inputs, backend=backend)
    assert len(launched) == 3
    y.sum().backward()
    assert len(launched) == 6


@each_triton
@pytest.mark.parametrize(("inner", "channels", "dtype"), [(20, 129, torch.bfloat16), (66, 6, torch.float16)])
def test_triton_applies_any_offered_number_of_pixels_and_tiles(inner, channels, dtype, backend, device, monkeypatch):
    room = pytest.importorskip("dakd.kernels.transposed_attention.triton")
    # 272 pixels: the last tile is cut, and the last program can have a tile beyond all pixels.
    sizes = dict(batch=1, inner=inner, channels=channels, height=16, width=17, num_heads=2)
    inputs = operands("transposed_attention", sizes, dtype=dtype, device=device)
    for num_pixels, num_tiles in product(room.APPLY_PIXELS, room.APPLY_TILES):
        monkeypatch.setattr(room, "_APPLY_PIXELS", num_pixels)
        monkeypatch.setattr(room, "_APPLY_TILES", num_tiles)
        _assert_output_matches_plain(inputs, backend)


@each_triton
@pytest.mark.parametrize(
    ("batch", "head_width", "num_heads", "channels", "num_pixels", "dtype"),
    [
        (1, 63, 1, 145, 144, torch.bfloat16),
        (1, 63, 1, 145, 144, torch.float32),
        (1, 130, 1, 145, 144, torch.bfloat16),
        (2, 33, 2, 145, 144, torch.bfloat16),
        (4, 19, 4, 145, 144, torch.bfloat16),
        # So many splits of the pixels that a program adds them in two steps.
        (1, 5, 1, 3, 8320, torch.float32),
    ],
)
def test_triton_folds_few_and_many_heads_of_odd_widths(
    batch, head_width, num_heads, channels, num_pixels, dtype, backend, device
):
    inner = num_heads * head_width
    sizes = dict(batch=batch, inner=inner, channels=channels, height=16, width=num_pixels // 16, num_heads=num_heads)
    _assert_output_matches_plain(operands("transposed_attention", sizes, dtype=dtype, device=device), backend)


@each_triton
@pytest.mark.parametrize("num_heads", [1, 4])
def test_triton_results_do_not_depend_on_the_order_of_arrival(num_heads, backend, device, monkeypatch):
    if not triton_runtime.is_interpreted():
        pytest.skip("a GPU's order cannot be set")
    builder = pytest.importorskip("triton.runtime.interpreter").interpreter_builder
    # With four heads, 16 in all and two slices of channels.
    sizes = dict(batch=num_heads, inner=18 * num_heads, channels=66, height=5, width=16, num_heads=num_heads)
    inputs = operands("transposed_attention", sizes, device=device)
    variant = partial(transposed_attention, backend=backend)
    wanted = numerics.forward_and_gradients(variant, inputs, WRT)
    set_grid_idx = builder.set_grid_idx

    def set_from_the_end(*program):
        set_grid_idx(*(num - 1 - index for num, index in zip(builder.grid_dim, program, strict=True)))

    monkeypatch.setattr(builder, "set_grid_idx", set_from_the_end)
    results = numerics.forward_and_gradients(variant, inputs, WRT)
    assert all(torch.equal(results[name], wanted[name]) for name in wanted)


def test_autocast_changes_nothing():
    inputs = operands("transposed_attention", "tiny")
    numerics.assert_autocast_changes_nothing(transposed_attention, inputs, WRT)


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
    numerics.assert_compiles_to_one_graph(transposed_attention, inputs, WRT)


def test_zero_output_weight_returns_the_residual_itself():
    inputs = operands("transposed_attention", "tiny")
    inputs["out_weight"].zero_()
    assert torch.equal(transposed_attention(**inputs), inputs["residual"])


@each_variant
def test_a_dead_query_channel_attends_evenly_and_gets_a_finite_gradient(backend, device):
    sizes = dict(batch=1, inner=3, channels=3, height=2, width=2, num_heads=1)
    inputs = operands("transposed_attention", sizes, device=device)
    inputs["q"][:, 0] = 0
    inputs |= dict(out_weight=torch.eye(3, device=device), residual=torch.zeros(1, 3, 2, 2, device=device))
    results = numerics.forward_and_gradients(partial(transposed_attention, backend=backend), inputs, WRT)
    torch.testing.assert_close(results["output 0"][:, 0], inputs["v"].mean(1))
    assert all(value.isfinite().all() for value in results.values())


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_dead_key_channel_spoils_no_other(dtype, backend, device):
    inputs = operands("transposed_attention", "tiny", dtype=dtype, device=device)
    inputs["k"][:, 2] = 0
    wanted = numerics.forward_and_gradients(plain.transposed_attention, {
        name: value.double() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }, WRT)  # fmt: skip
    results = numerics.forward_and_gradients(partial(transposed_attention, backend=backend), inputs, WRT)
    tolerance = 8 * torch.finfo(dtype).eps
    for name in ("dq", "dv"):
        torch.testing.assert_close(results[name].double(), wanted[name], rtol=tolerance, atol=tolerance)


@each_fp64_variant
def test_a_norm_below_its_minimum_does_not_vary(backend, device):
    inputs = operands("transposed_attention", "tiny", dtype=torch.float64, device=device)
    inputs["q"][:, 0] *= 1e-14
    inputs["k"][:, 2] *= 1e-14
    wanted = numerics.forward_and_gradients(plain.transposed_attention, inputs, WRT)
    results = numerics.forward_and_gradients(partial(transposed_attention, backend=backend), inputs, WRT)
    for name, value in results.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-10)


@each_variant
def test_backward_keeps_no_more_than_q_k_v_the_weights_and_two_small_matrices(backend, device):
    inputs = operands("transposed_attention", "odd", device=device)
    batch, inner, width, channels = 2, 63, 21, 129
    kept = sum(inputs[name].numel() for name in ("q", "k", "v", "temperature", "out_weight"))
    inputs["q"].requires_grad_()
    small = batch * inner * (width + 2) + batch * channels * inner
    assert numerics.saved_bytes(partial(transposed_attention, backend=backend), inputs) == 4 * (kept + small)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(num_heads=3), ValueError, "4 channels do not split into 3 heads"),
        (dict(k=torch.zeros(2, 4, 3, 2)), ValueError, "k has shape"),
        (dict(temperature=torch.zeros(2, 1, 1)), ValueError, "temperature has shape"),
        (dict(out_weight=torch.zeros(4, 3)), ValueError, r"expected \(C, R\) = \(3, 4\)"),
        (dict(v=torch.zeros(2, 4, 2, 3, dtype=torch.bfloat16)), TypeError, "v has dtype torch.bfloat16"),
        (dict(backend="cuda"), RuntimeError, "has no such variant"),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        transposed_attention(**operands("transposed_attention", "tiny") | change)
