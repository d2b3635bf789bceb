"""selective_scan: every variant against a plain loop under autograd, across chunk borders; the contract with torch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from variants import variants

from dakd.kernels import triton_runtime
from dakd.kernels.selective_scan import ops, reference, selective_scan
from dakd.testing import numerics, plain
from dakd.testing.inputs import DIFFERENTIABLE, operands, sliced

WRT = DIFFERENTIABLE["selective_scan"]
FEATURES = ("u", "delta", "B", "C")
# Two channel blocks of Triton's, a last tile that is cut, and small enough for its interpreter.
ODD = dict(batch=2, channels=37, states=3, length=13)
every_variant = pytest.mark.parametrize(("backend", "device"), variants("selective_scan"))
triton_variant = pytest.mark.parametrize(
    ("backend", "device"), [variant for variant in variants("selective_scan") if variant.values[0] == "triton"]
)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with dimension 1 contiguous, as a projection of tokens (B, L, C) leaves them."""
    return tensor.mT.contiguous().mT


def within(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a slice of wider tokens, as a split of one projection leaves them."""
    tokens = tensor.new_zeros(tensor.shape[0], tensor.shape[2], tensor.shape[1] + 5)
    tokens[..., 3:-2] = tensor.mT
    return tokens[..., 3:-2].mT


def assert_exact(backend: str, inputs: dict, factor: float = 2.0, **options) -> None:
    """Holds a variant's output and gradients to the error budget, with memory poisoned before."""
    call = partial(selective_scan, backend=backend, **options)
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(call, partial(plain.selective_scan, **options), inputs, WRT, factor)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["tiny", "one", "empty", ODD, pytest.param("odd", marks=pytest.mark.slow)], ids=str)
def test_forward_and_gradients_match_plain_torch(backend, device, shape, dtype):
    assert_exact(backend, operands("selective_scan", shape, dtype=dtype, device=device))


@every_variant
@pytest.mark.parametrize("states", [1, 5, 8, 16, 17])
def test_any_number_of_states_is_exact(backend, device, states):
    shape = dict(batch=1, channels=3, states=states, length=6)
    assert_exact(backend, operands("selective_scan", shape, device=device))


@every_variant
def test_parameters_keep_their_precision_beside_narrow_features(backend, device):
    inputs = operands("selective_scan", "tiny", dtype=torch.bfloat16, device=device)
    wide = operands("selective_scan", "tiny", device=device)
    parameters = {name: wide[name] for name in ("A", "D", "delta_bias")}
    call = partial(selective_scan, backend=backend)
    got = numerics.forward_and_gradients(call, inputs | parameters, WRT)
    as_float = {name: inputs[name].float() for name in FEATURES} | parameters
    wanted = numerics.forward_and_gradients(plain.selective_scan, as_float, ())
    torch.testing.assert_close(got["output 0"], wanted["output 0"].bfloat16())
    assert all(got[f"d{name}"].dtype == torch.float32 for name in parameters)


@every_variant
@pytest.mark.parametrize("delta_softplus", [True, False])
@pytest.mark.parametrize("absent", [("D",), ("delta_bias",), ("D", "delta_bias")])
def test_what_is_optional_may_be_absent(backend, device, delta_softplus, absent):
    inputs = operands("selective_scan", "tiny", device=device) | dict.fromkeys(absent)
    if not delta_softplus:
        # A step of unit size below zero would make the states grow.
        inputs |= {name: 0.1 * inputs[name] for name in ("delta", "delta_bias") if inputs[name] is not None}
    assert_exact(backend, inputs, delta_softplus=delta_softplus)


@every_variant
@pytest.mark.parametrize("layout", [sliced, channels_last, within])
def test_strides_do_not_change_a_bit(backend, device, layout):
    inputs = operands("selective_scan", dict(batch=2, channels=35, states=2, length=6), device=device)
    call = partial(selective_scan, backend=backend)
    wanted = numerics.forward_and_gradients(call, inputs, WRT)
    strided = inputs | {name: layout(inputs[name]) for name in FEATURES}
    results = numerics.forward_and_gradients(call, strided, WRT)
    assert all(torch.equal(results[name], wanted[name]) for name in wanted)


