"""seg_loss: every variant in every form against plain torch, and the contract with torch.

The CUDA kernels run here too, block by block on the CPU. Two things only a GPU can show (mark `gpu`): that concurrent
blocks pass on their sums through the arrival counters, and that the device's exp and log stay within the budget.
"""

from __future__ import annotations

from functools import partial

import cuda_on_cpu
import pytest
import torch
import torch.nn.functional as F
from torch_threads import torch_threads
from variants import variants

from dakd.kernels import arrival_counters, extension, triton_runtime
from dakd.kernels import backend as backends
from dakd.kernels.seg_loss import cuda, ops, seg_loss
from dakd.testing import numerics, plain
from dakd.testing.inputs import operands, sliced

FORMS = [
    dict(),
    dict(temperature=0.7, dice_samples="all"),
    dict(dice_form="generalized", dice_samples="all", class_weights=torch.tensor([0.2, 1.0, 3.0, 0.0, 2.0])),
    dict(dice_form="generalized"),
    dict(dice_samples="none", ignore_index=1),
]
# Pixels that no vector divides, and ones that fill several tiles in vectors.
SHAPES = {
    "uneven": dict(batch=3, synthetic=1, num_classes=5, height=13, width=11),
    "aligned": dict(batch=2, synthetic=1, num_classes=5, height=16, width=40),
}
LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": sliced,
    "rows and columns exchanged": lambda x: x.mT.contiguous().mT,
    "samples and classes exchanged": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}

every_variant = pytest.mark.parametrize(("backend", "device"), variants("seg_loss"))
every_double_variant = pytest.mark.parametrize(("backend", "device"), variants("seg_loss", dtype=torch.float64))
triton_alone = pytest.mark.parametrize(
    ("backend", "device"), [variant for variant in variants("seg_loss") if "triton" in variant.id]
)


def to_device(inputs: dict, device: str) -> dict:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def as_codes(teacher: torch.Tensor, teacher_range: float) -> torch.Tensor:
    """The logits as the soft-label codec stores them."""
    gap = teacher.amax(1, keepdim=True) - teacher
    return (gap * (255 / teacher_range)).round().clamp(0, 255).to(torch.uint8)


def assert_matches_plain(backend: str, device: str, inputs: dict) -> None:
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(
            partial(seg_loss, backend=backend), plain.seg_loss, to_device(inputs, device), ("logits",)
        )


