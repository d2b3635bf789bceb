"""What a student's settings must fit: the device, the net, the classes and the soft labels."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from dakd.config import StudentConfig, TrainSarossConfig
from dakd.data.soft_labels import check_temperature
from dakd.models.registry import STUDENT_CLASSES, build_student
from dakd.runtime.distributed import device
from dakd.train.student_losses import check_kd_form


def check_batch_norm(cfg: TrainSarossConfig) -> None:
    """ValueError where the device has no batch norm of that kind."""
    if cfg.batch_norm == "sync" and device().type != "cuda":
        raise ValueError("batch_norm is sync, which torch supports only on GPUs; set it to local or frozen")


def check_statistics(cfg: TrainSarossConfig, num_classes: int) -> None:
    """ValueError where batch norm is separate or recalibrated, and the student has none of samples."""
    asked = {"batch_norm": "local"} if cfg.batch_norm == "separate" else {}
    asked |= {"recalibrate": "none"} if cfg.recalibrate != "none" else {}
    lack = _lack_of_batch_norm(cfg.student, num_classes) if asked else ""
    for setting, default in asked.items() if lack else ():
        raise ValueError(f"{setting} is {getattr(cfg, setting)}, and the student {lack}; set {setting} to {default}")


def _lack_of_batch_norm(cfg: StudentConfig, num_classes: int) -> str:
    """What the student has in place of batch norms of samples; empty where it has such ones."""
    if STUDENT_CLASSES[cfg.name].has_own_loss:
        return f"{cfg.name} has batch norms that may see objects"
    with torch.device("meta"):
        net = build_student(cfg, num_classes)
    has_one = any(isinstance(module, _BatchNorm) for module in net.modules())
    return "" if has_one else f"{cfg.name} with {cfg.encoder} has no batch norm"


def check_loss(
    cfg: TrainSarossConfig,
    num_classes: int,
    has_synthetic: bool,
    soft_range: float | None = None,
    has_ignored: bool = False,
) -> None:
    """ValueError for settings of the loss that do not fit the classes or the soft labels.

    soft_range: of the stored codes; None for logits, and where they are not known yet.
    has_ignored: whether the pairs store hard labels, which may mark pixels that count in no loss.
    """
    weights = cfg.loss.class_weights
    if weights is not None and len(weights) != num_classes:
        raise ValueError(f"class_weights has {len(weights)} values for {num_classes} classes; give one for each")
    if has_synthetic and cfg.loss.hard_labels is not True and not STUDENT_CLASSES[cfg.student.name].has_own_loss:
        temperatures = check_kd_form(cfg.loss, num_classes, soft_range, has_ignored)
        # Dice compares with the soft label as it is, at temperature 1.
        has_soft_dice = cfg.loss.dice_samples == "all" and cfg.loss.dice and not cfg.loss.hard_labels
        temperatures += [1.0] if has_soft_dice else []
        check_temperature(soft_range, temperatures, num_classes)