@every_variant
def test_a_strided_cotangent_is_read_where_it_lies(backend, device):
    inputs = operands("selective_scan", "tiny", device=device)
    call = partial(selective_scan, backend=backend)
    wanted = numerics.forward_and_gradients(call, inputs, WRT)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    y = call(**leaves)
    gradients = torch.autograd.grad(y, list(leaves.values()), channels_last(numerics.seeded_like(y, 0)))
    assert all(torch.equal(gradient, wanted[f"d{name}"]) for name, gradient in zip(leaves, gradients))


@every_variant
def test_two_calls_give_the_same_bits(backend, device):
    inputs = operands("selective_scan", ODD, device=device)
    call = partial(selective_scan, backend=backend)
    first, second = (numerics.forward_and_gradients(call, inputs, WRT) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_variant
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("shift", [-80.0, -15.0, -6.0, 0.0, 6.0, 19.9, 40.0])
def test_softplus_is_exact_from_its_tail_to_its_line(backend, device, size, shift):
    inputs = operands("selective_scan", dict(batch=1, channels=8, states=2, length=6), device=device)
    delta = inputs["delta"] * size + shift
    assert_exact(backend, inputs | dict(delta=delta, delta_bias=None))


@every_variant
def test_large_inputs_stay_exact(backend, device):
    inputs = operands("selective_scan", "tiny", device=device)
    assert_exact(backend, inputs | dict(u=1e3 * inputs["u"] + 1e4, B=1e3 * inputs["B"]))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 64])
def test_chunk_borders_do_not_show(monkeypatch, length):
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 1)
    shape = dict(batch=2, channels=3, states=2, length=length)
    inputs = operands("selective_scan", shape, dtype=torch.float64)
    wanted = numerics.forward_and_gradients(plain.selective_scan, inputs, WRT)
    found = numerics.forward_and_gradients(partial(selective_scan, backend="reference"), inputs, WRT)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-11, atol=1e-11)


def cut_short(monkeypatch, triton_room) -> None:
    """Makes Triton's variant cut any sequence longer than eight steps into chunks of eight."""
    monkeypatch.setattr(triton_room, "_WHOLE_LENGTH", 8)
    monkeypatch.setattr(triton_room, "_MIN_CHUNK", 8)


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """The names of the Triton kernels that are launched during a test, in order."""
    names = []
    launch = triton_runtime.launch

    def counted(kernel, *arguments, **options):
        names.append(kernel.__name__)
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(triton_runtime, "launch", counted)
    return names


