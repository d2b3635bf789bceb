"""The record of a study, convergence.json: all numbers, written after each setting; a kill loses one at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dakd.convergence.settings import Setting
from dakd.runtime.sealed import read_json, write_json

CONVERGENCE = "convergence.json"
PAGE = "convergence.html"
SHEET = "contact_sheet.png"
GENERATE = "generate.yaml"  # a section for an experiment
REFERENCE_FILE = "reference.safetensors"  # the pairs that all settings are compared with
RESULTS = (CONVERGENCE, PAGE, SHEET, GENERATE, REFERENCE_FILE)
SET = "index.json"  # of shards, which have a contact sheet too
_HOW = "measure again with --overwrite, or give another folder"


class Record:
    """content: of the file; `made_with` decides the numbers, and `measured` has a row for each setting."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.path = folder / CONVERGENCE
        self.content = content

    @property
    def made_with(self) -> Mapping[str, Any]:
        return self.content["made_with"]

    def row(self, setting: Setting) -> dict[str, Any] | None:
        """The numbers of a setting; None where it is not measured yet."""
        rows = (row for row in self.content["measured"] if setting_of(row) == setting)
        return next(rows, None)

    def add(self, setting: Setting, numbers: Mapping[str, Any]) -> None:
        self.content["measured"].append({**setting._asdict(), "calls": setting.num_calls, **numbers})
        self.write()

    def write(self, **more: Any) -> None:
        self.content |= more
        write_json(self.path, self.content)


def setting_of(row: Mapping[str, Any]) -> Setting:
    return Setting(*(row[name] for name in Setting._fields))


def open_record(folder: Path, made_with: Mapping[str, Any], overwrite: bool) -> Record:
    """The record that a folder holds, or a new one.

    Raises ValueError where it was made with something else, unless `overwrite` is set, and where the folder holds files
    of these names without a record that they belong to.
    """
    content = None if overwrite else read_json(folder / CONVERGENCE, _HOW)
    if content is None:
        _refuse_foreign(folder, (SET,) if overwrite else (SET, *RESULTS))
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        return Record(folder, {"made_with": dict(made_with), "measured": []})
    found = content["made_with"]
    if other := [name for name in made_with if found.get(name) != made_with[name]]:
        listed = ", ".join(f"{name} {found.get(name)!r}, now {made_with[name]!r}" for name in other)
        raise ValueError(f"{folder / CONVERGENCE} was measured with {listed}; {_HOW}")
    return Record(folder, content)


def _refuse_foreign(folder: Path, names: Sequence[str]) -> None:
    if foreign := [name for name in names if (folder / name).exists()]:
        raise ValueError(
            f"{folder / foreign[0]} is there already, and no {CONVERGENCE} that it belongs to; give another folder, or "
            "move it away"
        )
