"""Counting: by batch, with ignored pixels, over ranks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dakd.data.sample import OSD_CLASSES
from dakd.metrics import ConfusionMatrix
from dakd.metrics.boundary import BoundaryCounts
from dakd.metrics.calibration import CalibrationCounts


def test_rows_are_true_classes_and_columns_predictions():
    prediction = torch.tensor([[[0, 1], [1, 2]]])
    target = torch.tensor([[[0, 0], [1, 1]]], dtype=torch.uint8)
    matrix = ConfusionMatrix(3).update(prediction, target)
    assert matrix.counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_pixels_with_the_ignore_index_are_not_counted():
    target = torch.tensor([[255, 1, 255, 0]], dtype=torch.uint8)
    matrix = ConfusionMatrix(2).update(torch.tensor([[1, 1, 0, 1]]), target)
    assert matrix.counts.tolist() == [[0, 1], [0, 1]]


def test_batches_pool_into_the_counts_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, 5, (6, 7, 9), generator=generator)
    target = torch.randint(0, 5, (6, 7, 9), generator=generator)
    whole = ConfusionMatrix(5).update(prediction, target)
    parts = ConfusionMatrix(5)
    for start in (0, 1, 4):
        parts.update(prediction[start : {0: 1, 1: 4, 4: 6}[start]], target[start : {0: 1, 1: 4, 4: 6}[start]])
    assert torch.equal(whole.counts, parts.counts)
    assert int(whole.counts.sum()) == 6 * 7 * 9


def test_scores_name_the_classes_of_the_table():
    ids = torch.arange(4).reshape(1, 2, 2)
    scores = ConfusionMatrix(5).update(ids, ids).scores(OSD_CLASSES)
    assert list(scores.per_class) == ["sea", "oil", "look-alike", "ship"]
    assert scores.absent == ("land",) and scores.miou == 1.0


def test_class_ids_beyond_the_table_are_refused():
    with pytest.raises(ValueError, match="target has class ids from 0 to 7"):
        ConfusionMatrix(2).update(torch.tensor([[0, 0]]), torch.tensor([[0, 7]]))
    with pytest.raises(ValueError, match="prediction has class ids from -1 to 0"):
        ConfusionMatrix(2).update(torch.tensor([[0, -1]]), torch.tensor([[0, 0]]))


def test_ids_that_are_no_integers_are_refused():
    ids = torch.tensor([0, 1, 2])
    for prediction, target, what in ((ids + 0.9, ids, "prediction"), (ids, ids + 0.9, "target")):
        with pytest.raises(ValueError, match=rf"{what} is torch\.float32; expected integer class ids"):
            ConfusionMatrix(3).update(prediction, target)
    assert ConfusionMatrix(2).update(ids > 0, (ids > 1).to(torch.uint8)).counts.tolist() == [[1, 1], [0, 1]]


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        ConfusionMatrix(2).update(torch.zeros(1, 2, 2), torch.zeros(2, 2))


def test_without_a_process_group_all_reduce_changes_nothing():
    matrix = ConfusionMatrix(2).update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert matrix.all_reduce().counts.tolist() == [[1, 0], [0, 1]]


ONE_RANK = """
import sys
import torch
import torch.distributed as dist
from dakd.metrics import ConfusionMatrix

rank, store, result = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
matrix = ConfusionMatrix(2)
matrix.counts += torch.tensor([[2**53, 3], [0, 5]] if rank == 0 else [[1, 4], [2, 0]])
matrix.all_reduce()
if rank == 1:
    torch.save(matrix.counts, result)
dist.destroy_process_group()
"""


def test_two_ranks_sum_exactly(tmp_path):
    store, result = str(tmp_path / "store"), str(tmp_path / "counts.pt")
    ranks = [subprocess.Popen([sys.executable, "-c", ONE_RANK, str(rank), store, result]) for rank in range(2)]
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]
    # 2^53 + 1 has no float64: only an integer reduction keeps its last bit.
    assert torch.load(result, weights_only=True).tolist() == [[2**53 + 1, 7], [2, 5]]


@pytest.mark.parametrize("kind", ["numpy", "uint16", "int8"])
def test_ids_count_alike_as_arrays_and_in_every_integer_type(kind):
    prediction, target = torch.tensor([[[0, 1], [2, 1]]]), torch.tensor([[[0, 2], [2, 255]]])
    probabilities = torch.nn.functional.one_hot(prediction, 3).movedim(-1, 1).float()
    if kind == "int8":  # where 255 would be -1
        given = [prediction.to(torch.int8), torch.where(target == 255, -1, target).to(torch.int8)]
        for counts, ids in ((ConfusionMatrix(3), given), (BoundaryCounts(3), given),
                            (CalibrationCounts(), [probabilities, given[1]])):  # fmt: skip
            with pytest.raises(ValueError, match="target has class ids from -1"):
                counts.update(*ids)
        return
    change = (lambda ids: ids.numpy()) if kind == "numpy" else (lambda ids: ids.to(torch.uint16))
    shares = probabilities.numpy() if kind == "numpy" else probabilities
    for counts, given, own in (
        (lambda: ConfusionMatrix(3), [change(prediction), change(target)], [prediction, target]),
        (lambda: BoundaryCounts(3), [change(prediction), change(target)], [prediction, target]),
        (CalibrationCounts, [shares, change(target)], [probabilities, target]),
    ):
        assert torch.equal(counts().update(*given).counts, counts().update(*own).counts)
