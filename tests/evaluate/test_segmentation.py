"""A student over a set of shards."""

from __future__ import annotations

import numpy as np
import pytest

from dakd.data.sample import Sample
from dakd.data.shards import ShardSet
from dakd.evaluate.segmentation import batches_of_one_size, evaluate_student, labels_of


def test_counts_are_those_of_each_image_alone(run_dir, grey_student):
    held_out = ShardSet(run_dir / "prepare" / "test")
    result = evaluate_student(grey_student, held_out, batch_size=2)
    for index in range(5):
        label = held_out.read(index).label
        expected = np.diag(np.bincount(label.ravel(), minlength=5))
        for true_id in label.flat[: 8 * index]:  # these pixels show a land's grey
            expected[true_id, true_id] -= 1
            expected[true_id, 4] += 1
        assert (result.per_image[index] == expected).all()
    assert (result.matrix.counts.numpy() == result.per_image.sum(axis=0)).all()
    assert result.matrix.counts.sum() == 3 * 16 * 20 + 2 * 9 * 13


def test_a_perfect_image_has_an_miou_of_one_and_a_spoilt_one_less(run_dir, grey_student):
    mious = evaluate_student(grey_student, ShardSet(run_dir / "prepare" / "test")).image_mious()
    assert mious[0] == 1.0 and mious[4] < mious[1] < 1.0


def test_ranks_share_the_images_and_sum_to_the_same_counts(run_dir, grey_student):
    held_out = ShardSet(run_dir / "prepare" / "test")
    whole = evaluate_student(grey_student, held_out)
    parts = [evaluate_student(grey_student, held_out, rank=rank, world=3) for rank in range(3)]
    assert (sum(part.per_image for part in parts) == whole.per_image).all()
    assert [int((part.per_image.sum(axis=(1, 2)) > 0).sum()) for part in parts] == [2, 2, 1]


def test_batches_hold_images_of_one_size():
    sizes = [(4, 4), (4, 4), (4, 4), (2, 6), (4, 4)]
    samples = [(i, Sample(str(i), np.zeros(size, np.uint8))) for i, size in enumerate(sizes)]
    batches = [[index for index, _ in batch] for batch in batches_of_one_size(samples, 2)]
    assert batches == [[0, 1], [2], [3], [4]]


def test_a_soft_label_counts_by_its_argmax():
    logits = np.zeros((5, 1, 2), np.float16)
    logits[3, 0, 0], logits[1, 0, 1] = 2, 1
    assert labels_of(Sample("s", np.zeros((1, 2), np.uint8), soft_label=logits)).tolist() == [[3, 1]]


def test_an_image_without_labels_is_refused():
    with pytest.raises(ValueError, match="neither label nor soft label"):
        labels_of(Sample("s", np.zeros((1, 2), np.uint8)))
