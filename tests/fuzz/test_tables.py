"""Tables of experiments: any YAML is a valid table, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fuzz.mutations import mutated_bytes, mutated_tree
from fuzz.test_configs import BOMB, PLANTED
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st

from dakd.ablate.spec import TableSpec, experiment, foreign_test, load_table, without_absent
from dakd.config import Config

TABLES = {path.name: path.read_bytes() for path in
          sorted((Path(__file__).resolve().parents[2] / "configs" / "ablate").glob("*.yaml"))}  # fmt: skip


@pytest.fixture
def file(tmp_path, monkeypatch):
    for name in ("OSD_ROOT", "SOS_ROOT", "DAKD_REAL_DATA"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path / "table.yaml"


def load(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert isinstance(load_table(file), TableSpec)


@fuzzed
@given(data=st.data())
def test_bytes_of_a_table(file, data):
    content = data.draw(mutated_bytes(TABLES[data.draw(st.sampled_from(sorted(TABLES)))]))
    assert judge("tables, bytes", lambda: load(file, content), file.name) in ("read", "refused")


@fuzzed
@given(data=st.data())
def test_values_of_a_table(file, data):
    tree = data.draw(mutated_tree(yaml.safe_load(TABLES[data.draw(st.sampled_from(sorted(TABLES)))]), values=PLANTED))
    text = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    assert judge("tables, values", lambda: load(file, text), file.name) in ("read", "refused")


@fuzzed
@given(data=st.data())
def test_cells_of_a_table(file, data):
    """What a valid table asks for is a valid experiment or an error; its base is read from where it says."""
    name = data.draw(st.sampled_from(sorted(TABLES)))
    folder = Path(__file__).resolve().parents[2] / "configs" / "ablate"
    tree = data.draw(mutated_tree(yaml.safe_load(TABLES[name]), values=PLANTED))
    file.write_bytes(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))

    def read() -> None:
        table, _ = without_absent(load_table(file))
        for dataset in table.datasets:
            for small in (False, True):
                for row in table.rows[:2]:
                    cell = experiment(table, row, dataset, table.seeds[0], folder, small, [])
                    assert isinstance(cell, Config) and cell.seed == table.seeds[0]
                foreign_test(table, dataset, folder, small, [])

    judge("tables, cells", read)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\xff\xfe\0\0", b"[" * 20_000, b"{a: " * 5000, BOMB, b"&a [*a]", b"rows: &a [{name: x, set: *a}]",
     b"!!python/object/apply:os.system ['true']", b"? [a]\n: 1", b"2020-99-99: 1"],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_documents_made_to_break_a_parser(file, data):
    assert judge("tables, documents", lambda: load(file, data), file.name) == "refused"
