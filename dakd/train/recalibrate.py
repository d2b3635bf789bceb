"""Batch norm's running statistics, computed after a training from images of one's choice.

Running statistics are moving averages over the last steps, of weights that were still changing, and in a mixed training
over real and synthetic samples alike. A student is used on real images with its final weights: their statistics are
what its batch norms ought to have.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def recalibrate(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running mean and variance of every batch norm of the net by those of its inputs, in one pass.

    Definition: batch norm normalises each batch by the batch's own statistics, as in training; all other layers are in
    evaluation mode. The new mean and variance (the unbiased one, as in torch) of a batch norm are those of all values
    of a channel that it sees, over all pixels of all batches together: pooled in float64, no average over batches. So
    they depend on the images and, through the statistics by which earlier layers normalise, on how these are cut into
    batches; neither on ranks nor on the micro-batch nor on the old statistics.

    batches: the net's inputs (B, 3, H, W), on its device.  ValueError for a batch whose batch norms see one value a
    channel. A batch norm that the net does not call keeps its statistics. The net is left in evaluation mode.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    moments = [Moments() for _ in norms]
    counters = [norm.num_batches_tracked.clone() for norm in norms]
    hooks = [norm.register_forward_pre_hook(partial(_add, one)) for norm, one in zip(norms, moments)]
    net.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for batch in batches:
            net(batch)
        for norm, one, counter in zip(norms, moments, counters):
            norm.num_batches_tracked.copy_(counter)  # of the training's steps
            if one.count:
                norm.running_mean.copy_(one.mean)
                norm.running_var.copy_(one.variance)
    for hook in hooks:
        hook.remove()
    net.eval()


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of the values of each channel, in float64."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        """values: (B, C, ...).  Merged as by Chan et al. 1983: a large mean costs the variance no digits."""
        dims = [dim for dim in range(values.ndim) if dim != 1]
        variance, mean = torch.var_mean(values.double(), dims, correction=0)
        added = values.numel() // values.shape[1]
        total, difference = self.count + added, mean - self.mean
        self.squares = self.squares + variance * added + difference**2 * (self.count * added / total)
        self.mean = self.mean + difference * (added / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """(C,), unbiased."""
        return self.squares / (self.count - 1)


def _add(moments: Moments, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    moments.add(inputs[0])


def even_batches(count: int, size: int) -> list[list[int]]:
    """0 to count - 1 in order, cut into batches of at least `size` (or all), whose sizes differ by one at most.

    At least two where there are two: of one image, maps of one pixel would have no variance.
    """
    number = max(1, count // max(2, size))
    ends = [count * i // number for i in range(number + 1)]
    return [list(range(*pair)) for pair in itertools.pairwise(ends)]
