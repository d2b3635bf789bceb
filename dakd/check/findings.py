"""What the checks yield: findings with a level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from dakd.data.readers import BadFile

Level = Literal["ok", "warn", "refused"]
Found = Iterator[tuple[Level, str]]


@dataclass(frozen=True)
class Finding:
    """level: "refused" where a step would end with this error."""

    topic: str
    level: Level
    text: str


def until_error(run: Callable[[], Found]) -> Found:
    """The findings of one check; an error that ends it is the last one."""
    try:
        yield from run()
    except (ValueError, RuntimeError, OSError, ImportError, BadFile) as error:
        yield "refused", str(error)


def as_level(level: Level, refuse: Callable[[], None]) -> Found:
    """What a step refuses of all files, of those that were read."""
    try:
        refuse()
    except ValueError as error:
        yield level, str(error)


def is_url(place: str) -> bool:
    return "://" in place
