"""Sealed JSON files: every changed byte is noticed, and a manifest tells files of two runs apart."""

from __future__ import annotations

import json
import shutil
from unittest.mock import Mock

import pytest

from dakd.runtime import sealed
from dakd.runtime.sealed import (
    Changed,
    files_of,
    is_as_listed,
    parse_sealed,
    read_json,
    read_manifest,
    refuse_unlisted,
    remove_manifest,
    seal,
    write_json,
    write_listed,
    write_manifest,
)

CONTENT = {"balancing_factor": 0.4846, "classes": ["sea", "öl"], "nested": {"empty": {}, "none": None}}


def test_a_sealed_file_is_json_that_comes_back_as_written(tmp_path):
    path = tmp_path / "a.json"
    for content in (CONTENT, {}, {"a": float("inf")}):
        write_json(path, content)
        assert read_json(path) == content
        assert json.loads(path.read_text()) | {"content_sha256": None} == content | {"content_sha256": None}
    assert read_json(tmp_path / "absent.json") is None


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, CONTENT)
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(Changed, match=r"a\.json"):
            parse_sealed(bytes(changed), path)
    for size in range(len(whole)):
        with pytest.raises(Changed, match=r"a\.json"):
            parse_sealed(whole[:size], path)


def test_an_edited_number_is_refused_with_both_remedies(tmp_path):
    path = tmp_path / "my index.json"
    write_json(path, CONTENT)
    path.write_text(path.read_text().replace("0.4846", "0.9000"))
    with pytest.raises(Changed, match=r"my index\.json has changed since dakd wrote it: found the sha256 \w+, exp"):
        read_json(path)
    with pytest.raises(Changed, match=r"run its step again .*; to keep an edit .*: dakd verify --accept '/.*'"):
        read_json(path)


def test_an_emptied_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "a.json").write_bytes(b"")
    with pytest.raises(Changed, match=r"a\.json is empty; copy it again, or run its step again"):
        read_json(tmp_path / "a.json")


def test_a_sealed_text_that_is_not_json_names_its_file(tmp_path):
    (tmp_path / "a.json").write_text(seal('{"a": nul}'))
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")


def test_a_whole_file_of_another_run_is_not_taken_for_the_one_that_belongs_there(tmp_path):
    for name in ("one", "two"):
        write_json(tmp_path / name / "real.json", {"run": name})
        write_manifest(tmp_path / name, [tmp_path / name / "real.json"])
    shutil.copy(tmp_path / "two" / "real.json", tmp_path / "one" / "real.json")
    with pytest.raises(Changed, match=r"one/real\.json is not the file that its step wrote here"):
        read_json(tmp_path / "one" / "real.json")
    # A run that is copied or renamed as a whole stays what it is.
    shutil.move(tmp_path / "two", tmp_path / "renamed")
    assert read_json(tmp_path / "renamed" / "real.json") == {"run": "two"}


def test_a_step_that_was_killed_leaves_no_manifest_that_disagrees(tmp_path):
    path = tmp_path / "real.json"
    write_json(path, {"a": 1})
    write_manifest(tmp_path, [path])
    assert list(read_manifest(tmp_path)) == ["real.json"]
    remove_manifest(tmp_path)
    write_json(path, {"a": 2})  # and here the kill
    assert read_manifest(tmp_path) is None and read_json(path) == {"a": 2}


def test_a_manifest_keeps_the_hashes_of_files_that_stay_from_before(tmp_path):
    kept, new = tmp_path / "kept.png", tmp_path / "new.png"
    kept.write_bytes(b"as written")
    write_manifest(tmp_path, [kept])
    before = read_manifest(tmp_path)
    kept.write_bytes(b"damaged")
    new.write_bytes(b"new")
    write_manifest(tmp_path, [kept, new], before)
    after = read_manifest(tmp_path)
    assert after["kept.png"] == before["kept.png"] and after.keys() == {"kept.png", "new.png"}


def test_a_kill_while_a_listed_text_is_written_leaves_no_manifest_that_disagrees(tmp_path, monkeypatch):
    path, other = tmp_path / "config.yaml", tmp_path / "other.json"
    write_json(other, CONTENT)
    write_manifest(tmp_path, [other])
    write_listed(path, "one")
    assert list(read_manifest(tmp_path)) == ["other.json", "config.yaml"]
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "file_hash", Mock(side_effect=KeyboardInterrupt))  # of the text that is written now
        with pytest.raises(KeyboardInterrupt):
            write_listed(path, "two")
    refuse_unlisted(path)
    assert path.read_text() == "two" and list(read_manifest(tmp_path)) == ["other.json"]
    write_listed(path, "two")
    assert list(read_manifest(tmp_path)) == ["other.json", "config.yaml"]


def test_a_folder_is_as_listed_only_with_a_manifest_and_each_of_its_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("as written")
    assert not is_as_listed(tmp_path)
    write_manifest(tmp_path, [path])
    assert is_as_listed(tmp_path)
    path.write_text("other")
    assert not is_as_listed(tmp_path)
    path.unlink()
    assert not is_as_listed(tmp_path)


def test_neither_hidden_files_nor_the_manifest_nor_sub_folders_are_to_be_listed(tmp_path):
    for name in ("a.txt", ".lock", ".a.txt.host.1.tmp", "manifest.json"):
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    assert files_of(tmp_path, tmp_path / "absent") == [tmp_path / "a.txt"]
