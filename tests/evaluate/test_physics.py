"""Each measure sees what it is for, leaves the others alone, and stays at its yardstick where nothing differs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluate_worlds import slick, write_images

from dakd.data.sample import SOS_CLASSES, ClassTable, Sample
from dakd.data.shards import ShardSet
from dakd.evaluate.physics import SetMeasures, compare_physics, list_measures, measure_image, measure_set
from dakd.evaluate.set_statistics import count_set
from dakd.metrics.distances import histogram_wasserstein
from dakd.metrics.speckle import equivalent_looks

SIZE, NUM = (64, 64), 24


def measured(folder, pairs) -> SetMeasures:
    return measure_set(write_images(folder, pairs), SIZE, seed=0)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> SetMeasures:
    return measured(tmp_path_factory.mktemp("real"), [slick(seed) for seed in range(NUM)])


def compared(real: SetMeasures, folder, pairs, resamples: int = 40) -> dict[str, dict]:
    return compare_physics(real, measured(folder, pairs), SOS_CLASSES, SIZE, 0, resamples)["measures"]


def others(**options) -> list[tuple[np.ndarray, np.ndarray]]:
    return [slick(1000 + seed, **options) for seed in range(NUM)]


def shuffled_labels() -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = others()
    return [(image, pairs[(place + 1) % NUM][1]) for place, (image, _) in enumerate(pairs)]


CHANGES = {
    "looks": lambda: others(looks=4.0),
    "autocorrelation": lambda: others(blur=True),
    "spectrum": lambda: others(blur=True),
    "greys": lambda: others(sea=130.0),
    "greys_sea": lambda: others(sea=130.0),
    "greys_oil": lambda: others(step=20.0),
    "contrast": lambda: others(step=20.0),
    "shares": lambda: [(image, 0 * label) for image, label in others()],
    "share_oil": lambda: [(image, 0 * label) for image, label in others()],
    "edges": shuffled_labels,
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_measure_sees_its_change_far_beyond_chance(key, real, tmp_path):
    one = compared(real, tmp_path, CHANGES[key]())[key]
    assert one["distance"] > 4 * one["yardstick"] and one["low"] > one["yardstick"]
    assert one["low"] < one["distance"] < one["high"]


def test_another_set_of_the_same_origin_is_near_the_yardstick_in_everything(real, tmp_path):
    for key, one in compared(real, tmp_path, others()).items():
        assert one["distance"] < 3 * one["yardstick"], key


def test_measures_leave_alone_what_is_not_theirs(real, tmp_path):
    table = compared(real, tmp_path / "a", others(looks=4.0))
    for key in ("autocorrelation", "shares"):
        assert table[key]["distance"] < 3 * table[key]["yardstick"], key
    table = compared(real, tmp_path / "b", others(blur=True))
    for key in ("looks", "shares", "contrast"):
        assert table[key]["distance"] < 3 * table[key]["yardstick"], key


def test_values_are_those_of_the_simulation(real, tmp_path):
    table = compared(real, tmp_path, others(looks=4.0, step=30.0))
    assert table["looks"]["real"] == pytest.approx(10 * np.log10(8), abs=0.4)
    assert table["looks"]["synthetic"] == pytest.approx(10 * np.log10(4), abs=0.4)
    assert table["looks"]["distance"] == pytest.approx(10 * np.log10(2), abs=0.4)
    # A median of gamma speckle lies a little below its mean.
    assert table["contrast"]["real"] == pytest.approx(50, rel=0.08)
    assert table["contrast"]["distance"] == pytest.approx(20, rel=0.15)
    assert table["edges"]["real"] > 1.5
    # White speckle of relative variance 1/8 on greys of 110 and 60, as the fading window weighs them.
    fade = np.hanning(SIZE[0] + 1)[:-1]
    greys = [np.where(slick(seed)[1], 60, 110) for seed in range(NUM)]
    powers = [np.average(one**2, weights=np.outer(fade, fade) ** 2) for one in greys]
    assert table["spectrum"]["real"] == pytest.approx(10 * np.log10(np.mean(powers) / 8), abs=0.3)


def test_shuffled_labels_bring_edge_agreement_to_one(real, tmp_path):
    one = compared(real, tmp_path, shuffled_labels())["edges"]
    assert one["synthetic"] == pytest.approx(1, abs=0.25) and one["distance"] > 0.4


def test_one_image_is_worked_by_hand():
    sar = np.full((32, 32), 100, np.uint8)
    sar[:8], sar[0, 0] = 40, 255
    label = np.zeros((32, 32), np.uint8)
    label[:8] = 1
    label[0, 0] = 255
    found = measure_image(Sample("a", sar, label=label), SOS_CLASSES)
    assert found["histogram"][0].nonzero()[0].tolist() == [100] and found["histogram"][1, 40] == 255
    assert found["contrast"] == 60
    assert found["looks_db"] == pytest.approx(10 * np.log10(100**2 * 12))  # flat: the variance of rounding
    assert np.isnan(found["autocorrelation"]).all() and np.isnan(found["edges"])


def test_the_contrast_is_that_of_medians(tmp_path):
    sar = np.array([[10, 20, 90], [50, 60, 200]], np.uint8)
    label = np.array([[1, 1, 1], [0, 0, 0]], np.uint8)
    assert measure_image(Sample("a", sar, label=label), SOS_CLASSES)["contrast"] == 60 - 20
    label[1, 0] = 255
    assert measure_image(Sample("a", sar, label=label), SOS_CLASSES)["contrast"] == 130 - 20


def test_pooled_greys_and_shares_are_those_of_the_counted_sets(run_dir):
    sets = [ShardSet(run_dir / folder) for folder in ("prepare/train", "generate")]
    counts = [count_set(one).histogram for one in sets]
    found = compare_physics(*(measure_set(one, (16, 20), 0) for one in sets), sets[0].classes, (16, 20), 0, 20)
    greys = found["measures"]["greys"]["distance"]
    assert greys == pytest.approx(histogram_wasserstein(*(one.sum(axis=0) for one in counts)), rel=1e-5)
    shares = [100 * one.sum(axis=1) / one.sum() for one in counts]
    for number, name in enumerate(sets[0].classes.names):
        one = found["measures"][f"share_{name}"]
        assert [one["real"], one["synthetic"]] == pytest.approx([share[number] for share in shares], rel=1e-5)
        assert one["distance"] == pytest.approx(abs(shares[0][number] - shares[1][number]), rel=1e-4, abs=1e-6)
    total = np.abs(shares[0] - shares[1]).sum() / 2
    assert found["measures"]["shares"]["distance"] == pytest.approx(total, rel=1e-4)


def test_what_no_image_has_is_none_and_the_whole_is_json(run_dir):
    sets = [measure_set(ShardSet(run_dir / folder), (16, 20), 0) for folder in ("prepare/train", "generate")]
    found = compare_physics(*sets, ShardSet(run_dir / "generate").classes, (16, 20), 0, 20)
    looks = found["measures"]["looks"]  # blocks of four pixels: no window of sea
    assert looks["distance"] is looks["low"] is looks["yardstick"] is None and looks["num_images"] == [0, 0]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_tables_without_sea_or_oil_have_no_measure_of_them():
    classes = ClassTable(("water", "ice"), ((0, 0, 0), (255, 255, 255)))
    found = measure_image(Sample("a", *slick(0)[:1], label=slick(0)[1]), classes)
    assert np.isnan(found["looks_db"]) and np.isnan(found["contrast"]) and found["edges"] > 1
    assert "share_ice" in list_measures(classes)


def test_larger_real_images_are_measured_in_windows_of_the_generated_size(tmp_path):
    large = measure_set(write_images(tmp_path, [slick(seed, size=160) for seed in range(3)]), SIZE, seed=0)
    assert large.spectrum.shape == (3, 32) and (large.histogram.sum(axis=(1, 2)) == 64 * 64).all()


def test_ranks_sum_to_the_measures_of_the_whole(tmp_path):
    shard_set = write_images(tmp_path, [slick(seed) for seed in range(5)])
    whole = measure_set(shard_set, SIZE, 0)
    parts = [measure_set(shard_set, SIZE, 0, rank=rank, world=2) for rank in range(2)]
    for name, values in vars(whole).items():
        assert np.array_equal(sum(getattr(part, name) for part in parts), values, equal_nan=True)
    assert whole.looks_db[0] == 10 * np.log10(equivalent_looks(slick(0)[0], slick(0)[1] == 0, 8, 4))
