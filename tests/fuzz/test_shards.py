"""Shards: a record is what was written, or it is refused by name; an index leads nowhere but to its own tars."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzz.mutations import mutated_bytes, mutated_tree, tar_with_a_planted_member
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st
from sealed_edits import content_of, reseal

from dakd.data.datasets import StudentDataset
from dakd.data.loader import make_loader
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.shards import ShardSet, verify, write_index, write_shard
from dakd.data.soft_labels import CODECS, get_codec

TAR, SIDECAR, INDEX = "shard-000000.tar", "shard-000000.json", "index.json"
PLANTED = (
    "pipe:touch executed", "pipe:cat /etc/passwd", "/etc/passwd", "../other/shard-000000.tar", "file:///etc/passwd",
    "http://127.0.0.1:9/x.tar", "soft.pkl", "pkl", "shard-000000.tar\0", TAR, INDEX, [0, 2**62], [-512, 512],
)  # fmt: skip


def pairs(count: int, side: int = 6) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(
            f"pair-{i}",
            rng.integers(0, 256, (side, side), dtype=np.uint8),
            soft_label=rng.normal(0, 3, (5, side, side)).astype(np.float16),
            meta={"index": i},
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module", params=CODECS)
def good(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_shard(folder, 0, pairs(4), OSD_CLASSES, codec=request.param, temperature=2.0)
    write_index(folder, OSD_CLASSES, kind="synthetic", codec=request.param)
    return folder


def copy_of(good: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    return folder


def read_all(folder: Path, good: Path) -> str:
    """Through the set and through a loader that passes over bad records; each sample is read as it was written."""
    whole = ShardSet(good)
    written = {sample.sar.tobytes(): sample for sample in map(whole.read, range(len(whole)))}
    shards = ShardSet(folder)
    dataset = StudentDataset(None, shards, (6, 6), mosaic=False, flip=False, seed=0, on_bad_record="skip")
    batch = next(iter(make_loader(dataset, 4, 0, 1, 0)))
    for key, image, teacher in zip(batch.keys, batch.image.numpy(), batch.teacher.numpy()):
        true = written.get(image.tobytes())
        assert true is not None, "another image was accepted"
        assert key == true.key, "another name was accepted"
        assert np.array_equal(teacher, true.soft_label), "another soft label was accepted"
        assert batch.teacher_range == true.soft_range, "another range was accepted"
    if batch.skipped:
        return "skipped"
    for i in range(len(shards)):
        sample = shards.read(i)
        true = written.get(sample.sar.tobytes())
        assert true is not None, "another image was accepted"
        found = (sample.key, sample.meta, shards.key(i), shards.size(i))
        assert found == (true.key, true.meta, true.key, true.sar.shape), "other facts were accepted"
        assert (sample.label is None) == (true.label is None) and sample.soft_label is not None, "a label was lost"
    return "read"


@fuzzed
@given(data=st.data())
def test_bytes_of_a_tar_with_its_index(good, tmp_path, data):
    folder, original = copy_of(good, tmp_path), (good / TAR).read_bytes()
    content = data.draw(mutated_bytes(original))
    (folder / TAR).write_bytes(content)
    outcome = judge("tars with an index", lambda: read_all(folder, good), TAR)
    assert outcome == "read" or content != original
    assert content == original or verify(folder)  # it compares every byte


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("missing", [(SIDECAR,), (SIDECAR, INDEX)], ids=["no sidecar", "no index"])
def test_a_tar_that_is_looked_at_for_the_first_time(good, tmp_path, missing, data):
    folder = copy_of(good, tmp_path)
    marker = folder / "executed"
    original = (good / TAR).read_bytes()
    planted = tar_with_a_planted_member(original, marker)
    (folder / TAR).write_bytes(data.draw(st.one_of(mutated_bytes(original), planted)))
    for name in missing:
        (folder / name).unlink()

    def read() -> None:
        shards = ShardSet(folder, classes=OSD_CLASSES)
        for i in range(len(shards)):
            shards.read(i)

    judge(f"tars without {' and '.join(missing)}", read, TAR, folder.name)
    assert not marker.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@fuzzed
@given(data=st.data())
def test_values_and_bytes_of_an_index(good, tmp_path, data):
    folder = copy_of(good, tmp_path)
    file = folder / data.draw(st.sampled_from((INDEX, SIDECAR)))
    if data.draw(st.integers(0, 3)):
        reseal(file, data.draw(mutated_tree(content_of(file), values=PLANTED)))
    else:
        file.write_bytes(data.draw(mutated_bytes(file.read_bytes())))
    outcome = judge("indexes", lambda: read_all(folder, good), folder.name, TAR, "record")
    verified = judge("indexes, verified", lambda: "refused" if verify(folder) else "read", folder.name, TAR)
    if file.read_bytes() == (good / file.name).read_bytes():
        assert outcome == verified == "read"
    assert outcome in ("read", "refused")  # the tar is intact: there is no record to pass over


@fuzzed
@given(data=st.data())
def test_what_a_sidecar_says_of_one_record(good, tmp_path, data):
    folder = copy_of(good, tmp_path)
    tree = content_of(folder / SIDECAR)
    number = data.draw(st.integers(0, len(tree["records"]) - 1))
    name = data.draw(st.sampled_from(("key", "height", "width", "crc32", "members")))
    written = tree["records"][number][name]
    names = ("pair-9", "pair-0", "sar.u8", "label.u8", *(f"soft.{codec}" for codec in CODECS))
    if name == "members" and data.draw(st.booleans()):
        old, new = data.draw(st.sampled_from(sorted(written))), data.draw(st.sampled_from(names))
        changed = {new if extension == old else extension: span for extension, span in written.items()}
    else:
        changed = data.draw(mutated_tree({name: written}, values=names))
        changed = changed.get(name) if isinstance(changed, dict) else changed
    is_same = json.dumps(changed, sort_keys=True) == json.dumps(written, sort_keys=True)
    tree["records"][number][name] = changed
    reseal(folder / SIDECAR, tree)

    def read() -> str:
        outcome = read_all(folder, good)
        assert is_same, f"another {name} was accepted"
        return outcome

    judge("records of a sidecar", read, folder.name, TAR, "record")


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("name", CODECS)
def test_bytes_of_a_soft_label(name, data):
    logits = pairs(1)[0].soft_label
    content = data.draw(mutated_bytes(get_codec(name, 2.0).encode(logits)))
    shape = data.draw(st.sampled_from((logits.shape, (5, 6, 7), (2, 1, 1), (1, 1 << 20, 1 << 20))))
    outcome = judge("soft labels", lambda: get_codec(name).decode(content, shape) and None, "soft label")
    assert outcome in ("read", "refused")
