from __future__ import annotations

import pytest
import torch

from dakd.models.rivals.sam_oil.fusion import fuse_masks


def claims(*boxes: tuple[int, int], width: int = 6, logit: float = 3.0) -> torch.Tensor:
    """(n, 1, width) logits: positive from the first to before the second column."""
    masks = torch.full((len(boxes), 1, width), -logit)
    for mask, (start, end) in zip(masks, boxes):
        mask[0, start:end] = logit
    return masks


def test_unclaimed_pixels_are_sea_and_the_higher_score_wins_a_shared_one():
    masks = claims((0, 3), (2, 5))
    fused = fuse_masks(masks, torch.tensor([1, 2]), torch.tensor([0.6, 0.9]), 4)
    assert fused.argmax(0).tolist() == [[1, 1, 2, 2, 2, 0]]
    fused = fuse_masks(masks, torch.tensor([1, 2]), torch.tensor([0.9, 0.6]), 4)
    assert fused.argmax(0).tolist() == [[1, 1, 1, 2, 2, 0]]


def test_an_order_of_classes_goes_before_the_scores():
    masks, classes, scores = claims((0, 4), (1, 3), (2, 6)), torch.tensor([1, 3, 2]), torch.tensor([0.9, 0.3, 0.8])
    assert fuse_masks(masks, classes, scores, 4, order=(3, 2, 1)).argmax(0).tolist() == [[1, 3, 3, 2, 2, 2]]
    # Classes that the order does not name share the last rank, where scores decide.
    assert fuse_masks(masks, classes, scores, 4, order=(2,)).argmax(0).tolist() == [[1, 1, 2, 2, 2, 2]]


def test_probabilities_follow_score_and_mask_of_the_winner():
    masks = claims((0, 2), (1, 3), logit=2.0)
    fused = fuse_masks(masks, torch.tensor([1, 1]), torch.tensor([0.5, 0.8]), 4).exp()
    torch.testing.assert_close(fused.sum(0), torch.ones(1, 6))
    inside, outside = torch.tensor(2.0).sigmoid().item(), torch.tensor(-2.0).sigmoid().item()
    for column, certainty in ((0, 0.5 * inside), (1, 0.8 * inside), (2, 0.8 * inside)):
        assert fused[1, 0, column].item() == pytest.approx(certainty + (1 - certainty) / 4, rel=1e-5)
        assert fused[0, 0, column].item() == pytest.approx((1 - certainty) / 4, rel=1e-5)
    sea = 1 - 0.8 * outside
    assert fused[0, 0, 5].item() == pytest.approx(sea + (1 - sea) / 4, rel=1e-5)


def test_the_class_map_holds_for_the_smallest_and_the_largest_scores():
    masks = claims((0, 2), (3, 5), logit=50.0)
    fused = fuse_masks(masks, torch.tensor([1, 2]), torch.tensor([1e-4, 1.0]), 8)
    assert fused.isfinite().all() and fused.argmax(0).tolist() == [[1, 1, 0, 2, 2, 0]]


def test_without_masks_all_is_sea():
    fused = fuse_masks(torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 5)
    assert fused.shape == (5, 3, 4) and fused.isfinite().all() and not fused.argmax(0).any()
