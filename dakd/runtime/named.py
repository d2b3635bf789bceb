"""Values by name whose missing name is an error in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class MissingName(KeyError, ValueError):
    """A name that is not there; the message says which ones are, or what to do."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the message in quotation marks


class Named(dict):
    """A dict that raises MissingName. explain: the message for a name that is not there."""

    def __init__(self, values: Mapping[str, Any], explain: Callable[[str], str]) -> None:
        super().__init__(values)
        self._explain = explain

    def __missing__(self, name: str) -> Any:
        raise MissingName(self._explain(name))

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)  # a function does not fit into a pickle
