"""Distillation and boundaries: hand-worked cases, gradients, invariances, what each sample gets, a training step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from fixed_logits import FixedLogits
from scipy import stats
from worlds import with_pairs

from dakd.config import StudentLossConfig, build_config
from dakd.data.batch import Batch
from dakd.kernels.seg_loss import seg_loss
from dakd.runtime.runlog import read_records
from dakd.train import student_losses
from dakd.train.batch_loss import StudentLoss
from dakd.train.dry_run import describe_saross
from dakd.train.saross import StudentTraining, student_folder, train_saross
from dakd.train.student_losses import (
    boundary_loss,
    check_kd_form,
    dist_relations,
    distillation_loss,
    kd_scale,
    standardize,
    standardized_kd,
)

FORMS = ("confidence", "standardized", "dist")
OPTIONS = {"dim": 8, "in_dim": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": [4, 4, 2, 2]}
TINY_STUDENT = {
    "encoder": "mamba_vision",
    "encoder_options": OPTIONS,
    "decoder_channels": [8, 8, 8, 8],
    "caft_heads": [1, 1, 1],
}


def operands(dtype=torch.float64, num_classes=4):
    """Logits of three samples, a teacher's of two, and the rows: the second sample is real."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, num_classes, 5, 4, generator=generator, dtype=dtype)
    teacher = 3 * torch.randn(2, num_classes, 5, 4, generator=generator, dtype=dtype)
    return logits, teacher, torch.tensor([1, -1, 0])


def loss_of(form, logits, teacher, row, teacher_range=None, **settings):
    return distillation_loss(logits, teacher, row, teacher_range, StudentLossConfig(kd_form=form, **settings))


# --- values -----------------------------------------------------------------------------------------------------------


def test_confidence_weights_two_pixels_by_their_largest_probability():
    # Teacher: (3/4, 1/4) and (1/2, 1/2), so the weights are 6/5 and 4/5; student: (1/2, 1/2) and (1/4, 3/4); tau is 1.
    teacher = torch.tensor([[0.75, 0.5], [0.25, 0.5]], dtype=torch.float64).log().view(1, 2, 1, 2)
    student = torch.tensor([[0.5, 0.25], [0.5, 0.75]], dtype=torch.float64).log().view(1, 2, 1, 2)
    sure = math.log(2)
    unsure = -(math.log(0.25) + math.log(0.75)) / 2
    loss = loss_of("confidence", student, teacher, torch.tensor([0]), temperature=1.0)
    assert loss.item() == pytest.approx((1.2 * sure + 0.8 * unsure) / 2, rel=1e-12)


def test_standardized_compares_z_scores_over_the_classes():
    teacher = torch.tensor([6.0, 0.0, -6.0], dtype=torch.float64).view(1, 3, 1, 1)
    student = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
    r = math.sqrt(1.5) / 2  # z-scores are sqrt(3/2) (1, 0, -1) and sqrt(3/2) (-1, 0, 1); tau is 2
    total = math.exp(r) + 1 + math.exp(-r)
    q = [math.exp(r) / total, 1 / total, math.exp(-r) / total]
    expected = -sum(a * math.log(b) for a, b in zip(q, reversed(q)))
    assert loss_of("standardized", student, teacher, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-6)


