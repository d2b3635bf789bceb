"""The student's losses per sample: cross-entropy on real ones, distillation on synthetic ones, Dice."""

from dakd.kernels.seg_loss.api import SegLoss, seg_loss

__all__ = ["SegLoss", "seg_loss"]
