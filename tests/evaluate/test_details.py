"""What evaluate tells beside the pooled scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dakd.config import EvaluateConfig, build_config
from dakd.data.sample import OSD_CLASSES
from dakd.data.shards import ShardSet
from dakd.evaluate.details import Details, detail_rows, difference_rows, format_details, intervals
from dakd.evaluate.evaluate import evaluate
from dakd.evaluate.segmentation import evaluate_student
from dakd.metrics import BoundaryCounts, CalibrationCounts, ObjectCounts, bootstrap, paired_bootstrap


def written(run_dir, name: str) -> dict:
    return json.loads((run_dir / "evaluate" / f"{name}.json").read_text())


def test_details_are_those_of_every_image_alone(run_dir, config, grey_student):
    evaluate(config, run_dir)
    held_out, table = ShardSet(run_dir / "prepare" / "test"), written(run_dir, "real")
    objects = ObjectCounts(OSD_CLASSES, ("ship", "oil"), (16, 64, 256, 1024))
    boundary, calibration = BoundaryCounts(5), CalibrationCounts()
    for index in range(len(held_out)):
        sample = held_out.read(index)
        rgb = torch.as_tensor(sample.sar)[None, None].expand(1, 3, *sample.sar.shape).float() / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.inference_mode():
            logits = grey_student((rgb - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
        objects.update(logits.argmax(1)[0].numpy(), sample.label)
        boundary.update(logits.argmax(1), torch.as_tensor(sample.label)[None])
        calibration.update(logits.softmax(1), torch.as_tensor(sample.label)[None])
    assert table["objects"] == objects.to_dict() and table["objects"]["num_images"] == 5
    assert table["boundary_iou"] == boundary.to_dict(OSD_CLASSES.names)
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
    table = evaluate(config, run_dir).table
    one = written(run_dir, "real")
    interval = one["bootstrap"]["scores"]["miou"]
    assert f"{100 * one['miou']:.2f} [{100 * interval['low']:.2f}, {100 * interval['high']:.2f}]" in table
    assert f"{100 * one['objects']['per_class']['oil']['recall']:.2f}" in table and "oil objects" in table
    assert "real+synthetic minus real" in table and "+0.00 [0.00, 0.00]" in table


def test_without_resamples_there_are_no_intervals(run_dir, config, grey_student):
    config = build_config(config.model_dump() | {"evaluate": {"bootstrap": 0, "object_classes": ("ship",)}})
    table = evaluate(config, run_dir).table
    assert written(run_dir, "real")["bootstrap"] is None
    assert "ship objects" in table and "oil objects" not in table and "minus real" not in table


def test_a_class_without_objects_is_named_and_shows_a_dash():
    label = np.zeros((8, 8), np.uint8)
    label[:2] = 1
    details = Details.empty(EvaluateConfig(), OSD_CLASSES)
    logits = torch.zeros(1, 5, 8, 8)
    logits[:, 0] = 2.0
    details.update(logits, logits.argmax(1), [label])
    table = {"real": {"miou": 0.5, "bootstrap": None} | details.to_dict()}
    header, rows = detail_rows(table)
    assert rows[0][header.index("ship objects")] is None and rows[0][header.index("oil objects")] == 0.0
    assert "no object in the truth: ship" in format_details(table) and difference_rows(table) == []


def test_intervals_of_a_class_that_no_image_has_are_none():
    counts = np.zeros((3, 2, 2), np.int64)
    counts[:, 0, 0] = 7
    table = intervals({"real": counts, "other": counts}, ("sea", "oil"), 20, 0)
    assert table["real"]["scores"]["iou:oil"]["value"] is None
    assert table["other"]["difference"]["scores"]["iou:oil"]["p"] is None