def test_dist_is_one_minus_pearsons_correlation_as_scipy_has_it(monkeypatch):
    logits, teacher, row = operands()
    tau = 2.0
    p, q = ((x[0].flatten(1) / tau).softmax(0).numpy() for x in (logits, teacher[1:]))
    inter = 1 - sum(stats.pearsonr(p[:, i], q[:, i])[0] for i in range(20)) / 20
    intra = 1 - sum(stats.pearsonr(p[c], q[c])[0] for c in range(4)) / 4
    assert loss_of("dist", logits, teacher, row)[0].item() == pytest.approx(inter + intra, rel=1e-4)
    monkeypatch.setattr(student_losses, "DIST_INTER", 3.0)
    monkeypatch.setattr(student_losses, "DIST_INTRA", 0.5)
    weighted = loss_of("dist", logits, teacher, row)
    assert weighted[0].item() == pytest.approx(3 * inter + 0.5 * intra, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_codes_are_read_as_the_logits_that_they_stand_for(form):
    logits, _, row = operands()
    codes = torch.randint(0, 256, (2, 4, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    decoded = -18.4 * codes.double() / 255
    torch.testing.assert_close(loss_of(form, logits, codes, row, 18.4), loss_of(form, logits, decoded, row))


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_computed_in_single(form):
    logits, teacher, row = operands()
    half = loss_of(form, logits.bfloat16(), teacher.half(), row)
    assert half.dtype == torch.float32
    exact = loss_of(form, logits.bfloat16().double(), teacher.half().double(), row)
    torch.testing.assert_close(half.double(), exact, rtol=2e-5, atol=1e-6)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_gradient_equals_finite_differences_and_goes_to_the_student_alone(form):
    logits, teacher, row = operands()
    logits.requires_grad_(True)
    teacher.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: loss_of(form, s, teacher.detach(), row), (logits,))
    loss_of(form, logits, teacher, row).sum().backward()
    assert teacher.grad is None
    assert logits.grad[0].abs().max() > 1e-3 and logits.grad[2].abs().max() > 1e-3 and not logits.grad[1].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
def test_constant_logits_have_finite_losses_and_gradients(form, constant):
    logits, teacher, row = operands(torch.float32)
    logits = torch.zeros_like(logits) if constant != "teacher" else logits
    teacher = torch.full_like(teacher, 7.0) if constant != "student" else teacher
    logits.requires_grad_(True)
    losses = loss_of(form, logits, teacher, row)
    losses.sum().backward()
    assert losses.isfinite().all() and logits.grad.isfinite().all() and logits.grad.abs().max() <= 1000


# --- invariances ------------------------------------------------------------------------------------------------------


def test_confidence_is_the_papers_form_where_the_teacher_is_equally_sure_everywhere():
    logits, _, row = operands()
    order = torch.rand(2, 4, 5, 4, generator=torch.Generator().manual_seed(2)).argsort(1)
    teacher = torch.tensor([2.0, 0.5, 0.0, -1.0], dtype=torch.float64)[order]
    plain = seg_loss(logits, torch.zeros(3, 5, 4, dtype=torch.uint8), teacher, row, temperature=2.0).kd
    torch.testing.assert_close(loss_of("confidence", logits, teacher, row), plain)
    sure = teacher.clone()
    sure[:, :, 0] *= 2
    plain = seg_loss(logits, torch.zeros(3, 5, 4, dtype=torch.uint8), sure, row, temperature=2.0).kd
    assert (loss_of("confidence", logits, sure, row) - plain)[row >= 0].abs().min() > 1e-3


def test_standardized_ignores_the_teachers_scale_and_offset_at_each_pixel():
    logits, teacher, _ = operands()
    generator = torch.Generator().manual_seed(3)
    scale = 0.5 + 4 * torch.rand(2, 1, 5, 4, generator=generator, dtype=torch.float64)
    offset = torch.randn(2, 1, 5, 4, generator=generator, dtype=torch.float64)
    mapped = standardized_kd(logits[:2], scale * teacher + offset, 2.0)
    torch.testing.assert_close(mapped, standardized_kd(logits[:2], teacher, 2.0), rtol=1e-6, atol=0)
    torch.testing.assert_close(standardized_kd(scale * logits[:2], teacher, 2.0), mapped, rtol=1e-5, atol=0)
    assert (standardized_kd(logits[:2], -teacher, 2.0) - mapped).abs().min() > 0.01


def test_dist_ignores_scale_and_offset_by_pixel_between_classes_and_by_class_between_pixels():
    logits, teacher, _ = operands()
    p, q = logits[:2].softmax(1), teacher.softmax(1)
    inter, intra = dist_relations(p, q)
    by_pixel = torch.linspace(0.5, 3, 20, dtype=torch.float64).view(1, 1, 5, 4)
    by_class = torch.linspace(0.5, 3, 4, dtype=torch.float64).view(1, 4, 1, 1)
    inter_mapped, intra_other = dist_relations(p, by_pixel * q + by_pixel)
    inter_other, intra_mapped = dist_relations(p, by_class * q + by_class)
    torch.testing.assert_close(inter_mapped, inter, rtol=1e-3, atol=0)
    torch.testing.assert_close(intra_mapped, intra, rtol=1e-3, atol=0)
    assert (intra_other - intra).abs().max() > 0.01 and (inter_other - inter).abs().max() > 0.01
    perfect = dist_relations(q, q)
    torch.testing.assert_close(torch.stack(perfect), torch.zeros(2, 2, dtype=torch.float64), rtol=0, atol=1e-3)


def test_a_constant_is_standardised_to_zero():
    assert not standardize(torch.full((2, 3), 5.0), 1).any()


# --- in the student's loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dice_samples", ["real", "all"])
@pytest.mark.parametrize("form", FORMS)
def test_real_samples_keep_their_losses_and_synthetic_ones_get_the_form_alone(form, dice_samples):
    logits, teacher, row = operands(torch.float32)
    label = torch.randint(0, 4, (3, 5, 4), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    batch = Batch(torch.zeros(3, 1, 5, 4, dtype=torch.uint8), torch.arange(3), label, teacher.half(), row)
    cfg = StudentLossConfig(kd_form=form, kd=0.7, temperature=3.0, dice_samples=dice_samples)
    losses = StudentLoss(FixedLogits(logits), cfg, 0, torch.contiguous_format)(batch)
    kd = distillation_loss(logits, teacher.half(), row, None, cfg)
    assert kd_scale(cfg) == (1.0 if form == "dist" else 9.0)
    ce = F.cross_entropy(logits[1:2], label[1:2].long())
    terms = seg_loss(logits, label, teacher.half(), row, dice_samples=dice_samples)
    assert losses["kd"][1] == 0 and losses["ce"][0] == 0 and (losses["dice"][0] > 0) == (dice_samples == "all")
    torch.testing.assert_close(losses["loss"], 0.7 * kd_scale(cfg) * kd + terms.dice + ce * (row < 0))


def test_standardized_is_refused_where_it_has_no_gradient_and_for_codes():
    cfg = StudentLossConfig(kd_form="standardized")
    steepest = {}
    for num_classes in (2, 3):
        logits, teacher, row = operands(num_classes=num_classes)
        loss_of("standardized", logits.requires_grad_(True), teacher, row).sum().backward()
        steepest[num_classes] = logits.grad[row >= 0].abs().median().item()
    assert steepest[2] < 1e-6 < 1e-4 < steepest[3]
    with pytest.raises(ValueError, match="no gradient with 2 classes"):
        check_kd_form(cfg, 2, None)
    with pytest.raises(ValueError, match=r"codes that end 18\.4 nats.*codec fp16"):
        check_kd_form(cfg, 5, 18.4)
    assert check_kd_form(cfg, 5, None) == [2.0]


def test_dry_run_refuses_what_training_would(tmp_path):
    tree = with_pairs(tmp_path, loss={"kd_form": "standardized"}, student=TINY_STUDENT).model_dump(mode="json")
    tree["prepare"] |= {"dataset": "sos", "root": str(tmp_path), "sensor": "palsar"}
    with pytest.raises(ValueError, match="no gradient with 2 classes"):
        describe_saross(build_config(tree))
    tree["train_saross"]["loss"]["hard_labels"] = True
    assert "student" in describe_saross(build_config(tree))


def test_confidence_holds_codes_to_their_stated_error_at_temperature_1(tmp_path):
    config = with_pairs(tmp_path, codec="logprob8", loss={"kd_form": "confidence"})
    with pytest.raises(ValueError, match="softened by 1 "):
        StudentTraining(config, "synthetic")
    assert StudentTraining(with_pairs(tmp_path, codec="logprob8", loss={"kd_form": "dist"}), "synthetic")


def test_another_loss_is_another_experiment(tmp_path):
    config = with_pairs(tmp_path, loss={"kd_form": "dist"})
    assert StudentTraining(config, "real").identity["loss"] == config.train_saross.loss.model_dump(mode="json")


@pytest.mark.parametrize("form", FORMS)
def test_a_student_trains_with_every_form(tmp_path, form):
    config = with_pairs(tmp_path, steps=1, loss={"kd_form": form}, student=TINY_STUDENT)
    train_saross(config, ("synthetic",))
    (record,) = read_records(student_folder(config, "synthetic") / "metrics.jsonl")
    assert record["kd"] > 0 and record["ce"] == 0 and record["grad"] > 0
    assert record["loss"] == pytest.approx(record["kd"] * (1.0 if form == "dist" else 4.0), rel=1e-6)


# --- the boundary term ------------------------------------------------------------------------------------------------


def square(left: int, width: int = 11) -> torch.Tensor:
    """(1, 7, width) with a square of 3 x 3 ones in rows 2 to 4: 8 pixels of it, and 16 around it, are boundary."""
    mask = torch.zeros(1, 7, width, dtype=torch.int64)
    mask[:, 2:5, left : left + 3] = 1
    return mask


def certain(mask: torch.Tensor) -> torch.Tensor:
    """Logits whose softmax is the one-hot mask."""
    return torch.nn.functional.one_hot(mask, 2).movedim(-1, 1).double() * 200


@pytest.mark.parametrize(
    ("predicted", "wanted"),
    [
        (square(2), 0.0),
        (square(3), 0.0),  # a pixel aside is within the tolerance
        # Four aside: 3 of 8 pixels of the square and 9 of 16 of the sea's boundary are within two of the true ones.
        (square(6), ((1 - 4 / 9) + (1 - 10 / 17)) / 2),
        # Nothing found: P = 1, R = 1 / 9 of the square, 1 / 17 of the sea.
        (torch.zeros(1, 7, 11, dtype=torch.int64), ((1 - 0.2) + (1 - 1 / 9)) / 2),
    ],
    ids=["equal", "one aside", "four aside", "nothing"],
)
def test_loss_of_a_square_is_that_worked_out_by_hand(predicted, wanted):
    assert boundary_loss(certain(predicted), square(2)).item() == pytest.approx(wanted, abs=1e-12)


def test_a_boundary_where_there_is_none_costs_and_an_image_of_one_class_costs_nothing():
    sea = torch.zeros(1, 7, 11, dtype=torch.int64)
    assert boundary_loss(certain(sea), sea).item() == 0
    # P = 1 / 9 and 1 / 17, R = 1
    assert boundary_loss(certain(square(2)), sea).item() == pytest.approx(((1 - 0.2) + (1 - 1 / 9)) / 2)


def test_gradient_is_that_of_differences():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 6, 7))
    labels[0, :2] = 255
    assert torch.autograd.gradcheck(lambda x: boundary_loss(x, labels), logits)


def test_descent_moves_a_boundary_to_its_place():
    mask = square(2)
    logits = certain(square(6)).div(50).requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    losses = []
    for _ in range(100):
        loss = boundary_loss(logits, mask).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_unlabelled_pixels_and_labels_outside_the_table_count_nothing():
    torch.manual_seed(0)
    labels = square(2)
    labels[0, 3, 4], labels[0, 0, 10] = 255, 7
    logits = torch.randn(1, 2, 7, 11, requires_grad=True)
    loss = boundary_loss(logits, labels)
    loss.sum().backward()
    unknown = labels[0] > 1
    assert (logits.grad[0, :, unknown] == 0).all() and logits.grad.any()
    other = logits.detach().clone()
    other[0, 0, unknown], other[0, 1, unknown] = 9.0, -9.0  # the least of class 1 wherever it is looked at
    assert torch.equal(boundary_loss(other, labels), loss)
    nothing = torch.full_like(labels, 255)
    assert boundary_loss(logits, nothing).item() == 0


def test_each_sample_has_its_own_loss_and_soft_labelled_ones_have_none():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 2, 7, 11), torch.cat([square(1), square(2), square(3)])
    alone = torch.cat([boundary_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(boundary_loss(logits, labels), alone)
    rows = torch.tensor([-1, 0, -1])
    torch.testing.assert_close(boundary_loss(logits, labels, rows), alone * (rows < 0))


def test_training_adds_the_term_with_its_weight():
    torch.manual_seed(0)

    logits = torch.randn(2, 2, 7, 11)
    batch = Batch(
        image=torch.zeros(2, 1, 7, 11, dtype=torch.uint8),
        positions=torch.arange(2),
        label=torch.cat([square(1), square(2)]).to(torch.uint8),
        teacher=torch.randn(1, 2, 7, 11),
        teacher_row=torch.tensor([-1, 0]),
    )
    without, with_it = (
        StudentLoss(FixedLogits(logits), StudentLossConfig(boundary=weight), 0, torch.contiguous_format)(batch)
        for weight in (0.0, 0.5)
    )
    term = boundary_loss(logits, batch.label, batch.teacher_row)
    torch.testing.assert_close(with_it["loss"], without["loss"] + 0.5 * term)
    torch.testing.assert_close(with_it["boundary"], term)
    assert "boundary" not in without and term[0] > 0 and term[1] == 0
