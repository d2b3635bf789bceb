"""Direct moments of what batch norms see, for the tests of recalibrated students."""

from __future__ import annotations

import torch
from torch import nn

STATISTICS = ("running_mean", "running_var")
# Both sides hold float64 moments of the same fp32 maps; each is rounded to fp32 once, by half an ulp (2^-24) at most.
ERROR_BUDGET = {"rtol": 2.0**-23, "atol": 1e-12}


def direct_moments(net: nn.Module, batches: list[torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of all values that each batch norm sees, by name: collected whole, in float64."""
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in norms}
    net.eval()
    for name, norm in norms.items():
        norm.train()
        norm.register_forward_hook(lambda _, inputs, __, name=name: seen[name].append(inputs[0].double()))
    with torch.no_grad():
        for batch in batches:
            net(batch)
    values = {name: torch.cat(maps).transpose(0, 1).flatten(1) for name, maps in seen.items() if maps}
    return {name: (one.mean(1), one.var(1)) for name, one in values.items()}
