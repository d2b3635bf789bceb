"""AdamW that keeps an exponential moving average of the weights as one more state of the optimizer.

As a state beside Adam's moments, the average is sharded, offloaded and saved wherever they are: DeepSpeed hands its
optimizer flat fp32 partitions, and the average of a partition is the partition of the average. No collective is needed.
"""

from __future__ import annotations

import torch


def ema_decay(step: int, max_decay: float, ramp: float) -> float:
    """The decay at an optimizer step (1-based): min(max_decay, (1 + step) / (ramp + step)).

    A short run averages over its last part instead of its start.
    """
    return min(max_decay, (1 + step) / (ramp + step))


class EmaAdamW(torch.optim.AdamW):
    """torch's AdamW; after each step `state["ema"]` moves towards the weights, starting from the initial ones."""

    def __init__(self, params, *, max_decay: float, ramp: float, **adamw):
        super().__init__(params, **adamw)
        self.max_decay, self.ramp = max_decay, ramp

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
                    self.state[p] = {"step": torch.tensor(0.0), **moments, "ema": p.detach().clone()}

    @torch.no_grad()
    def step(self, closure=None):
        touched = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        initial = {p: p.detach().clone() for p in touched if "ema" not in self.state[p]}
        loss = super().step(closure)
        for p in touched:
            state = self.state[p]
            if "ema" not in state:
                state["ema"] = initial[p]
            state["ema"].lerp_(p, 1 - ema_decay(int(state["step"]), self.max_decay, self.ramp))
        return loss
