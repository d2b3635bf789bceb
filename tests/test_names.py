"""Names of outputs: safe on every file system, different for different inputs, the same in every set that allows."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest

from dakd.names import MAX_BYTES, file_part, hashed, is_file_part, same_file, unique_names, written_path

UNSAFE = [
    "", " ", ".", "..", "../x", "/etc/passwd", "a/../../b\\c", "a\\b", "C:x", "CON", "con", "nul.txt", "Lpt1", "COM¹",
    "aux .x", "a ", "a.", " a", "-rf", "~", ".hidden", "a\nb", "a\x00b", "a\x7fb", "a\u202eb", "a\u2028b", "\udcff",
    'a"b', "a?b", "x" * 121, "é" * 61, "🛰" * 64, "a" * 300, "CON" + "." * 300, "CON\x00" + "é" * 300,
]  # fmt: skip
PLAIN = ["a", "A", "S1A_IW_GRDH_1SDV_20210601T054512", "scenes 2021 #1", "a.png", "a@1", "a%1", "é", "油", "007",
         "null", "no", "a~b", "CONTROL", "x" * 120]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_a_name_that_every_file_system_takes_is_kept(text):
    assert is_file_part(text) and file_part(text) == text


@pytest.mark.parametrize("text", UNSAFE, ids=ascii)
def test_any_other_text_gets_a_safe_name_of_its_own(text, tmp_path):
    assert not is_file_part(text)
    name = file_part(text)
    assert is_file_part(name) and len(name.encode()) <= MAX_BYTES
    (tmp_path / f"{name}_class.png").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}_class.png"]


def test_no_name_can_be_taken_by_calling_a_file_like_the_name_of_another():
    for text in UNSAFE:
        name = file_part(text)
        assert file_part(name) != name and is_file_part(file_part(name))


@pytest.mark.parametrize("text", ["s3://bucket/x", "gs://b", "hf://a/b", "https://a.b/c", "file:///x", "a::s3://b/c"])
def test_a_url_is_no_path_to_write_to_and_as_a_path_object_neither(text):
    for path in (text, Path(text)):
        with pytest.raises(ValueError, match="is a URL; expected a path of this machine; give a local or mounted"):
            written_path(path)


def test_a_path_with_a_colon_is_no_url_and_an_empty_text_is_no_path():
    for text in ("runs/a:b", "12:30", "C:/x", "a:b/c", "/s3://x", ".", "a//b"):
        assert written_path(text) == Path(text)
    with pytest.raises(ValueError, match=r"the path is ''; expected a file or folder; give \. for"):
        written_path("")


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/a/b", Path("~/a/b")):
        assert written_path(path) == tmp_path / "a" / "b"
    for path in ("~", "~a/b", "a/~/b"):
        assert written_path(path) == Path(path)


def nasty_names(rng: random.Random, count: int) -> list[str]:
    parts = ["a", "A", "é", unicodedata.normalize("NFD", "é"), "ß", "ss", "ſ", "Å", "\u212b", "_", "/", "\\", ".", " ",
             "~", "-", "\n", "\x00", "\u200d", "\udc80", "con", "NUL", "_class", "_probability_", "_overlay", "x" * 130,
             "油" * 50]  # fmt: skip
    names = {"".join(rng.choices(parts, k=rng.randint(0, 5))) for _ in range(count)}
    return sorted(names | {file_part(name) for name in list(names)[:50]} | {hashed(name) for name in list(names)[:50]})


@pytest.mark.parametrize("seed", range(20))
def test_no_two_inputs_share_a_file_whatever_they_are_called(seed):
    rng = random.Random(seed)
    texts = nasty_names(rng, 400)
    parts = unique_names(
        [(file_part(name), hashed(name)) for name in ("oil", "Oil", "a/b", "a_b", "_class", "x_overlay")]
    )
    endings = ["_class.png", "_overlay.png", *(f"_probability_{part}.png" for part in parts)]
    choices = [(file_part(text), hashed(text)) for text in texts]
    names = unique_names(choices, endings)
    assert all(map(is_file_part, names)) and len({same_file(part) for part in parts}) == len(parts)
    assert len({same_file(name + ending) for name in names for ending in endings}) == len(names) * len(endings)
    # The order does not matter, and an input that clashes with none is called the same in every set.
    shuffled = rng.sample(range(len(texts)), len(texts))
    assert unique_names([choices[number] for number in shuffled], endings) == [names[number] for number in shuffled]
    for number in shuffled[:20]:
        if names[number] == choices[number][0]:
            assert unique_names([choices[number]], endings) == [names[number]]


def test_all_inputs_of_one_name_change_it_and_files_that_are_taken_are_left_alone():
    choices = [("a", "a.png"), ("a", "a.tif"), ("b", "b.png")]
    assert unique_names(choices) == ["a.png", "a.tif", "b"]
    assert unique_names(choices, ["_class.png"], taken=["B_CLASS.png"]) == ["a.png", "a.tif", "b.png"]
    with pytest.raises(ValueError, match="two inputs make files of one name, 'a'; expected a name for each"):
        unique_names([("a",), ("a",)])


def test_two_inputs_of_one_text_are_told_apart_by_what_they_are():
    first, second, plain = hashed("a?", "scenes/1"), hashed("a?", "scenes/2"), hashed("a?")
    assert len({first, second, plain}) == 3 and all(name.startswith("a_~") for name in (first, second, plain))
    assert unique_names([("a_", first), ("a_", second)]) == [first, second]
