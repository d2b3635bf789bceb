"""What the sections of the report share."""

from __future__ import annotations

import json
from pathlib import Path

from dakd.data.sample import ClassTable
from dakd.evaluate import html


def read_json(path: Path) -> dict | None:
    """None where there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else None


def legend(classes: dict) -> str:
    """classes: a class table as it is written."""
    table = ClassTable.from_dict(classes)
    return html.legend(table.names, table.colours)
