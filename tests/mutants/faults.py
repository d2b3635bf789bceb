"""The faults of `faults.txt`: one line of a file each, its mutated text, and the tests that must notice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_name("faults.txt")


class Fault(NamedTuple):
    """file: from the top of the repository.  line, mutated: without indentation.  tests: as pytest takes them."""

    file: str
    line: str
    mutated: str
    tests: tuple[str, ...]

    @property
    def area(self) -> str:
        """The folder or file of dakd/ that it is in."""
        return self.file.split("/")[1].removesuffix(".py")


def read_faults(text: str) -> list[Fault]:
    """The faults of a list of the form of `faults.txt`; ValueError with the line that has no such form."""
    faults: list[Fault] = []
    file = before = ""
    tests: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("dakd/"):
            file, tests = line, []
        elif line.startswith("tests/"):
            tests.append(line)
        elif line.startswith("- ") and not before:
            before = line[2:]
        elif line.startswith("+ ") and before and file and tests:
            faults.append(Fault(file, before, line[2:], tuple(tests)))
            before = ""
        elif line.strip() and not line.startswith("#"):
            raise ValueError(f"line {number} is {line!r}; expected dakd/..., tests/..., or a line '- ' and one '+ '")
    return faults


FAULTS = read_faults(LIST.read_text())
