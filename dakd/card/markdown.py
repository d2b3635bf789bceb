"""Text, tables, lists and code as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dakd.metrics.tables import format_cell


def plain(text: object) -> str:
    """Text that stays text within a line of Markdown or a cell of a table."""
    return re.sub(r"([|<>`*_\[\]\\])", r"\\\1", " ".join(str(text).split()))


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table; a column without a single value is left out."""
    columns = [place for place in range(len(header)) if any(row[place] is not None for row in rows)]
    lines = [[header[place] for place in columns], ["---" if place == 0 else "--:" for place in columns]]
    lines += [[plain(format_cell(row[place])) for place in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def pixels(size: Sequence[int] | None) -> str | None:
    return None if size is None else f"{size[0]} x {size[1]} pixels"


def fenced(language: str, text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
