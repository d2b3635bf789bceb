"""Tables in JSON: an absent one is None; an empty, damaged or foreign one is an error that names the file."""

from __future__ import annotations

import json
import pickle

import pytest

from dakd.runtime.files import parse_json
from dakd.runtime.named import MissingName, Named
from dakd.runtime.sealed import read_json, write_json


@pytest.mark.parametrize("data, reason", [
    (b"", "is empty; expected JSON"), (b" \n", "is empty"), (b'{"a": 1', "is not JSON (Expecting"),
    (b"\x89PNG\r\n\0", "is not JSON ('utf-8' codec"), (b"[1, 2]", "holds a list; expected names and values"),
    (b"null", "holds a NoneType"), (b'"a"', "holds a str"), (b"[" * 100_000, "nests too deeply"),
    (b"9" * 5000, "is not JSON"), (b"\0" * 100, "is not JSON"),
], ids=lambda one: str(one)[:20])  # fmt: skip
def test_a_damaged_file_is_refused_by_its_name_with_the_reason_and_the_remedy(tmp_path, data, reason):
    path = tmp_path / "table.json"
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        parse_json(path.read_bytes(), path, "run evaluate again")
    message = str(caught.value)
    assert message.startswith(f"{path} ") and reason in message and message.endswith("; run evaluate again")


def test_a_file_far_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "table.json"
    with open(path, "wb") as stream:
        stream.truncate(1 << 33)
    with pytest.raises(ValueError, match="has 8589934592 bytes; expected JSON of at most 268435456"):
        read_json(path)


def test_a_name_that_is_not_there_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "table.json"
    write_json(path, {"a": {"b": 1}, "c": [{"d": 2}]})
    table = read_json(path, "run it again")
    assert table == {"a": {"b": 1}, "c": [{"d": 2}]} and json.loads(json.dumps(table)) == table
    for part in (table, table["a"], table["c"][0]):
        with pytest.raises(ValueError) as caught:
            part["x"]
        assert str(caught.value) == f"{path} has no 'x'; run it again" and isinstance(caught.value, KeyError)
    assert table.get("x") is None and "x" not in table


def test_files_of_other_editors_are_read_and_absent_ones_are_none(tmp_path):
    path = tmp_path / "table.json"
    path.write_bytes(b'\r\n{"a":\r\n1}\r\n')
    assert parse_json(path.read_bytes(), path) == {"a": 1}
    path.write_text('{"a": "ä"}', encoding="utf-16")
    assert parse_json(path.read_bytes(), path) == {"a": "ä"}
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert parse_json(path.read_bytes(), path) == {"a": 1}
    assert read_json(tmp_path / "none.json") is None and read_json(tmp_path) is None


def test_values_by_name_travel_between_processes_as_a_plain_dict():
    named = Named({"a": 1}, "no {}".format)
    assert pickle.loads(pickle.dumps(named)) == {"a": 1}
    with pytest.raises(MissingName, match="no b"):
        named["b"]
