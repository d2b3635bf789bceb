"""Damage is reported and, where settings ask for it, passed over in the same way by every reader."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damaged_records import flip_byte
from pydantic import ValidationError
from sealed_edits import content_of, reseal

from dakd.data.datasets import StudentDataset, TeacherDataset
from dakd.data.index import Index, ShardInfo
from dakd.data.loader import make_loader, report_skipped
from dakd.data.ordered_records import OrderedRecords
from dakd.data.records import BadRecord
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.shards import ShardSet


@pytest.fixture
def copied(real_set, tmp_path) -> ShardSet:
    """The 13 samples of `real_set`, in three shards of 5, 5 and 3, to be damaged."""
    shutil.copytree(real_set.folder, tmp_path / "set")
    return ShardSet(tmp_path / "set")


def teacher(shards: ShardSet, **options) -> TeacherDataset:
    return TeacherDataset([shards], (8, 12), **{"flip": True, "seed": 5, "labelled": True, "window": 2, **options})


def read(records: OrderedRecords, places) -> tuple[list[Sample], list]:
    """The samples at the places, as copies, and what was passed over."""
    samples = {}

    def take(i: int, sample: Sample) -> None:
        samples[i] = replace(sample, sar=sample.sar.copy(), label=sample.label.copy())

    skipped = records.read(places, take)
    return [samples[i] for i in range(len(places))], skipped


def keys_of_epoch(dataset, epoch: int = 0) -> list[str]:
    length = dataset.epoch_length
    return [dataset.batch([position]).keys[0] for position in range(epoch * length, (epoch + 1) * length)]


def test_samples_come_in_the_order_that_was_asked_for(real_set):
    records = OrderedRecords([real_set], 3, 2)
    places = [(1, 4), (0, 12), (0, 4), (1, 4)]
    samples, skipped = read(records, places)
    wanted = [records.order.at(*place) for place in places]
    starts = np.concatenate([[0], np.cumsum(real_set.counts)])
    for sample, (shard, record) in zip(samples, wanted):
        whole = real_set.read(int(starts[shard]) + record)
        assert sample.key == whole.key and np.array_equal(sample.sar, whole.sar)
        assert np.array_equal(sample.label, whole.label)
    assert skipped == []


def test_a_limit_takes_the_first_records_of_the_set(real_set):
    records = OrderedRecords([real_set], 3, 2, limit=7)
    samples, _ = read(records, [(0, place) for place in range(len(records))])
    assert sorted(sample.key for sample in samples) == [real_set.key(i) for i in range(7)]


def test_a_limit_leaves_the_sets_after_the_first_whole(real_set, synthetic_set):
    records, keys = OrderedRecords([real_set, synthetic_set], 3, 2, limit=7), []
    records.read([(0, place) for place in range(len(records))], lambda _, sample: keys.append(sample.key))
    wanted = [real_set.key(i) for i in range(7)] + [synthetic_set.key(i) for i in range(len(synthetic_set))]
    assert sorted(keys) == sorted(wanted) and len(records) == 17


@pytest.mark.parametrize("damage", ["flipped byte", "bad json", "truncated tar", "missing tar", "damaged sidecar"])
def test_damage_stops_with_a_reason_or_the_next_good_record_stands_in(copied, damage):
    before = keys_of_epoch(teacher(copied))
    bad = {copied.key(i) for i in range(5, 10)}
    tar = copied.folder / "shard-000001.tar"
    if damage == "flipped byte":
        bad, reason = {flip_byte(copied, 6)}, "checksum"
    elif damage == "bad json":
        bad, reason = {flip_byte(copied, 6, "json")}, "checksum"
    elif damage == "truncated tar":
        last = copied.span(1, 4)
        tar.write_bytes(tar.read_bytes()[: last.first + last.length - 1])
        bad, reason = {last.key}, "truncated"
    elif damage == "missing tar":
        tar.unlink()
        reason = "does not exist"
    else:
        tar.with_suffix(".json").write_text('{"format": 2')
        reason = "sidecar"
    with pytest.raises(BadRecord, match=reason):
        keys_of_epoch(teacher(ShardSet(copied.folder)))
    dataset = teacher(ShardSet(copied.folder), on_bad_record="skip")
    batches = [dataset.batch([position]) for position in range(13)]
    found = [batch.keys[0] for batch in batches]
    good = [key for key in before if key not in bad]
    for place, (was, now) in enumerate(zip(before, found)):
        following = [key for key in before[place:] + before[:place] if key in good]
        assert now == (was if was in good else following[0])
    skipped_lines = [line for batch in batches for line in batch.skipped]
    assert len(skipped_lines) == len(bad) and all(reason in line for line in skipped_lines)


def test_readers_of_any_number_and_a_resumed_run_pass_over_the_same_records(copied):
    for i in (2, 3, 7):
        flip_byte(copied, i)
    dataset = StudentDataset(copied, None, (8, 12), mosaic=True, flip=True, seed=1, window=2, on_bad_record="skip")

    def batches(world, workers, start=0):
        loaders = [iter(make_loader(dataset, 4 // world, rank, world, start, workers)) for rank in range(world)]
        for _ in range(4 - start // 4):
            parts = [next(loader) for loader in loaders]
            order = torch.cat([part.positions for part in parts]).argsort()
            yield torch.cat([part.image for part in parts])[order], sum(len(part.skipped) for part in parts)

    alone = list(batches(1, 0))
    assert sum(count for _, count in alone) >= 3
    for other in (list(batches(2, 0)), list(batches(1, 2)), [*alone[:2], *batches(1, 0, 8)]):
        assert all(torch.equal(a, b) and m == n for (a, m), (b, n) in zip(alone, other, strict=True))


def test_a_set_without_any_good_record_stops_even_where_bad_ones_are_passed_over(copied):
    for tar in copied.folder.glob("*.tar"):
        tar.unlink()
    with pytest.raises(BadRecord, match="no good record follows within 12 places"):
        teacher(ShardSet(copied.folder), on_bad_record="skip").batch([0])


def test_bytes_that_change_while_a_run_goes_on_are_found_when_they_are_read_again(copied):
    dataset = teacher(copied)
    keys_of_epoch(dataset)
    flip_byte(copied, 6)
    with pytest.raises(BadRecord, match="checksum"):
        keys_of_epoch(dataset, epoch=1)
    with pytest.raises(BadRecord, match="checksum"):
        copied.read(6)


def test_what_is_passed_over_is_reported_and_written_down(copied, tmp_path, capsys):
    keys = [flip_byte(copied, i) for i in (2, 9)]
    dataset = teacher(copied, on_bad_record="skip")
    batches = report_skipped(iter(make_loader(dataset, 13, 0, 1, 0)), tmp_path / "run")
    assert len(next(batches).skipped) == 2
    said = capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "run" / "bad_records-rank00000.jsonl").read_text().splitlines()]
    assert len(written) == 2
    for key in keys:
        assert key in said and any(key in entry["reason"] for entry in written)
    next(batches)
    again = (tmp_path / "run" / "bad_records-rank00000.jsonl").read_text().splitlines()
    assert len(again) == 4, "once an epoch"


def digest_of(records: list[dict]) -> str:
    """What an index says of a sidecar with these records."""
    facts = [[record[name] for name in ("key", "height", "width", "crc32", "members")] for record in records]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def edit_index(folder: Path, changes: dict) -> None:
    path = folder / "index.json"
    index = content_of(path)
    index["shards"][0] |= changes.get("entry", {})
    reseal(path, index | {name: value for name, value in changes.items() if name != "entry"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entry": {"file": "../shard-000000.tar"}}, "without a folder"),
        ({"entry": {"file": "/etc/passwd"}}, "without a folder"),
        ({"entry": {"file": "pipe:touch /tmp/planted"}}, "without a folder"),
        ({"entry": {"file": "s3://elsewhere/a.tar"}}, "without a folder"),
        ({"entry": {"num_samples": -5}}, r"shards.0.num_samples: .* greater than or equal to 0 \(found -5"),
        ({"entry": {"num_samples": 10**30}}, r"shards.0.num_samples: .* less than 4611686018427387904 \(found 10"),
        ({"entry": {"num_samples": 6}}, "counts 13 samples, its shards 14"),
        ({"entry": {"sha256": "x"}}, r"shards.0.sha256: .* \(found 'x'"),
        ({"entry": {"records_sha256": None}}, r"shards.0.records_sha256: .* \(found None"),
        ({"entry": {"kept": [[3, 1]]}}, "ascending runs"),
        ({"shards": []}, "shards: expected list of .*, not empty"),
        ({"shards": ["a"]}, r"shards.0: .* \(found 'a'"),
        ({"classes": {"names": ["a"]}}, "classes: class table is .* expected a list of names and one of colours"),
        ({"num_labelled": 99}, "num_labelled 99"),
        ({"format": 7}, "has the format 7; this version reads 1"),
        ({"entry": {"kept": []}}, "shards.0.kept: expected at least one run"),
        ({"sizes": {"16x20": "13"}}, "sizes: '16x20' is '13', expected a number of images"),
        ({"colour": "red"}, "the field 'colour' is unknown"),
    ],
)
def test_an_index_is_not_believed_without_a_look(copied, changes, message):
    edit_index(copied.folder, changes)
    with pytest.raises(ValueError, match=message):
        ShardSet(copied.folder)


def test_an_index_without_its_format_is_refused(copied):
    tree = content_of(copied.folder / "index.json")
    del tree["format"]
    reseal(copied.folder / "index.json", tree)
    with pytest.raises(ValueError, match="format: missing; expected 1"):
        ShardSet(copied.folder)


@pytest.mark.parametrize("field", ["shards", "sizes", "class_pixels", "class_pixel_shares", "classes", "kept", "other"])
def test_the_first_fault_ends_the_parsing_of_an_index(copied, field):
    # The errors of a small hostile file must not fill the memory.
    tree = content_of(copied.folder / "index.json")
    many = [1.5, None] * 5000
    if field == "classes":
        tree["classes"] = {"names": many, "colours": many}
    elif field == "kept":
        tree["shards"][0]["kept"] = many
    elif field == "other":
        tree |= {str(i): value for i, value in enumerate(many)}
    else:
        tree[field] = dict(enumerate(many)) if field == "sizes" else many
    with pytest.raises(ValidationError) as found:
        Index.model_validate_json(json.dumps(tree))
    assert found.value.error_count() <= 2


def test_the_first_fault_ends_the_parsing_of_a_sidecar(copied):
    path = copied.folder / "shard-000000.json"
    good = content_of(path)
    one = good["records"][0] | {"members": dict.fromkeys(map(str, range(5000)), 1)}
    for records in ([7] * 5000, [one] * 3):
        with pytest.raises(ValidationError) as found:
            ShardInfo.model_validate_json(json.dumps(good | {"records": records}))
        assert found.value.error_count() == 1


@pytest.mark.parametrize("text", ["", "[]", "{", "nul", "[" * 100_000, '{"format": 2}', "\x00\xff"])
def test_an_index_that_is_none_is_refused_by_name(copied, text):
    (copied.folder / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        ShardSet(copied.folder)


@pytest.mark.parametrize(
    ("member", "span", "message"),
    [
        ("sar.u8", [-512, 320], r"records.0.members: 'sar.u8' is \[-512, 320\], expected its offset"),
        ("sar.u8", [10**15, 320], "lies at"),
        ("sar.u8", [1536, 10**12], "lies at"),
        ("sar.u8", [2048, 319], "expected one a pixel"),
        ("sar.u8", ["1536", 320], r"records.0.members: 'sar.u8' is \['1536', 320\], expected its offset"),
        ("json", [512, 1100], "overlaps"),
        ("json", [100, 120], "checksum"),
    ],
)
def test_a_sidecar_cannot_make_a_reader_look_outside_a_record(copied, member, span, message):
    path = copied.folder / "shard-000000.json"
    tree = content_of(path)
    tree["records"][0]["members"][member] = span
    reseal(path, tree)
    edit_index(copied.folder, {"entry": {"records_sha256": digest_of(tree["records"])}})  # of one hand with it
    with pytest.raises(BadRecord, match=message):
        ShardSet(copied.folder).read(0)


@pytest.mark.parametrize(("height", "width"), [(2**20, 2**20), (-16, -20), (0, 320), (16.0, 20), (True, 320)])
def test_sizes_that_cannot_be_are_refused_before_memory_is_taken(copied, height, width):
    path = copied.folder / "shard-000000.json"
    tree = content_of(path)
    tree["records"][0] |= {"height": height, "width": width}
    reseal(path, tree)
    with pytest.raises(BadRecord, match=r"pixels|records.0.height: .* \(found (-16|16.0|True)"):
        ShardSet(copied.folder).read(0)


def test_many_shards_are_read_with_few_of_them_open(tmp_path, monkeypatch):
    from data.conftest import make_set

    shards = make_set(tmp_path, 12, shard_size=1, shape=(4, 4))
    monkeypatch.setattr("dakd.data.shards.MAX_OPEN_SHARDS", 3)
    assert [shards.read(i).key for i in (0, 5, 11, 2, 0)] == ["s000", "s005", "s011", "s002", "s000"]
    assert len(shards._open) == 3
    assert shards.classes == OSD_CLASSES
    with pytest.raises(IndexError, match="sample 12"):
        shards.read(12)
