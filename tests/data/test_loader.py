"""Loading by position: every world size sees the same samples, and a run resumes at any position."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dakd.data import loader as loading
from dakd.data.batch import Batch
from dakd.data.datasets import StudentDataset, TeacherDataset
from dakd.data.loader import make_loader
from dakd.data.order import rank_positions
from dakd.data.sample import IGNORE_INDEX, OSD_CLASSES, Sample
from dakd.data.shards import ShardSet, write_index, write_shard


def teacher(real_set, **options) -> TeacherDataset:
    settings = {"flip": True, "seed": 5, "labelled": True, **options}
    return TeacherDataset([real_set], (8, 12), **settings)


def student(real, synthetic, crop=(16, 16), **options) -> StudentDataset:
    return StudentDataset(real, synthetic, crop, **{"mosaic": True, "flip": True, "seed": 5, **options})


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


def assert_equal(one: Batch, other: Batch) -> None:
    for value, its in zip(one, other, strict=True):
        assert torch.equal(value, its) if isinstance(value, torch.Tensor) else value == its


def test_teacher_batch_has_the_stated_shapes_and_labels_on_their_images(real_set):
    batch = take(make_loader(teacher(real_set), 4, 0, 1, 0), 1)[0]
    assert batch.image.shape == (4, 1, 8, 12) and batch.image.dtype == torch.uint8
    assert batch.label.shape == (4, 8, 12) and batch.label.dtype == torch.uint8
    assert torch.equal(batch.image[:, 0] % 5, batch.label)
    assert batch.teacher is None and batch.teacher_row.tolist() == [-1] * 4
    assert batch.positions.tolist() == [0, 1, 2, 3] and len(batch.keys) == 4


def test_one_epoch_of_the_teacher_holds_every_sample_of_all_sources_once(real_set, synthetic_set):
    dataset = TeacherDataset([real_set, synthetic_set], (4, 4), flip=False, seed=1, labelled=False)
    assert dataset.epoch_length == 23
    keys = dataset.batch(list(range(23, 46))).keys
    assert sorted(keys) == sorted([real_set.key(i) for i in range(13)] + [synthetic_set.key(i) for i in range(10)])


def test_stage_one_takes_images_without_labels_and_later_stages_refuse_them(synthetic_set):
    dataset = TeacherDataset([synthetic_set], (8, 8), flip=False, seed=1, labelled=False)
    batch = take(make_loader(dataset, 3, 0, 1, 0), 1)[0]
    assert batch.label is None and batch.teacher is None
    with pytest.raises(ValueError, match="labels for 0 of 10"):
        TeacherDataset([synthetic_set], (8, 8), flip=False, seed=1, labelled=True)
    with pytest.raises(ValueError, match="no sources"):
        TeacherDataset([], (8, 8), flip=False, seed=1, labelled=True)


@pytest.mark.parametrize("world", [2, 3, 6])
def test_every_world_size_sees_the_same_global_batches(real_set, synthetic_set, world):
    dataset, start, global_batch = student(real_set, synthetic_set), 7, 6
    alone = take(make_loader(dataset, global_batch, 0, 1, start), 2)
    ranks = [take(make_loader(dataset, global_batch // world, rank, world, start), 2) for rank in range(world)]
    for step, batch in enumerate(alone):
        by_position = {}
        for rank in range(world):
            part = ranks[rank][step]
            for row, position in enumerate(part.positions.tolist()):
                by_position[position] = (part.image[row], part.label[row], part.keys[row])
        for row, position in enumerate(batch.positions.tolist()):
            image, label, key = by_position.pop(position)
            assert torch.equal(image, batch.image[row]) and torch.equal(label, batch.label[row])
            assert key == batch.keys[row]
        assert not by_position


def test_a_run_resumed_at_a_position_goes_on_with_the_same_batches(real_set, synthetic_set):
    dataset = student(real_set, synthetic_set)
    whole = take(make_loader(dataset, 4, 1, 2, 0), 6)
    resumed = take(make_loader(dataset, 4, 1, 2, 3 * 8), 3)
    for before, after in zip(whole[3:], resumed):
        assert_equal(before, after)


def test_gradient_accumulation_covers_the_same_positions(real_set):
    dataset = teacher(real_set)
    large = take(make_loader(dataset, 6, 0, 1, 0), 1)[0]
    small = take(make_loader(dataset, 2, 0, 1, 0), 3)
    assert torch.equal(torch.cat([batch.image for batch in small]), large.image)


def test_reader_processes_give_the_same_batches_as_none(real_set, synthetic_set):
    dataset = student(real_set, synthetic_set)
    for one, other in zip(take(make_loader(dataset, 3, 0, 2, 4), 4), take(make_loader(dataset, 3, 0, 2, 4, 2), 4)):
        assert_equal(one, other)


def test_student_epoch_holds_every_real_sample_and_every_mosaic_once(real_set, synthetic_set):
    dataset = student(real_set, synthetic_set)
    assert dataset.epoch_length == 13 + 10 // 4

    def keys_of(start: int, stop: int) -> tuple[list[str], list[str]]:
        """Of the real samples at these positions, and of the tiles."""
        batch = dataset.batch(list(range(start, stop)))
        both = [(key, bool(synthetic)) for key, synthetic in zip(batch.keys, batch.is_synthetic)]
        tiles = [tile for key, is_synthetic in both if is_synthetic for tile in key.split("+")]
        return [key for key, is_synthetic in both if not is_synthetic], tiles

    real_keys, tiles = keys_of(15, 30)
    assert sorted(real_keys) == [real_set.key(i) for i in range(13)]
    assert len(tiles) == len(set(tiles)) == 8
    assert len(set(keys_of(30, 90)[1])) == 10


def test_mosaic_tiles_images_and_logits_alike(synthetic_set):
    dataset = student(None, synthetic_set, flip=False)
    batch = dataset.batch([1])
    by_key = {synthetic_set.key(i): synthetic_set.read(i) for i in range(10)}
    tiles = [by_key[key] for key in batch.keys[0].split("+")]
    assert batch.image.shape == (1, 1, 16, 16) and batch.teacher.shape == (1, 5, 16, 16)
    for place, tile in enumerate(tiles):
        rows, columns = slice(8 * (place // 2), 8 * (place // 2) + 8), slice(8 * (place % 2), 8 * (place % 2) + 8)
        assert np.array_equal(batch.image[0, 0, rows, columns], tile.sar)
        assert np.array_equal(batch.teacher[0, :, rows, columns], tile.soft_label)
    assert (batch.label == IGNORE_INDEX).all() and batch.teacher.dtype == torch.float16


def test_flipped_mosaics_keep_logits_on_their_images(synthetic_set):
    flipped, plain = student(None, synthetic_set), student(None, synthetic_set, flip=False)
    turned, straight = flipped.batch([0, 1]), plain.batch([0, 1])
    for row in range(2):
        before, after = straight.image[row, 0].numpy(), turned.image[row, 0].numpy()
        where = {value: np.argwhere(before == value) for value in np.unique(before)}
        for value, places in where.items():
            if len(places) == 1 and len(there := np.argwhere(after == value)) == 1:
                (y, x), (v, u) = places[0], there[0]
                assert np.array_equal(turned.teacher[row, :, v, u], straight.teacher[row, :, y, x])
    assert not torch.equal(turned.image, straight.image)


def test_mixed_batch_points_each_synthetic_sample_to_its_logits(real_set, synthetic_set):
    dataset = student(real_set, synthetic_set, crop=(8, 8), mosaic=False)
    alone = [dataset.batch([position]) for position in range(23)]
    batch = dataset.batch(list(range(23)))
    assert dataset.epoch_length == 23 and batch.teacher.shape == (10, 5, 8, 8)
    for row, one in enumerate(alone):
        place = int(batch.teacher_row[row])
        assert bool(batch.is_synthetic[row]) == bool(one.is_synthetic[0]) == (place >= 0)
        if place >= 0:
            assert torch.equal(batch.teacher[place], one.teacher[0])
            assert (batch.label[row] == IGNORE_INDEX).all()
        else:
            assert torch.equal(batch.label[row], batch.image[row, 0] % 5)


def test_hard_labels_are_the_argmax_of_the_teacher(synthetic_set):
    soft = student(None, synthetic_set).batch([0])
    hard = student(None, synthetic_set, hard_labels=True).batch([0])
    assert hard.teacher is None and hard.is_synthetic.all()
    assert np.array_equal(hard.label, soft.teacher.numpy().argmax(axis=1))
    assert torch.equal(hard.image, soft.image)


def test_num_synthetic_takes_the_first_pairs_alone(synthetic_set):
    dataset = student(None, synthetic_set, crop=(8, 8), mosaic=False, num_synthetic=3)
    keys = dataset.batch(list(range(3))).keys
    assert sorted(keys) == [synthetic_set.key(i) for i in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_synthetic": 11}, "num_synthetic is 11 of 10"),
        ({"num_synthetic": 3}, "at least 4"),
        ({"crop": (15, 16)}, "even sides"),
    ],
)
def test_impossible_mixes_are_refused(real_set, synthetic_set, options, message):
    with pytest.raises(ValueError, match=message):
        student(real_set, synthetic_set, **options)


def test_sets_in_the_wrong_place_are_refused(real_set, synthetic_set):
    with pytest.raises(ValueError, match="neither real nor synthetic"):
        student(None, None)
    with pytest.raises(ValueError, match="have soft labels; expected all"):
        student(None, real_set)
    with pytest.raises(ValueError, match="0 of 10 samples have labels"):
        student(synthetic_set, None)
    with pytest.raises(ValueError, match="rank 1 of 1"):
        make_loader(student(real_set, None), 2, 1, 1, 0)


def test_64_gpus_are_fed_from_1002_images_for_epochs_on_end(tmp_path):
    from data.conftest import make_set

    dataset = TeacherDataset([make_set(tmp_path, 1002, shard_size=256, shape=(2, 2))], (2, 2), flip=False, seed=3,
                             labelled=True)  # fmt: skip
    seen = []
    for step in range(16):  # just beyond one epoch, in global batches of 64
        for rank in range(64):
            seen += dataset.batch(rank_positions(step * 64, 1, rank, 64)).keys
    assert sorted(seen[:1002]) == sorted(set(seen)) and len(set(seen)) == 1002


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 200), st.sampled_from([1, 2, 3, 4, 6, 12]), st.booleans(), st.sampled_from([None, 0.3, 0.8]))
def test_a_global_batch_depends_on_nothing_but_its_position(real_set, synthetic_set, start, world, mosaic, share):
    dataset = student(real_set, synthetic_set, crop=(8, 8), mosaic=mosaic, synthetic_share=share, window=2)
    whole = dataset.batch(list(range(start, start + 12)))
    parts = [dataset.batch(rank_positions(start, 12 // world, rank, world)) for rank in range(world)]
    rows = {int(p): (part, row) for part in parts for row, p in enumerate(part.positions)}
    assert sorted(rows) == list(range(start, start + 12))
    for i, position in enumerate(range(start, start + 12)):
        part, row = rows[position]
        for name in ("image", "label", "is_synthetic"):
            assert torch.equal(getattr(part, name)[row], getattr(whole, name)[i])
        if whole.teacher_row[i] >= 0:
            assert torch.equal(part.teacher[part.teacher_row[row]], whole.teacher[whole.teacher_row[i]])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_set_share_of_the_batches_is_synthetic_and_each_set_goes_round_evenly(real_set, synthetic_set, share):
    dataset = student(real_set, synthetic_set, crop=(8, 8), mosaic=False, synthetic_share=share)
    assert dataset.epoch_length == pytest.approx(13 / (1 - share), abs=1)
    batch = dataset.batch(list(range(3 * dataset.epoch_length)))
    assert batch.is_synthetic.float().mean() == pytest.approx(share, abs=0.04)
    counts = {key: batch.keys.count(key) for key in batch.keys}
    assert {counts[real_set.key(i)] for i in range(13)} == {3}
    synthetic = [counts.get(synthetic_set.key(i), 0) for i in range(10)]
    assert max(synthetic) - min(synthetic) <= 1
    with pytest.raises(ValueError, match="between 0 and 1"):
        student(real_set, synthetic_set, synthetic_share=1.0)


def test_batches_of_reader_processes_stay_as_they_are_while_more_are_taken(real_set):
    dataset = teacher(real_set)
    kept = take(make_loader(dataset, 2, 0, 1, 0, 2), 40)
    for batch in kept:
        assert_equal(batch, dataset.batch(batch.positions.tolist()))


def test_a_set_whose_every_label_is_unknown_trains_neither_students_nor_the_joint_stages(tmp_path):
    image, label = np.eye(16, dtype=np.uint8), np.full((16, 16), IGNORE_INDEX, np.uint8)
    samples = [Sample(f"a{i}", image, label=label) for i in range(4)]
    write_shard(tmp_path, 0, samples, OSD_CLASSES)
    write_index(tmp_path, OSD_CLASSES, kind="real")
    unknown = ShardSet(tmp_path)
    for make in (lambda: student(unknown, None), lambda: teacher(unknown)):
        with pytest.raises(ValueError, match="every pixel of its 4 labels is unknown"):
            make()
    assert len(teacher(unknown, labelled=False).records) == 4


def test_a_reader_that_hangs_is_reported_and_ended_at_the_limit(real_set, monkeypatch, capsys):
    monkeypatch.setenv("DAKD_COLLECTIVE_S", "2")
    monkeypatch.setattr(loading, "_SAID_AFTER_S", 0.4)
    others = set(multiprocessing.active_children())
    batches = iter(make_loader(teacher(real_set), 4, 0, 1, 0, num_workers=1))
    next(batches)
    (reader,) = set(multiprocessing.active_children()) - others
    os.kill(reader.pid, signal.SIGSTOP)  # as a network folder that does not answer holds it up
    try:
        with pytest.raises(RuntimeError, match="no data came for 2 s, the limit of DAKD_COLLECTIVE_S"):
            list(batches)
        assert not reader.is_alive()
    finally:
        if reader.is_alive():
            reader.kill()
    assert "waits for data, and its 1 reader processes send none" in capsys.readouterr().out
