"""Streams are read by as many readers as there are streams, in an order that a resumed run takes up again."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from dakd.config import build_config
from dakd.data.loader import make_loader
from dakd.data.pipes import PipeDataset
from dakd.data.records import BadRecord
from dakd.data.sample import OSD_CLASSES


@pytest.fixture
def sources(real_set) -> list[str]:
    """Three commands, of 5, 5 and 3 records."""
    return [f"pipe:cat {path}" for path in sorted(real_set.folder.glob("*.tar"))]


def streamed(sources, **options) -> PipeDataset:
    return PipeDataset(sources, (8, 12), OSD_CLASSES, **{"flip": True, "seed": 5, **options})


def take(loader, count):
    return list(islice(iter(loader), count))


def test_every_record_of_every_stream_comes_once_an_epoch(real_set, sources):
    batches = take(make_loader(streamed(sources), 1, 0, 1, 0), 26)
    keys = [key for batch in batches for key in batch.keys]
    for epoch in range(2):
        assert sorted(keys[13 * epoch : 13 * epoch + 13]) == sorted(real_set.key(i) for i in range(13))
    assert batches[0].image.shape == (1, 1, 8, 12) and batches[0].label is None


def test_ranks_and_readers_have_streams_of_their_own_and_positions_without_gap(real_set, sources):
    by_rank = [take(make_loader(streamed([*sources, sources[0]]), 2, rank, 2, 0, 2), 3) for rank in range(2)]
    positions = sorted(int(p) for batches in by_rank for batch in batches for p in batch.positions)
    assert positions == list(range(12))
    first = [{key for key in batch.keys} for batches in by_rank for batch in batches[:2]]
    assert first[0].isdisjoint(first[1]) and first[0].isdisjoint(first[2])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 2, 5])
def test_a_resumed_stream_goes_on_where_it_was(sources, workers, done):
    whole = take(make_loader(streamed(sources), 2, 0, 1, 0, workers), 8)
    rest = take(make_loader(streamed(sources), 2, 0, 1, 2 * done, workers), 8 - done)
    for before, after in zip(whole[done:], rest, strict=True):
        assert before.keys == after.keys and torch.equal(before.image, after.image)


def test_fewer_streams_than_readers_are_refused_before_anything_starts(sources):
    with pytest.raises(ValueError, match=r"3 streams for 2 ranks x 2 readers; name at least 4"):
        make_loader(streamed(sources), 1, 0, 2, 0, 2)


def test_a_cut_tar_and_a_failing_command_stop_or_are_reported(sources, tmp_path, real_set):
    cut = tmp_path / "cut.tar"
    cut.write_bytes((real_set.folder / "shard-000001.tar").read_bytes()[:6000])
    bad = [f"pipe:cat {cut}", "pipe:exit 3"]
    for source in bad:
        with pytest.raises(BadRecord, match="breaks off"):
            take(make_loader(streamed([source]), 1, 0, 1, 0), 6)
    batches = take(make_loader(streamed([sources[0], *bad], on_bad_record="skip"), 1, 0, 1, 0), 12)
    skipped_lines = [line for batch in batches for line in batch.skipped]
    assert any("cut.tar" in line for line in skipped_lines) and any("exit 3" in line for line in skipped_lines)
    with pytest.raises(BadRecord, match="hold no good record"):
        take(make_loader(streamed(["pipe:exit 3"], on_bad_record="skip"), 1, 0, 1, 0), 1)


def test_a_member_that_is_not_known_is_reported_and_no_pickle_is_opened(tmp_path):
    import io
    import pickle
    import tarfile

    class Planted:
        def __reduce__(self):
            return (open, (str(tmp_path / "planted"), "w"))

    data = pickle.dumps(Planted())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        header = tarfile.TarInfo("a.pkl")
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
    with pytest.raises(BadRecord, match="not known: pkl"):
        take(make_loader(streamed([f"pipe:cat {tmp_path}/a.tar"]), 1, 0, 1, 0), 1)
    assert not (tmp_path / "planted").exists()


def test_only_commands_stream():
    with pytest.raises(ValueError, match="expected pipe:COMMAND"):
        streamed(["s3://bucket/a.tar"])
    with pytest.raises(ValueError, match="streams"):
        build_config({"name": "a", "train_jointnet": {"stage1": {"steps": 1, "streams": ["/data/a.tar"]}}})
