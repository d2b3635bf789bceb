"""depthwise_conv1d: every variant against torch's convolution, in every order of memory; the contract with torch."""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch_threads import torch_threads
from variants import variants

from dakd.kernels import backend as backends
from dakd.kernels import extension, triton_runtime
from dakd.kernels.depthwise_conv1d import causal_conv1d, depthwise_conv1d, ops
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, operands, sliced

WRT = DIFFERENTIABLE["depthwise_conv1d"]
every_variant = pytest.mark.parametrize(("backend", "device"), variants("depthwise_conv1d"))
every_wide_variant = pytest.mark.parametrize(("backend", "device"), variants("depthwise_conv1d", dtype=torch.float64))
needs_library = pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))


def steps_inside(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous()


def channels_inside(x: torch.Tensor) -> torch.Tensor:
    """The same values with channels contiguous, as tokens (B, L, D) lie."""
    return x.mT.contiguous().mT


def half_of_tokens(x: torch.Tensor) -> torch.Tensor:
    """The same values as the second half of twice as wide tokens: what the mixer's chunk(2, dim=1) leaves."""
    return channels_inside(torch.cat([torch.full_like(x, float("nan")), x], dim=1)).chunk(2, dim=1)[1]


LAYOUTS = [steps_inside, channels_inside, half_of_tokens, sliced]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def assert_exact(backend: str, inputs: dict, **options) -> None:
    """Holds a variant's output and gradients to the error budget, with memory poisoned before."""
    call = partial(depthwise_conv1d, backend=backend, **options)
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(call, partial(plain.depthwise_conv1d, **options), inputs, WRT)


def results(backend: str, inputs: dict, **options) -> dict[str, torch.Tensor]:
    return numerics.forward_and_gradients(partial(depthwise_conv1d, backend=backend, **options), inputs, WRT)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["tiny", "one", "odd", "empty"])
def test_forward_and_gradients_match_plain_torch(backend, device, shape, dtype):
    assert_exact(backend, operands("depthwise_conv1d", shape, dtype=dtype, device=device))


@every_wide_variant
@every_layout
def test_float64_is_exact(backend, device, layout):
    inputs = operands("depthwise_conv1d", dict(batch=2, channels=17, length=35), dtype=torch.float64, device=device)
    assert_exact(backend, inputs | dict(x=layout(inputs["x"])))


@every_variant
@every_layout
@pytest.mark.parametrize(
    "shape",
    [(2, 1, 15), (1, 15, 16), (2, 17, 17), (1, 63, 33), (3, 16, 2), (1, 2, 257), (1, 40, 1), (2, 8, 49), (0, 5, 4)],
)
def test_any_size_in_any_order_of_memory_is_exact(backend, device, shape, layout):
    sizes = dict(zip(("batch", "channels", "length"), shape))
    inputs = operands("depthwise_conv1d", sizes, device=device)
    assert_exact(backend, inputs | dict(x=layout(inputs["x"])))


@every_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [channels_inside, half_of_tokens])
def test_narrow_tokens_are_exact(backend, device, layout, dtype):
    inputs = operands("depthwise_conv1d", dict(batch=2, channels=72, length=23), dtype=dtype, device=device)
    assert_exact(backend, inputs | dict(x=layout(inputs["x"])))


@every_variant
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", None])
def test_bias_and_activation_may_be_absent(backend, device, activation, bias):
    inputs = operands("depthwise_conv1d", dict(batch=2, channels=9, length=21), device=device)
    for layout in (steps_inside, channels_inside):
        given = inputs | dict(x=layout(inputs["x"])) | ({} if bias else dict(bias=None))
        assert_exact(backend, given, activation=activation)


@every_variant
@every_layout
def test_the_order_of_memory_goes_from_input_to_output(backend, device, layout):
    x = layout(operands("depthwise_conv1d", "tiny", device=device)["x"])
    y = depthwise_conv1d(x, torch.ones(3, 3, device=device), backend=backend)
    assert y.stride() == ((15, 1, 3) if layout in (channels_inside, half_of_tokens) else (15, 5, 1))


