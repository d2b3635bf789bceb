"""The error of one scene; those of others go on."""

from __future__ import annotations


class BadScene(ValueError):
    """A scene that cannot be read or whose meaning is unclear: what was found, what was expected, what to do."""
