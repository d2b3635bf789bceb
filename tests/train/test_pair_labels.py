"""Hard labels of pairs, beside the soft ones or in their place, and the pixels that they mark as ignored."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixed_logits import BareStudent, FixedLogits
from tiny_students import TINY_MAMBA_STUDENT
from worlds import with_pairs

from dakd.config import StudentLossConfig, build_config
from dakd.data.batch import Batch
from dakd.data.datasets import StudentDataset
from dakd.data.sample import IGNORE_INDEX
from dakd.data.shards import ShardSet, write_index, write_shard
from dakd.data.soft_labels import likeliest_class
from dakd.kernels.seg_loss import seg_loss
from dakd.runtime.runlog import read_records
from dakd.train.batch_loss import StudentLoss
from dakd.train.saross import StudentTraining, student_folder, train_saross
from dakd.train.student_losses import check_kd_form, distillation_loss

FORMS = ("temperature", "confidence", "standardized")


def mixed(dtype=torch.float64):
    """A batch of three samples of 5 x 4 pixels and 4 classes, the second one real, and a student's logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 4, generator=generator, dtype=dtype)
    teacher = 3 * torch.randn(2, 4, 5, 4, generator=generator, dtype=dtype)
    label = torch.randint(0, 4, (3, 5, 4), generator=generator).to(torch.uint8)
    label[torch.rand(3, 5, 4, generator=generator) < 0.3] = IGNORE_INDEX
    image = torch.zeros(3, 1, 5, 4, dtype=torch.uint8)
    return Batch(image, torch.arange(3), label, teacher, torch.tensor([1, -1, 0])), logits


def losses_of(batch, logits, masks_pairs=False, **settings):
    module = StudentLoss(
        FixedLogits(logits.clone()), StudentLossConfig(**settings), 0, torch.contiguous_format, masks_pairs=masks_pairs
    )
    losses = module(batch)
    losses["loss"].sum().backward()
    return {name: value.detach() for name, value in losses.items()} | {"gradient": module.net.logits.grad}


def softmax(values):
    shifted = [math.exp(value - max(values)) for value in values]
    return [value / sum(shifted) for value in shifted]


def z_scores(values):
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-6)
    return [(value - mean) / deviation for value in values]


def plain_kd(form, s, z, label, tau):
    """Pixel by pixel with Python's numbers; s, z: (K, H, W), label: (H, W)."""
    counted = [(i, j) for i in range(5) for j in range(4) if label[i, j] != IGNORE_INDEX]
    losses, confidences = [], []
    for i, j in counted:
        student, teacher = s[:, i, j].tolist(), z[:, i, j].tolist()
        confidences.append(max(softmax(teacher)))
        if form == "standardized":
            student, teacher = z_scores(student), z_scores(teacher)
        p, q = (softmax([value / tau for value in one]) for one in (student, teacher))
        losses.append(-sum(b * math.log(a) for a, b in zip(p, q)))
    if not counted:
        return 0.0
    mean = sum(confidences) / len(counted)
    weights = [one / mean for one in confidences] if form == "confidence" else [1.0] * len(counted)
    return sum(weight * loss for weight, loss in zip(weights, losses)) / len(counted)


# --- ignored pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_masked_distillation_is_the_mean_over_the_pixels_that_count(form):
    batch, logits = mixed()
    batch.label[2] = IGNORE_INDEX
    found = losses_of(batch, logits, masks_pairs=True, kd_form=form, temperature=3.0)
    wanted = [plain_kd(form, logits[0], batch.teacher[1], batch.label[0], 3.0), 0.0, 0.0]
    assert found["kd"].tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12) and wanted[0] > 0.1
    everywhere = losses_of(batch._replace(label=batch.label * 0), logits, True, kd_form=form, temperature=3.0)["kd"]
    assert abs(found["kd"][0] - everywhere[0]) > 1e-3


