"""A file that cannot be used, and why."""

from __future__ import annotations

from pathlib import Path


class BadFile(Exception):
    """One file that cannot be used: its path and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason
