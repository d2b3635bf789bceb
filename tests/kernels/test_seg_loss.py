"""seg_loss: every form against a loop over samples in plain torch, who gets which term, the contract with torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dakd.kernels.seg_loss import ops, seg_loss
from dakd.testing import numerics, plain
from dakd.testing.inputs import operands, sliced

FORMS = [
    dict(),
    dict(temperature=0.7, dice_samples="all"),
    dict(dice_form="generalized", dice_samples="all", class_weights=torch.tensor([0.2, 1.0, 3.0, 0.0, 2.0])),
    dict(dice_form="generalized"),
    dict(dice_samples="none", ignore_index=1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_forward_and_gradient_match_plain_torch_in_every_form(form, dtype):
    inputs = operands("seg_loss", "odd", dtype=dtype) | form
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(seg_loss, plain.seg_loss, inputs, ("logits",))


@pytest.mark.parametrize("shape", ["tiny", "one", "empty"])
def test_forward_and_gradient_match_plain_torch_at_small_shapes(shape):
    inputs = operands("seg_loss", shape) | dict(dice_samples="all")
    with numerics.poisoned_memory():
        numerics.assert_matches_plain(seg_loss, plain.seg_loss, inputs, ("logits",))


@pytest.mark.parametrize("dice_form", ["soft", "generalized"])
@pytest.mark.parametrize("dice_samples", ["real", "all", "none"])
def test_gradients_pass_gradcheck(dice_samples, dice_form):
    inputs = operands("seg_loss", "tiny", dtype=torch.float64)
    logits = inputs.pop("logits").requires_grad_()
    inputs |= dict(dice_samples=dice_samples, dice_form=dice_form)
    assert torch.autograd.gradcheck(lambda s: tuple(seg_loss(s, **inputs)[:3]), [logits])


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.contiguous(memory_format=torch.channels_last), sliced])
def test_operator_contract_holds_for_any_strides(layout):
    inputs = operands("seg_loss", "tiny")
    logits = layout(inputs["logits"]).requires_grad_()
    others = (inputs["labels"], inputs["teacher"], inputs["teacher_row"], None, None)
    torch.library.opcheck(ops.seg_loss, (logits, *others, 2.0, 255, "all", "soft", 1.0, "reference"))


def test_autocast_changes_nothing():
    inputs = operands("seg_loss", "tiny")
    wanted = numerics.forward_and_gradients(seg_loss, inputs, ("logits",))
    with torch.autocast("cpu", torch.bfloat16):
        results = numerics.forward_and_gradients(seg_loss, inputs, ("logits",))
    assert all(torch.equal(results[name], wanted[name]) for name in wanted)


def test_compiles_to_one_graph():
    inputs = operands("seg_loss", "tiny")
    compiled = torch.compile(seg_loss, fullgraph=True, backend="aot_eager")
    eager = numerics.forward_and_gradients(seg_loss, inputs, ("logits",))
    for name, value in numerics.forward_and_gradients(compiled, inputs, ("logits",)).items():
        assert torch.equal(value, eager[name]), name


def test_each_sample_has_the_terms_of_its_origin_alone():
    inputs = operands("seg_loss", "tiny")
    real = inputs["teacher_row"] < 0
    losses = seg_loss(**inputs)
    assert real.any() and not real.all()
    assert (losses.ce[real] > 0).all() and (losses.ce[~real] == 0).all()
    assert (losses.kd[~real] > 0).all() and (losses.kd[real] == 0).all()
    assert (losses.dice[real] > 0).all() and (losses.dice[~real] == 0).all()
    assert (seg_loss(**inputs, dice_samples="all").dice > 0).all()


def test_labels_of_synthetic_samples_are_not_read():
    inputs = operands("seg_loss", "tiny")
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


def test_unknown_labels_are_counted_and_treated_as_ignored():
    inputs = operands("seg_loss", "one") | dict(labels=torch.tensor([[[9]]], dtype=torch.uint8), teacher=None)
    losses = seg_loss(**inputs)
    assert (losses.num_invalid, losses.ce, losses.dice) == (1, 0, 0)
    assert seg_loss(**inputs | dict(labels=torch.tensor([[[-1]]]))).num_invalid == 1
    assert seg_loss(**inputs | dict(labels=torch.tensor([[[255]]]))).num_invalid == 0


def test_a_sample_without_labels_has_no_loss_and_no_gradient():
    inputs = operands("seg_loss", "tiny") | dict(labels=torch.full((3, 2, 3), 255, dtype=torch.uint8))
    inputs["teacher_row"] = torch.full((3,), -1)
    for form in ("soft", "generalized"):
        results = numerics.forward_and_gradients(seg_loss, inputs | dict(dice_form=form), ("logits",))
        assert all(not value.any() for value in results.values()), form


def test_an_absent_class_leaves_the_generalized_dice_finite():
    # Nearly all mass on the one class there is: the loss is near 0 although other classes do not occur.
    logits = torch.tensor([20.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    assert seg_loss(logits, labels, dice_form="generalized").dice < 1e-6


def test_a_class_of_less_than_a_pixel_leaves_the_generalized_dice_alone():
    logits = torch.tensor([12.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 4, 4)
    losses = seg_loss(
        logits,
        torch.zeros(1, 4, 4, dtype=torch.uint8),
        teacher=logits,
        teacher_row=torch.tensor([0]),
        dice_form="generalized",
        dice_samples="all",
    )
    assert losses.dice < 1e-4


def test_real_batches_need_no_teacher():
    inputs = operands("seg_loss", "tiny")
    without = seg_loss(inputs["logits"], inputs["labels"])
    rows = torch.full((3,), -1)
    for other in (dict(teacher_row=rows), dict(teacher_row=rows, teacher=inputs["teacher"][:0])):
        for got, wanted in zip(seg_loss(inputs["logits"], inputs["labels"], **other), without, strict=True):
            assert torch.equal(got, wanted)


def test_half_precision_teachers_are_read_as_they_are():
    inputs = operands("seg_loss", "tiny")
    halved = inputs | dict(teacher=inputs["teacher"].half())
    assert torch.equal(seg_loss(**halved).kd, seg_loss(**inputs | dict(teacher=halved["teacher"].float())).kd)


def _as_codes(teacher, teacher_range):
    """What the soft-label codec makes of the logits."""
    gap = teacher.amax(1, keepdim=True) - teacher
    return (gap * (255 / teacher_range)).round().clamp(0, 255).to(torch.uint8)


def test_codes_of_log_probabilities_are_read_as_the_logits_they_stand_for():
    inputs = operands("seg_loss", "odd", dtype=torch.float64) | dict(dice_samples="all")
    codes = _as_codes(inputs["teacher"], 16.0)
    decoded = inputs | dict(teacher=3.0 - codes.double() * 16 / 255)
    got = numerics.forward_and_gradients(seg_loss, inputs | dict(teacher=codes, teacher_range=16.0), ("logits",))
    for name, wanted in numerics.forward_and_gradients(seg_loss, decoded, ("logits",)).items():
        torch.testing.assert_close(got[name], wanted, rtol=1e-12, atol=1e-15)


def test_codes_distil_almost_what_the_logits_do():
    inputs = operands("seg_loss", "small")
    codes = dict(teacher=_as_codes(inputs["teacher"], 24.0), teacher_range=24.0)
    torch.testing.assert_close(seg_loss(**inputs | codes).kd, seg_loss(**inputs).kd, rtol=2e-3, atol=0)


def test_a_loss_that_is_not_used_costs_no_gradient():
    inputs = operands("seg_loss", "tiny")
    logits = inputs["logits"].requires_grad_()
    losses = seg_loss(**inputs)
    (alone,) = torch.autograd.grad(losses.ce.sum(), logits, retain_graph=True)
    (weighted,) = torch.autograd.grad((losses.ce + 0 * losses.kd + 0 * losses.dice).sum(), logits)
    assert torch.equal(alone, weighted)


def test_huge_logits_stay_finite():
    inputs = operands("seg_loss", "tiny")
    inputs |= dict(logits=inputs["logits"] * 1e4, teacher=inputs["teacher"] * 1e4, dice_samples="all")
    results = numerics.forward_and_gradients(seg_loss, inputs, ("logits",))
    assert all(value.isfinite().all() for value in results.values())


def test_backward_keeps_the_inputs_and_a_few_numbers_a_sample():
    inputs = operands("seg_loss", "odd")
    batch, num_classes = inputs["logits"].shape[:2]
    kept = sum(value.nbytes for value in inputs.values()) + 4 * batch * (1 + 2 * num_classes)
    inputs["logits"].requires_grad_()
    assert numerics.saved_bytes(seg_loss, inputs) == kept


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
        (dict(backend="triton"), RuntimeError, "has no such variant"),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        seg_loss(**operands("seg_loss", "tiny") | change)
