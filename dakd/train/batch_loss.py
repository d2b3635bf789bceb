"""The student's loss on a batch that may mix real and synthetic samples (paper, Eq. 8-10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dakd.config import StudentLossConfig
from dakd.data.batch import Batch
from dakd.data.sample import IGNORE_INDEX
from dakd.data.transforms import to_student
from dakd.kernels.seg_loss import SegLoss, seg_loss
from dakd.models.separate_norm import separate_norms
from dakd.models.student import StudentNet
from dakd.train.student_losses import boundary_loss, distillation_loss, kd_scale, soft_dice


class StudentLoss(nn.Module):
    """The student's loss on a batch that may mix real and synthetic samples."""

    def __init__(
        self,
        net: StudentNet,
        cfg: StudentLossConfig,
        seed: int,
        memory_format: torch.memory_format,
        batch_norm: str = "local",
        masks_pairs: bool = False,
    ):
        """masks_pairs: whether the label beside a soft label marks, by IGNORE_INDEX, the pixels that do not count."""
        super().__init__()
        self.net, self.cfg, self.seed, self.memory_format = net, cfg, seed, memory_format
        self.batch_norm, self.masks_pairs = batch_norm, masks_pairs
        self.separate_norms = separate_norms(net)
        weights = None if cfg.class_weights is None else torch.tensor(cfg.class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def train(self, mode: bool = True) -> StudentLoss:
        """Frozen batch norm stays as it is in evaluation: its statistics are fixed, its weights are trained."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self.net.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        cfg = self.cfg
        if self.net.has_own_loss:
            return self._own_loss(batch)
        logits = self._logits(batch)
        terms = self._terms_of_both(logits, batch) if cfg.hard_labels == "both" else self._terms(logits, batch)
        loss = cfg.ce * terms.ce + cfg.kd * kd_scale(cfg) * terms.kd + cfg.dice * terms.dice
        extra = {}
        if cfg.boundary:
            row = None if cfg.hard_labels == "both" else batch.teacher_row
            extra["boundary"] = boundary_loss(logits, batch.label, row)
            loss = loss + cfg.boundary * extra["boundary"]
        # pixels whose class the table does not have; they count as unknown
        invalid = terms.num_invalid.to(loss.dtype)
        losses = {"loss": loss, "ce": terms.ce, "kd": terms.kd, "dice": terms.dice, "num_invalid_labels": invalid}
        return losses | extra

    def _terms(self, logits: Tensor, batch: Batch) -> SegLoss:
        """Of real samples cross-entropy and Dice, of samples with a soft label distillation and, if asked for, Dice."""
        cfg, counts = self.cfg, self._counts(batch)
        teacher, row, soft_range = batch.teacher, batch.teacher_row, batch.teacher_range
        has_other_kd = cfg.kd_form != "temperature" or counts is not None
        has_soft_dice = cfg.dice_samples == "all"
        needs_teacher = not has_other_kd or (has_soft_dice and counts is None)
        terms = self._op(logits, batch.label, teacher if needs_teacher else None, row, soft_range, cfg.dice_samples)
        if has_soft_dice and counts is not None:
            masked = soft_dice(logits, teacher, row, soft_range, counts, cfg.dice_form)
            terms = terms._replace(dice=torch.where(row < 0, terms.dice, masked))
        if has_other_kd:
            terms = terms._replace(kd=distillation_loss(logits, teacher, row, soft_range, cfg, counts))
        return terms

    def _terms_of_both(self, logits: Tensor, batch: Batch) -> SegLoss:
        """Of all samples cross-entropy with their hard labels, of those with a soft label distillation too."""
        cfg, counts = self.cfg, self._counts(batch)
        teacher, row, soft_range = batch.teacher, batch.teacher_row, batch.teacher_range
        # The op gives a sample with a teacher no cross-entropy, so it is called once without and once with it.
        terms = self._op(logits, batch.label, None, None, None, "all")
        if cfg.dice_samples == "real":
            terms = terms._replace(dice=torch.where(row < 0, terms.dice, 0))
        if cfg.kd_form != "temperature" or counts is not None:
            return terms._replace(kd=distillation_loss(logits, teacher, row, soft_range, cfg, counts))
        return terms._replace(kd=self._op(logits, batch.label, teacher, row, soft_range, "none").kd)

    def _op(
        self,
        logits: Tensor,
        label: Tensor,
        teacher: Tensor | None,
        row: Tensor | None,
        soft_range: float | None,
        dice_samples: str,
    ) -> SegLoss:
        return seg_loss(
            logits,
            label,
            teacher,
            row,
            teacher_range=soft_range,
            temperature=self.cfg.temperature,
            class_weights=self.class_weights,
            dice_samples=dice_samples,
            dice_form=self.cfg.dice_form,
        )

    def _counts(self, batch: Batch) -> Tensor | None:
        """(B, H, W): the pixels that count beside a soft label; None where all do."""
        return batch.label != IGNORE_INDEX if self.masks_pairs else None

    def _logits(self, batch: Batch) -> Tensor:
        """(B, K, H, W).  Where batch norm is separate the net is given the real samples before the synthetic ones."""
        image, positions = batch.image, batch.host_positions
        order = self._real_ones_first(batch) if self.separate_norms else None
        if order is not None:
            image, positions = image.index_select(0, order.to(image.device)), positions[order]
        self.net.set_sample_positions(positions, self.seed)
        logits = self.net(to_student(image).to(memory_format=self.memory_format))
        return logits if order is None else logits.index_select(0, order.argsort().to(logits.device))

    def _real_ones_first(self, batch: Batch) -> Tensor | None:
        """(B,) rows on the host, None where they stand so already; and the batch norms learn how many there are."""
        is_synthetic = batch.host_is_synthetic
        num_synthetic = int(is_synthetic.sum())
        for norm in self.separate_norms:
            norm.rows = len(is_synthetic) - num_synthetic, num_synthetic
        order = is_synthetic.int().argsort(stable=True)
        return None if bool((order.diff() == 1).all()) else order

    def _own_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of a net that has a loss of its own, on labels: synthetic samples are labelled by the teacher's argmax.

        Or by their hard label, where they have one beside the soft label.
        """
        has_labels = self.masks_pairs or self.cfg.hard_labels == "both"
        label = batch.label if has_labels else with_teachers_labels(batch.label, batch.teacher, batch.teacher_row)
        losses = self.net.loss_of(to_student(batch.image).to(memory_format=self.memory_format), label)
        invalid = ((label != IGNORE_INDEX) & (label >= self.net.num_classes)).sum()
        return losses | {"num_invalid_labels": invalid.to(losses["loss"].dtype)}


def with_teachers_labels(label: Tensor, teacher: Tensor | None, teacher_row: Tensor) -> Tensor:
    """(B, H, W): the labels, and for samples with a row in the teacher its likeliest classes (the smallest codes)."""
    if teacher is None or not len(teacher):
        return label
    best = (teacher.argmin(1) if teacher.dtype == torch.uint8 else teacher.argmax(1)).to(label.dtype)
    # Rows of -1 are read as row 0 and then discarded: no branch, so the host need not wait for the device.
    return torch.where((teacher_row < 0)[:, None, None], label, best[teacher_row.clamp_min(0)])
