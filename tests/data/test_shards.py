"""Shards: samples are read as they were written, byte for byte the same, and damage is reported."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pickle
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sealed_edits import content_of, reseal

from dakd.data.records import BadRecord
from dakd.data.sample import OSD_CLASSES, ClassTable, Sample
from dakd.data.shards import ShardSet, describe_shard, verify, write_index, write_shard, write_shards
from dakd.runtime.files import file_hash


def sample(key="a", shape=(6, 9), **changes) -> Sample:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    sar = rng.integers(0, 256, shape).astype(np.uint8)
    return replace(Sample(key, sar, rng.integers(0, 5, shape).astype(np.uint8)), **changes)


def test_samples_come_back_as_they_went_in(tmp_path):
    soft = np.random.default_rng(0).normal(0, 4, (5, 3, 7)).astype(np.float16)
    written = [
        sample("a", meta={"source": "x"}),
        sample("b", (1, 63)),
        sample("c", (3, 7), label=None, soft_label=soft),
        sample("d", (2, 2), label=None),
    ]
    write_shard(tmp_path, 0, written[:3], OSD_CLASSES, codec="fp16")
    write_shard(tmp_path, 1, written[3:], OSD_CLASSES)
    write_index(tmp_path, OSD_CLASSES, kind="real", codec="fp16")
    shards = ShardSet(tmp_path)
    assert len(shards) == 4 and shards.classes == OSD_CLASSES
    for i, before in enumerate(written):
        after = shards.read(i)
        assert (after.key, after.meta, shards.key(i), shards.size(i)) == (
            before.key,
            before.meta,
            before.key,
            before.sar.shape,
        )
        for name in ("sar", "label", "soft_label"):
            wanted, found = getattr(before, name), getattr(after, name)
            assert (wanted is None and found is None) or np.array_equal(wanted, found)
    assert not list(tmp_path.glob(".*")), "nothing is left aside"


def test_same_samples_give_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        write_shard(tmp_path / folder, 0, [sample("a"), sample("b")], OSD_CLASSES)
        write_index(tmp_path / folder, OSD_CLASSES, kind="real")
    for name in ("shard-000000.tar", "shard-000000.json", "index.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_webdataset_library_reads_the_shards(real_set):
    import webdataset

    files = sorted(str(path) for path in real_set.folder.glob("*.tar"))
    records = list(webdataset.WebDataset(files, shardshuffle=False))
    assert [record["__key__"] for record in records] == [real_set.key(i) for i in range(13)]
    first = real_set.read(0)
    assert records[0]["sar.u8"] == first.sar.tobytes() and records[0]["label.u8"] == first.label.tobytes()
    facts = json.loads(records[0]["json"])
    assert len(facts.pop("sha256")) == 64
    assert facts == {"height": 16, "width": 20, "num_classes": 5, "meta": {"number": 0}}


def test_index_counts_pixels_sizes_and_power(tmp_path):
    label = np.zeros((4, 5), np.uint8)
    label[0] = 4
    label[1, 0] = 255
    flat = Sample("flat", np.full((4, 5), 255, np.uint8), label)
    dark = Sample("dark", np.full((2, 2), 51, np.uint8), np.ones((2, 2), np.uint8))
    write_shard(tmp_path, 0, [flat, dark], OSD_CLASSES)
    index = write_index(tmp_path, OSD_CLASSES, kind="real", provenance={"from": "test"})
    assert index.class_pixels == [14, 4, 0, 0, 5] and index.ignored_pixels == 1
    assert index.class_pixel_shares[4] == pytest.approx(5 / 23)
    assert index.sizes == {"2x2": 1, "4x5": 1}
    assert index.mean_power == pytest.approx((1 + 0.36) / 2)
    assert index.balancing_factor == pytest.approx(math.sqrt(0.68))
    assert (index.num_samples, index.num_labelled, index.num_soft) == (2, 2, 0)
    assert index.kind == "real" and index.provenance == {"from": "test"}


def test_an_index_may_keep_a_part_of_the_records_and_describes_just_these(tmp_path):
    kept = {"shard-000000.tar": [0, 2, 3], "shard-000001.tar": [], "shard-000002.tar": None}
    samples = [[sample(f"{shard}-{i}") for i in range(5 if shard < 2 else 2)] for shard in range(4)]
    for shard, records in enumerate(samples):
        write_shard(tmp_path / "all", shard, records, OSD_CLASSES)
    index = write_index(tmp_path / "all", OSD_CLASSES, kind="synthetic", kept=kept)
    shards = ShardSet(tmp_path / "all")
    chosen = [samples[0][0], samples[0][2], samples[0][3], *samples[2]]
    assert [shards.key(i) for i in range(len(shards))] == [record.key for record in chosen]
    assert all(np.array_equal(shards.read(i).sar, record.sar) for i, record in enumerate(chosen))
    assert [entry.kept for entry in index.shards] == [[(0, 1), (2, 4)], None]
    write_shard(tmp_path / "alone", 0, chosen, OSD_CLASSES)
    alone = write_index(tmp_path / "alone", OSD_CLASSES, kind="synthetic")
    differing = {name for name, value in index if value != getattr(alone, name)}
    for name in ("mean_power", "balancing_factor"):
        assert getattr(index, name) == pytest.approx(getattr(alone, name), rel=1e-12)
    assert differing - {"mean_power", "balancing_factor"} == {"shards", "num_bytes"}


def test_fingerprint_depends_on_the_samples_alone(tmp_path):
    def fingerprint(name, *shards):
        for i, samples in enumerate(shards):
            write_shard(tmp_path / name, i, samples, OSD_CLASSES)
        return write_index(tmp_path / name, OSD_CLASSES, kind="real").fingerprint

    a, b = sample("a"), sample("b")
    changed = replace(b, label=(b.label + 1) % 5)
    assert fingerprint("one", [a, b]) == fingerprint("two", [b], [a]) != fingerprint("three", [a, changed])


def test_a_sidecar_can_be_made_again_from_the_tar(real_set):
    tar = real_set.folder / "shard-000001.tar"
    again = describe_shard(tar, OSD_CLASSES)
    assert again.model_dump(mode="json") == content_of(tar.with_suffix(".json"))
    assert again.sha256 == file_hash(tar)


def test_a_shard_that_fails_half_way_leaves_nothing(tmp_path):
    def samples():
        yield sample("a")
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_shard(tmp_path, 0, samples(), OSD_CLASSES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample("a.b"), "not usable"),
        (sample("a b"), "not usable"),
        (sample("/a"), "not usable"),
        (sample(""), "not usable"),
        (sample(label=np.zeros((6, 8), np.uint8)), "label is uint8 of shape"),
        (sample(label=np.zeros((6, 9), np.int64)), "label is int64"),
        (sample(label=np.full((6, 9), 7, np.uint8)), r"label holds \[7\]"),
        (sample(sar=np.zeros((6, 9), np.float32)), "image is float32"),
        (sample(sar=np.ma.masked_equal(np.eye(6, 9, dtype=np.uint8), 1)), "hides pixels of the image"),
        (sample(label=np.ma.masked_equal(np.eye(6, 9, dtype=np.uint8), 1)), r"of the label; .*: fill it \(label"),
        (sample(soft_label=np.ma.masked_equal(np.ones((5, 6, 9)), 1)), "hides pixels of the soft label"),
        (sample(soft_label=np.zeros((5, 6, 9), np.float16)), "no codec"),
        (sample(soft_label=np.zeros((4, 6, 9), np.float16)), "soft label has shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path, 0, [bad], OSD_CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_doubled_keys_are_refused_within_a_shard_and_across(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        write_shard(tmp_path, 0, [sample("a"), sample("a")], OSD_CLASSES)
    for i in range(2):
        write_shard(tmp_path, i, [sample("a")], OSD_CLASSES)
    with pytest.raises(ValueError, match="keys twice"):
        write_index(tmp_path, OSD_CLASSES, kind="real")


def test_verify_finds_a_flipped_bit_and_a_missing_shard(tmp_path):
    for i in range(3):
        write_shard(tmp_path, i, [sample(f"k{i}")], OSD_CLASSES)
    write_index(tmp_path, OSD_CLASSES, kind="real")
    assert verify(tmp_path) == []
    damaged = bytearray((tmp_path / "shard-000001.tar").read_bytes())
    damaged[700] ^= 1
    (tmp_path / "shard-000001.tar").write_bytes(damaged)
    (tmp_path / "shard-000002.tar").unlink()
    problems = verify(tmp_path)
    assert len(problems) == 2 and "shard-000001.tar: sha256" in problems[0] and "missing" in problems[1]


def test_a_record_that_the_sidecar_calls_otherwise_is_reported(tmp_path):
    """The bytes of a record have a checksum; its name in the sidecar has none but that of all names, in the index."""
    write_shard(tmp_path, 0, [sample("a"), sample("b")], OSD_CLASSES)
    write_index(tmp_path, OSD_CLASSES, kind="real")
    sidecar = tmp_path / "shard-000000.json"
    content = content_of(sidecar)
    content["records"][1]["key"] = "c"
    reseal(sidecar, content)
    with pytest.raises(BadRecord, match=r"shard-000000.json has changed: its records' names and places"):
        ShardSet(tmp_path).key(0)
    assert len(verify(tmp_path)) == 1 and "shard-000000.json has changed" in verify(tmp_path)[0]
    sidecar.unlink()
    shards = ShardSet(tmp_path)
    assert [shards.read(i).key for i in range(2)] == ["a", "b"] and verify(tmp_path) == []


def test_a_truncated_shard_is_reported_when_read(tmp_path):
    write_shard(tmp_path, 0, [sample("a"), sample("b")], OSD_CLASSES)
    write_index(tmp_path, OSD_CLASSES, kind="real")
    tar = tmp_path / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:1024])
    with pytest.raises(RuntimeError, match="ends before byte"):
        ShardSet(tmp_path).read(1)


def test_a_folder_without_index_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a set of shards"):
        ShardSet(tmp_path)
    with pytest.raises(ValueError, match="holds no records"):
        write_index(tmp_path, OSD_CLASSES, kind="real")


def test_a_set_of_shards_can_be_sent_to_another_process(real_set):
    there = pickle.loads(pickle.dumps(real_set))
    assert np.array_equal(there.read(7).sar, real_set.read(7).sar)


def test_a_set_of_any_number_of_samples_is_written_in_one_call_and_read_as_a_list(tmp_path):
    soft = np.random.default_rng(0).normal(0, 4, (5, 6, 9)).astype(np.float16)
    samples = [sample(f"s{i}", label=None, soft_label=soft + i) for i in range(7)]
    assert write_shards(tmp_path / "set", iter(samples), OSD_CLASSES, shard_size=3, provenance={"by": "me"}) == (
        tmp_path / "set"
    )
    shards = ShardSet(tmp_path / "set")
    assert shards.counts.tolist() == [3, 3, 1] and shards.index.kind == "synthetic"
    assert shards.index.codec == "fp16" and shards.index.provenance == {"by": "me"}
    assert verify(tmp_path / "set") == [] and "7 samples" in repr(shards)
    for before, after in zip(samples, shards, strict=True):
        assert after.key == before.key and (after.sar == before.sar).all()
        assert (after.soft_label == before.soft_label).all()
    assert shards[-1].key == "s6" and [one.key for one in shards] == [shards[i].key for i in range(7)]
    with pytest.raises(IndexError):
        shards[7]
    with pytest.raises(IndexError):
        shards[-8]


def test_a_set_with_hard_labels_is_real_and_has_no_codec(tmp_path):
    write_shards(tmp_path, [sample("a"), sample("b")], OSD_CLASSES)
    assert ShardSet(tmp_path).index.kind == "real" and ShardSet(tmp_path).index.codec is None


def test_a_set_that_is_there_is_replaced_only_when_asked(tmp_path):
    write_shards(tmp_path, [sample(f"old{i}") for i in range(5)], OSD_CLASSES, shard_size=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"holds a set of shards already; .*overwrite=True"):
        write_shards(tmp_path, [sample("new")], OSD_CLASSES)
    with pytest.raises(ValueError, match="no soft-label codec is called 'fp17'"):
        write_shards(tmp_path, [sample("new")], OSD_CLASSES, codec="fp17", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_shards(tmp_path, [sample("new")], OSD_CLASSES, overwrite=True)
    names = [".lock", "index.json", "shard-000000.json", "shard-000000.tar"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [one.key for one in ShardSet(tmp_path)] == ["new"]


def test_a_url_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'s3://bucket/x' is a URL"):
        write_shards("s3://bucket/x", [sample("a")], OSD_CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_set_stays_until_the_new_one_is_whole(tmp_path):
    write_shards(tmp_path, [sample(f"old{i}") for i in range(3)], OSD_CLASSES, shard_size=1)

    def failing():
        yield sample("new")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_shards(tmp_path, failing(), OSD_CLASSES, overwrite=True)
    with pytest.raises(ValueError, match="no samples"):
        write_shards(tmp_path, [], OSD_CLASSES, overwrite=True)
    assert verify(tmp_path) == [] and [one.key for one in ShardSet(tmp_path)] == ["old0", "old1", "old2"]
    assert not (tmp_path / ".partial").exists()


def test_a_set_may_be_rewritten_from_its_own_samples(tmp_path):
    write_shards(tmp_path, [sample(f"s{i}") for i in range(5)], OSD_CLASSES, shard_size=2)
    halved = (replace(one, sar=one.sar // 2) for one in ShardSet(tmp_path))
    write_shards(tmp_path, halved, OSD_CLASSES, overwrite=True)
    again = ShardSet(tmp_path)
    assert again.counts.tolist() == [5] and (again[4].sar == sample("s4").sar // 2).all()


def test_codes_are_rewritten_as_they_are_for_their_own_temperature(tmp_path):
    logits = np.random.default_rng(0).normal(0, 3, (5, 6, 9)).astype(np.float32)
    coded = {"codec": "logprob8", "temperature": 2.0}
    write_shards(tmp_path, [sample(label=None, soft_label=logits)], OSD_CLASSES, **coded)
    before, tar = ShardSet(tmp_path), (tmp_path / "shard-000000.tar").read_bytes()
    for settings, message in (
        ({}, r"codes of 18\.4 nats; expected logits for codec fp16: write codes with codec logprob8"),
        (coded | {"temperature": 3.0}, r"codes of 18\.4 nats; expected 27\.6, .* temperature 3 takes: give 2, that"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shards(tmp_path, before, OSD_CLASSES, overwrite=True, **settings)
    write_shards(tmp_path, before, OSD_CLASSES, overwrite=True, **coded)
    assert (tmp_path / "shard-000000.tar").read_bytes() == tar
    assert ShardSet(tmp_path).index.soft_range == before.index.soft_range


@pytest.mark.parametrize("other, is_doubtful", [(0, True), (1, False)])
def test_labels_that_look_black_and_white_are_named(tmp_path, capsys, other, is_doubtful):
    label = 255 * np.eye(6, 9, dtype=np.uint8)
    label[0, 1] = other
    samples = [sample("a"), sample("b", label=label)]
    write_shards(tmp_path, samples, OSD_CLASSES)
    assert ("hold nothing else but 0 (sea); if they are black" in capsys.readouterr().out) == is_doubtful


def test_shards_without_an_index_are_somebodys_and_stay(tmp_path):
    write_shard(tmp_path, 0, [sample("theirs")], OSD_CLASSES)
    before = (tmp_path / "shard-000000.tar").read_bytes()
    with pytest.raises(ValueError, match="holds a set of shards already"):
        write_shards(tmp_path, [sample("ours")], OSD_CLASSES)
    assert (tmp_path / "shard-000000.tar").read_bytes() == before
    with pytest.raises(ValueError, match="is a file"):
        write_shards(tmp_path / "shard-000000.tar", [sample("ours")], OSD_CLASSES)


@pytest.mark.parametrize("name", ["shard-000007.json", "shard-000000.json", ".partial/notes.txt", ".partial"])
def test_no_file_that_another_wrote_is_removed_or_replaced(name, tmp_path):
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("theirs")
    with pytest.raises(ValueError, match=r"holds a set of shards already; found shard-|move it away"):
        write_shards(tmp_path, [sample("ours")], OSD_CLASSES)
    assert theirs.read_text() == "theirs" and [path for path in tmp_path.rglob("*") if path.is_file()] == [theirs]


def test_what_a_killed_call_left_is_removed(tmp_path):
    (tmp_path / ".partial").mkdir()
    for name in ("shard-000000.tar", "shard-000000.json", "index.json", ".shard-000001.tar.host.7.0a1b2c3d.tmp"):
        (tmp_path / ".partial" / name).write_text("half")
    write_shards(tmp_path, [sample("ours")], OSD_CLASSES)
    assert len(ShardSet(tmp_path)) == 1 and not (tmp_path / ".partial").exists()


def test_two_writers_of_one_folder_do_not_mix(tmp_path):
    def meeting_another():
        yield sample("first")
        descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):  # as another process would find it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        yield sample("second")

    write_shards(tmp_path, meeting_another(), OSD_CLASSES)
    assert len(ShardSet(tmp_path)) == 2


def test_a_set_that_fails_half_way_is_none_and_the_same_call_makes_it(tmp_path):
    def samples(bad):
        yield from (sample(f"s{i}") for i in range(4))
        yield sample("no good") if bad else sample("good")

    with pytest.raises(ValueError, match="not usable in a tar"):
        write_shards(tmp_path, samples(True), OSD_CLASSES, shard_size=2)
    assert not (tmp_path / "index.json").exists()
    write_shards(tmp_path, samples(False), OSD_CLASSES, shard_size=2)
    assert len(ShardSet(tmp_path)) == 5


@pytest.mark.parametrize("samples, settings, message", [
    ([], {}, "expected at least one"),
    ([sample("a")], {"shard_size": 0}, "shard_size is 0"),
    ([sample("a"), sample("b"), sample("a")], {"shard_size": 2}, "keys twice"),
])  # fmt: skip
def test_a_set_that_cannot_be_is_refused(tmp_path, samples, settings, message):
    with pytest.raises(ValueError, match=message):
        write_shards(tmp_path, samples, OSD_CLASSES, **settings)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("colours", [("000000", "00ffff"), ((0, 0, 0), (0, 0, 256)), ((0, 0, 0), (0.5, 0, 0))])
def test_colours_that_an_index_cannot_hold_are_refused_before_anything_is_written(colours):
    with pytest.raises(ValueError, match=r"the colour of (sea|oil) is .*; expected three of 0 to 255"):
        ClassTable(("sea", "oil"), colours)


@pytest.mark.parametrize("names", [(0, 1), ("sea", "\ud800"), ("sea", ""), ("sea", "a\nb")])
def test_names_that_an_index_cannot_hold_are_refused_before_anything_is_written(names):
    with pytest.raises(ValueError, match=r"the class name .* is not a text of printable characters"):
        ClassTable(names, ((0, 0, 0), (0, 255, 255)))


def test_a_list_of_names_is_no_class_table_and_two_samples_of_one_key_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"classes is a list; expected a dakd\.ClassTable"):
        write_shards(tmp_path / "set", [sample("a")], ["sea", "oil"])
    with pytest.raises(ValueError, match="two samples have the key 'a'"):
        write_shards(tmp_path / "set", [sample("a"), sample("a")], OSD_CLASSES)
    assert not (tmp_path / "set" / "index.json").exists()


@pytest.mark.parametrize("samples, error, message", [
    (sample("a"), TypeError, r"samples is a Sample; expected a list"),
    ({"a": sample("a")}, TypeError, r"sample 0 of the shard is a str; expected a dakd\.Sample"),
    ([sample("a"), {"key": "b"}], TypeError, r"sample 1 of the shard is a dict; expected a dakd\.Sample"),
    ([replace(sample("a"), key=5)], TypeError, "sample 0 of the shard has the key 5; expected text"),
    ([sample("a", sar=[[0, 1]])], TypeError, "a: sar is a list; expected a numpy array"),
    ([sample("a", sar=Image.new("L", (9, 6)))], TypeError, "a: sar is a Image; expected a numpy array"),
    ([sample("a", label=[[0, 1]])], TypeError, "a: label is a list; expected a numpy array"),
    ([sample("a", meta={"x": np.float32(1)})], ValueError, r"a: meta cannot be written \(.*float32.*\.item\(\)"),
    ([sample("a", meta=[1])], ValueError, r"a: meta is \[1\]; expected a dict"),
    ([sample("a", meta=None)], ValueError, r"a: meta is None; expected a dict.*\{\} for none"),
    ([sample("a", soft_label=np.full((5, 6, 9), np.nan))], ValueError, "a: check its soft label: .* holds NaN"),
])  # fmt: skip
def test_what_is_no_sample_is_refused_by_its_place_or_key(tmp_path, samples, error, message):
    with pytest.raises(error, match=message):
        write_shards(tmp_path, samples, OSD_CLASSES)
    assert not list(tmp_path.glob("*.tar"))


def test_a_set_gives_a_list_for_a_slice_and_names_the_place_that_was_asked_for(tmp_path):
    shards = ShardSet(write_shards(tmp_path, [sample(key) for key in "abc"], OSD_CLASSES, shard_size=np.int64(2)))
    assert len(shards.index.shards) == 2
    for part, keys in ((slice(0, 2), "ab"), (slice(-1, None), "c"), (slice(None, None, -2), "ca"), (slice(5, 9), "")):
        assert "".join(one.key for one in shards[part]) == keys
    for place in (-4, 3):
        with pytest.raises(IndexError, match=f"sample {place} of a set of 3"):
            shards[place]
    assert shards[-3].key == "a" == shards[np.int64(0)].key


def test_a_class_table_of_lists_and_numbers_of_numpy_is_the_one_of_tuples(tmp_path, recwarn):
    table = ClassTable(["sea", "oil"], [[0, 0, 0], [0, 255, 255]])
    assert table == ClassTable(("sea", "oil"), np.array([[0, 0, 0], [0, 255, 255]], np.uint8))
    assert table.names == ("sea", "oil") and table.colours == ((0, 0, 0), (0, 255, 255)) and hash(table)
    flat = sample("a", label=np.zeros((6, 9), np.uint8))
    assert ShardSet(write_shards(tmp_path, [flat], table)).classes == table and not list(recwarn)
