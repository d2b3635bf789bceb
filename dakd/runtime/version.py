"""Which code this is: the commit where it runs from a checkout, the package's version elsewhere."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from dakd import shipped

_ROOT = Path(__file__).resolve().parents[2]


@cache
def code_version() -> str:
    """A commit's 40 digits, `-dirty` behind them where tracked files differ; or `dakd 0.1.0`; or `unknown`."""
    # An installed package may lie in the folder of a repository that is not dakd's.
    if (_ROOT / ".git").exists() and not shipped.is_installed():
        command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
        except (OSError, subprocess.SubprocessError):  # no git here, or not our checkout to ask
            pass
    try:
        return f"dakd {metadata.version('dakd')}"
    except metadata.PackageNotFoundError:
        return "unknown"