@triton_variant
@pytest.mark.parametrize("length", [9, 16, 27])
def test_triton_chunks_do_not_show(monkeypatch, backend, device, length):
    triton_room = pytest.importorskip("dakd.kernels.selective_scan.triton")
    shape = dict(batch=1, channels=34 if length == 9 else 2, states=2, length=length)
    inputs = operands("selective_scan", shape, device=device)
    call = partial(selective_scan, backend=backend)
    whole = numerics.forward_and_gradients(call, inputs, WRT)
    cut_short(monkeypatch, triton_room)
    assert triton_room._chunks(inputs["u"])[:2] == (8, -(-length // 8))
    assert_exact(backend, inputs)
    cut = numerics.forward_and_gradients(call, inputs, WRT)
    # The first chunk starts from zero in both.
    assert torch.equal(cut["output 0"][..., :8], whole["output 0"][..., :8])


@triton_variant
@pytest.mark.parametrize("length", [17, 28])
def test_triton_is_exact_whatever_the_distance_of_kept_states(monkeypatch, backend, device, length):
    # No multiple of the four and eight steps between kept states; the last tile is cut, or the last group short.
    triton_room = pytest.importorskip("dakd.kernels.selective_scan.triton")
    inputs = operands("selective_scan", dict(batch=1, channels=3, states=5, length=length), device=device)
    for distance in triton_room.CHECKPOINT_TILES:
        monkeypatch.setattr(triton_room, "_CHECKPOINT_TILES", distance)
        assert_exact(backend, inputs)


@triton_variant
@pytest.mark.parametrize("length", [25, 28])
def test_triton_chunks_are_exact_whatever_the_distance_of_kept_states(monkeypatch, backend, device, length):
    triton_room = pytest.importorskip("dakd.kernels.selective_scan.triton")
    monkeypatch.setattr(triton_room, "_WHOLE_LENGTH", 24)
    monkeypatch.setattr(triton_room, "_MIN_CHUNK", 24)
    inputs = operands("selective_scan", dict(batch=1, channels=2, states=2, length=length), device=device)
    # The second chunk ends in a cut tile, or in the middle of the tiles between two kept states.
    assert triton_room._chunks(inputs["u"])[:2] == (16, 2)
    for distance in triton_room.CHECKPOINT_TILES:
        monkeypatch.setattr(triton_room, "_CHECKPOINT_TILES", distance)
        assert_exact(backend, inputs)


@triton_variant
def test_triton_keeps_fewer_states_at_a_greater_distance(monkeypatch, backend, device):
    triton_room = pytest.importorskip("dakd.kernels.selective_scan.triton")
    inputs = operands("selective_scan", dict(batch=1, channels=1, states=1, length=32), device=device)
    rows = []
    launch = triton_runtime.launch

    def counted(kernel, grid, *arguments, **options):
        if kernel.__name__ == "backward_kernel":
            rows.append((options["TILES"], arguments[10].shape[0]))
        launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(triton_runtime, "launch", counted)
    for distance in triton_room.CHECKPOINT_TILES:
        monkeypatch.setattr(triton_room, "_CHECKPOINT_TILES", distance)
        numerics.forward_and_gradients(partial(selective_scan, backend=backend), inputs, WRT)
    # Every 2, 4 and 8 steps: the kept states, those before a group's later tiles, and the decays.
    assert rows == [(1, 16 + 0 + 1), (1, 8 + 0 + 1), (4, 4 + 3 + 1)]


@triton_variant
def test_triton_launches_once_forward_and_twice_backward_unless_it_cuts(monkeypatch, launches, backend, device):
    triton_room = pytest.importorskip("dakd.kernels.selective_scan.triton")
    shape = dict(batch=1, channels=1, states=1, length=9)
    inputs = operands("selective_scan", shape, device=device)
    call = partial(selective_scan, backend=backend)
    numerics.forward_and_gradients(call, inputs, WRT)
    assert launches == ["forward_kernel", "backward_kernel", "sum_kernel"]
    launches.clear()
    cut_short(monkeypatch, triton_room)
    numerics.forward_and_gradients(call, inputs, WRT)
    chunked = ["chunk_kernel", "carry_kernel"]
    assert launches == [*chunked, "forward_kernel", *chunked, "backward_kernel", "sum_kernel"]


def test_triton_cuts_what_is_long_and_narrow_alone():
    triton_room = pytest.importorskip("dakd.kernels.selective_scan.triton")

    def chunks(batch, channels, length):
        return triton_room._chunks(torch.empty(batch, channels, length, device="meta"))[:2]

    # A hundred and thirty-two multiprocessors, eight programs each.
    assert chunks(144, 256, 196) == (196, 1) and chunks(144, 512, 49) == (49, 1)
    assert chunks(1, 256, 196) == (196, 1) and chunks(144, 256, 65536) == (65536, 1)
    assert chunks(1, 512, 780) == (32, 25)
    assert chunks(1, 512, 65536) == (1000, 66)
    assert chunks(0, 512, 65536)[0] > 0 and chunks(4, 0, 65536)[0] > 0 and chunks(1, 32, 0) == (1, 1)


@pytest.mark.slow
@triton_variant
def test_triton_stays_exact_over_many_steps(backend, device):
    # The interpreter takes minutes where a GPU takes microseconds.
    length = 65536 if device == "cuda" else 4096
    inputs = operands("selective_scan", dict(batch=1, channels=1, states=1, length=length), device=device)
    call = partial(selective_scan, backend=backend)
    results = numerics.forward_and_gradients(call, inputs, WRT)
    wide = {name: value.double() for name, value in inputs.items()}
    exact = numerics.forward_and_gradients(partial(selective_scan, backend="reference"), wide, WRT)
    eager = numerics.forward_and_gradients(partial(selective_scan, backend="reference"), inputs, WRT)
    # A GPU's quick exp2 is off by up to two units in the last place where eager's exp is off by one, and to one side:
    # over 65,536 steps that adds up (2.2 budgets were measured for dA on an H200).
    factor = 6.0 if device == "cuda" else 2.0
    for name in exact:
        numerics.assert_within_budget(name, results[name], exact[name], eager[name], factor=factor)


@triton_variant
def test_triton_reads_aligned_rows_whole(backend, device):
    # Rows of sixteen steps are loaded by the tile; both orders of memory must give the same numbers, to the rounding
    # of kernels that are compiled apart.
    inputs = operands("selective_scan", dict(batch=1, channels=3, states=2, length=16), device=device)
    call = partial(selective_scan, backend=backend)
    rows = numerics.forward_and_gradients(call, inputs, WRT)
    turned = inputs | {name: channels_last(inputs[name]) for name in FEATURES}
    for name, value in numerics.forward_and_gradients(call, turned, WRT).items():
        torch.testing.assert_close(value, rows[name], msg=name)
    assert_exact(backend, inputs)


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


@every_variant
@pytest.mark.parametrize("layout", [lambda x: x, sliced, channels_last])
def test_operator_contract_holds_for_any_strides(backend, device, layout):
    inputs = operands("selective_scan", "tiny", device=device)
    u, delta, B, C = (layout(inputs[name]).requires_grad_() for name in FEATURES)
    arguments = (u, delta, inputs["A"].requires_grad_(), B, C, inputs["D"], None)
    torch.library.opcheck(ops.selective_scan, (*arguments, True, backend))


@every_variant
def test_autocast_changes_nothing(backend, device):
    inputs = operands("selective_scan", "tiny", device=device)
    numerics.assert_autocast_changes_nothing(partial(selective_scan, backend=backend), inputs, WRT)


@every_variant
def test_compiles_to_one_graph(backend, device):
    inputs = operands("selective_scan", "tiny", device=device)
    numerics.assert_compiles_to_one_graph(partial(selective_scan, backend=backend), inputs, WRT)


@every_variant
def test_constant_input_settles_where_the_recurrence_says(backend, device):
    # One channel, one state: h = exp(-1/2) h + 1/2 settles at (1/2) / (1 - exp(-1/2)).
    dtype = torch.float64 if backend == "reference" else torch.float32
    ones = torch.ones(1, 1, 100, dtype=dtype, device=device)
    A = -torch.ones(1, 1, dtype=dtype, device=device)
    y = selective_scan(ones, ones / 2, A, ones, ones, delta_softplus=False, backend=backend)
    settled = 0.5 / -torch.expm1(torch.tensor(-0.5, dtype=torch.float64)).item()
    assert y[0, 0, 0] == 0.5 and abs(y[0, 0, -1].item() - settled) <= 4 * torch.finfo(dtype).eps * settled


@pytest.mark.slow
@every_variant
def test_long_sequences_stay_exact(backend, device):
    shape = dict(batch=1, channels=1, states=2, length=1500)
    assert_exact(backend, operands("selective_scan", shape, device=device))


@every_variant
def test_large_steps_forget_and_do_not_overflow(backend, device):
    inputs = operands("selective_scan", "tiny", device=device)
    inputs |= dict(delta=torch.full((2, 3, 5), 60.0, device=device))
    results = numerics.forward_and_gradients(partial(selective_scan, backend=backend), inputs, WRT)
    assert all(value.isfinite().all() for value in results.values())


@every_variant
def test_backward_keeps_the_inputs_alone(backend, device):
    inputs = operands("selective_scan", "tiny", device=device)
    inputs["u"].requires_grad_()
    call = partial(selective_scan, backend=backend)
    assert numerics.saved_bytes(call, inputs) == 4 * sum(value.numel() for value in inputs.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(delta=torch.zeros(2, 3, 4)), ValueError, "delta has shape"),
        (dict(B=torch.zeros(2, 3, 5)), ValueError, r"B has shape \(2, 3, 5\); expected \(B, N, L\) = \(2, 2, 5\)"),
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
