"""A table of the bad inputs, below pytest's own summary; all fuzz tests are slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.verdict import COUNTS


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).resolve().parent:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    if not COUNTS:
        return
    columns = ("tried", "read", "skipped", "refused")
    terminalreporter.write_line(f"{'bad inputs':<56}" + "".join(f"{column:>10}" for column in columns))
    for target, counts in sorted(COUNTS.items()):
        terminalreporter.write_line(f"{target:<56}" + "".join(f"{counts[column]:>10}" for column in columns))
    total = sum(counts["tried"] for counts in COUNTS.values())
    terminalreporter.write_line(f"{total} in all; none executed, hung, or refused unclearly if the tests passed")
