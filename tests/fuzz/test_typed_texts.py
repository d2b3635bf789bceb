"""Texts that a user types or that files are called: an override keeps each as it is, and no two names share a file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from fuzz.test_configs import TEXT
from fuzz.verdict import fuzzed, judge
from hypothesis import assume, given
from hypothesis import strategies as st

from dakd.config import load_config
from dakd.names import file_part, hashed, unique_names

YAMLS = ("007", "0o17", "0x10", "1e3", "1_000", ".5", "1:30", "2021-06-01", "no", "Yes", "on", "null", "~", "true",
         "a #b", "#", "a: b", "- a", "[a", "{a}", "&a", "*a", "!a", "|", ">", "%", "@", "`", "'", '"', "a'b", "x=y",
         "=", "<<")  # fmt: skip
texts = st.one_of(
    st.sampled_from(YAMLS),
    st.text(max_size=40),
    st.text(st.characters(exclude_categories=()), max_size=12),  # halves of surrogate pairs too
    st.lists(st.sampled_from(YAMLS), min_size=2, max_size=3).map("".join),
)
PARTS = ("a", "A", "é", "e\u0301", "ß", "ss", "_", "/", "\\", "..", ".", " ", "~", "-", "\n", "\0", "\udc80", "con",
         "_class", "x" * 130, "油" * 50)  # fmt: skip
ENDINGS = ("_class.png", "_overlay.png")
names = st.one_of(st.lists(st.sampled_from(PARTS), max_size=5).map("".join), texts)
COUNTER = itertools.count()


@pytest.fixture
def file(tmp_path):
    (tmp_path / "experiment.yaml").write_bytes(TEXT)
    return tmp_path / "experiment.yaml"


@fuzzed
@given(key=st.sampled_from(["prepare.root", "train_saross.student.encoder", "name"]), text=texts)
def test_an_override_of_a_text_is_the_text_that_is_typed(file, key, text):
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    assume(not is_quoted and text != "null" and "${" not in text and text[:2] != "~/")

    def read() -> None:
        value = load_config(file, [f"{key}={text}"]).model_dump()
        for part in key.split("."):
            value = value[part]
        assert value == text

    assert judge("typed texts, overrides", read) in ("read", "refused")


@fuzzed
@given(inputs=st.lists(names, min_size=2, max_size=12, unique=True))
def test_each_input_gets_files_of_its_own_within_the_folder(tmp_path, inputs):
    folder = Path(tmp_path, str(next(COUNTER)))
    folder.mkdir()

    def write() -> None:
        for name in unique_names([(file_part(text), hashed(text)) for text in inputs], ENDINGS):
            for ending in ENDINGS:
                Path(folder, name + ending).touch(exist_ok=False)

    assert judge("typed texts, names of files", write) == "read"
    assert len(list(folder.iterdir())) == len(ENDINGS) * len(inputs)
