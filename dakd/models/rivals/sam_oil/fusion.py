"""Ordered mask fusion: class-agnostic masks with classes and scores become one class map; it has no parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST_CERTAINTY = 1 - 1e-6  # keeps the logarithms finite


def fuse_masks(
    mask_logits: Tensor, classes: Tensor, scores: Tensor, num_classes: int, order: Sequence[int] | None = None
) -> Tensor:
    """(K, H, W) log-probabilities, the largest being the fused class; those of a pixel sum to 1 as probabilities.

    mask_logits: (n, H, W), a mask claims a pixel where its logit is positive.  classes: (n,) ids from 1.
    scores: (n,) confidences in (0, 1].
    order: class ids, the first of which wins a pixel that masks of several classes claim; classes that are not named
    come after them. Within a rank, and where `order` is None among all, the mask with the higher score wins.

    What no mask claims is class 0, the sea. A pixel's certainty is c = score * sigmoid(logit) of the winning mask, or 1
    less the largest such product where none claims it; its probabilities are c for the class + (1 - c) / K for each.
    Source: Wu et al. 2024 (SAM-OIL); the certainty, which the class map does not depend on, is ours.
    """
    ranked = by_precedence(classes, scores, order)
    mask_logits, classes, scores = mask_logits[ranked].float(), classes[ranked], scores[ranked].float()
    winner, is_claimed = first_claim(mask_logits > 0)
    support = scores[:, None, None] * mask_logits.sigmoid()
    if len(classes):
        class_map = torch.where(is_claimed, classes[winner], 0)
        certainty = torch.where(is_claimed, support.gather(0, winner[None])[0], 1 - support.amax(0))
    else:
        class_map, certainty = winner, torch.ones_like(winner, dtype=torch.float32)
    certainty = certainty.clamp(1 - _LARGEST_CERTAINTY, _LARGEST_CERTAINTY)
    onehot = torch.nn.functional.one_hot(class_map, num_classes).movedim(-1, 0)
    return (certainty * onehot + (1 - certainty) / num_classes).log()


def by_precedence(classes: Tensor, scores: Tensor, order: Sequence[int] | None) -> Tensor:
    """(n,) indices of masks, the one that wins first; equal ones stay in their order."""
    ranks = {class_id: rank for rank, class_id in enumerate(order or ())}
    keys = [(ranks.get(label, len(ranks)), -score) for label, score in zip(classes.tolist(), scores.tolist())]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64, device=classes.device)


def first_claim(claims: Tensor) -> tuple[Tensor, Tensor]:
    """(H, W) int64 index of the first mask that claims a pixel, 0 where none does; and where one does.

    claims: (n, H, W) bool.
    """
    count = len(claims)
    if count == 0:
        nothing = torch.zeros(claims.shape[1:], dtype=torch.int64, device=claims.device)
        return nothing, nothing.bool()
    # Each has a weight of its own: an argmax among equals would take any of them.
    weights = torch.arange(count, 0, -1, device=claims.device)[:, None, None]
    largest = (claims * weights).amax(0)
    return torch.where(largest > 0, count - largest, 0), largest > 0