@every_variant
def test_a_cotangent_in_another_order_of_memory_is_read_where_it_lies(backend, device):
    inputs = operands("depthwise_conv1d", dict(batch=2, channels=19, length=37), device=device)
    for of_x in (steps_inside, channels_inside):
        x = of_x(inputs["x"]).requires_grad_()
        y = depthwise_conv1d(x, inputs["weight"], backend=backend)
        cotangent = numerics.seeded_like(y, 0)
        wanted = torch.autograd.grad(y, x, cotangent, retain_graph=True)[0]
        for layout in LAYOUTS:
            got = torch.autograd.grad(y, x, layout(cotangent), retain_graph=True)[0]
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@every_variant
def test_length_zero_gives_nothing_and_zero_gradients(backend, device):
    inputs = operands("depthwise_conv1d", dict(batch=2, channels=3, length=0), device=device)
    with numerics.poisoned_memory():
        found = results(backend, inputs)
    assert found["output 0"].shape == found["dx"].shape == (2, 3, 0)
    assert found["dweight"].eq(0).all() and found["dbias"].eq(0).all()


@every_variant
@pytest.mark.parametrize("layout", [steps_inside, channels_inside])
def test_two_calls_give_the_same_bits(backend, device, layout):
    inputs = operands("depthwise_conv1d", dict(batch=3, channels=21, length=33), device=device)
    inputs["x"] = layout(inputs["x"])
    first, second = (results(backend, inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_variant
def test_large_inputs_neither_overflow_nor_lose_digits(backend, device):
    inputs = operands("depthwise_conv1d", dict(batch=2, channels=5, length=40), device=device)
    for layout in (steps_inside, channels_inside):
        assert_exact(backend, inputs | dict(x=layout(300 * inputs["x"])))
        assert_exact(backend, inputs | dict(x=layout(inputs["x"] + 1e4)))


@every_wide_variant
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("layout", [steps_inside, channels_inside])
def test_gradients_pass_gradcheck(backend, device, activation, bias, layout):
    inputs = operands("depthwise_conv1d", "tiny", dtype=torch.float64, device=device)
    tensors = [layout(inputs["x"]), *(inputs[name] for name in WRT[1 : 3 if bias else 2])]
    call = partial(depthwise_conv1d, activation=activation, backend=backend)
    assert torch.autograd.gradcheck(call, [tensor.requires_grad_() for tensor in tensors])


@every_variant
@every_layout
def test_operator_contract_holds_for_any_strides(backend, device, layout):
    inputs = operands("depthwise_conv1d", "tiny", device=device)
    x, weight = layout(inputs["x"]).requires_grad_(), inputs["weight"].requires_grad_()
    torch.library.opcheck(ops.depthwise_conv1d, (x, weight, None, "silu", backend))


@every_variant
def test_autocast_changes_nothing(backend, device):
    inputs = operands("depthwise_conv1d", "tiny", device=device)
    numerics.assert_autocast_changes_nothing(partial(depthwise_conv1d, backend=backend), inputs, WRT)


@every_variant
def test_compiles_to_one_graph(backend, device):
    inputs = operands("depthwise_conv1d", "tiny", device=device)
    numerics.assert_compiles_to_one_graph(partial(depthwise_conv1d, backend=backend), inputs, WRT)


@every_variant
def test_neighbours_on_both_sides_count_and_the_ends_see_zeros(backend, device):
    x = torch.tensor([[[1.0, 2.0, 3.0]]], device=device)
    y = depthwise_conv1d(x, torch.tensor([[100.0, 10.0, 1.0]], device=device), activation=None, backend=backend)
    assert y.tolist() == [[[12.0, 123.0, 230.0]]]


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_keep_their_dtype_beside_narrow_features(backend, device, dtype):
    inputs = operands("depthwise_conv1d", dict(batch=2, channels=5, length=9), device=device)
    # Seen through a slice, as a parameter that is a part of another.
    weight = torch.stack([inputs["weight"]] * 2, dim=2).to(dtype)[..., 1].requires_grad_()
    bias = inputs["bias"].to(dtype).requires_grad_()
    x = inputs["x"].bfloat16()
    y = depthwise_conv1d(x, weight, bias, backend=backend)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and weight.grad.dtype == bias.grad.dtype == dtype
    wanted = plain.depthwise_conv1d(x.float(), weight.detach().float(), bias.detach().float())
    torch.testing.assert_close(y, wanted.bfloat16())


@every_variant
def test_backward_keeps_the_inputs_alone(backend, device):
    inputs = operands("depthwise_conv1d", "tiny", device=device)
    inputs["x"].requires_grad_()
    call = partial(depthwise_conv1d, backend=backend)
    assert numerics.saved_bytes(call, inputs) == 4 * sum(value.numel() for value in inputs.values())


def test_triton_launches_once_forward_and_twice_backward(monkeypatch):
    launched = []
    monkeypatch.setattr(triton_runtime, "launch", lambda kernel, *_args, **_options: launched.append(kernel.__name__))
    from dakd.kernels.depthwise_conv1d import triton as variant

    x, weight = torch.empty(144, 196, 256, device="meta").mT, torch.empty(256, 3, device="meta")
    given = ops.Operands(x, weight, None, "silu")
    variant.forward(given, torch.empty_like(x))
    assert launched == ["_forward_kernel"]
    gradients = (torch.empty_like(x), torch.empty_like(weight), weight.new_empty(0))
    variant.backward(given, x, gradients)
    assert launched[1:] == ["_backward_kernel", "_sum_kernel"]


@needs_library
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@every_layout
def test_every_instruction_set_is_exact(isa, dtype, layout):
    if not extension.has_cpu_isa(isa):
        pytest.skip(f"this processor has no {isa}")
    with extension.using_cpu_isa(isa):
        for channels, length in ((1, 17), (16, 5), (37, 33), (3, 70)):
            shape = dict(batch=2, channels=channels, length=length)
            inputs = operands("depthwise_conv1d", shape, dtype=dtype)
            assert_exact("cpu", inputs | dict(x=layout(inputs["x"])))


@needs_library
@every_layout
def test_the_number_of_threads_does_not_change_a_bit(layout):
    inputs = operands("depthwise_conv1d", dict(batch=6, channels=70, length=40))
    inputs["x"] = layout(inputs["x"])
    found = []
    for num_threads in (1, 2):
        with torch_threads(num_threads):
            found.append(results("cpu", inputs))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.fixture
def package(monkeypatch):
    """A stand-in for causal-conv1d on the CPU: its signature, its kind of autograd function, its demands on strides."""
    package = ModuleType("causal_conv1d")
    package.causal_conv1d_fn = _causal_conv1d
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    monkeypatch.setattr(causal_conv1d, "why_not", lambda device_type: None)
    monkeypatch.setenv("CAUSAL_CONV1D_DETERMINISTIC", "1")
    backends.load.cache_clear()
    yield package
    backends.load.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 1), (2, 16, 33), (0, 4, 7)])
