"""Batch norm that keeps statistics and affine parameters of its own for synthetic samples (auxiliary batch norm).

Real and synthetic images have different statistics; normalised together, each kind is normalised by the mixture of
both. So every batch norm gets an auxiliary twin for the synthetic samples of a training pass, while the main one sees
the real samples only. Evaluation uses only the main ones, which keep their names in the net's state: without its
auxiliary part (`without_auxiliary`) the state is that of the plain net. Source of the idea: Xie and Yuille 2020
(Intriguing Properties of Adversarial Training at Scale) and Xie et al. 2020 (AdvProp), with adversarial images in the
place of the synthetic ones.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

AUXILIARY = "auxiliary_norm"  # the twin, within a batch norm
_Value = TypeVar("_Value")


class SeparateNorm(_BatchNorm):
    """A batch norm with a twin, made by `separate_batch_norm`; (B, C, ...) to the same shape.

    In training the first `rows[0]` samples are normalised by this one and the `rows[1]` after them by the twin, each
    with the statistics of its own samples. A part with one value a channel, which has no variance, is normalised by the
    running statistics, and these stay as they are. A kind without samples gives its parameters gradients of zero, not
    none: ranks that add up gradients in the order of their coming must have the same ones.
    """

    rows: tuple[int, int] | None = None
    """The numbers of real and of synthetic samples of the next training pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.rows is not None, "StudentLoss sets the rows before each training pass"
        if len(x) != sum(self.rows):
            raise ValueError(
                f"a batch norm sees {len(x)} rows of a batch of {sum(self.rows)} samples, so that it cannot tell the "
                "synthetic ones; set train_saross.batch_norm to local"
            )
        real, synthetic = x.split(self.rows)
        # Both are called in every pass and in this order, as ZeRO-3 expects of modules whose parameters it gathers.
        real = _normalised(self, super().forward, real)
        synthetic = _normalised(self.auxiliary_norm, self.auxiliary_norm, synthetic)
        if all(self.rows):
            return torch.cat([real, synthetic])
        # Added and not concatenated: an empty part would take the memory format from the other.
        return real + synthetic.sum() if self.rows[0] else synthetic + real.sum()


def separate_batch_norm(net: nn.Module) -> nn.Module:
    """The net itself, each of whose batch norms has become a `SeparateNorm`; the twins begin as copies."""
    for norm in [module for module in net.modules() if isinstance(module, _BatchNorm)]:
        twin = copy.deepcopy(norm)
        # Its own class stays a base: some batch norms of foreign nets (timm's) hold an activation too.
        norm.__class__ = _separate_class(type(norm))
        norm.add_module(AUXILIARY, twin)
    return net


def separate_norms(net: nn.Module) -> list[SeparateNorm]:
    return [module for module in net.modules() if isinstance(module, SeparateNorm)]


def without_auxiliary(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """The entries of a state, by their dotted names, that the plain net has too."""
    return {name: value for name, value in state.items() if AUXILIARY not in name.split(".")}


@functools.cache
def _separate_class(kind: type[_BatchNorm]) -> type[SeparateNorm]:
    return type(f"Separate{kind.__name__}", (SeparateNorm, kind), {})


def _normalised(norm: _BatchNorm, forward: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
    """The part by its own statistics, or, where it has none or one value a channel, by the running ones."""
    norm.training = part.numel() > part.shape[1]
    try:
        return forward(part)
    finally:
        norm.training = True
