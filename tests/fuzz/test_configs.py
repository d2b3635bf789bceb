"""Configurations: any YAML is a valid experiment, or an error that names the file or the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fuzz.mutations import mutated_bytes, mutated_tree
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st

from dakd.config import Config, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TEXT = (CONFIGS / "demo.yaml").read_bytes()
TREE = yaml.safe_load(TEXT)
BOMB = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 122))
PLANTED = ("!!python/object/apply:os.system ['true']", "pipe:true", "${HOME}", "$(true)", "`true`", "${", "${A B}")
OVERRIDES = ("seed=", "seed", "=", "...=1", "train_saross.loss=1", "train_saross.loss.temperature=[", "a.b.c.d=1",
             "\0=\0", "seed=1")  # fmt: skip
KEYS = ("seed", "name", "train_saross.loss.temperature", "prepare.simulation.size", "generate", "x", "")
VALUES = (*PLANTED, "[", "{", "*a", "&a [*a]", "null", "1e400", "-1", "\0", "[" * 3000, "0x_", "2024-99-99")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "experiment.yaml"


def load(file: Path, data: bytes, overrides: list[str] | None = None) -> None:
    file.write_bytes(data)
    assert isinstance(load_config(file, overrides), Config)


@fuzzed
@given(data=mutated_bytes(TEXT))
def test_bytes_of_a_configuration(file, data):
    assert judge("config, bytes", lambda: load(file, data), file.name) in ("read", "refused")


@fuzzed
@given(tree=mutated_tree(TREE, values=PLANTED))
def test_values_of_a_configuration(file, tree):
    text = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    assert judge("config, values", lambda: load(file, text)) in ("read", "refused")


@fuzzed
@given(key=st.sampled_from(KEYS), value=st.sampled_from(VALUES), other=st.sampled_from(OVERRIDES))
def test_overrides_of_a_configuration(file, key, value, other):
    assert judge("config, overrides", lambda: load(file, TEXT, [f"{key}={value}", other])) in ("read", "refused")


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\xff\xfe\0\0", b"[" * 20_000, b"{a: " * 5000, BOMB, b"&a [*a]", b"a: &a {b: *a}",
     b"!!python/object/apply:os.system ['true']", b"%YAML 9.9\n---\na: 1", b"? [a]\n: 1", b"2020-99-99: 1"],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_documents_made_to_break_a_parser(file, data):
    assert judge("config, documents", lambda: load(file, data), file.name) == "refused"
