"""Objects found by size, against scipy's labelling and scenes worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from dakd.data.sample import OSD_CLASSES, SOS_CLASSES
from dakd.metrics.objects import ObjectCounts, label_components

EIGHT = np.ones((3, 3), int)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.55, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (23, 1), (31, 40), (64, 64)])
def test_components_are_those_of_scipy(shape, share):
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = rng.random(shape) < share
        labels, count = label_components(mask)
        expected, expected_count = ndimage.label(mask, EIGHT)
        assert count == expected_count
        pairs = {(a, b) for a, b in zip(labels.ravel().tolist(), expected.ravel().tolist())}
        assert len(pairs) == count + (not mask.all())  # one to one, and 0 to 0 alone
        assert (0, 0) in pairs or mask.all()


def test_a_spiral_and_a_comb_are_one_component_each():
    comb = np.zeros((20, 41), bool)
    comb[:, ::2], comb[-1] = True, True
    assert label_components(comb)[1] == 1
    spiral = np.array(
        [list(row) for row in ("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######")]
    )
    assert label_components(spiral == "#")[1] == 1


def test_corners_connect_and_an_empty_mask_has_none():
    assert label_components(np.eye(5, dtype=bool))[1] == 1
    assert label_components(np.zeros((4, 4), bool))[1] == 0


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Oil of 4, 12 and 30 pixels, a ship of 1; half of the first is found, 5 of the second, all of the third."""
    truth, guess = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    truth[0:2, 0:2] = truth[5:8, 0:4] = truth[12:18, 0:5] = 1
    guess[0, 0:2] = guess[5, 0:4] = guess[6, 0] = 1
    guess[12:18, 0:5] = 1
    truth[0, 10] = 3
    guess[10:12, 15:17] = guess[15, 15] = 1  # two alarms without any oil
    return guess, truth


def counted(coverage: float = 0.5) -> ObjectCounts:
    return ObjectCounts(OSD_CLASSES, ("oil", "ship", "kelp"), (4, 16), coverage).update(*scene())


def test_a_scene_worked_by_hand():
    table = counted().to_dict()
    oil, ship = table["per_class"]["oil"], table["per_class"]["ship"]
    assert [(one["size"], one["objects"], one["found"]) for one in oil["by_size"]] == [
        ("1-3 px", 0, 0), ("4-15 px", 2, 1), ("16 px and more", 1, 1),
    ]  # fmt: skip
    assert (oil["objects"], oil["found"], oil["recall"], oil["false_alarms"]) == (3, 2, 2 / 3, 2)
    assert (ship["objects"], ship["recall"], ship["false_alarms"]) == (1, 0.0, 0)
    assert oil["by_size"][0]["recall"] is None
    assert table["not_in_table"] == ["kelp"] and table["absent"] == []
    assert json.loads(json.dumps(table)) == table


def test_coverage_decides_what_is_found():
    assert counted(0.51).to_dict()["per_class"]["oil"]["found"] == 1
    assert counted(0.4).to_dict()["per_class"]["oil"]["found"] == 3


def test_counts_are_scipys_over_random_scenes():
    rng = np.random.default_rng(1)
    counts = ObjectCounts(SOS_CLASSES, ("oil",), (3, 9))
    sizes, hits, alarms = [], [], 0
    for _ in range(6):
        truth, guess = (ndimage.uniform_filter(rng.random((40, 50)), 3) > 0.55 for _ in range(2))
        labels, count = ndimage.label(truth, EIGHT)
        sizes += ndimage.sum_labels(truth, labels, range(1, count + 1)).tolist()
        hits += ndimage.sum_labels(guess, labels, range(1, count + 1)).tolist()
        labels, count = ndimage.label(guess, EIGHT)
        alarms += int((ndimage.maximum(truth, labels, range(1, count + 1)) == 0).sum())
        counts.update(guess.astype(np.uint8), truth.astype(np.uint8))
    sizes, found = np.array(sizes), np.array(hits) >= 0.5 * np.array(sizes)
    bins = [sizes < 3, (sizes >= 3) & (sizes < 9), sizes >= 9]
    assert counts.total.tolist() == [[int(one.sum()) for one in bins]]
    assert counts.found.tolist() == [[int((one & found).sum()) for one in bins]]
    assert counts.false_alarms.tolist() == [alarms] and alarms > 0


def test_an_absent_class_has_no_recall_and_is_named():
    table = ObjectCounts(OSD_CLASSES, ("ship", "oil"), (16,)).update(*(one * 0 for one in scene())).to_dict()
    assert table["absent"] == ["ship", "oil"]
    assert table["per_class"]["ship"]["recall"] is None and table["per_class"]["ship"]["false_alarms_per_image"] == 0


def test_an_alarm_that_touches_the_unknown_is_not_called_false():
    truth, guess = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    guess[2, 1:5] = 1
    truth[2, 4] = 255
    assert ObjectCounts(SOS_CLASSES, ("oil",), (9,)).update(guess, truth).false_alarms.tolist() == [0]


@pytest.mark.parametrize(
    "sizes, coverage, message", [((), 0.5, "at least one"), ((9, 3), 0.5, "ascending"), ((3,), 0.0, "coverage is 0")]
)
def test_settings_without_sense_are_refused(sizes, coverage, message):
    with pytest.raises(ValueError, match=message):
        ObjectCounts(SOS_CLASSES, ("oil",), sizes, coverage)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"give two \(H, W\)"):
        ObjectCounts(SOS_CLASSES, ("oil",), (3,)).update(np.zeros((3, 3)), np.zeros((3, 4)))


def test_floats_and_ids_beyond_the_classes_are_refused():
    guess, truth = scene()
    with pytest.raises(ValueError, match="prediction is float64; expected integer"):
        ObjectCounts(OSD_CLASSES, ("oil",)).update(guess + 0.9, truth)
    with pytest.raises(ValueError, match="target has class ids from 0 to 3; expected 0 to 1"):
        ObjectCounts(SOS_CLASSES, ("oil",)).update(guess, truth)
    with pytest.raises(ValueError, match="prediction has class ids from 0 to 3"):
        ObjectCounts(SOS_CLASSES, ("oil",)).update(truth, guess)
