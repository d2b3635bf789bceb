"""AdamW that keeps moving averages of the weights as more states of the optimizer.

As a state beside Adam's moments, an average is sharded, offloaded and saved wherever they are: DeepSpeed hands its
optimizer flat fp32 partitions, and the average of a partition is the partition of the average. No collective is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from dakd.config import OptimizerConfig
from dakd.train.posthoc import power_decay, power_of_length

EMA_RAMP = 10.0
# Relative lengths of the two averages whose snapshots `dakd ema` combines (Karras et al. 2024).
POSTHOC_LENGTHS = (0.05, 0.10)

Decays = Mapping[str, Callable[[int], float]]  # by an average's name: its decay at an optimizer step (1-based)


def ema_decay(step: int, max_decay: float) -> float:
    """The decay at an optimizer step (1-based): min(max_decay, (1 + step) / (EMA_RAMP + step)).

    A short run averages over its last part instead of its start.
    """
    return min(max_decay, (1 + step) / (EMA_RAMP + step))


def decays_of(cfg: OptimizerConfig) -> dict[str, Callable[[int], float]]:
    """The averages that a training keeps: `ema`, and `posthoc_0`, `posthoc_1` where snapshots of them are taken."""
    decays = {"ema": partial(ema_decay, max_decay=cfg.ema_decay)}
    if cfg.posthoc_every:
        powers = map(power_of_length, POSTHOC_LENGTHS)
        decays |= {f"posthoc_{i}": partial(power_decay, power=power) for i, power in enumerate(powers)}
    return decays


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
                    self.state[p] = {"step": torch.tensor(0.0), **moments, **averages}

    @torch.no_grad()
    def step(self, closure=None):
        touched = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        initial = {p: p.detach().clone() for p in touched if "ema" not in self.state[p]}
        loss = super().step(closure)
        for p in touched:
            state = self.state[p]
            if p in initial:
                state.update({name: initial[p].clone() for name in self.decays})
            for name, decay in self.decays.items():
                state[name].lerp_(p, 1 - decay(int(state["step"])))
        return loss
