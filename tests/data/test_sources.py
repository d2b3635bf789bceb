"""Sets of an object store are read through a cache that any number of processes share."""

from __future__ import annotations

import multiprocessing
import os
import time

import fsspec
import numpy as np
import pytest
from sealed_edits import reseal

from dakd.data.datasets import TeacherDataset
from dakd.data.loader import make_loader
from dakd.data.records import BadRecord
from dakd.data.sample import OSD_CLASSES
from dakd.data.shards import ShardSet
from dakd.data.sources import RemoteFolder, ShardCache, default_cache, open_source

URL = "memory://bucket/set"


@pytest.fixture
def stored(real_set) -> fsspec.AbstractFileSystem:
    """`real_set` in an object store, at URL."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    for path in real_set.folder.iterdir():
        files.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    return files


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**9)


def tars(cache: ShardCache) -> list[str]:
    return sorted(path.name for path in (cache.folder / "tars").glob("*.tar"))


def test_a_remote_set_is_the_same_as_the_local_one(real_set, stored, cache):
    shards = ShardSet(URL, cache)
    assert len(shards) == 13 and shards.classes == OSD_CLASSES and not (cache.folder / "tars").exists()
    for i in range(13):
        assert shards.key(i) == real_set.key(i) and np.array_equal(shards.read(i).sar, real_set.read(i).sar)
    assert tars(cache) == sorted(f"{entry.sha256}.tar" for entry in real_set.index.shards)
    for name in list(stored.store):
        if name.endswith(".tar"):
            del stored.store[name]
    assert np.array_equal(ShardSet(URL, cache).read(4).sar, real_set.read(4).sar), "from the cache"


def test_reader_processes_read_a_remote_set(real_set, stored, cache):
    dataset = TeacherDataset([ShardSet(URL, cache)], (8, 12), flip=True, seed=5, labelled=True)
    local = TeacherDataset([real_set], (8, 12), flip=True, seed=5, labelled=True)
    for one, other in zip(make_loader(dataset, 4, 0, 1, 0, 2), make_loader(local, 4, 0, 1, 0)):
        assert one.keys == other.keys and np.array_equal(one.image, other.image)
        if one.positions[0] >= 8:
            break


def test_bytes_that_differ_from_the_index_are_not_taken(stored, cache):
    content = bytearray(stored.cat_file("/bucket/set/shard-000001.tar"))
    content[5000] ^= 1
    stored.pipe_file("/bucket/set/shard-000001.tar", bytes(content))
    shards = ShardSet(URL, cache)
    with pytest.raises(BadRecord, match="its index says"):
        shards.read(7)
    assert not list((cache.folder / "tars").iterdir()), "nothing is left of it"
    stored.rm_file("/bucket/set/shard-000001.tar")
    with pytest.raises(BadRecord, match="does not exist"):
        shards.read(7)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_sidecar_of_a_store_is_made_again_from_its_tar(real_set, stored, cache, text):
    stored.pipe_file("/bucket/set/shard-000000.json", text)
    assert np.array_equal(ShardSet(URL, cache).read(0).sar, real_set.read(0).sar)


def test_a_set_that_has_changed_is_not_mixed_with_what_it_was(real_set, synthetic_set, stored, cache):
    before = ShardSet(URL, cache)
    before.read(0)
    for path in synthetic_set.folder.iterdir():
        stored.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    after = ShardSet(URL, cache)
    assert after.key(0) == synthetic_set.key(0) and np.array_equal(after.read(0).sar, synthetic_set.read(0).sar)
    assert np.array_equal(ShardSet(URL, cache).read(9).sar, synthetic_set.read(9).sar)
    assert np.array_equal(before.read(1).sar, real_set.read(1).sar)


def test_bare_tars_of_a_store_are_indexed_when_first_opened(real_set, stored, cache):
    for name in list(stored.store):
        if name.endswith(".json"):
            del stored.store[name]
    with pytest.raises(ValueError, match="not a set of shards"):
        ShardSet(URL, cache)
    for _ in range(2):
        shards = ShardSet(URL, cache, OSD_CLASSES)
        assert [shards.read(i).key for i in range(13)] == [real_set.key(i) for i in range(13)]


def test_the_cache_keeps_to_its_limit_and_what_was_used_last(real_set, stored, tmp_path):
    sizes = [(real_set.folder / entry.file).stat().st_size for entry in real_set.index.shards]
    cache = ShardCache(tmp_path / "small", sizes[0] + sizes[1])
    shards = ShardSet(URL, cache)
    names = [f"{entry.sha256}.tar" for entry in real_set.index.shards]
    for use, i in enumerate((0, 5)):
        shards.read(i)
        os.utime(cache.folder / "tars" / names[use], (use, use))
    shards.read(12)
    assert names[0] not in tars(cache) and names[2] in tars(cache)
    assert np.array_equal(shards.read(1).sar, real_set.read(1).sar), "who has it open keeps it"
    assert np.array_equal(ShardSet(URL, cache).read(1).sar, real_set.read(1).sar), "others fetch it again"


def _get(folder, results):
    cache = ShardCache(folder, 10**9)

    def fetch(aside):
        results.put("fetched")
        time.sleep(0.3)
        aside.write_bytes(b"whole")

    results.put(cache.get("one.tar", fetch).read_bytes())


def test_a_shard_is_fetched_once_by_processes_that_want_it_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    readers = [context.Process(target=_get, args=(tmp_path, results)) for _ in range(4)]
    for reader in readers:
        reader.start()
    found = [results.get(timeout=20) for _ in range(5)]
    for reader in readers:
        reader.join()
    assert found.count("fetched") == 1 and found.count(b"whole") == 4


def test_a_fetch_that_fails_leaves_nothing_and_says_so(stored, cache, monkeypatch):
    monkeypatch.setattr("dakd.data.sources.time.sleep", lambda _: None)
    shards = ShardSet(URL, cache)

    def broken(self, path, target, **_):
        with open(target, "wb") as stream:
            stream.write(b"half")
        raise ConnectionResetError("the line broke")

    monkeypatch.setattr(type(stored), "get_file", broken)
    with pytest.raises(RuntimeError, match="does not answer: ConnectionResetError"):
        shards.read(0)
    assert not list((cache.folder / "tars").iterdir())


def test_a_pipe_is_no_set_and_no_index_can_make_one(real_set, tmp_path):
    with pytest.raises(ValueError, match="is a pipe"):
        ShardSet("pipe:touch /tmp/planted")
    planted = {"shards": [{"file": f"pipe:touch {tmp_path}/planted.tar", "num_samples": 13}]}
    reseal(tmp_path / "index.json", real_set.index.model_dump(mode="json") | planted)
    with pytest.raises(ValueError, match="without a folder"):
        ShardSet(tmp_path)
    assert not (tmp_path / "planted.tar").exists()


def test_a_protocol_that_needs_a_package_says_which(cache):
    with pytest.raises(ValueError, match="nosuch"):
        open_source("nosuch://bucket/set", cache)
    source = open_source("file:///somewhere/set", cache)
    assert source.place == "/somewhere/set" and not isinstance(source, RemoteFolder)


def test_the_cache_lies_where_the_host_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache().folder == tmp_path / "dakd"
    assert default_cache("/scratch/c", 2).folder.name == "c" and default_cache("/scratch/c", 2).limit_bytes == 2**31
