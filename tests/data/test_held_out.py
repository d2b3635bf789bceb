"""The held-out samples: in the classes' mixture, the same for every packing, nested, and never in a batch."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dakd.data.datasets import StudentDataset
from dakd.data.held_out import held_out_places, num_held_out
from dakd.data.ordered_records import OrderedRecords
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.shards import ShardSet, write_index, write_shard

SETS = [(0,)] * 20 + [(0, 1)] * 10 + [(0, 1, 2)] * 6 + [(0, 4)] * 3 + [(0, 3)]  # classes of 40 samples


def labelled(number: int, classes: tuple[int, ...]) -> Sample:
    sar = np.full((8, 8), number, np.uint8)
    label = np.array([classes[i % len(classes)] for i in range(64)], np.uint8).reshape(8, 8)
    return Sample(f"s{number:03d}", sar, label)


def write(folder, sets=SETS, shard_size: int = 7, order=None) -> ShardSet:
    samples = [labelled(number, classes) for number, classes in enumerate(sets)]
    samples = [samples[place] for place in (order or range(len(samples)))]
    for shard in range(-(-len(samples) // shard_size)):
        write_shard(folder, shard, samples[shard * shard_size : (shard + 1) * shard_size], OSD_CLASSES)
    write_index(folder, OSD_CLASSES, kind="real")
    return ShardSet(folder)


@pytest.fixture(scope="module")
def forty(tmp_path_factory) -> ShardSet:
    return write(tmp_path_factory.mktemp("forty"))


def keys(shards: ShardSet, share: float, seed: int = 0) -> set[str]:
    return {shards.key(place) for place in held_out_places(shards, share, seed)}


def dataset(shards: ShardSet, held_out, **options) -> StudentDataset:
    return StudentDataset(shards, None, (8, 8), mosaic=False, flip=False, seed=1, held_out=held_out, **options)


@pytest.mark.parametrize("samples, share, wanted", [(40, 0.1, 4), (40, 0.11, 4), (40, 0.1125, 5), (40, 0.001, 1),
                                                    (2, 0.5, 1), (11, 0.5, 6), (40, 0, 0)])  # fmt: skip
def test_the_number_is_the_nearest_whole_one_and_at_least_one(samples, share, wanted):
    assert num_held_out(samples, share) == wanted


def test_a_share_that_leaves_no_training_sample_is_refused():
    with pytest.raises(ValueError, match=r"0\.9 of 3 real training samples holds out 3, and none is left"):
        num_held_out(3, 0.9)


def test_each_set_of_classes_gives_about_the_same_share(forty):
    of_place = Counter(SETS)
    for share in (0.1, 0.25, 0.5):
        found = Counter(SETS[place] for place in held_out_places(forty, share, 3))
        assert sum(found.values()) == round(40 * share)
        assert all(abs(found[classes] - share * count) <= 1 for classes, count in of_place.items())


def test_every_class_keeps_a_training_sample(forty):
    for share in (0.1, 0.5, 0.9):
        held_out = set(held_out_places(forty, share, 0))
        left = {one for place, classes in enumerate(SETS) if place not in held_out for one in classes}
        assert left == {0, 1, 2, 3, 4} and len(held_out) == num_held_out(40, share)


def test_a_set_whose_classes_would_run_out_is_refused_with_the_class(tmp_path):
    shards = write(tmp_path, [(0,), (1,), (2,), (0, 1)])
    assert len(held_out_places(shards, 0.4, 0)) == 2  # not the one with look-alikes
    with pytest.raises(ValueError, match=r"holds out 3, but beyond \d of them .* no sample left with .*look-alike"):
        held_out_places(shards, 0.75, 0)


def test_samples_without_a_label_or_without_a_class_in_them_are_refused(tmp_path):
    unknown = [Sample(f"u{i}", np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)) for i in range(3)]
    write_shard(tmp_path / "a", 0, unknown, OSD_CLASSES)
    write_index(tmp_path / "a", OSD_CLASSES, kind="real")
    with pytest.raises(ValueError, match="have no pixel with a class"):
        held_out_places(ShardSet(tmp_path / "a"), 0.4, 0)
    without = [labelled(0, (0,)), Sample("s1", np.zeros((8, 8), np.uint8))]
    write_shard(tmp_path / "b", 0, without, OSD_CLASSES)
    write_index(tmp_path / "b", OSD_CLASSES, kind="real")
    with pytest.raises(ValueError, match=r"1 of 2 samples have labels; validation\.share needs all"):
        held_out_places(ShardSet(tmp_path / "b"), 0.4, 0)


def test_the_part_depends_on_the_seed_and_neither_on_shards_nor_on_the_order(forty, tmp_path):
    again = write(tmp_path, shard_size=11, order=list(reversed(range(40))))
    assert keys(forty, 0.2) == keys(again, 0.2)
    assert len({frozenset(keys(forty, 0.2, seed)) for seed in range(8)}) > 4


def test_a_larger_share_holds_the_samples_of_a_smaller_one(forty):
    parts = [keys(forty, share) for share in (0.02, 0.1, 0.2, 0.3, 0.5, 0.8, 0.9)]
    assert all(small < large for small, large in pairwise(parts))


def test_held_out_samples_are_in_no_batch_and_all_others_once_an_epoch(forty):
    places = held_out_places(forty, 0.3, 0)
    part = dataset(forty, places, window=2)
    assert part.epoch_length == part.num_real == 28
    held_out = {forty.key(place) for place in places}
    for epoch in range(3):
        seen = part.batch(list(range(28 * epoch, 28 * (epoch + 1)))).keys
        assert sorted(seen) == sorted({forty.key(place) for place in range(40)} - held_out)


def test_no_damaged_record_brings_a_held_out_one_into_its_place(tmp_path):
    shards = write(tmp_path)
    places = held_out_places(shards, 0.5, 0)
    held_out = {shards.key(place) for place in places}
    shard = next(one for one in range(3) if any(shards.locate(place)[0] == one for place in places))
    path = tmp_path / shards.index.shards[shard].file
    path.write_bytes(path.read_bytes()[:600])  # nearly all of its records are cut off
    part = dataset(ShardSet(tmp_path), places, on_bad_record="skip", window=2)
    batch = part.batch(list(range(20)))
    assert batch.skipped and not held_out & set(batch.keys)


def test_nothing_held_out_is_the_order_of_before(forty):
    plain = StudentDataset(forty, None, (8, 8), mosaic=False, flip=True, seed=1)
    assert plain.batch(list(range(80))).keys == dataset(forty, []).batch(list(range(80))).keys


def test_a_whole_shard_may_be_left_out_and_a_limit_counts_the_others(forty):
    everything = OrderedRecords([forty], 3, 2, left_out=range(7), limit=10)
    assert len(everything) == 10
    seen = set()
    everything.read([(0, place) for place in range(10)], lambda _, sample: seen.add(sample.key))
    assert seen == {f"s{number:03d}" for number in range(7, 17)}
    with pytest.raises(ValueError, match="places from 3 to 40; expected 0 to 39"):
        OrderedRecords([forty], 3, 2, left_out=[3, 40])
