"""A student over a set of shards: its counts, what else is measured in the same pass, intervals and tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from evaluate_worlds import write_test_images

from dakd.config import EvaluateConfig, build_config
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES, Sample
from dakd.data.shards import ShardSet
from dakd.data.size_batches import batches_of_one_size
from dakd.evaluate.evaluate import evaluate
from dakd.evaluate.students import (
    DetailCounts,
    bootstrap_notes,
    bootstrap_students,
    detail_rows,
    difference_notes,
    difference_rows,
    evaluate_student,
    format_details,
    labels_of,
    refuse_unknown_objects,
)
from dakd.metrics import BoundaryCounts, CalibrationCounts, ObjectCounts, bootstrap, paired_bootstrap


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


def test_a_student_agrees_with_labels_that_lie_on_their_images(run_dir, grey_student):
    result = evaluate_student(grey_student, ShardSet(run_dir / "generate"))
    assert result.matrix.scores(OSD_CLASSES).miou == 1.0


# --- details and intervals --------------------------------------------------------------------------------------------


def written(run_dir, name: str) -> dict:
    return json.loads((run_dir / "evaluate" / f"{name}.json").read_text())


def test_details_are_those_of_every_image_alone(run_dir, config, grey_student):
    evaluate(config, run_dir)
    held_out, table = ShardSet(run_dir / "prepare" / "test"), written(run_dir, "real")
    objects = ObjectCounts(OSD_CLASSES, ("ship", "oil"), (16, 64, 256, 1024))
    boundary, inner, calibration = BoundaryCounts(5), BoundaryCounts(5, frame=False), CalibrationCounts()
    for index in range(len(held_out)):
        sample = held_out.read(index)
        rgb = torch.as_tensor(sample.sar)[None, None].expand(1, 3, *sample.sar.shape).float() / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.inference_mode():
            logits = grey_student((rgb - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
        objects.update(logits.argmax(1)[0].numpy(), sample.label)
        boundary.update(logits.argmax(1), torch.as_tensor(sample.label)[None])
        inner.update(logits.argmax(1), torch.as_tensor(sample.label)[None])
        calibration.update(logits.softmax(1), torch.as_tensor(sample.label)[None])
    assert table["objects"] == objects.to_dict() and table["objects"]["num_images"] == 5
    assert table["boundary_iou"] == boundary.to_dict(OSD_CLASSES.names)
    assert table["inner_boundary_iou"] == inner.to_dict(OSD_CLASSES.names) != table["boundary_iou"]
    assert table["calibration"]["ece"] == pytest.approx(calibration.to_dict()["ece"], abs=1e-5)
    assert table["calibration"]["num_pixels"] == table["num_pixels"]


def test_counts_by_image_are_written_with_their_keys(run_dir, config, grey_student):
    evaluate(config, run_dir)
    with np.load(run_dir / "evaluate" / "real+synthetic.images.npz") as arrays:
        counts, keys = arrays["counts"], arrays["keys"]
    held_out = ShardSet(run_dir / "prepare" / "test")
    assert keys.tolist() == [held_out.key(index) for index in range(5)]
    assert counts.dtype == np.int64 and (counts == evaluate_student(grey_student, held_out).per_image).all()
    assert counts.sum(axis=0).tolist() == written(run_dir, "real+synthetic")["counts"]
    assert not list((run_dir / "evaluate").glob("*.partial*"))


def test_intervals_and_differences_follow_from_the_counts_by_image(run_dir, config, grey_student):
    write_test_images(run_dir, 12)
    evaluate(config, run_dir)
    with np.load(run_dir / "evaluate" / "real.images.npz") as arrays:
        counts = arrays["counts"]
    first, second = written(run_dir, "real")["bootstrap"], written(run_dir, "real+synthetic")["bootstrap"]
    assert first["scores"]["miou"] == bootstrap(counts).to_dict() and first["difference"] is None
    assert first["scores"]["iou:oil"] == bootstrap(counts, "iou:oil", OSD_CLASSES.names).to_dict()
    # Both files hold the same student.
    assert second["difference"]["to"] == "real"
    assert second["difference"]["scores"]["f1"] == paired_bootstrap(counts, counts, "f1").to_dict()
    assert second["difference"]["scores"]["miou"]["p"] == 1


def test_the_table_shows_intervals_objects_and_what_is_absent(run_dir, config, grey_student):
    write_test_images(run_dir, 12)
    table = evaluate(config, run_dir).table
    one = written(run_dir, "real")
    interval = one["bootstrap"]["scores"]["miou"]
    assert f"{100 * one['miou']:.2f} [{100 * interval['low']:.2f}, {100 * interval['high']:.2f}]" in table
    assert f"{100 * one['objects']['per_class']['oil']['recall']:.2f}" in table and "oil found" in table
    assert "real+synthetic minus real" in table and "+0.00 [0.00, 0.00]" in table


def test_without_resamples_there_are_no_intervals(run_dir, config, grey_student):
    config = build_config(config.model_dump() | {"evaluate": {"bootstrap": 0, "object_classes": ("ship",)}})
    table = evaluate(config, run_dir).table
    assert written(run_dir, "real")["bootstrap"] is None
    assert "ship found" in table and "oil found" not in table and "minus real" not in table


def test_objects_of_a_class_that_there_is_not_are_refused(run_dir, config, grey_student):
    config = build_config(config.model_dump() | {"evaluate": {"object_classes": ("oill",)}})
    with pytest.raises(ValueError, match=r"object_classes is oill; expected .*did you mean 'oil'\?"):
        evaluate(config, run_dir)
    refuse_unknown_objects(EvaluateConfig(), SOS_CLASSES)  # of the default ones, a ship may be absent


def test_a_class_without_objects_is_named_and_shows_a_dash():
    label = np.zeros((8, 8), np.uint8)
    label[:2] = 1
    details = DetailCounts.empty(OSD_CLASSES, ("ship", "oil"))
    logits = torch.zeros(1, 5, 8, 8)
    logits[:, 0] = 2.0
    details.update(logits, logits.argmax(1), [label])
    table = {"real": {"miou": 0.5, "bootstrap": None} | details.to_dict()}
    header, rows = detail_rows(table)
    assert rows[0][header.index("ship found")] is None and rows[0][header.index("oil found")] == 0.0
    assert "no object in the truth: ship" in format_details(table) and difference_rows(table) == []


def test_intervals_of_a_class_that_no_image_has_are_none():
    counts = np.zeros((3, 2, 2), np.int64)
    counts[:, 0, 0] = 7
    table = bootstrap_students({"real": counts, "other": counts}, ("sea", "oil"), 20, 0)
    assert table["real"]["scores"]["iou:oil"]["value"] is None
    assert table["other"]["difference"]["scores"]["iou:oil"]["p"] is None


def test_resamples_that_lack_a_class_are_reported():
    text, bootstrapped = shown_of(12)
    share = bootstrapped["scores"]["miou"]["incomplete"]
    assert 0 < share < 1 and f"{100 * share:.1f} % of the resamples lack a class" in text
    assert "no interval of IoU of oil: 1 image with the class; expected at least 10" in text
    assert "12 images are few: the intervals are too narrow" in text and "are few" not in shown_of(30)[0]


def test_one_image_has_scores_and_says_why_it_has_no_interval():
    text, _ = shown_of(1)
    assert "no intervals and no p: 1 image with counted pixels; expected at least 10" in text
    assert "[" not in text and "better minus real" in text
    gap = next(line for line in text.splitlines() if line.startswith("better minus real"))
    assert gap.split()[-1] == "-"  # no p


def test_no_p_is_shown_as_zero_however_many_resamples_there_are():
    text, bootstrapped = shown_of(40, num_resamples=10_000)
    assert 0 < bootstrapped["difference"]["scores"]["miou"]["p"] < 0.0005
    assert "<0.001" in text and "0.000" not in text


@pytest.mark.parametrize("num_with_oil, is_few", [(11, True), (29, True), (30, False)])
def test_few_images_with_a_class_are_said_of_the_score_of_the_class(num_with_oil, is_few):
    counts = np.zeros((60, 2, 2), np.int64)
    counts[:, 0, 0], counts[:num_with_oil, 1, 1], counts[:num_with_oil, 1, 0] = 8, 3, 1
    notes = bootstrap_notes(bootstrap_students({"real": counts}, ("sea", "oil"), 50, 0)["real"])
    said = f"{num_with_oil} images with the class are few: the interval of IoU of oil is too narrow and its p too small"
    assert [note for note in notes if "are few" in note] == [note for note in notes if note.startswith(said)]
    assert any(note.startswith(said) for note in notes) == is_few


def test_a_difference_of_means_over_other_classes_says_so():
    """A stray pixel of a class that does not occur adds its IoU of 0 to one of the two means."""
    counts = np.zeros((40, 3, 3), np.int64)
    counts[:, 0, 0], counts[:, 1, 1] = 90, 10
    stray = counts.copy()
    stray[:10, 0, 0], stray[:10, 0, 2] = 89, 1
    made = bootstrap_students({"real": counts, "syn": stray}, ("sea", "oil", "ship"), 50, 0)
    tables = {name: {"miou": 1.0, "bootstrap": one} | no_details() for name, one in made.items()}
    (note,) = difference_notes(tables)
    assert note in format_details(tables).splitlines()
    assert note.startswith("syn minus real: the first mean is over 3 classes, the second over 2, 2 of them in both")
    assert difference_notes({"real": tables["real"]}) == []
    same = bootstrap_students({"real": stray, "syn": stray}, ("sea", "oil", "ship"), 50, 0)
    assert difference_notes({name: {"bootstrap": one} for name, one in same.items()}) == []
    for gap in tables["syn"]["bootstrap"]["difference"]["scores"].values():  # as an earlier version wrote them
        del gap["num_classes"]
    assert difference_notes(tables) == [] == difference_notes({"real": {"bootstrap": None}})


def shown_of(num_images: int, num_resamples: int = 50) -> tuple[str, dict]:
    """The text of two students on images of which one has oil, the second better in each, and its intervals."""
    counts = np.zeros((num_images, 3, 3), np.int64)
    counts[:, 0, 0], counts[:, 0, 2], counts[0, 1, 1] = 8, 1, 3
    better = counts.copy()
    better[:, 0, 0], better[:, 0, 2] = 9, 0
    made = bootstrap_students({"real": counts, "better": better}, ("sea", "oil", "land"), num_resamples, 0)
    shown = {name: {"miou": 1.0, "bootstrap": one} | no_details() for name, one in made.items()}
    return format_details(shown), made["better"]


def no_details() -> dict:
    """Those of one image with sea alone."""
    details = DetailCounts.empty(OSD_CLASSES, ("ship", "oil"))
    logits = torch.zeros(1, 5, 8, 8)
    details.update(logits, logits.argmax(1), [np.zeros((8, 8), np.uint8)])
    return details.to_dict()
