"""What the optimizer decays, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

from torch import nn

from dakd.config import OptimizerConfig
from dakd.train.ema import AveragingAdamW, decays_of

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's defaults for AdamW: the paper names none


def parameter_groups(module: nn.Module, weight_decay: float, decays_vectors: bool) -> list[dict]:
    """Trainable parameters in groups with and without weight decay.

    decays_vectors: whether biases and norm weights decay too (plain AdamW). Parameters marked `_no_weight_decay`
    (A_log and D of the scans) never do.
    """
    decayed, kept = [], []
    for parameter in module.parameters():
        if parameter.requires_grad:
            spared = getattr(parameter, "_no_weight_decay", False) or (parameter.ndim < 2 and not decays_vectors)
            (kept if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, cfg: OptimizerConfig, decays_vectors: bool) -> AveragingAdamW:
    return AveragingAdamW(
        parameter_groups(module, cfg.weight_decay, decays_vectors),
        decays=decays_of(cfg),
        lr=0.0,  # the loop sets the rate of every step
        betas=BETAS,
        eps=EPS,
    )


def learning_rate(step: int, total_steps: int, peak: float, cfg: OptimizerConfig) -> float:
    """The rate of step `step` (0-based): a linear warm-up, then constant, or cosine or poly (power 1) to zero."""
    warmup = min(cfg.warmup_steps, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if cfg.lr_decay == "constant":
        return peak
    done = (step - warmup) / max(1, total_steps - warmup)
    return peak * (0.5 * (1 + math.cos(math.pi * done)) if cfg.lr_decay == "cosine" else 1 - done)


def optimizer_identity(cfg: OptimizerConfig, peak: float, total_steps: int) -> dict:
    """What a checkpoint must share to be continued: a run at a constant rate may be made longer, another may not.

    Nor may one that is shorter than its warm-up, which is then cut to the run's length.
    """
    follows_length = cfg.lr_decay != "constant" or total_steps < cfg.warmup_steps
    return cfg.model_dump(mode="json") | {"lr": peak, "total_steps": total_steps if follows_length else None}
