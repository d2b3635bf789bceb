"""The optimizer: AdamW that keeps moving averages of the weights, its parameter groups, and the learning rate.

The averages are further states of the optimizer, next to Adam's moments, so they are sharded, offloaded and saved with
them: DeepSpeed gives its optimizer flat fp32 partitions, and the average of a partition is the partition of the
average. No collective is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from dakd.config import OptimizerConfig
from dakd.train.posthoc import power_decay, power_of_length

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's defaults for AdamW: the paper names none
EMA_RAMP = 10.0
# Relative lengths of the two averages whose snapshots `dakd ema` combines (Karras et al. 2024).
POSTHOC_LENGTHS = (0.05, 0.10)

Decays = Mapping[str, Callable[[int], float]]  # by an average's name: its decay at an optimizer step (1-based)


class AveragingAdamW(torch.optim.AdamW):
    """torch's AdamW; after each step every average moves towards the weights, starting from the initial ones."""

    def __init__(self, params, *, decays: Decays, **adamw):
        super().__init__(params, **adamw)
        self.decays = decays

    @torch.no_grad()
    def create_states(self) -> None:
        """Make the state of every parameter now, not at its first step.

        DeepSpeed's ZeRO 1 and 2 step group by group and look for all states after the first group: without this they
        would never find those of the others.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                    averages = {name: p.detach().clone() for name in self.decays}
                    # As AdamW itself makes it: the count is a float32 scalar on the CPU.
                    self.state[p] = {"step": torch.tensor(0.0), **moments, **averages}

    @torch.no_grad()
    def step(self, closure=None):
        # torch skips parameters without a gradient, and so must the averages.
        touched = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        # torch's step would change them before an average could start from them.
        initial = {p: p.detach().clone() for p in touched if "ema" not in self.state[p]}
        loss = super().step(closure)
        for p in touched:
            state = self.state[p]
            if p in initial:
                state.update({name: initial[p].clone() for name in self.decays})
            for name, decay in self.decays.items():
                # p is DeepSpeed's fp32 partition: the averages follow the exact weights, not their bf16 copies.
                state[name].lerp_(p, 1 - decay(int(state["step"])))
        return loss


def decays_of(cfg: OptimizerConfig) -> dict[str, Callable[[int], float]]:
    """The averages that a training keeps: `ema`, and `posthoc_0`, `posthoc_1` where snapshots of them are taken."""
    decays = {"ema": partial(ema_decay, max_decay=cfg.ema_decay)}
    if cfg.posthoc_every:
        powers = map(power_of_length, POSTHOC_LENGTHS)
        decays |= {f"posthoc_{i}": partial(power_decay, power=power) for i, power in enumerate(powers)}
    return decays


def ema_decay(step: int, max_decay: float) -> float:
    """The decay at an optimizer step (1-based): min(max_decay, (1 + step) / (EMA_RAMP + step)).

    A short run averages over its last part instead of its start.
    """
    return min(max_decay, (1 + step) / (EMA_RAMP + step))


def build_optimizer(module: nn.Module, cfg: OptimizerConfig, decays_vectors: bool) -> AveragingAdamW:
    return AveragingAdamW(
        parameter_groups(module, cfg.weight_decay, decays_vectors),
        decays=decays_of(cfg),
        lr=0.0,  # the engine sets the rate of every step
        betas=BETAS,
        eps=EPS,
    )


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
    """The settings that a checkpoint must share to be resumed.

    A run at a constant rate may be made longer; another may not, and neither may one that is shorter than its warm-up,
    which is then cut to the run's length.
    """
    follows_length = cfg.lr_decay != "constant" or total_steps < cfg.warmup_steps
    return cfg.model_dump(mode="json") | {"lr": peak, "total_steps": total_steps if follows_length else None}
