"""A shard appears whole and once, whichever worker publishes it, and its sidecar follows from it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import tarfile

import numpy as np
import pytest

from dakd.data import publish as publishing
from dakd.data.index import describe_shard
from dakd.data.publish import publish, publish_shard, publish_text
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.runtime.files import written_aside


def pair(index: int, value: int = 0) -> Sample:
    rng = np.random.default_rng(index)
    soft = rng.normal(0, 3, (5, 8, 8)).astype(np.float16)
    return Sample(f"k{index}", np.full((8, 8), value, np.uint8), soft_label=soft, meta={"index": index})


def publish_pairs(folder, value: int = 0, samples=None) -> bool:
    return publish_shard(
        folder,
        0,
        samples or (pair(index, value) for index in range(3)),
        OSD_CLASSES,
        codec="fp16",
        provenance={"seed": value},
        facts=lambda info: {"made": value, "count": info.num_samples},
    )


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_first_of_two_writers_wins_and_the_second_leaves_nothing(tmp_path):
    def slow_samples():
        assert publish_pairs(tmp_path, value=1)
        yield pair(0, value=2)

    assert not publish_pairs(tmp_path, value=2, samples=slow_samples())
    assert names(tmp_path) == ["shard-000000.json", "shard-000000.tar"]
    sidecar = json.loads((tmp_path / "shard-000000.json").read_text())
    assert sidecar["provenance"] == {"seed": 1} and sidecar["facts"] == {"made": 1, "count": 3}
    again = describe_shard(tmp_path / "shard-000000.tar", OSD_CLASSES)
    assert (again.sha256, again.model_dump(mode="json")["records"]) == (sidecar["sha256"], sidecar["records"])


def test_the_bytes_are_on_the_disk_before_they_have_their_name_and_the_name_before_the_sidecar(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(publishing, "sync", lambda path: synced.append((path.suffix, names(tmp_path))))
    with written_aside(tmp_path / "a.json") as aside:
        aside.write_text("{}")
        assert publish(aside, tmp_path / "a.json")
    assert [suffix for suffix, _ in synced] == [".tmp", ""]
    assert "a.json" not in synced[0][1] and "a.json" in synced[1][1]


def test_a_link_that_was_made_and_reported_as_failed_counts_as_made(tmp_path, monkeypatch):
    real_link = os.link

    def repeated(source, target):
        real_link(source, target)
        raise FileExistsError(errno.EEXIST, "the request was sent twice")

    monkeypatch.setattr(publishing.os, "link", repeated)
    assert publish_text(tmp_path / "a.json", "mine") and (tmp_path / "a.json").read_text() == "mine"
    assert names(tmp_path) == ["a.json"]


def test_a_taken_name_is_never_replaced(tmp_path):
    target = tmp_path / "a.json"
    assert publish_text(target, "first") and not publish_text(target, "second")
    assert target.read_text() == "first" and target.stat().st_nlink == 1


def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch):
    def refused(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(publishing.os, "link", refused)
    with pytest.raises(RuntimeError, match="without hard links"):
        publish_text(tmp_path / "a.json", "x")
    assert names(tmp_path) == []


def test_a_full_disk_leaves_neither_a_part_nor_a_name(tmp_path):
    def until_full():
        yield pair(0)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        publish_pairs(tmp_path, samples=until_full())
    assert names(tmp_path) == []


def race(folder, start, won) -> None:
    with written_aside(folder / "target") as aside:
        aside.write_text(str(os.getpid()))
        start.wait()
        if publish(aside, folder / "target"):
            won.put(os.getpid())


def test_of_many_processes_that_publish_at_once_exactly_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        folder = tmp_path / str(turn)
        folder.mkdir()
        start, won = context.Barrier(8), context.SimpleQueue()
        workers = [context.Process(target=race, args=(folder, start, won)) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert (folder / "target").read_text() == str(won.get()) and won.empty()
        assert names(folder) == ["target"]


@pytest.mark.parametrize("place", [100, 600, 1200, 3000])
def test_a_changed_byte_is_found_without_the_sidecar(tmp_path, place):
    assert publish_pairs(tmp_path)
    tar = tmp_path / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[place] ^= 4
    tar.write_bytes(content)
    with pytest.raises((ValueError, tarfile.TarError)):
        describe_shard(tar, OSD_CLASSES)