@every_layout
def test_the_package_serves_by_one_zero_and_one_step(package, shape, layout, dtype):
    inputs = operands("depthwise_conv1d", dict(zip(("batch", "channels", "length"), shape)), dtype=dtype)
    assert_exact("causal_conv1d", inputs | dict(x=layout(inputs["x"])))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", None])
def test_the_package_serves_without_bias_and_activation(package, activation, bias):
    inputs = operands("depthwise_conv1d", dict(batch=2, channels=8, length=9)) | ({} if bias else dict(bias=None))
    for layout in LAYOUTS:
        assert_exact("causal_conv1d", inputs | dict(x=layout(inputs["x"])), activation=activation)


def test_the_package_has_no_float64(package):
    inputs = operands("depthwise_conv1d", "tiny", dtype=torch.float64)
    with pytest.raises(RuntimeError, match="'causal_conv1d' cannot run on cpu: it has no float64"):
        depthwise_conv1d(**inputs, backend="causal_conv1d")


def test_a_package_that_does_not_run_is_named_as_the_reason(monkeypatch, package):
    def broken(*_args, **_kwargs):
        raise OSError("undefined symbol")

    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    monkeypatch.setattr(package, "causal_conv1d_fn", broken)
    monkeypatch.setattr(torch, "ones", lambda *shape, device=None: torch.zeros(*shape) + 1)
    causal_conv1d.why_not.cache_clear()
    assert causal_conv1d.why_not("cuda") == "causal-conv1d is not usable (OSError: undefined symbol)"
    assert causal_conv1d.why_not("cpu") == "causal-conv1d runs only on CUDA"
    causal_conv1d.why_not.cache_clear()