@every_variant
# In fp16 plain torch cannot square the size of a larger class.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ("uneven", torch.float32),
        ("uneven", torch.bfloat16),
        ("aligned", torch.float32),
        pytest.param("uneven", torch.float16, marks=pytest.mark.slow),
        pytest.param("aligned", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_forward_and_gradient_match_plain_torch_in_every_form(form, shape, dtype, backend, device):
    assert_matches_plain(backend, device, operands("seg_loss", SHAPES[shape], dtype=dtype) | form)


@every_variant
@pytest.mark.parametrize("shape", ["tiny", "one", "empty"])
def test_forward_and_gradient_match_plain_torch_at_small_shapes(shape, backend, device):
    assert_matches_plain(backend, device, operands("seg_loss", shape) | dict(dice_samples="all"))


@every_variant
def test_real_and_synthetic_samples_in_the_order_of_a_loader_are_right(backend, device):
    inputs = operands("seg_loss", dict(batch=5, synthetic=2, num_classes=3, height=5, width=7))
    order = [3, 0, 4, 1, 2]
    inputs |= {name: inputs[name][order] for name in ("logits", "labels", "teacher_row")}
    assert inputs["teacher_row"].tolist() == [1, -1, 0, -1, -1]
    assert_matches_plain(backend, device, inputs | dict(dice_samples="all"))


@pytest.mark.parametrize(("backend", "device"), variants("seg_loss", without=("cuda",)))
@pytest.mark.parametrize("num_classes", [2, 3, 4, 6, 7, 8, 9, 19, 40])
def test_any_number_of_classes_is_right(num_classes, backend, device):
    inputs = operands("seg_loss", dict(batch=2, synthetic=1, num_classes=num_classes, height=3, width=27))
    inputs["dice_samples"] = "all"
    inputs["class_weights"] = torch.linspace(0.5, 2, num_classes, dtype=torch.float64)
    assert_matches_plain(backend, device, inputs)


@pytest.mark.parametrize(("backend", "device"), variants("seg_loss", without=("cuda",)))
def test_one_class_alone_costs_nothing(backend, device):
    # Exactly 0, of which a budget allows nothing; a GPU's quick division gives a rounding error.
    inputs = operands("seg_loss", dict(batch=2, synthetic=1, num_classes=1, height=3, width=27), device=device)
    found = numerics.forward_and_gradients(
        partial(seg_loss, backend=backend, dice_samples="all"), inputs, ("logits",)
    )
    assert len(found) == 4 and all(value.abs().max() <= 2e-7 for value in found.values())


@every_variant
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_are_right(layout, backend, device):
    # On its device first: a copy to another device need not keep the strides.
    inputs = operands("seg_loss", SHAPES["uneven"], device=device) | dict(dice_samples="all")
    inputs |= {name: LAYOUTS[layout](inputs[name]) for name in ("logits", "teacher")}
    inputs["labels"] = sliced(inputs["labels"]).long() if layout == "channels last" else inputs["labels"].mT.clone().mT
    inputs["teacher_row"] = sliced(inputs["teacher_row"])
    inputs["class_weights"] = sliced(torch.linspace(0.5, 2, 5, device=device))
    assert_matches_plain(backend, device, inputs)


@pytest.mark.parametrize(("backend", "device"), variants("seg_loss", without=("cuda",)))
@pytest.mark.parametrize("num_classes", [2, 3, 5, 8, 9])
def test_channels_last_logits_of_any_size_are_right(num_classes, backend, device):
    # Triton takes runs of adjacent numbers at the last two, of which one fills more than a tile.
    for height, width in ((1, 1), (7, 9), (3, 43), (4, 12), (16, 66)):
        sizes = dict(batch=2, synthetic=1, num_classes=num_classes, height=height, width=width)
        inputs = operands("seg_loss", sizes, dtype=torch.bfloat16) | dict(dice_samples="all" if width == 12 else "real")
        assert_matches_plain(backend, device, inputs | dict(logits=LAYOUTS["channels last"](inputs["logits"])))


def cut(logits: torch.Tensor, dim: int) -> torch.Tensor:
    """The same values in a channels_last tensor that has more of them in one dimension."""
    extra = logits.narrow(dim, 0, 2)
    return LAYOUTS["channels last"](torch.cat([extra, logits], dim)).narrow(dim, 2, logits.shape[dim])


PARTS_OF_CHANNELS_LAST = {
    "fewer classes": partial(cut, dim=1),
    "fewer rows": partial(cut, dim=2),
    "fewer columns": partial(cut, dim=3),
    "one sample for all": lambda x: LAYOUTS["channels last"](x[:1]).expand(x.shape),
}


@every_variant
@pytest.mark.parametrize("part", PARTS_OF_CHANNELS_LAST)
def test_parts_of_channels_last_logits_are_right(part, backend, device):
    inputs = operands("seg_loss", SHAPES["aligned"], device=device) | dict(dice_samples="all")
    assert_matches_plain(backend, device, inputs | dict(logits=PARTS_OF_CHANNELS_LAST[part](inputs["logits"])))


@triton_alone
def test_channels_last_logits_are_read_and_written_in_runs(backend, device, monkeypatch):
    runs, launch = [], triton_runtime.launch
    monkeypatch.setattr(
        triton_runtime, "launch", lambda *args, **more: (runs.append(more["RUN"]), launch(*args, **more))
    )
    parts = PARTS_OF_CHANNELS_LAST
    for dtype, shape, lay_out, expected in (
        (torch.bfloat16, "aligned", LAYOUTS["channels last"], 8),
        (torch.float32, "aligned", LAYOUTS["channels last"], 4),
        (torch.bfloat16, "aligned", parts["fewer rows"], 8),
        (torch.bfloat16, "aligned", parts["fewer classes"], 0),
        (torch.bfloat16, "aligned", torch.Tensor.contiguous, 0),
        (torch.bfloat16, "uneven", LAYOUTS["channels last"], 0),
    ):
        inputs = operands("seg_loss", SHAPES[shape], dtype=dtype, device=device)
        inputs["logits"] = lay_out(inputs["logits"])
        numerics.forward_and_gradients(partial(seg_loss, backend=backend), inputs, ("logits",))
        assert runs == [expected, expected]
        runs.clear()


@every_variant
def test_channels_last_logits_keep_their_layout_in_the_gradient(backend, device):
    inputs = operands("seg_loss", "tiny", dtype=torch.bfloat16)
    inputs["logits"] = LAYOUTS["channels last"](inputs["logits"])
    results = numerics.forward_and_gradients(partial(seg_loss, backend=backend), to_device(inputs, device), ("logits",))
    assert results["dlogits"].stride() == inputs["logits"].stride()


@every_variant
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_of_log_probabilities_match_plain_torch(shape, backend, device):
    inputs = operands("seg_loss", SHAPES[shape]) | dict(dice_samples="all", teacher_range=16.0)
    assert_matches_plain(backend, device, inputs | dict(teacher=as_codes(inputs["teacher"], 16.0)))


@every_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_teacher_of_any_dtype_is_read_as_it_is(dtype, backend, device):
    inputs = to_device(operands("seg_loss", SHAPES["uneven"]), device)
    teacher = inputs["teacher"].to(dtype)
    got = seg_loss(**inputs | dict(teacher=teacher), backend=backend).kd
    assert torch.equal(got, seg_loss(**inputs | dict(teacher=teacher.float()), backend=backend).kd)


@every_variant
def test_huge_logits_stay_exact(backend, device):
    inputs = operands("seg_loss", SHAPES["uneven"]) | dict(dice_samples="all")
    inputs |= dict(logits=inputs["logits"] * 1e4, teacher=inputs["teacher"] * 1e4)
    results = numerics.forward_and_gradients(partial(seg_loss, backend=backend), to_device(inputs, device), ("logits",))
    assert all(value.isfinite().all() for value in results.values())
    assert_matches_plain(backend, device, inputs)


@every_variant
def test_a_far_offset_of_all_logits_changes_nothing(backend, device):
    # Powers of two below 2^12: the sum is exact in fp32.
    inputs = operands("seg_loss", SHAPES["uneven"])
    inputs["logits"] = (inputs["logits"] * 64).round() / 64
    call = partial(numerics.forward_and_gradients, partial(seg_loss, backend=backend), differentiable=("logits",))
    moved = call(to_device(inputs | dict(logits=inputs["logits"] + 2048), device))
    for name, wanted in call(to_device(inputs, device)).items():
        assert torch.equal(moved[name], wanted), name


@pytest.mark.skipif(extension.why_not_cpu("cpu") is not None, reason="the extension is not built")
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_instruction_set_is_right(dtype, isa):
    inputs = operands("seg_loss", dict(batch=3, synthetic=2, num_classes=5, height=7, width=77), dtype=dtype)
    try:
        with extension.using_cpu_isa(isa):
            assert_matches_plain("cpu", "cpu", inputs | dict(dice_samples="all"))
            codes = dict(teacher=as_codes(inputs["teacher"], 16.0), teacher_range=16.0)
            assert_matches_plain("cpu", "cpu", inputs | codes)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(extension.why_not_cpu("cpu") is not None, reason="the extension is not built")
def test_any_number_of_threads_gives_equal_bits():
    inputs = operands("seg_loss", dict(batch=3, synthetic=1, num_classes=5, height=90, width=90))
    results = []
    for num_threads in (1, 3):
        with torch_threads(num_threads):
            results.append(numerics.forward_and_gradients(partial(seg_loss, backend="cpu"), inputs, ("logits",)))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.skipif(extension.why_not_cpu("cpu") is not None, reason="the extension is not built")
def test_a_row_that_the_teacher_does_not_have_is_refused_on_the_cpu():
    inputs = operands("seg_loss", "tiny")
    inputs["teacher_row"][-1] = 1
    with pytest.raises(RuntimeError, match="teacher_row names a row that teacher does not have"):
        seg_loss(**inputs, backend="cpu")


@every_variant
def test_two_calls_give_equal_bits(backend, device):
    inputs = to_device(operands("seg_loss", SHAPES["aligned"]) | dict(dice_samples="all"), device)
    call = partial(seg_loss, backend=backend)
    first, second = (numerics.forward_and_gradients(call, inputs, ("logits",)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_variant
def test_an_expanded_upstream_gradient_is_read_right(backend, device):
    inputs = to_device(operands("seg_loss", SHAPES["uneven"]), device)
    logits = inputs["logits"].requires_grad_()
    losses = seg_loss(**inputs, backend=backend)
    (expanded,) = torch.autograd.grad(losses.ce.sum() + losses.kd.sum() + losses.dice.sum(), logits, retain_graph=True)
    ones = [torch.ones_like(loss) for loss in losses[:3]]
    (contiguous,) = torch.autograd.grad(losses[:3], logits, ones)
    assert torch.equal(expanded, contiguous)


@every_variant
def test_a_loss_that_is_not_used_costs_no_gradient(backend, device):
    inputs = to_device(operands("seg_loss", "tiny"), device)
    logits = inputs["logits"].requires_grad_()
    losses = seg_loss(**inputs, backend=backend)
    (alone,) = torch.autograd.grad(losses.ce.sum(), logits, retain_graph=True)
    (weighted,) = torch.autograd.grad((losses.ce + 0 * losses.kd + 0 * losses.dice).sum(), logits)
    assert torch.equal(alone, weighted)


@every_double_variant
@pytest.mark.parametrize("dice_form", ["soft", "generalized"])
@pytest.mark.parametrize("dice_samples", ["real", "all", "none"])
def test_gradients_pass_gradcheck(dice_samples, dice_form, backend, device):
    inputs = to_device(operands("seg_loss", "tiny", dtype=torch.float64), device)
    logits = inputs.pop("logits").requires_grad_()
    inputs |= dict(dice_samples=dice_samples, dice_form=dice_form, backend=backend)
    assert torch.autograd.gradcheck(lambda s: tuple(seg_loss(s, **inputs)[:3]), [logits])


def check_operator(logits: torch.Tensor, inputs: dict, backend: str) -> None:
    others = (inputs["labels"], inputs["teacher"], inputs["teacher_row"], None)
    torch.library.opcheck(ops.seg_loss, (logits.requires_grad_(), *others, 1.0, 2.0, 255, "all", "soft", 1.0, backend))


@pytest.mark.parametrize("layout", [lambda x: x, LAYOUTS["channels last"], sliced])
def test_operator_contract_holds_for_any_strides(layout):
    inputs = operands("seg_loss", "tiny")
    check_operator(layout(inputs["logits"]), inputs, "reference")


@every_variant
def test_operator_contract_holds_for_every_variant(backend, device):
    inputs = to_device(operands("seg_loss", "one"), device)
    check_operator(sliced(inputs["logits"]), inputs, backend)


@every_variant
def test_autocast_changes_nothing(backend, device):
    inputs = to_device(operands("seg_loss", "tiny"), device)
    numerics.assert_autocast_changes_nothing(partial(seg_loss, backend=backend), inputs, ("logits",))


@every_variant
def test_compiles_to_one_graph(backend, device):
    inputs = to_device(operands("seg_loss", "tiny"), device)
    numerics.assert_compiles_to_one_graph(partial(seg_loss, backend=backend), inputs, ("logits",))


@triton_alone
@pytest.mark.parametrize("form", [dict(), dict(dice_samples="all", dice_form="generalized"), dict(labels=None)])
def test_one_launch_forward_and_one_backward(form, backend, device, monkeypatch):
    launched, launch = [], triton_runtime.launch
    monkeypatch.setattr(
        triton_runtime, "launch", lambda kernel, *rest, **more: (launched.append(kernel), launch(kernel, *rest, **more))
    )
    inputs = operands("seg_loss", SHAPES["uneven"])
    inputs |= dict(labels=inputs["labels"].long()) if "labels" in form else form
    numerics.forward_and_gradients(partial(seg_loss, backend=backend), to_device(inputs, device), ("logits",))
    assert len(launched) == 2


@triton_alone
def test_a_launch_leaves_its_counters_as_it_found_them(backend, device):
    inputs = to_device(operands("seg_loss", SHAPES["aligned"]), device)
    inputs["labels"][:] = 77
    assert seg_loss(**inputs, backend=backend).num_invalid == 16 * 40
    assert not arrival_counters.zeros(torch.device(device), 4).any()


def test_there_are_as_many_zeros_in_the_counters_as_are_asked_for():
    device = torch.device("cpu")
    assert arrival_counters.zeros(device, 3) is arrival_counters.zeros(device, 4)
    assert len(arrival_counters.zeros(device, 3000)) >= 3000 and not arrival_counters.zeros(device, 5).any()


@every_variant
def test_each_sample_has_the_terms_of_its_origin_alone(backend, device):
    inputs = to_device(operands("seg_loss", "tiny"), device) | dict(backend=backend)
    real = inputs["teacher_row"] < 0
    losses = seg_loss(**inputs)
    assert real.any() and not real.all()
    assert (losses.ce[real] > 0).all() and (losses.ce[~real] == 0).all()
    assert (losses.kd[~real] > 0).all() and (losses.kd[real] == 0).all()
    assert (losses.dice[real] > 0).all() and (losses.dice[~real] == 0).all()
    assert (seg_loss(**inputs, dice_samples="all").dice > 0).all()


@every_variant
def test_labels_of_synthetic_samples_are_not_read(backend, device):
    inputs = to_device(operands("seg_loss", "tiny"), device) | dict(backend=backend)
    changed = inputs["labels"].clone()
    changed[inputs["teacher_row"] >= 0] = 77
    for got, wanted in zip(seg_loss(**inputs | dict(labels=changed)), seg_loss(**inputs), strict=True):
        assert torch.equal(got, wanted)


def test_distillation_gradient_is_that_of_the_divergence():
    # tau^2 CE and tau^2 KL differ by the teacher's entropy, which has no gradient (paper, Eq. 9).
    tau, shape = 3.0, dict(batch=2, synthetic=2, num_classes=4, height=5, width=3)
    inputs = operands("seg_loss", shape, dtype=torch.float64)
    logits = inputs["logits"].requires_grad_()
    (got,) = torch.autograd.grad(tau**2 * seg_loss(**inputs, temperature=tau).kd.sum(), logits)
    soft_label = (inputs["teacher"][inputs["teacher_row"]] / tau).softmax(1)
    divergence = F.kl_div((logits / tau).log_softmax(1), soft_label, reduction="none").sum() / 15
    (wanted,) = torch.autograd.grad(tau**2 * divergence, logits)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@every_variant
def test_unknown_labels_are_counted_and_treated_as_ignored(backend, device):
    inputs = operands("seg_loss", "one") | dict(labels=torch.tensor([[[9]]], dtype=torch.uint8), teacher=None)
    inputs = to_device(inputs, device) | dict(backend=backend)
    losses = seg_loss(**inputs)
    assert (losses.num_invalid, losses.ce, losses.dice) == (1, 0, 0)
    cases = ((-1, 255, 1), (255, 255, 0), (-100, -100, 0), (2**32, 255, 1), (2**33, 2**33, 0))
    for label, ignore_index, count in cases:
        change = dict(labels=torch.tensor([[[label]]], device=device), ignore_index=ignore_index)
        assert seg_loss(**inputs | change).num_invalid == count, label


@every_variant
def test_a_sample_without_labels_has_no_loss_and_no_gradient(backend, device):
    inputs = operands("seg_loss", "tiny") | dict(labels=torch.full((3, 2, 3), 255, dtype=torch.uint8))
    inputs["teacher_row"] = torch.full((3,), -1)
    for form in ("soft", "generalized"):
        call = partial(seg_loss, backend=backend, dice_form=form)
        results = numerics.forward_and_gradients(call, to_device(inputs, device), ("logits",))
        assert all(not value.any() for value in results.values()), form


@every_variant
def test_an_absent_class_leaves_the_generalized_dice_finite(backend, device):
    # Nearly all mass on the one class there is: the loss is near 0 although other classes do not occur.
    logits = torch.tensor([20.0, 0.0, 0.0], device=device)[None, :, None, None].expand(1, 3, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8, device=device)
    assert seg_loss(logits, labels, dice_form="generalized", backend=backend).dice < 1e-6


@every_variant
def test_a_class_of_less_than_a_pixel_leaves_the_generalized_dice_alone(backend, device):
    logits = torch.tensor([12.0, 0.0, 0.0], device=device)[None, :, None, None].expand(1, 3, 4, 4)
    losses = seg_loss(
        logits,
        torch.zeros(1, 4, 4, dtype=torch.uint8, device=device),
        teacher=logits,
        teacher_row=torch.tensor([0], device=device),
        dice_form="generalized",
        dice_samples="all",
        backend=backend,
    )
    assert losses.dice < 1e-4


@every_variant
def test_real_batches_need_no_teacher(backend, device):
    inputs = to_device(operands("seg_loss", "tiny"), device)
    logits, labels, call = inputs["logits"], inputs["labels"], partial(seg_loss, backend=backend)
    without, rows = call(logits, labels), torch.full((3,), -1, device=device)
    for other in (dict(teacher_row=rows), dict(teacher_row=rows, teacher=inputs["teacher"][:0])):
        for got, wanted in zip(call(logits, labels, **other), without, strict=True):
            torch.testing.assert_close(got, wanted)  # kernels with and without a teacher are compiled apart


@every_variant
def test_backward_keeps_the_inputs_and_a_few_numbers_a_sample(backend, device):
    inputs = to_device(operands("seg_loss", SHAPES["uneven"]), device)
    batch, num_classes = inputs["logits"].shape[:2]
    kept = sum(value.nbytes for value in inputs.values()) + 4 * batch * (1 + 2 * num_classes)
    inputs["logits"].requires_grad_()
    assert numerics.saved_bytes(partial(seg_loss, backend=backend), inputs) == kept


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_captured_loss_replays_with_counters_of_its_own(backend):
    if (reason := backends.why_not("seg_loss", backend, "cuda")) is not None:
        pytest.skip(reason)
    inputs = to_device(operands("seg_loss", SHAPES["uneven"]), "cuda")
    inputs["logits"].requires_grad_()

    def call():
        losses = seg_loss(**inputs, backend=backend)
        gradients = torch.autograd.grad((losses.ce + losses.kd + losses.dice).sum(), inputs["logits"])
        # Without their history: it would hold the logits' node on this stream, and a capture that meets it fails.
        return *(loss.detach() for loss in losses), *gradients

    wanted = call()  # compiles, and leaves the stream's shared counters behind
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    for _ in range(3):
        graph.replay()
        call()  # between replays, on the shared counters
        assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))


@pytest.fixture(scope="session")
def cuda_kernels(tmp_path_factory):
    """torch with the CUDA kernels in the place of the compiled library."""
    if not cuda_on_cpu.is_possible():
        pytest.skip("no C++ compiler")
    operations = {"seg_loss_forward_blocks": "seg_loss_forward_cuda", "seg_loss_backward": "seg_loss_backward_cuda"}
    cuda_on_cpu.load("seg_loss/seg_loss.cu", operations, tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def on_cpu(cuda_kernels, monkeypatch):
    """Lets backend "cuda" run its kernels on the CPU, three blocks a sample."""
    load, names = backends.load, ("seg_loss_forward_blocks", "seg_loss_backward")
    monkeypatch.setattr(backends, "load", lambda op, name, *rest: cuda if name == "cuda" else load(op, name, *rest))
    monkeypatch.setattr(cuda, "_num_blocks", lambda device: 9)
    for name in names:
        monkeypatch.setattr(torch.ops.dakd_C, name, getattr(torch.ops.dakd_on_cpu, name), raising=False)


LARGER = dict(batch=3, synthetic=1, num_classes=5, height=50, width=64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_cuda_kernels_match_plain_torch_in_every_form(form, dtype, on_cpu):
    for sizes in (SHAPES["uneven"], LARGER):
        assert_matches_plain("cuda", "cpu", operands("seg_loss", sizes, dtype=dtype) | form)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_kernels_take_any_strides(dtype, layout, on_cpu):
    inputs = operands("seg_loss", SHAPES["aligned"], dtype=dtype)
    inputs |= {name: LAYOUTS[layout](inputs[name]) for name in ("logits", "teacher")}
    inputs["labels"] = sliced(inputs["labels"]).long()
    for labels in (inputs["labels"], inputs["labels"].contiguous()):
        assert_matches_plain("cuda", "cpu", inputs | dict(labels=labels))
    codes = dict(teacher=LAYOUTS[layout](as_codes(inputs["teacher"].float(), 16.0)), teacher_range=16.0)
    assert_matches_plain("cuda", "cpu", inputs | codes)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 3, 4, 5])
def test_cuda_kernels_are_right_for_each_number_of_classes(num_classes, on_cpu):
    inputs = operands("seg_loss", LARGER | dict(num_classes=num_classes))
    inputs["class_weights"] = torch.linspace(0.5, 2, num_classes, dtype=torch.float64)
    for dice_samples in ("real", "all"):
        assert_matches_plain("cuda", "cpu", inputs | dict(dice_samples=dice_samples))


@pytest.mark.slow
def test_cuda_kernels_count_unknown_labels_and_leave_their_counters(on_cpu):
    inputs = operands("seg_loss", LARGER)
    inputs["labels"][:] = 77
    for _ in range(2):
        assert seg_loss(**inputs, backend="cuda").num_invalid == 2 * 50 * 64
    assert not arrival_counters.zeros(torch.device("cpu"), 4).any()


@pytest.mark.slow
def test_cuda_kernels_answer_a_row_that_the_teacher_does_not_have_with_nan(on_cpu):
    assert_an_unknown_row_makes_the_loss_nan("cuda", "cpu")


def test_auto_passes_over_a_variant_that_is_not_made_for_so_many_classes(monkeypatch):
    monkeypatch.setattr(cuda, "why_not", lambda device_type: None)
    assert backends.choose("seg_loss", "cuda", num_classes=5).chosen == "cuda"
    more = backends.choose("seg_loss", "cuda", num_classes=9)
    assert more.chosen != "cuda" and more.reasons["cuda"] == "it is made for 2 to 5 classes, not for 9"
    with pytest.raises(RuntimeError, match="'cuda' cannot run on cpu: it is made for 2 to 5 classes, not for 9"):
        seg_loss(torch.zeros(1, 9, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8), backend="cuda")


def assert_an_unknown_row_makes_the_loss_nan(backend: str, device: str) -> None:
    inputs = to_device(operands("seg_loss", "tiny"), device)
    inputs["teacher_row"][-1] = 1
    results = numerics.forward_and_gradients(partial(seg_loss, backend=backend), inputs, ("logits",))
    assert results["output 1"].isnan().tolist() == [False, False, True]
    assert results["dlogits"][-1].isnan().all() and results["dlogits"][:-1].isfinite().all()


@pytest.mark.parametrize(
    ("backend", "device"), [variant for variant in variants("seg_loss") if variant.id.startswith(("triton", "cuda"))]
)
def test_a_row_that_the_teacher_does_not_have_makes_the_loss_nan(backend, device):
    assert_an_unknown_row_makes_the_loss_nan(backend, device)


def test_codes_distil_almost_what_the_logits_do():
    inputs = operands("seg_loss", "small")
    codes = dict(teacher=as_codes(inputs["teacher"], 24.0), teacher_range=24.0)
    torch.testing.assert_close(seg_loss(**inputs | codes).kd, seg_loss(**inputs).kd, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(labels=torch.zeros(3, 3, 2, dtype=torch.uint8)), ValueError, "labels has shape"),
        (dict(labels=torch.zeros(3, 2, 3)), TypeError, "labels has dtype torch.float32"),
        (dict(teacher=torch.zeros(1, 2, 2, 3)), ValueError, "teacher has shape"),
        (dict(teacher_row=None), ValueError, "-1 for real ones"),
        (dict(class_weights=torch.ones(2)), ValueError, r"class_weights has shape \(2,\)"),
        (dict(dice_form="hard"), ValueError, "dice_form is 'hard'"),
        (dict(teacher=torch.zeros(1, 3, 2, 3, dtype=torch.uint8)), ValueError, "give the range of their codec"),
        (dict(teacher=torch.zeros(1, 3, 2, 3, dtype=torch.int64)), TypeError, "teacher has dtype torch.int64"),
        (dict(teacher_range=16.0), ValueError, "teacher_range is for uint8 codes"),
        (dict(teacher=None, teacher_range=-1.0), ValueError, "teacher_range is -1.0"),
        (dict(temperature=0.0), ValueError, "temperature is 0.0"),
        (dict(backend="mamba_ssm"), RuntimeError, "has no such variant"),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        seg_loss(**operands("seg_loss", "tiny") | change)