@pytest.mark.parametrize("dice_samples", ["real", "all"])
@pytest.mark.parametrize("hard_labels", [False, "both"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_masked_losses_are_those_of_their_differences_and_zero_at_ignored_pixels(
    form, hard_labels, dice_samples
):
    batch, logits = mixed()
    cfg = StudentLossConfig(kd_form=form, hard_labels=hard_labels, dice_samples=dice_samples)

    def loss(s):
        net = FixedLogits(s.detach())
        net.forward = lambda image: s
        return StudentLoss(net, cfg, 0, torch.contiguous_format, masks_pairs=True)(batch)["loss"]

    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(loss, (logits,), fast_mode=True)
    (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
    ignored = (batch.label == IGNORE_INDEX).unsqueeze(1).expand_as(gradient)
    assert not gradient[ignored].any() and (gradient[~ignored] != 0).all()
    # A sample of which no pixel counts has neither a loss nor a gradient.
    batch.label[0] = IGNORE_INDEX
    (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
    assert loss(logits)[0] == 0 and gradient.isfinite().all() and not gradient[0].any()


@pytest.mark.parametrize("dice_form", ["soft", "generalized"])
def test_dice_of_a_masked_sample_is_that_of_its_other_pixels_alone(dice_form):
    batch, logits = mixed()
    settings = {"dice_samples": "all", "dice_form": dice_form}
    found = losses_of(batch, logits, masks_pairs=True, **settings)
    for row, place in ((0, 1), (2, 0)):
        counts = batch.label[row] != IGNORE_INDEX
        # The pixels that count as an image of their own, of one row.
        s, z = (one[:, counts].view(1, 4, 1, -1) for one in (logits[row], batch.teacher[place]))
        image = torch.zeros(1, 1, *s.shape[2:], dtype=torch.uint8)
        label = torch.full(s.shape[2:], IGNORE_INDEX, dtype=torch.uint8).unsqueeze(0)
        alone = losses_of(Batch(image, torch.arange(1), label, z, torch.tensor([0])), s, **settings)
        assert found["dice"][row].item() == pytest.approx(alone["dice"].item(), rel=1e-12)
        assert found["kd"][row].item() == pytest.approx(alone["kd"].item(), rel=1e-12)
    assert torch.equal(found["dice"][1], losses_of(batch, logits, **settings)["dice"][1])


@pytest.mark.parametrize("dice_samples", ["real", "all"])
@pytest.mark.parametrize("form", [*FORMS, "dist"])
def test_a_mask_that_ignores_nothing_changes_no_loss(form, dice_samples):
    batch, logits = mixed()
    batch.label[0] = batch.label[2] = 1
    settings = {"kd_form": form, "dice_samples": dice_samples}
    plain = losses_of(batch, logits, **settings)
    if form == "dist":
        with pytest.raises(ValueError, match="kd_form is dist; expected confidence"):
            losses_of(batch, logits, masks_pairs=True, **settings)
        with pytest.raises(ValueError, match=r"kd_form is dist, which correlates all pixels.*set it to temperature"):
            check_kd_form(StudentLossConfig(kd_form="dist"), 4, None, has_ignored=True)
        return
    masked = losses_of(batch, logits, masks_pairs=True, **settings)
    for name, value in plain.items():
        torch.testing.assert_close(masked[name], value, rtol=1e-12, atol=1e-14)


def test_a_batch_of_real_samples_alone_has_no_masked_loss():
    batch, logits = mixed()
    real = batch._replace(teacher=None, teacher_row=torch.full((3,), -1))
    for hard_labels in (False, True, "both"):
        settings = {"hard_labels": hard_labels, "dice_samples": "all"}
        masked, plain = (losses_of(real, logits, masks, **settings) for masks in (True, False))
        assert all(torch.equal(masked[name], plain[name]) for name in plain) and not masked["kd"].any()


# --- hard and soft labels together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dice_samples", ["real", "all"])
@pytest.mark.parametrize("form", [*FORMS, "dist"])
def test_both_is_the_distillation_of_soft_and_the_cross_entropy_of_hard_labels(form, dice_samples):
    batch, logits = mixed()
    settings = {"kd_form": form, "dice_samples": dice_samples, "kd": 0.7, "ce": 1.3, "dice": 0.9, "boundary": 0.4,
                "class_weights": (1.0, 2.0, 3.0, 0.5)}  # fmt: skip
    both = losses_of(batch, logits, hard_labels="both", **settings)
    soft = losses_of(batch, logits, **settings)
    hard = losses_of(batch._replace(teacher=None, teacher_row=torch.full((3,), -1)), logits, **settings)
    is_real = batch.teacher_row < 0
    dice = hard["dice"] if dice_samples == "all" else torch.where(is_real, hard["dice"], 0)
    for name, value in {"kd": soft["kd"], "ce": hard["ce"], "dice": dice, "boundary": hard["boundary"]}.items():
        torch.testing.assert_close(both[name], value, rtol=1e-12, atol=0)
    scale = 1.0 if form == "dist" else 4.0
    wanted = 0.7 * scale * soft["kd"] + 1.3 * hard["ce"] + 0.9 * dice + 0.4 * hard["boundary"]
    torch.testing.assert_close(both["loss"], wanted)
    # Written out: the mean over the labelled pixels, each weighted by its class.
    weight = torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64)
    ce = F.cross_entropy(logits[:1], batch.label[:1].long(), weight, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(both["ce"][0], ce)


def test_the_gradient_of_both_is_the_sum_of_the_gradients_of_its_parts():
    batch, logits = mixed()
    both = losses_of(batch, logits, hard_labels="both")["gradient"]
    soft = losses_of(batch, logits)["gradient"]
    hard = losses_of(batch._replace(teacher=None, teacher_row=torch.full((3,), -1)), logits, dice=0)["gradient"]
    torch.testing.assert_close(both[[0, 2]], (soft + hard)[[0, 2]])
    torch.testing.assert_close(both[1], soft[1])


def test_a_net_with_a_loss_of_its_own_gets_the_hard_labels_that_the_batch_holds():
    class Own(BareStudent):
        has_own_loss = True

        def loss_of(self, image, label):
            self.label = label
            return {"loss": label.sum((1, 2)).float()}

    batch, _ = mixed()
    for settings, masks_pairs in (({"hard_labels": "both"}, False), ({}, True)):
        net = Own(4, 1)
        StudentLoss(net, StudentLossConfig(**settings), 0, torch.contiguous_format, masks_pairs=masks_pairs)(batch)
        assert torch.equal(net.label, batch.label)


# --- sets without stored labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, "dist"])
def test_losses_without_stored_labels_are_bitwise_those_of_the_op_and_of_the_form(form):
    batch, logits = mixed(torch.float32)
    batch.label[0] = batch.label[2] = IGNORE_INDEX
    found = losses_of(batch, logits, kd_form=form, dice_samples="all")
    cfg = StudentLossConfig(kd_form=form, dice_samples="all")
    terms = seg_loss(logits, batch.label, batch.teacher, batch.teacher_row, dice_samples="all")
    kd = terms.kd
    if form != "temperature":
        kd = distillation_loss(logits, batch.teacher, batch.teacher_row, None, cfg)
    assert torch.equal(found["kd"], kd)
    assert torch.equal(found["ce"], terms.ce) and torch.equal(found["dice"], terms.dice)
    assert torch.equal(found["loss"], terms.ce + (1.0 if form == "dist" else 4.0) * kd + terms.dice)


# --- the samples ------------------------------------------------------------------------------------------------------


def with_stored_labels(folder, share=0.3, **train):
    """A toy run whose pairs store labels: in so many pixels IGNORE_INDEX, in the others another class than argmax."""
    config = with_pairs(folder, **train)
    pairs, rng = ShardSet(config.run_path / "generate"), np.random.default_rng(5)
    samples = [replace(one, label=stored_label(one.soft_label, rng, share)) for one in pairs]
    write_shard(pairs.folder, 0, samples, pairs.classes, codec="fp16")
    write_index(pairs.folder, pairs.classes, kind="synthetic", codec="fp16")
    return config


def stored_label(soft, rng, share):
    label = (likeliest_class(soft) + 1) % 5
    label[rng.random(label.shape) < share] = IGNORE_INDEX
    return label


def set_of(config) -> ShardSet:
    return ShardSet(config.run_path / "generate")


def batch_of(pairs, **options):
    settings = {"mosaic": False, "flip": False, "seed": 0} | options
    return StudentDataset(None, pairs, (64, 64), **settings).batch(list(range(8)))


@pytest.mark.parametrize("hard_labels", [False, True, "both"])
def test_a_stored_label_reaches_the_student(tmp_path, hard_labels):
    pairs = set_of(with_stored_labels(tmp_path))
    batch, stored = batch_of(pairs, hard_labels=hard_labels), {one.key: one.label for one in pairs}
    assert all(np.array_equal(batch.label[row], stored[key]) for row, key in enumerate(batch.keys))
    assert (batch.teacher is None) == (hard_labels is True)


@pytest.mark.parametrize("hard_labels", [False, True, "both"])
def test_without_stored_labels_the_hard_one_is_the_teachers_argmax(tmp_path, hard_labels):
    pairs = set_of(with_pairs(tmp_path))
    batch, soft = batch_of(pairs, hard_labels=hard_labels), {one.key: one.soft_label for one in pairs}
    for row, key in enumerate(batch.keys):
        wanted = likeliest_class(soft[key]) if hard_labels else np.full((64, 64), IGNORE_INDEX)
        assert np.array_equal(batch.label[row], wanted)
        if hard_labels is not True:
            assert np.array_equal(batch.teacher[batch.teacher_row[row]], soft[key])


def test_the_tiles_of_a_mosaic_bring_their_labels_and_their_soft_labels_to_one_place(tmp_path):
    pairs = set_of(with_stored_labels(tmp_path, share=0.0))
    dataset = StudentDataset(None, pairs, (64, 64), mosaic=True, flip=True, seed=1)
    batch = dataset.batch([0, 1])
    assert np.array_equal(batch.label, (batch.teacher.numpy().argmax(1) + 1) % 5)
    # Images smaller than the tiles are padded, and padded pixels count in no loss.
    padded = StudentDataset(None, pairs, (256, 64), mosaic=True, flip=False, seed=1).batch([0])
    assert (padded.label[0, 64:128] == IGNORE_INDEX).all() and (padded.label[0, :64] != IGNORE_INDEX).all()


def test_a_set_that_stores_labels_for_some_pairs_alone_is_refused(tmp_path):
    pairs = set_of(with_stored_labels(tmp_path))
    samples = [replace(one, label=one.label if i else None) for i, one in enumerate(pairs)]
    write_shard(pairs.folder, 0, samples, pairs.classes, codec="fp16")
    write_index(pairs.folder, pairs.classes, kind="synthetic", codec="fp16")
    with pytest.raises(ValueError, match="for 7 of 8 pairs; expected all or none; write the set again"):
        batch_of(ShardSet(pairs.folder))


@pytest.mark.parametrize("hard_labels", [False, True, "both"])
def test_a_student_trains_on_pairs_that_store_labels(tmp_path, hard_labels):
    loss = {"hard_labels": hard_labels, "dice_samples": "all"}
    config = with_stored_labels(tmp_path, steps=2, loss=loss, student=TINY_MAMBA_STUDENT, flip=False)
    train_saross(config, ("synthetic",))
    (first, _) = read_records(student_folder(config, "synthetic") / "metrics.jsonl")
    assert (first["kd"] > 0) == (hard_labels is not True) and (first["ce"] > 0) == bool(hard_labels)
    assert first["dice"] > 0 and first["grad"] > 0
    wanted = first["ce"] + 4 * first["kd"] + first["dice"]
    assert first["loss"] == pytest.approx(wanted, rel=1e-6)


def test_masked_pairs_are_another_experiment_and_refuse_correlations(tmp_path):
    plain = with_pairs(tmp_path / "plain", student=TINY_MAMBA_STUDENT)
    masked = with_stored_labels(tmp_path / "masked", student=TINY_MAMBA_STUDENT)
    assert StudentTraining(plain, "synthetic").data != StudentTraining(masked, "synthetic").data
    tree = masked.model_dump(mode="json")
    tree["train_saross"]["loss"]["kd_form"] = "dist"
    with pytest.raises(ValueError, match="kd_form is dist, which correlates all pixels"):
        StudentTraining(build_config(tree), "synthetic")
    assert StudentTraining(build_config(tree), "real")


def test_settings_take_true_false_and_both_alone():
    assert StudentLossConfig().model_dump()["hard_labels"] is False
    assert StudentLossConfig(hard_labels="both").hard_labels == "both"
    with pytest.raises(ValueError, match="both"):
        StudentLossConfig(hard_labels="neither")
