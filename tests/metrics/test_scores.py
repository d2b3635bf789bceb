"""The identities behind the paper's segmentation tables, and matrices worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dakd.metrics import ConfusionMatrix
from dakd.metrics.scores import mean_iou, one_class_note, score

# IoU of sea, oil, look-alike, ship, land and the mIoU and F1 published with them (the paper's OSD tables).
PUBLISHED = {
    "ours": ((97.56, 60.01, 67.61, 51.77, 97.35), 74.86, 84.27),
    "CBD-Net": ((95.17, 42.84, 38.38, 27.58, 91.95), 59.19, 70.41),
    "SegFormer": ((94.42, 39.77, 48.79, 36.18, 96.86), 63.20, 74.23),
    "DeepLabV3+": ((88.43, 44.80, 56.44, 31.06, 92.21), 62.59, 74.25),
}


def matrix_with_ious(percents: tuple[float, ...]) -> np.ndarray:
    """Counts whose classes have the given IoU: each class loses e pixels to the next, so IoU = TP / (TP + 2e)."""
    num_classes = len(percents)
    error = 10_000_000
    counts = np.zeros((num_classes, num_classes), np.int64)
    for index, percent in enumerate(percents):
        iou = percent / 100
        counts[index, (index + 1) % num_classes] = error
        counts[index, index] = round(2 * error * iou / (1 - iou))
    return counts


NAMES = ("sea", "oil", "look-alike", "ship", "land")


@pytest.mark.parametrize("method", PUBLISHED)
def test_mean_iou_and_mean_f1_reproduce_the_published_rows(method):
    ious, miou, f1 = PUBLISHED[method]
    scores = score(matrix_with_ious(ious), NAMES)
    assert 100 * scores.miou == pytest.approx(miou, abs=0.011)
    assert 100 * scores.f1 == pytest.approx(f1, abs=0.011)


def test_our_published_row_gives_74_86_and_84_265():
    scores = score(matrix_with_ious(PUBLISHED["ours"][0]), NAMES)
    assert 100 * scores.miou == pytest.approx(74.860, abs=5e-4)
    assert 100 * scores.f1 == pytest.approx(84.265, abs=5e-4)


def test_f1_of_a_class_is_two_iou_over_one_plus_iou():
    scores = score(np.random.default_rng(0).integers(0, 100, (5, 5)), NAMES)
    for one in scores.per_class.values():
        assert one.f1 == pytest.approx(2 * one.iou / (1 + one.iou), abs=1e-12)


def test_accuracy_is_the_mean_one_vs_rest_accuracy():
    scores = score(np.random.default_rng(1).integers(1, 1000, (5, 5)), NAMES)
    assert scores.accuracy == pytest.approx(1 - 2 / 5 * (1 - scores.pixel_accuracy), abs=1e-12)
    assert scores.accuracy > scores.pixel_accuracy


def test_with_two_classes_accuracy_is_the_pixel_accuracy():
    scores = score(np.array([[50, 7], [11, 32]]), ("sea", "oil"))
    assert scores.accuracy == pytest.approx(0.82) and scores.pixel_accuracy == pytest.approx(0.82)


def test_a_matrix_worked_by_hand():
    scores = score(np.array([[6, 2, 0], [1, 3, 1], [0, 1, 6]]), ("a", "b", "c"))
    b = scores.per_class["b"]
    assert (b.iou, b.precision, b.recall, b.f1, b.accuracy, b.support) == (3 / 8, 3 / 6, 3 / 5, 6 / 11, 15 / 20, 5)
    assert scores.miou == pytest.approx((6 / 9 + 3 / 8 + 6 / 8) / 3)
    assert scores.precision == pytest.approx((6 / 7 + 3 / 6 + 6 / 7) / 3)
    assert scores.recall == pytest.approx((6 / 8 + 3 / 5 + 6 / 7) / 3)
    assert scores.pixel_accuracy == 15 / 20
    assert scores.shares == {"a": 8 / 20, "b": 5 / 20, "c": 7 / 20}


def test_a_class_neither_present_nor_predicted_is_left_out_and_named():
    scores = score(np.array([[8, 0, 2], [0, 0, 0], [1, 0, 9]]), ("sea", "ship", "land"))
    assert scores.absent == ("ship",) and "ship" not in scores.per_class
    assert scores.miou == pytest.approx((8 / 11 + 9 / 12) / 2)


def test_a_predicted_class_that_never_occurs_counts_as_zero():
    scores = score(np.array([[8, 2], [0, 0]]), ("sea", "oil"))
    assert scores.absent == ()
    assert scores.per_class["oil"].iou == 0 and scores.per_class["oil"].recall == 0
    assert scores.miou == pytest.approx(0.4)


def test_the_oil_convention_scores_oil_alone():
    scores = score(np.array([[80, 4], [6, 10]]), ("sea", "oil"))
    oil = scores.oil_convention()
    assert (oil["precision"], oil["recall"], oil["f1"], oil["accuracy"]) == (10 / 14, 10 / 16, 20 / 30, 90 / 100)
    assert oil["miou"] == pytest.approx((80 / 90 + 10 / 20) / 2)
    assert scores.to_dict()["oil_convention"] == oil


def test_the_oil_convention_is_refused_for_five_classes():
    scores = score(np.eye(5, dtype=int), NAMES)
    assert not scores.has_oil_convention
    with pytest.raises(ValueError, match="needs two classes"):
        scores.oil_convention()


def test_scores_survive_json():
    scores = score(np.array([[80, 4], [6, 10]]), ("sea", "oil"))
    table = json.loads(json.dumps(scores.to_dict()))
    assert table["counts"] == [[80, 4], [6, 10]] and table["per_class"]["oil"]["support"] == 16


def test_an_empty_matrix_is_refused():
    with pytest.raises(ValueError, match="no pixel was counted"):
        score(np.zeros((2, 2)), ("sea", "oil"))


@pytest.mark.parametrize("counts", [[[0.9, 0.1], [0.0, 1.0]], [[3, -1], [0, 2]], [[1.0, float("nan")], [0.0, 1.0]]])
def test_numbers_that_are_no_counts_are_refused(counts):
    with pytest.raises(ValueError, match="negative or no whole numbers; expected numbers of pixels"):
        score(np.array(counts), ("sea", "oil"))
    assert score(np.array([[3.0, 1.0], [0.0, 2.0]]), ("sea", "oil")).num_pixels == 6


def test_a_matrix_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected \(3, 3\)"):
        score(np.eye(2), ("a", "b", "c"))


def test_a_name_of_two_classes_is_refused():
    with pytest.raises(ValueError, match="class_names are sea, oil, sea; expected another one"):
        score(np.ones((3, 3), int), ("sea", "oil", "sea"))


def test_mean_iou_of_one_image_leaves_absent_classes_out():
    assert mean_iou(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])) == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert np.isnan(mean_iou(np.zeros((3, 3), int)))


def two_images() -> tuple[torch.Tensor, torch.Tensor]:
    """A slick of 48 pixels found whole, and a ship of one pixel that is missed. Returns prediction and truth."""
    truth = torch.zeros(2, 8, 12, dtype=torch.int64)
    truth[0, :4], truth[1, 3, 3] = 1, 1
    prediction = truth.clone()
    prediction[1, 3, 3] = 0
    return prediction, truth


def test_the_mean_over_images_is_another_number_than_the_pooled_one(torchmetrics):
    prediction, truth = two_images()
    pooled = ConfusionMatrix(2).update(prediction, truth).counts.numpy()
    assert mean_iou(pooled) == pytest.approx((143 / 144 + 48 / 49) / 2)  # 98.6 %
    by_image = torchmetrics.segmentation.MeanIoU(num_classes=2, input_format="index")(prediction, truth)
    assert float(by_image) == pytest.approx((1 + 1 + 95 / 96 + 0) / 4)  # 74.7 %
    by_torchmetrics = torchmetrics.functional.jaccard_index(prediction, truth, "multiclass", num_classes=2)
    assert float(by_torchmetrics) == pytest.approx(mean_iou(pooled))


def test_matrix_and_miou_are_those_of_torchmetrics(torchmetrics):
    generator = torch.Generator().manual_seed(0)
    prediction, truth = torch.randint(0, 5, (2, 4, 9, 11), generator=generator)
    truth[0, :3] = 255
    matrix = ConfusionMatrix(5).update(prediction, truth)
    functional = torchmetrics.functional.classification
    options = {"num_classes": 5, "ignore_index": 255}
    assert torch.equal(matrix.counts, functional.multiclass_confusion_matrix(prediction, truth, **options))
    jaccard = functional.multiclass_jaccard_index(prediction, truth, average=None, **options)
    scores = score(matrix.counts.numpy(), NAMES)
    assert [scores.per_class[name].iou for name in NAMES] == pytest.approx(jaccard.tolist(), abs=1e-6)


def test_a_student_that_predicts_one_class_where_there_are_others_is_named():
    names = ("sea", "oil", "ship")
    note = one_class_note("real", np.array([[9, 0, 0], [2, 0, 0], [0, 0, 0]]), names, "27 images")
    assert note == (
        "real predicts sea for every pixel of 27 images, though oil occurs there; its scores rank nothing: train "
        "longer, or weigh the classes (train_saross.loss.class_weights)"
    )
    for counts in ([[9, 0, 0], [0, 0, 0], [0, 0, 0]], [[9, 1, 0], [2, 0, 0], [0, 0, 0]], [[0] * 3] * 3):
        assert one_class_note("real", np.array(counts), names, "27 images") is None
