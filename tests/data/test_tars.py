"""Tars from anywhere are walked by their headers: whole ones are indexed, others refused with a reason."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dakd.data.foreign_records import read_npy
from dakd.data.records import BadRecord, encode_record
from dakd.data.sample import OSD_CLASSES, ClassTable, Sample
from dakd.data.shards import ShardSet, describe_shard
from dakd.data.tars import DamagedTar, is_key, list_members


def picture_bytes(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png(array: np.ndarray) -> bytes:
    return picture_bytes(Image.fromarray(array))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write_tar(path, members: dict[str, bytes], **changes) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            for field, value in changes.items():
                setattr(header, field, value)
            tar.addfile(header, io.BytesIO(data))


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
LABEL = GREY % 5
SHARES = np.stack([GREY * 0, 0.25 + GREY / 96, 0.75 - GREY / 96, GREY * 0, GREY * 0])  # probabilities
MASK, PALETTE = Image.fromarray(LABEL), Image.fromarray(LABEL, "P")


def test_a_set_that_others_wrote_with_webdataset_is_indexed_when_first_opened(tmp_path):
    from webdataset.writer import TarWriter

    logits = np.random.default_rng(0).normal(size=(5, 6, 8)).astype(np.float32)
    with TarWriter(str(tmp_path / "train-000.tar"), encoder=False) as writer:
        writer.write({"__key__": "scenes/a", "png": png(GREY), "mask.png": png(LABEL), "json": b'{"orbit": 7}'})
        writer.write({"__key__": "scenes/b", "sar.npy": npy(GREY), "label.npy": npy(LABEL)})
    with TarWriter(str(tmp_path / "train-001.tar"), encoder=False) as writer:
        writer.write({"__key__": "c", "png": png(GREY), "soft.npy": npy(logits)})
    with pytest.raises(ValueError, match="not a set of shards"):
        ShardSet(tmp_path)
    shards = ShardSet(tmp_path, classes=OSD_CLASSES)
    assert [shards.key(i) for i in range(3)] == ["scenes/a", "scenes/b", "c"]
    for i in range(2):
        sample = shards.read(i)
        assert np.array_equal(sample.sar, GREY) and np.array_equal(sample.label, LABEL)
    assert shards.read(0).meta == {"orbit": 7}
    assert np.array_equal(shards.read(2).soft_label, logits.astype(np.float16))
    assert (shards.index.num_labelled, shards.index.num_soft) == (2, 1)
    again = ShardSet(tmp_path)
    assert len(again) == 3 and (tmp_path / "train-000.json").is_file()


def test_logits_of_others_are_clipped_to_half_precision_and_may_be_log_probabilities(tmp_path):
    logits = np.log(np.maximum(SHARES, 1e-7))
    logits[0, 0], logits[4, 5] = 1e30, -7e4
    write_tar(tmp_path / "a.tar", {"a.png": png(GREY), "a.soft.npy": npy(logits)})
    soft = ShardSet(tmp_path, classes=OSD_CLASSES).read(0).soft_label
    assert (soft[0, 0] == 65504).all() and (soft[4, 5] == -65504).all()
    assert np.array_equal(soft[1:4], logits[1:4].astype(np.float16))


def test_the_index_of_a_folder_that_cannot_be_written_goes_into_the_cache(tmp_path, monkeypatch):
    from dakd.data.sources import ShardCache

    folder, cache = tmp_path / "set", ShardCache(tmp_path / "cache", 10**9)
    folder.mkdir()
    write_tar(folder / "a.tar", {"k.png": png(GREY)})
    monkeypatch.setattr("dakd.data.sources.os.access", lambda *_: False)
    assert np.array_equal(ShardSet(folder, cache, OSD_CLASSES).read(0).sar, GREY)
    assert [path.name for path in folder.iterdir()] == ["a.tar"]
    assert len(list(cache.folder.rglob("index.json"))) == 1
    write_tar(folder / "a.tar", {"k.png": png(GREY), "l.png": png(GREY)})
    assert len(ShardSet(folder, cache, OSD_CLASSES)) == 2, "a set that has changed is looked at again"


def test_an_index_is_not_taken_for_other_classes_nor_for_tars_that_came_after_it(tmp_path, real_set):
    turned = ClassTable(OSD_CLASSES.names[::-1], OSD_CLASSES.colours)
    write_tar(tmp_path / "a.tar", {"k.png": png(GREY), "k.seg.png": png(LABEL)})
    for _ in range(2):
        assert ShardSet(tmp_path, classes=OSD_CLASSES).classes == OSD_CLASSES
    recoloured = ClassTable(OSD_CLASSES.names, OSD_CLASSES.colours[::-1])
    assert len(ShardSet(tmp_path, classes=recoloured)) == 1, "an id means the same"
    with pytest.raises(ValueError, match=r"for the classes sea, oil, .* land, ship, .*remove index\.json and"):
        ShardSet(tmp_path, classes=turned)
    assert len(ShardSet(tmp_path, classes=turned, images_only=True)) == 1
    with pytest.raises(ValueError, match=r"for the classes sea, oil, .* or open it without classes"):
        ShardSet(real_set.folder, classes=turned)
    write_tar(tmp_path / "b.tar", {"l.png": png(GREY)})
    for classes in (OSD_CLASSES, None):
        with pytest.raises(ValueError, match=r"holds 1 tar\(s\) that came after its index: b\.tar; .*remove index"):
            ShardSet(tmp_path, classes=classes)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    assert len(ShardSet(tmp_path, classes=turned)) == 2


def test_a_sidecar_that_is_missing_is_derived_from_the_tar_if_that_is_the_right_one(real_set, tmp_path):
    import shutil

    shutil.copytree(real_set.folder, tmp_path / "set")
    sidecar = tmp_path / "set" / "shard-000001.json"
    before = json.loads(sidecar.read_text())
    sidecar.unlink()
    assert np.array_equal(ShardSet(tmp_path / "set").read(7).sar, real_set.read(7).sar)
    assert json.loads(sidecar.read_text()) == before
    sidecar.unlink()
    shutil.copy(tmp_path / "set" / "shard-000000.tar", tmp_path / "set" / "shard-000001.tar")
    with pytest.raises(BadRecord, match="the index says"):
        ShardSet(tmp_path / "set").read(7)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": png(GREY), "a.cls": b"3", "a.txt": b"x"}, "not known: cls, txt; known: png"),
        ({"a.png": png(GREY), "a.pkl": pickle.dumps({})}, "not known: pkl"),
        ({"a.png": png(GREY), "a.sar.npy": npy(GREY)}, "expected one image"),
        ({"a.mask.png": png(LABEL)}, "expected one image"),
        ({"a.png": png(GREY), "a.mask.png": png(LABEL[:3])}, "make them equal"),
        ({"a.png": png(GREY), "a.mask.png": png(GREY)}, "label holds"),
        ({"a.png": png(GREY), "a.mask.png": picture_bytes(PALETTE)}, "mask.png is a palette; expected"),
        ({"a.png": png(GREY), "a.seg.png": png(LABEL > 2)}, "seg.png is a 1-bit picture; expected class ids"),
        ({"a.png": png(GREY), "a.mask.png": png(np.stack([LABEL, GREY, GREY], -1))}, "is a colour picture"),
        ({"a.png": png(GREY), "a.mask.png": picture_bytes(MASK, "JPEG")}, "compression changes ids"),
        ({"a.png": png(GREY), "a.mask.png": picture_bytes(MASK, "TIFF", compression="jpeg")}, "or a TIFF compressed"),
        ({"a.png": png(GREY), "a.label.png": picture_bytes(MASK, "TIFF", compression="jpeg")}, "or a TIFF compressed"),
        ({"a.png": png(GREY), "a.mask.png": picture_bytes(MASK, transparency=1)}, "transparent pixels"),
        ({"a.png": png(GREY), "a.mask.png": png(LABEL.astype(np.uint16) * 300)}, "holds values from 0 to 1200"),
        ({"a.png": png(GREY), "a.mask.png": png(255 * (LABEL == 1).astype(np.uint8))}, "hold only 0 and 255"),
        ({"a.png": png(GREY), "a.label.npy": npy(255 * (LABEL == 1).astype(np.uint8))}, "hold only 0 and 255"),
        ({"a.png": png(GREY), "a.mask.png": png(255 * (LABEL == 1).astype(np.uint8)), "b.png": png(GREY),
          "b.mask.png": png((LABEL == 1).astype(np.uint8))}, "1 of its labels hold only 0 and 255"),
        ({"a.png": b"no picture"}, "cannot be read as a picture"),
        ({"a.png": png(GREY)[:50]}, "cannot be read as a picture"),
        ({"a.png": png(np.stack([GREY, GREY + 100, GREY], -1))}, "colour picture"),
        ({"a.sar.npy": npy(GREY.astype(np.float32))}, "expected uint8"),
        ({"a.sar.npy": npy(np.array([{}]))}, "expected numbers"),
        ({"a.png": png(GREY), "a.soft.npy": npy(np.full((5, 6, 8), np.nan))}, "expected finite"),
        ({"a.png": png(GREY), "a.soft.npy": npy(SHARES)}, "values from 0 to 0.75, as probabilities .* expected logits"),
        ({"a.png": png(GREY), "a.soft.npy": npy(SHARES * (GREY > 4))}, "as probabilities have; .* numpy.log"),
        ({"a.png": png(GREY), "a.soft.npy": npy(255 * SHARES)}, "sum 255 in nearly all pixels, as probabilities have"),
        ({"a.png": png(GREY), "a.soft.npy": npy(SHARES.astype(np.float16))}, "as probabilities have; .* numpy.log"),
        ({"a.png": png(GREY), "a.json": b"{"}, "json cannot be read"),
        ({"../a.png": png(GREY)}, "no usable name"),
        ({"/etc/a.png": png(GREY)}, "no usable name"),
        ({"b/../../a.png": png(GREY)}, "no usable name"),
        ({"b\\a.png": png(GREY)}, "no usable name"),
        ({"b\udcff.png": png(GREY)}, "no usable name"),
        ({"a": png(GREY)}, "no usable name"),
        ({"a.png": png(GREY), "b.png": png(GREY), "a.mask.png": png(LABEL)}, "lie apart"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, members, message):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises((ValueError, BadRecord), match=message):
        ShardSet(tmp_path, classes=OSD_CLASSES)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("key", ["a", "scenes/é~1", "x" * 1024, "__a", "__a__"])
def test_a_key_that_fits_is_found_in_a_tar(tmp_path, key):
    write_tar(tmp_path / "a.tar", {f"{key}.png": png(GREY)})
    assert is_key(key) and list(list_members(tmp_path / "a.tar")) == [key]


@pytest.mark.parametrize("key", ["", "a.b", "a b", "a\\b", "a\x01", "\x7f", "p\udce9", "/a", "a/", "a//b", "__a__/b",
                                 "x" * 1025])  # fmt: skip
def test_a_key_that_no_reader_would_find_does_not_fit_and_is_not_written(tmp_path, key):
    assert not is_key(key)
    with pytest.raises(ValueError, match=r"is not usable in a tar; expected UTF-8 of 1 to 1024 characters"):
        encode_record(Sample(key, GREY), OSD_CLASSES, None)


def test_a_link_is_no_record(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(DamagedTar, match="not a regular file"):
        list_members(tmp_path / "a.tar")


def test_a_picture_that_claims_a_gigantic_size_is_refused_unopened(tmp_path):
    data = bytearray(png(GREY))
    data[16:24] = struct.pack(">II", 2**20, 2**20)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    write_tar(tmp_path / "a.tar", {"a.png": bytes(data)})
    with pytest.raises(BadRecord, match=r"claims 1048576 x 1048576|decompression bomb"):
        ShardSet(tmp_path, classes=OSD_CLASSES)


@pytest.mark.parametrize("shape", [(2**40, 2**20), (-1, 8), (6, 7), ()])
def test_an_array_that_claims_another_size_than_it_has_is_refused(shape):
    header = str({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(48)
    with pytest.raises(ValueError, match=r"claims|expected numbers"):
        read_npy(data, "sar.npy")


def test_a_tar_that_was_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, {"a.png": png(GREY), "b.png": png(GREY)})
    whole = path.read_bytes()
    end = max(span[0] + span[1] for places in list_members(path).values() for span in places.values())
    padded = -(-end // 512) * 512
    for length in (0, 1, 511, 512, 700, 1023, 1024, 1536, end - 1, end, padded - 1, padded, padded + 511):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedTar):
            list_members(path)
    path.write_bytes(whole[: padded + 512])
    assert list(list_members(path)) == ["a", "b"]


def test_a_header_with_a_negative_size_does_not_send_the_walk_in_circles(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, {"a.png": png(GREY), "b.png": png(GREY)})
    data = bytearray(path.read_bytes())
    for start in (0, 1024):
        for kind in (b"0", b"x", b"L", b"g"):
            changed = bytearray(data)
            changed[start + 124 : start + 136] = b"\xff" * 10 + b"\xfc\x00"
            changed[start + 156 : start + 157] = kind
            changed[start + 148 : start + 156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
            path.write_bytes(changed)
            with pytest.raises(DamagedTar, match="claims -"):
                list_members(path)


@pytest.fixture(scope="module")
def sound_tar(tmp_path_factory):
    path = tmp_path_factory.mktemp("intact") / "a.tar"
    write_tar(path, {"a.png": png(GREY), "a.mask.png": png(LABEL), "b.sar.npy": npy(GREY), "b.json": b"{}"})
    return path


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_bytes_is_indexed_or_refused_and_nothing_else(sound_tar, tmp_path, data):
    content = bytearray(sound_tar.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(min_size=1, max_size=12))
        content[start : start + len(new)] = new
    path = tmp_path / "changed.tar"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content), 3000, 5120]))])
    try:
        describe_shard(path, OSD_CLASSES, foreign=True)
    except (ValueError, RuntimeError) as error:
        assert str(error)