def test_auto_prefers_triton_to_the_package(monkeypatch, package):
    monkeypatch.setattr(triton_runtime, "is_interpreted", lambda: False)
    monkeypatch.setattr(triton_runtime, "why_not", lambda device_type: None)
    assert backends.choose("depthwise_conv1d", "cuda").chosen == "triton"
    monkeypatch.setattr(triton_runtime, "why_not", lambda device_type: "triton is not installed")
    assert backends.choose("depthwise_conv1d", "cuda").chosen == "causal_conv1d"


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, activation):
        _check_strides(x)
        ctx.save_for_backward(x, weight, bias)
        ctx.activation = activation
        return _causal(x, weight, bias, activation)

    @staticmethod
    def backward(ctx, dout):
        tensors = ctx.saved_tensors
        _check_strides(dout)
        assert (dout.stride(2) == 1) == (tensors[0].stride(2) == 1), "the package would copy dout"
        present = [index for index, tensor in enumerate(tensors) if tensor is not None]

        def cotangent_sum(*changed):
            given = dict(enumerate(tensors)) | dict(zip(present, changed))
            return (_causal(*given.values(), ctx.activation).float() * dout.float()).sum()

        gradients = torch.func.grad(cotangent_sum, tuple(range(len(present))))(*(tensors[i] for i in present))
        return (*gradients, *[None] * (4 - len(present)))


def _causal_conv1d(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
                   final_states_out=None, activation=None):  # fmt: skip
    assert x.numel() > 0, "an empty grid is a CUDA error"
    return _CausalConv1d.apply(x, weight, bias, activation)


def _causal(x, weight, bias, activation):
    wide = F.conv1d(x.float(), weight.unsqueeze(1), bias, padding=2, groups=x.shape[1])[..., : x.shape[2]]
    return (F.silu(wide) if activation == "silu" else wide).to(x.dtype)


def _check_strides(x):
    assert x.stride(2) == 1 or x.stride(1) == 1
    if x.stride(1) == 1 and x.stride(2) > 1:
        assert x.shape[1] % 8 == x.stride(0) % 8 == x.stride(2) % 8 == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(weight=torch.zeros(3, 4)), ValueError, r"weight has shape \(3, 4\); expected \(D, 3\) = \(3, 3\)"),
        (dict(bias=torch.zeros(4)), ValueError, "bias has shape"),
        (dict(x=torch.zeros(2, 3)), ValueError, r"expected \(B, D, L\)"),
        (dict(x=torch.zeros(2, 3, 5, dtype=torch.int64)), TypeError, "x has dtype torch.int64"),
        (dict(activation="relu"), ValueError, "activation is 'relu'"),
        (dict(backend="mamba_ssm"), RuntimeError, "has no such variant; choose one of auto, "),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        depthwise_conv1d(**operands("depthwise_conv1d", "tiny") | change)
